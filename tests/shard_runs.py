"""Sources and runs of autotimm-shard for several test files, also in other processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from coco_folder import annotation, image, picture, write
from servers import wait_until

from autotimm.sharding import cli, run

COMMAND = [sys.executable, "-c", "from autotimm.sharding.cli import main; main()"]


WORK = ".autotimm-shard"


FORK = multiprocessing.get_context("fork")


def source(root: Path, train: int = 7, val: int = 2) -> Path:
    """Two splits of different images, some with annotations, and one that is damaged."""
    for split, count in (("train", train), ("val", val)):
        images = [image(id=n, file_name=f"{n}.jpg", width=64 + n % 9) for n in range(count)]
        files = {f"{n}.jpg": picture(64 + n % 9) for n in range(count)}
        if split == "train":
            images.append(image(id=count, file_name="broken.jpg"))
            files["broken.jpg"] = b"broken"
        annotations = [annotation(id=n, image_id=n) for n in range(0, count, 2)]
        write(root, images, annotations, files=files, split=split)
    return root


def big_source(root: Path, count: int = 400) -> Path:
    """Images of a megabyte, all the same file: writing them takes a while."""
    images = [image(id=n, width=1600, height=1200) for n in range(count)]
    return write(root, images, [], files={"a.jpg": picture(1600, 1200, quality=90)})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != WORK}


def shard(*arguments: object) -> int:
    """Runs the command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    return int(exit_.value.code or 0)


def in_child(action: Callable[[], object]) -> int:
    """Runs a function in a forked process; returns its exit code, -9 after a kill -9."""
    child = FORK.Process(target=action)
    child.start()
    child.join()
    return int(child.exitcode or 0)


PAIRS = ("--samples-per-shard", 2)


@contextlib.contextmanager
def started(*arguments: object, shards: int = 1) -> Iterator[subprocess.Popen]:
    """Starts a real run in its own process group, and waits until it has finished some shards."""
    out = Path(str(arguments[1]))

    def under_way() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        return len(list(out.glob(f"{WORK}/train-*.json"))) >= shards

    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            wait_until(under_way)
            yield process
        finally:
            process.kill()


def stop_after(shards: int, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the command, and interrupts it after this number of shards."""
    real, calls = run.write_shard, iter(range(shards + 1))

    def write_shard(*args: object) -> object:
        if next(calls) == shards:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(run, "write_shard", write_shard)
        assert shard(*arguments, "--workers", 1) == 130


def many(root: Path, count: int = 7) -> Path:
    """A folder with a few images of different sizes and kinds, one without annotations."""
    kinds = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP", "webp": "WEBP"}
    files, images, annotations = {}, [], []
    for n in range(count):
        extension = list(kinds)[n % len(kinds)]
        name, width, height = f"pic.{n}.{extension}", 64 + n, 48 + n
        files[name] = picture(width, height, kinds[extension])
        images.append(image(id=n * 10, file_name=name, width=width, height=height))
        annotations += [annotation(id=n * 9 + k, image_id=n * 10) for k in range(n % 3)]
    return write(root, images, annotations, files=files)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
