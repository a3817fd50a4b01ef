"""What happens to a run's folder, data and cache while it runs, for ``faults.py``."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fault_runs import SAMPLE, Life, checkpoints, final, fork, last_step, room, same, start, told

Result = tuple[int, int, list[str]]
EPOCHS = 3  # of 8 steps


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def _serve(folder: Path, place: Path) -> None:
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        place.with_suffix(".tmp").write_text(str(server.server_port))
        place.with_suffix(".tmp").rename(place)
        server.serve_forever()


def _served(root: Path) -> tuple[Any, str]:
    """A server of ``root/data`` as a process, and its URL."""
    place = root / "port"
    process = fork.Process(target=_serve, args=(root / "data", place), daemon=True)
    process.start()
    while not place.exists():
        time.sleep(0.01)
    return process, f"http://127.0.0.1:{place.read_text()}"


def _disturbed(
    folder: Path, change: Callable[[Path], object], line: tuple[str, ...] = (), url: bool = False
) -> Result:
    """A run that is disturbed after three steps: it ends whole, or with a line, and goes on."""
    found: list[str] = []
    with room(folder, "live") as root:
        shutil.copytree(SAMPLE, root / "data")
        process, data = _served(root) if url else (None, root / "data")
        more: dict[str, Any] = {"data": data, "max_epochs": EPOCHS, "log": root}
        if url:
            more["data_options"] = {"cache_dir": root / "cache"}
        try:
            life = start(root / "runs", pause=0.1, **more)
            life.until(3)
            change(root)
            code = life.wait()
            ended = code == 0 and last_step(root) == 8 * EPOCHS
            told_why = bool(line) and code == 2 and all(word in life.line() for word in line)
            if not (ended or told_why):
                found.append(f"exit {code}: {life.line() or life.said()[-400:]}")
        finally:
            if process is not None:
                process.kill()
    return 1, int(not found), found


def cache_removed(folder: Path, repeats: int) -> Result:
    """the cache of a URL's shards removed while the run reads them"""
    return _disturbed(folder, lambda root: shutil.rmtree(root / "cache"), url=True)


def _other_shard(root: Path) -> None:
    for kind in ("tar", "idx.npy"):
        shutil.copy(root / f"data/val-000000.{kind}", root / f"data/train-000000.{kind}")
    shutil.rmtree(root / "cache", ignore_errors=True)


def server_changes(folder: Path, repeats: int) -> Result:
    """a server has another shard of the same name while the run reads, and the cache is removed"""
    return _disturbed(folder, _other_shard, ("train-000000",), url=True)


def shards_removed(folder: Path, repeats: int) -> Result:
    """the folder of shards removed while the run reads it"""
    return _disturbed(folder, lambda root: shutil.rmtree(root / "data"), ("data",))


def shards_replaced(folder: Path, repeats: int) -> Result:
    """a shard replaced by another, by a rename, while the run reads it"""

    def change(root: Path) -> None:
        shutil.copy(root / "data/val-000000.tar", root / "data/new")
        (root / "data/new").rename(root / "data/train-000000.tar")

    return _disturbed(folder, change, ("train-000000",))


def shards_scribbled(folder: Path, repeats: int) -> Result:
    """bytes of a shard overwritten in place while the run reads it: skipped or refused, told"""

    def change(root: Path) -> None:
        with (root / "data/train-000000.tar").open("r+b") as file:
            file.seek(20_000)
            file.write(np.random.default_rng(0).bytes(40_000))

    return _disturbed(folder, change, ("data",))


def run_folder_removed(folder: Path, repeats: int) -> Result:
    """the folder of the run removed while it trains: the next checkpoints are whole"""
    return _disturbed(folder, lambda root: shutil.rmtree(root / "runs/version_0"))


def run_folder_moved(folder: Path, repeats: int) -> Result:
    """the folder of the run renamed while it trains: the next checkpoints are whole"""
    return _disturbed(folder, lambda root: (root / "runs/version_0").rename(root / "runs/mine"))


def checkpoints_removed(folder: Path, repeats: int) -> Result:
    """all files in `checkpoints` removed while it trains, also what is being written"""

    def change(root: Path) -> None:
        for _ in range(30):
            for path in (root / "runs/version_0/checkpoints").iterdir():
                path.unlink(missing_ok=True)
            time.sleep(0.02)

    return _disturbed(folder, change)


def one_folder_twice(folder: Path, repeats: int) -> Result:
    """a start in the folder of a run that still trains: it goes on too, or ends with a line"""
    found: list[str] = []
    for _ in range(repeats):
        with room(folder, "truth") as root:
            assert start(root, max_epochs=EPOCHS).wait() == 0
            truth, steps = final(root), set(told(root))
        with room(folder, "twice") as root:
            options: dict[str, Any] = {"max_epochs": EPOCHS, "version": "version_0", "pause": 0.05}
            first: Life = start(root, **options)
            first.until(4)
            second = start(root, **options)
            codes = [first.wait(), second.wait()]
            told_why = codes[1] == 2 and ".ckpt" in second.line()
            if codes[0] or (codes[1] and not told_why) or not same(final(root), truth):
                found.append(f"{codes}: {first.said()[-300:]} {second.said()[-300:]}")
            elif set(told(root)) != steps:
                found.append("other steps")
            elif os.path.realpath(root / "version_0/checkpoints/last.ckpt") != str(
                checkpoints(root)[-1][1].resolve()
            ):
                found.append("last.ckpt does not lead to the newest")
    return repeats, repeats - len(found), found


FAULTS = [
    cache_removed,
    server_changes,
    shards_removed,
    shards_replaced,
    shards_scribbled,
    run_folder_removed,
    run_folder_moved,
    checkpoints_removed,
    one_folder_twice,
]
