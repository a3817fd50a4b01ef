"""The tar of a shard: plain headers; buffers, threads and short writes change no byte."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from coco_folder import annotation, image, write
from PIL import Image
from shard_runs import contents, many

from autotimm.coco import index as coco
from autotimm.sharding import cli, tar_writer, writer
from autotimm.sharding.plan import plan_shards
from autotimm.sharding.tar_writer import TarWriter


def test_headers_are_plain_and_say_nothing_of_the_machine(tmp_path: Path) -> None:
    many(tmp_path / "coco")
    cli.shard(tmp_path / "coco", tmp_path / "out")
    data = (tmp_path / "out" / "train-000000.tar").read_bytes()
    assert len(data) % 10240 == 0 and not any(data[-1024:])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            ours = data[member.offset : member.offset + 512]
            plain = tarfile.TarInfo(member.name)
            plain.size = member.size
            with tarfile.open(fileobj=io.BytesIO(ours + bytes(9728 + member.size))) as one:
                assert one.getmembers()[0].name == member.name
            for field in ("mtime", "uid", "gid", "uname", "gname", "linkname"):
                assert getattr(member, field) == getattr(plain, field), field
            assert member.mode == 0o644 and member.isreg() and not member.pax_headers


def loaded(tmp_path: Path) -> tuple[coco.CocoIndex, writer.ShardPlan]:
    """The plan of a shard with more images than one write takes.

    Some cannot be used, some have problems, and two are larger than a buffer.
    """
    files, images, annotations = {}, [], []
    for n in range(30):
        width, height = (1200, 900) if n in (0, 14, 29) else (60, 40)
        noise = np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(noise).save(content, "BMP" if width > 60 else "PNG")
        files[f"{n}.png"] = b"" if n == 3 else content.getvalue()[: 99 if n == 13 else None]
        images.append(image(id=n, file_name=f"{n}.png", width=width + (n == 12), height=height))
        annotations += [annotation(id=2 * n + k, image_id=n) for k in range(2)]
        if n in (5, 12):  # the second is left out, so its problems do not count
            del annotations[-1]["bbox"]
    root = write(tmp_path / "coco", images, annotations, files=files)
    index = coco.load(root / "annotations/instances_train.json", root / "train")
    keys = [f"k{n}" for n in range(30)]
    (plan,) = plan_shards("t", keys, [1] * 30, 100, 10**9)
    return index, plan


def test_the_thread_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, plan = loaded(tmp_path)
    found = []
    for name, thread in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        done: list[int] = []
        written = writer.write_shard(tmp_path / name, plan, index, done.append, thread)
        assert sum(done) == len(plan.samples)
        found.append((contents(tmp_path / name), written.shards, written.problems.lines()))
    # With a small buffer for each image, and a slow thread.
    monkeypatch.setattr(tar_writer, "_BUFFER", 1 << 14)
    real = TarWriter._write

    def late(*given: object) -> None:
        time.sleep(0.005)
        real(*given)

    monkeypatch.setattr(TarWriter, "_write", late)
    (tmp_path / "late").mkdir()
    written = writer.write_shard(tmp_path / "late", plan, index, thread=True)
    found.append((contents(tmp_path / "late"), written.shards, written.problems.lines()))
    assert found[0] == found[1] == found[2]
    files, (shard,), problems = found[0]
    tar = files["t-000000.tar"]
    assert (len(tar), hashlib.sha256(tar).hexdigest()) == (shard.bytes, shard.sha256)
    assert len(tar) > 3 * 1200 * 900 * 3 and shard.samples == 27
    assert sorted(problems) == [
        "annotation is the same as another of its image (both kept): 27 (annotation 1 of 0.png,"
        " annotation 3 of 1.png, annotation 5 of 2.png, ...)",
        "annotation of an image that is left out (left out): 6 (3.png, 3.png, 12.png, ...)",
        "bbox missing (mask's taken): 1 (annotation 11 of 5.png)",
        "file is empty (0 bytes) (image left out): 1 (3.png)",
        "image cut off or broken (image left out): 1 (13.png)",
        "width and height are not the picture's (image left out): 1 (12.png)",
    ]
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        for member in members:
            if not member.name.endswith(".json"):
                number = int(member.name[1:].split(".")[0])
                assert members.extractfile(member).read() == index.image_path(number).read_bytes()


def test_a_disk_that_fills_up_under_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, plan = loaded(tmp_path)
    (tmp_path / "out").mkdir()
    real, sizes = os.write, []
    least = math.inf  # writes after which the disk is full

    def full(file: int, data: bytes) -> int:
        assert threading.current_thread() is not threading.main_thread()
        sizes.append(len(data))
        if len(sizes) > least:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    monkeypatch.setattr(writer.os, "write", full)
    writer.write_shard(tmp_path / "out", plan, index, thread=True)
    whole = contents(tmp_path / "out")
    writes = len(sizes)
    assert writes > 3
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    for number in range(writes):  # including the last one
        least = number
        sizes.clear()
        with pytest.raises(OSError, match="No space left"):
            writer.write_shard(tmp_path / "out", plan, index, thread=True)
        assert not contents(tmp_path / "out")
    least = math.inf
    writer.write_shard(tmp_path / "out", plan, index, thread=True)
    assert contents(tmp_path / "out") == whole


def test_a_thread_that_is_left_behind_writes_to_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def update(self, content: memoryview) -> None:
            begun.set()
            go_on.wait()

    monkeypatch.setattr(writer.hashlib, "sha256", Slow)
    with ThreadPoolExecutor(1) as pool:
        file = (tmp_path / "shard").open("xb")
        number = file.fileno()
        tar = TarWriter(file, pool)
        tar.room(5)[:] = b"bytes"
        tar.add(5)
        tar.flush()
        begun.wait()
        file.close()
        with (tmp_path / "other").open("xb") as other:
            assert other.fileno() == number
            go_on.set()
            with pytest.raises(ValueError, match="closed file"):
                tar.flush(last=True)
    assert contents(tmp_path) == {"shard": b"", "other": b""}


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(tmp_path / "coco")
    cli.shard(tmp_path / "coco", tmp_path / "out")
    real = writer.os.write
    monkeypatch.setattr(writer.os, "write", lambda fd, data: real(fd, data[:1000]))
    cli.shard(tmp_path / "coco", tmp_path / "slow")
    assert contents(tmp_path / "out") == contents(tmp_path / "slow")
