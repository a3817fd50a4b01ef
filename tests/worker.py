"""A data worker that waits; in a module of its own, for a spawned process to import little."""

from __future__ import annotations

import threading
import time

from autotimm.streaming.workers import ignore_signals


def work(ready) -> None:
    # As those of libraries that the process has imported before.
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    ignore_signals(0)
    ready.set()
    time.sleep(1000)
