"""Report what DeepSpeed's first start waits for; torch before 2.14 waits silently.

There, the process that compiles an extension creates a file, and all others wait until it is gone.
A start that was killed leaves the file behind, and every later start would wait for ever without a
word.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.file_baton import FileBaton

SECONDS = 10.0
"""After so long a start reports what it waits for. It waits on, because compiling takes minutes."""


def report_waiting() -> None:
    """From now on, this process prints a line if it waits for such a file."""
    if not hasattr(FileBaton.wait, "__wrapped__"):
        FileBaton.wait = _reporting(FileBaton.wait)  # type: ignore[method-assign]


def _reporting(wait: Any) -> Any:
    @functools.wraps(wait)
    def reporting_wait(baton: FileBaton) -> None:
        path, end = Path(baton.lock_file_path), time.monotonic() + SECONDS
        while path.exists() and time.monotonic() < end:
            time.sleep(baton.wait_seconds)
        if path.exists() and os.environ.get("LOCAL_RANK", "0") == "0":
            print(
                f"waiting for {path}: another process compiles DeepSpeed there, which takes "
                "minutes. If none does, a start that was killed has left the file: remove it",
                file=sys.stderr,
                flush=True,
            )
        wait(baton)

    return reporting_wait


def left_locks() -> list[Path]:
    """The files, older than an hour, for which this version of torch would wait."""
    default = Path.home() / ".cache" / "torch_extensions"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or default)
    found = [*folder.glob("*/lock"), *folder.glob("*/*/lock")]
    if not found:
        return []
    from torch.utils import cpp_extension

    if not hasattr(cpp_extension, "FileBaton"):  # torch 2.14: the system unlocks what was killed
        return []
    return sorted(one for one in found if time.time() - one.stat().st_mtime > 3600)
