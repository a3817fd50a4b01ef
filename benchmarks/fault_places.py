"""Changes of a run's folder, data and environment, for ``faults.py``.

Each run is killed, something is changed, and it is started again with ``ckpt_path="last"``. It has
to go on behind its newest whole checkpoint, or to end with one line that says why.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_disks import small_shared_memory
from fault_runs import NOTHING, SAMPLE, checkpoints, last_step, room, start, told

Result = tuple[int, int, list[str]]


@dataclass
class Change:
    """A change between two starts.

    Attributes:
        change: of the folder of runs, which also holds the data as ``data``.
        before: called in the process of the second start.
        line: words of the one line with which it may end; empty if it has to go on.
        lost: whether newer checkpoints were damaged, so that it goes on from an older one.
        options: of the second start.
    """

    change: Callable[[Path], object] = lambda _: None
    before: Callable[[], object] = NOTHING
    line: tuple[str, ...] = ()
    lost: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def run(root: Path) -> Path:
    return root / "version_0"


def of_run(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (run(root) / name).write_bytes(content)


def edited(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        path = run(root) / name
        path.write_bytes(edit(path.read_bytes()))

    return change


def record(**values: Any) -> Callable[[Path], object]:
    return edited("run.json", lambda text: json.dumps(json.loads(text) | values).encode())


def last_is(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        last = run(root) / "checkpoints/last.ckpt"
        last.unlink()
        make(last)

    return change


def older_copy(root: Path) -> None:
    copy = root / "version_0_backup"
    shutil.copytree(run(root), copy, symlinks=True)
    checkpoints(copy)[-1][1].unlink()


def half_copied(root: Path) -> None:
    newest = checkpoints(root)[-1][1]
    content = newest.read_bytes()
    newest.with_name("step_99.ckpt").write_bytes(content[: len(content) // 2])
    newest.with_name(".step_99.ckpt.Xa83nf").write_bytes(content[:1000])


def emptied(root: Path) -> None:
    checkpoints(root)[-1][1].write_bytes(b"")


def read_only(root: Path) -> None:
    subprocess.run(["mount", "--bind", str(root), str(root)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(root)], check=True)


def clock(seconds: float) -> None:
    real = time.time
    time.time = lambda: real() + seconds


def environment(**values: str | None) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    time.tzset()


def limit(kind: int, most: int) -> None:
    if kind == resource.RLIMIT_NPROC:  # which does not hold for root
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(kind, (most, most))


def shard_missing(root: Path) -> None:
    (root / "data/train-000000.tar").unlink()


def shard_touched(root: Path) -> None:
    for path in (root / "data").iterdir():
        os.utime(path, (1, 1))


def shard_cut(root: Path) -> None:
    os.truncate(root / "data/train-000000.tar", 51200)


def shard_replaced(root: Path) -> None:
    """By another with the same names: that of the validation."""
    for kind in ("tar", "idx.npy"):
        shutil.copy(root / f"data/val-000000.{kind}", root / f"data/train-000000.{kind}")


def manifest_missing(root: Path) -> None:
    (root / "data/manifest.json").unlink()


def manifest_edited(root: Path) -> None:
    path = root / "data/manifest.json"
    path.write_text(path.read_text().replace('"images": 8', '"images": 9'))


def strange_files(root: Path) -> None:
    (root / "data/.DS_Store").write_bytes(b"\0")
    (root / "data/train-000000 (1).tar").write_bytes(b"")
    (run(root) / "checkpoints/step_x.ckpt").write_bytes(b"x")
    (run(root) / "checkpoints/step_7.ckpt (conflicted copy)").write_bytes(b"x")
    (run(root) / "checkpoints/notes.txt").write_text("x")


WORKERS: dict[str, Any] = {"num_workers": 2}
BY_NAME: dict[str, Change] = {
    "clock set back by a day": Change(before=functools.partial(clock, -86400.0)),
    "clock a year ahead": Change(before=functools.partial(clock, 3.2e7)),
    "run folder renamed": Change(lambda root: run(root).rename(root / "mine")),
    "run folder copied, the copy is older": Change(older_copy),
    "run folder read-only": Change(read_only, line=("Read-only",)),
    "last.ckpt dangling": Change(last_is(lambda path: path.symlink_to("nowhere.ckpt"))),
    "last.ckpt an empty folder": Change(last_is(Path.mkdir)),
    "last.ckpt a loop": Change(last_is(lambda path: path.symlink_to("last.ckpt"))),
    "checkpoints half copied": Change(half_copied),
    "newest checkpoint empty": Change(emptied, lost=True),
    "run.json truncated": Change(edited("run.json", lambda text: text[: len(text) // 2])),
    "run.json empty": Change(of_run("run.json", b"")),
    "run.json missing": Change(lambda root: (run(root) / "run.json").unlink()),
    "run.json of another run": Change(record(number=70, launch_id="torchrun-x", step=1)),
    "run.json with nulls": Change(
        record(number=None, starts=None, agents=None, logger_ids=None, process=None)
    ),
    "run.json of other types": Change(
        record(number="7", starts="x", agents=7, logger_ids=[1], process=[], status={})
    ),
    "metrics.csv: half a line": Change(edited("metrics.csv", lambda text: text + b"1,2")),
    "metrics.csv: CRLF": Change(edited("metrics.csv", lambda t: t.replace(b"\n", b"\r\n"))),
    "metrics.csv: no header": Change(edited("metrics.csv", lambda t: t.partition(b"\n")[2])),
    "metrics.csv: a column more": Change(edited("metrics.csv", lambda t: t.replace(b"\n", b",\n"))),
    "metrics.csv: binary": Change(of_run("metrics.csv", bytes(range(256)) * 4)),
    "hparams.yaml edited": Change(of_run("hparams.yaml", b"!!python/object: {[")),
    "files of other programs": Change(strange_files),
    "umask 077": Change(before=functools.partial(os.umask, 0o077)),
    "HOME and USER unset": Change(before=functools.partial(environment, HOME=None, USER=None)),
    "TMPDIR missing": Change(
        before=functools.partial(environment, TMPDIR="/nowhere"), options=WORKERS
    ),
    "an unknown locale and time zone": Change(
        before=functools.partial(environment, LANG="xx_YY.koi8", LC_ALL="xx", TZ="Nowhere/X")
    ),
    "stdout and stderr closed": Change(before=lambda: (os.close(1), os.close(2))),
    "stdin closed": Change(before=functools.partial(os.close, 0), options=WORKERS),
    "64 open files": Change(
        before=functools.partial(limit, resource.RLIMIT_NOFILE, 64), line=("a run needs", "ulimit")
    ),
    "64 open files, 2 workers": Change(
        before=functools.partial(limit, resource.RLIMIT_NOFILE, 64),
        options=WORKERS,
        line=("open files with 2 data workers", "ulimit"),
    ),
    "no process more": Change(
        lambda root: subprocess.run(["chmod", "-R", "a+rwX", str(root)], check=True),
        before=functools.partial(limit, resource.RLIMIT_NPROC, 1),
        options=WORKERS,
        line=("ulimit -u",),
    ),
    "/dev/shm of 64 kB": Change(
        before=small_shared_memory, options=WORKERS, line=("shared memory",)
    ),
    "shards touched": Change(shard_touched),
    "a shard missing": Change(shard_missing, line=("train-000000.tar",)),
    "a shard cut off": Change(shard_cut, line=("train-000000.tar",)),
    "a shard replaced": Change(shard_replaced, line=("train-000000",)),
    "manifest.json missing": Change(manifest_missing, line=("manifest",)),
    "manifest.json edited": Change(manifest_edited, line=("manifest.json",)),
}
EPOCHS = 2  # of 8 steps


def tried(folder: Path, change: Change) -> list[str]:
    """What is found where a run is killed, changed and started again."""
    with room(folder, "place") as root:
        shutil.copytree(SAMPLE, root / "data")
        more: dict[str, Any] = {"data": root / "data", "max_epochs": EPOCHS}
        more |= {"version": "version_0"}  # so that it goes on in its folder
        life = start(root, 1, **more)
        life.until(5)
        life.kill()
        before = last_step(root)
        change.change(root)
        try:
            return _after(root, change, before, more | change.options)
        finally:
            subprocess.run(["umount", "-q", str(root)], capture_output=True, check=False)


def _after(root: Path, change: Change, before: int, more: dict[str, Any]) -> list[str]:
    log = root.parent / "log"  # where it can be written, even if ``root`` cannot
    shutil.rmtree(log, ignore_errors=True)
    log.mkdir(mode=0o777)
    log.chmod(0o777)  # for the start as another user
    again = start(root, 1, change.before, log=log, **more)
    code, steps = again.wait(), again.steps()
    if code == 0 and last_step(root) == 8 * EPOCHS and steps[:1] == [before + 1 - change.lost]:
        return []
    if change.line:
        if code == 2 and all(word in again.line() for word in change.line):
            return []
        return [f"exit {code}, from {steps[:1]}: {again.line() or again.said()[-500:]}"]
    return [f"exit {code}, from {steps[:1]} after {before}: {again.line() or again.said()[-700:]}"]


def two_at_once(folder: Path, repeats: int) -> Result:
    """two runs started in one folder at once, then a third with `last`"""
    found: list[str] = []
    for _ in range(repeats):
        with room(folder, "two") as root:
            both = [start(root, 1, max_epochs=EPOCHS, ckpt_path=None) for _ in range(2)]
            codes = [life.wait() for life in both]
            folders = sorted(path.parent.parent.name for _, path in checkpoints(root))
            if codes != [0, 0] or set(folders) != {"version_0", "version_1"}:
                found.append(f"{codes}, {folders}")
            if start(root, 1, max_epochs=EPOCHS + 1).wait() != 0 or last_step(root) != 24:
                found.append("a third does not go on")
            if len(told(root)) != 40:
                found.append(f"{len(told(root))} steps of 40")
    return repeats, repeats - min(len(found), repeats), found


def _fault(name: str, change: Change) -> Callable[[Path, int], Result]:
    def fault(folder: Path, repeats: int) -> Result:
        found = tried(folder, change)
        return 1, int(not found), found

    fault.__doc__ = name
    fault.__name__ = "".join(c if c.isalnum() else "_" for c in name.lower())
    return fault


FAULTS = [two_at_once, *(_fault(name, change) for name, change in BY_NAME.items())]
