"""Shards against tarfile, pycocotools and webdataset; the plan; failed runs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest
import webdataset
from coco_folder import annotation, image, picture, write
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from autotimm.coco import index as coco
from autotimm.coco import layouts
from autotimm.format.index import build_index, read_index
from autotimm.format.manifest_file import read_manifest
from autotimm.sharding import cli, run, tar_writer, writer
from autotimm.sharding.outcome import Written
from autotimm.sharding.plan import make_keys, plan_shards, sample_sizes
from autotimm.sharding.tar_writer import TarWriter, tar_header
from autotimm.structures import InputError


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


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["coco_mini", "fruits_nuts", "balloon", "microscopy_flakes"])
def test_real_shards_hold_every_byte_and_every_mask(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    source = shared_data / name
    manifest = cli.shard(source, tmp_path / "out", samples_per_shard=33)
    assert read_manifest(tmp_path / "out") == manifest
    for split in layouts.find_splits(source).values():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(split.annotation_file))
        info = manifest.splits[split.name]
        assert info.images == len(truth.imgs) and info.instances == len(truth.anns)
        assert info.crowd == sum(a["iscrowd"] for a in truth.anns.values())
        index = coco.load(split.annotation_file, split.image_folder)
        seen = 0
        for shard in info.shards:
            data = (tmp_path / "out" / shard.name).read_bytes()
            assert len(data) == shard.bytes and hashlib.sha256(data).hexdigest() == shard.sha256
            content = (tmp_path / "out" / shard.index).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard.index_sha256
            rows = read_index(content, shard)
            assert np.array_equal(rows, build_index(data))
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                members = archive.getmembers()
                assert len(members) == 2 * shard.samples
                for row, picture_, text in zip(rows, members[::2], members[1::2], strict=True):
                    assert (picture_.offset_data, picture_.size) == (row[0], row[1])
                    assert (text.offset_data, text.size) == (row[2], row[3])
                    record = json.loads(archive.extractfile(text).read())  # type: ignore[union-attr]
                    assert record == index.record(seen)
                    seen += 1
                    original = split.image_folder / truth.imgs[record["image_id"]]["file_name"]
                    assert archive.extractfile(picture_).read() == original.read_bytes()  # type: ignore[union-attr]
                    assert (record["width"], record["height"], record["image_id"]) == tuple(row)[
                        4:7
                    ]
                    for made in record["annotations"]:
                        expected = truth.annToRLE(truth.anns[made["id"]])
                        made_rle = made["segmentation"]
                        assert made_rle["size"] == list(expected["size"])
                        assert coco_mask.iou([made_rle], [expected], [0]) == 1
                        assert coco_mask.area(made_rle) == coco_mask.area(expected)
        assert seen == info.images


def test_the_webdataset_library_reads_them(tmp_path: Path) -> None:
    many(tmp_path / "coco")
    cli.shard(tmp_path / "coco", tmp_path / "out", samples_per_shard=3)
    names = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    assert len(names) == 3
    samples = list(webdataset.WebDataset(names, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"pic_{n}" for n in range(7)]
    for n, sample in enumerate(samples):
        record = json.loads(sample["json"])
        (extension,) = {"jpg", "png", "bmp", "webp"} & set(sample)
        assert sample[extension] == (tmp_path / "coco/train" / record["file_name"]).read_bytes()
        assert record["image_id"] == n * 10 and len(record["annotations"]) == n % 3


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


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    many(tmp_path / "one")
    many(tmp_path / "two")
    for name in ("one", "two"):
        cli.shard(tmp_path / name, tmp_path / f"{name}_out", samples_per_shard=3)
    assert files_of(tmp_path / "one_out") == files_of(tmp_path / "two_out")
    assert len(files_of(tmp_path / "one_out")) == 7


# The plan.


@pytest.mark.parametrize("seed", range(30))
def test_a_plan_holds_every_sample_once_in_order_within_its_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1000, 90_000, rng.integers(1, 300)).tolist()
    keys = [f"k{n}" for n in range(len(sizes))]
    samples, room = int(rng.integers(1, 40)), int(rng.integers(50_000, 900_000))
    plans = plan_shards("val", keys, sizes, samples, room)
    assert [s for p in plans for s in p.samples] == list(enumerate(keys))
    assert [p.name for p in plans] == [f"val-{n:06d}.tar" for n in range(len(plans))]
    for plan, following in itertools.zip_longest(plans, plans[1:]):
        filled = sum(sizes[i] for i, _ in plan.samples)
        assert 1 <= len(plan.samples) <= samples
        assert filled <= room - 10240 or len(plan.samples) == 1
        if following:  # no shard ends early
            more = sizes[following.samples[0][0]]
            assert len(plan.samples) == samples or filled + more > room - 10240


def test_the_limit_of_bytes_holds(tmp_path: Path) -> None:
    many(tmp_path / "coco", 40)
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out", max_shard_size=60_000)
    sizes = [s.bytes for s in manifest.splits["train"].shards]
    assert len(sizes) > 3 and max(sizes) <= 60_000


def test_keys_are_unique_safe_and_as_near_the_name_as_can_be() -> None:
    names = [
        "000000000139.jpg",
        "a/b.c.jpg",
        "a_b_c.png",
        "a_b_c.jpg",
        "ü ñ/日.jpg",
        "....jpg",
        "x" * 300 + ".jpg",
        "x" * 301 + ".jpg",
        "__meta__.jpg",
        "same.jpg",
        "same.jpg",
        "same-10.jpg",
        "--rf.jpg",
        "_-.jpg",
    ]
    keys = make_keys((name, n) for n, name in enumerate(names))
    assert keys[:4] == ["000000000139", "a_b_c", "a_b_c-2", "a_b_c-3"]
    assert keys[9:] == ["same", "same-10", "same-10-11", "rf", "image-13"]
    assert len(set(keys)) == len(keys) == len(names)
    assert all(0 < len(key) < 95 and key.isascii() and "." not in key for key in keys)
    assert all(key.replace("_", "").replace("-", "").isalnum() for key in keys)
    assert all(key[0].isalnum() for key in keys), "'-' begins an option of tar's"
    # A tar has room for a name with the longest id.
    same = ("x" * 100, 0), ("x" * 101, -(2**63)), ("x" * 102, -(2**63) + 1)
    assert all(tar_header(f"{key}.json", 0) for key in make_keys(same))


# Images that cannot be used, and some that only look damaged.


def test_images_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path) -> None:
    whole = picture(200, 150)
    png = picture(90, 70, "PNG")
    files = {
        "good.jpg": whole,
        "cut.jpg": whole[: len(whole) // 2],
        "end.jpg": whole[:-600],
        "cut.png": png[:-400],
        "cut.bmp": picture(200, 150, "BMP")[:-600],
        "cut.tif": picture(200, 150, "TIFF", compression="tiff_lzw")[:-600],
        "cut.webp": picture(200, 150, "WEBP")[:-600],
        "text.jpg": b"hello",
        "empty.jpg": b"",
        "small.jpg": picture(),
        "padded.jpg": whole + bytes(5000),  # some cameras do that
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 200 150\n",
    }
    images = [image(id=n, file_name=name, width=200, height=150) for n, name in enumerate(files)]
    images[3] |= {"width": 90, "height": 70}
    write(tmp_path / "coco", images, [], files=files)
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out")
    info = manifest.splits["train"]
    assert info.images == 2
    assert info.problems == {
        "image cut off or broken (image left out)": 4,
        "image cannot be opened (image left out)": 5,  # the cut TIFF and WebP among them
        "width and height are not the picture's (image left out)": 1,
    }
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        assert archive.getnames() == ["good.jpg", "good.json", "padded.jpg", "padded.json"]


def test_exif_rotation_is_understood_and_bytes_stay(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        f"{kind}.{kind}": picture(
            90, 60, kind.upper().replace("JPG", "JPEG"), exif=turned.tobytes()
        )
        for kind in ("jpg", "png", "webp")
    }
    images = [image(id=n, file_name=f, width=60, height=90) for n, f in enumerate(files)]
    images += [image(id=9, file_name="jpg.jpg", width=90, height=60)]
    images += [image(id=10, file_name="jpg.jpg", width=60, height=91)]
    write(tmp_path / "coco", images, [], files=files)
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out")
    assert manifest.splits["train"].images == 4
    assert manifest.splits["train"].problems == {
        "file_name occurs twice (both images kept)": 2,
        "width and height are not the picture's (image left out)": 1,
    }
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        assert archive.extractfile("jpg.jpg").read() == files["jpg.jpg"]  # type: ignore[union-attr]


def test_the_extension_is_that_of_the_actual_format(tmp_path: Path) -> None:
    files = {"a.jpg": picture(kind="PNG"), "b": picture(), "c.JPEG": picture(kind="MPO")}
    files |= {"d.dat": picture(kind="TIFF"), "e.png": picture(kind="GIF")}
    images = [image(id=n, file_name=name) for n, name in enumerate(files)]
    write(tmp_path / "coco", images, [], files=files)
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out")
    assert not manifest.splits["train"].problems
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        assert archive.getnames()[::2] == ["a.png", "b.jpg", "c.jpg", "d.tif", "e.gif"]


def test_all_image_modes_of_the_wild(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted((shared_data / "odd" / "image_modes").glob("*/*"))
    images = [image(id=n, file_name=p.name, width=...) for n, p in enumerate(paths)]
    write(tmp_path / "coco", images, [], files={p.name: p.read_bytes() for p in paths})
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out")
    assert manifest.splits["train"].images == len(paths) - 1
    problems = manifest.splits["train"].problems
    assert problems.pop(writer._AS_STORED) == 6  # 2, 3, and squares
    assert problems == {
        "width or height missing (picture's taken)": len(paths) - 1,
        "image cannot be opened (image left out)": 1,  # five channels
    }


def test_an_image_that_goes_away_is_counted(tmp_path: Path) -> None:
    many(tmp_path / "coco", 2)
    index = coco.load(tmp_path / "coco/annotations/instances_train.json", tmp_path / "coco/train")
    index.image_path(0).unlink()
    (plan,) = plan_shards("t", ["a", "b"], sample_sizes(index, range(2)), 10, 10**6)
    (tmp_path / "out").mkdir()
    written = writer.write_shard(tmp_path / "out", plan, index)
    assert written.images == 1 and written.shards[0].samples == 1
    assert written.problems.counts == {
        "cannot be read: No such file or directory (image left out)": 1
    }
    index.image_path(1).unlink()
    written = writer.write_shard(tmp_path / "out", plan, index)
    assert not written.shards and written.images == 0


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
        found.append((files_of(tmp_path / name), written.shards, written.problems.lines()))
    # With a small buffer for each image, and a slow thread.
    monkeypatch.setattr(tar_writer, "_BUFFER", 1 << 14)
    real = TarWriter._write

    def late(*given: object) -> None:
        time.sleep(0.005)
        real(*given)

    monkeypatch.setattr(TarWriter, "_write", late)
    (tmp_path / "late").mkdir()
    written = writer.write_shard(tmp_path / "late", plan, index, thread=True)
    found.append((files_of(tmp_path / "late"), written.shards, written.problems.lines()))
    assert found[0] == found[1] == found[2]
    files, (shard,), problems = found[0]
    tar = files["t-000000.tar"]
    assert (len(tar), hashlib.sha256(tar).hexdigest()) == (shard.bytes, shard.sha256)
    assert len(tar) > 3 * 1200 * 900 * 3 and shard.samples == 27
    assert sorted(problems) == [
        "annotation of an image that is left out (left out): 6 (3.png, 3.png, 12.png, ...)",
        "bbox missing (mask's taken): 1 (annotation 11 of 5.png)",
        "image cannot be opened (image left out): 1 (3.png)",
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
    whole = files_of(tmp_path / "out")
    writes = len(sizes)
    assert writes > 3
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    for number in range(writes):  # including the last one
        least = number
        sizes.clear()
        with pytest.raises(OSError, match="No space left"):
            writer.write_shard(tmp_path / "out", plan, index, thread=True)
        assert not files_of(tmp_path / "out")
    least = math.inf
    writer.write_shard(tmp_path / "out", plan, index, thread=True)
    assert files_of(tmp_path / "out") == whole


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
    assert files_of(tmp_path) == {"shard": b"", "other": b""}


def test_a_shard_of_nothing_is_not_written(tmp_path: Path) -> None:
    files = {f"{n}.jpg": picture() if n > 2 else b"x" for n in range(5)}
    images = [image(id=n, file_name=name) for n, name in enumerate(files)]
    write(tmp_path / "coco", images, [], files=files)
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out", samples_per_shard=2)
    names = ["train-000001.tar", "train-000002.tar"]
    assert [s.name for s in manifest.splits["train"].shards] == names
    assert [s.samples for s in manifest.splits["train"].shards] == [1, 1]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tar")) == names


# Failed runs.


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing_of_that_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    many(tmp_path / "coco")
    index = coco.load(tmp_path / "coco/annotations/instances_train.json", tmp_path / "coco/train")
    keys = [f"k{n}" for n in range(7)]
    first, second = plan_shards("train", keys, [1] * 7, 4, 10**9)
    out = tmp_path / "out"
    out.mkdir()
    writer.write_shard(out, first, index)
    before = files_of(out)
    left = iter([0, 0])

    def fail(record: object) -> bytes:
        if next(left, None) is None:
            assert len(list(out.iterdir())) == 3  # the unfinished shard has another name
            raise error
        return orjson.dumps(record)

    monkeypatch.setattr(writer.orjson, "dumps", fail)
    with pytest.raises(type(error)):
        writer.write_shard(out, second, index)
    assert files_of(out) == before


def test_a_stopped_run_leaves_no_shards_and_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tmp_path / "coco")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "backup-000000.tar").write_text("mine")
    calls = iter(range(2))

    def fail(*args: object, **options: object) -> Written:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return writer.write_shard(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "write_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        cli.shard(tmp_path / "coco", tmp_path / "out", samples_per_shard=4)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".autotimm-shard", "backup-000000.tar", "notes.txt"]


def test_an_image_whose_size_cannot_be_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a network file system, on which an open file may disappear."""
    many(tmp_path / "coco")
    real, stale = os.fstat, (tmp_path / "coco/train/pic.1.png").stat().st_ino

    def fstat(file: int) -> os.stat_result:
        found = real(file)
        if found.st_ino == stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found

    monkeypatch.setattr(writer.os, "fstat", fstat)
    cli.shard(tmp_path / "coco", tmp_path / "out")
    split = read_manifest(tmp_path / "out").splits["train"]
    assert split.images == 6
    assert "cannot be read: Stale file handle (image left out)" in split.problems


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(tmp_path / "coco")
    cli.shard(tmp_path / "coco", tmp_path / "out")
    real = writer.os.write
    monkeypatch.setattr(writer.os, "write", lambda fd, data: real(fd, data[:1000]))
    cli.shard(tmp_path / "coco", tmp_path / "slow")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "slow")


def test_categories_of_the_splits_are_joined_or_refused(tmp_path: Path) -> None:
    write(tmp_path / "coco", categories=[{"id": 3, "name": "disc"}, {"id": 9, "name": "x"}])
    write(
        tmp_path / "coco",
        categories=[{"id": 3, "name": "disc"}, {"id": 5, "name": "y"}],
        split="val",
    )
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out")
    assert [(c.id, c.name) for c in manifest.categories] == [(3, "disc"), (5, "y"), (9, "x")]
    write(tmp_path / "coco", categories=[{"id": 3, "name": "square"}], split="val")
    with pytest.raises(InputError, match="category 3 is 'square', but 'disc' in another split"):
        cli.shard(tmp_path / "coco", tmp_path / "out", overwrite=True)
    assert read_manifest(tmp_path / "out") == manifest  # refused before anything was removed


def test_the_bundled_sample_is_whole() -> None:
    folder = Path(__file__).parents[2] / "shards" / "sample"
    manifest = read_manifest(folder)
    assert {name: split.images for name, split in manifest.splits.items()} == {"train": 8, "val": 4}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    for split in manifest.splits.values():
        for shard in split.shards:
            data = (folder / shard.name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard.sha256
            index = (folder / shard.index).read_bytes()
            assert hashlib.sha256(index).hexdigest() == shard.index_sha256
            assert np.array_equal(read_index(index, shard), build_index(data))


def test_the_code_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    (code,) = re.findall(r"```python\n(.*?)```", (root / "shards/README.md").read_text(), re.DOTALL)
    with contextlib.chdir(root):
        exec(compile(code, "README", "exec"), {})  # noqa: S102 (our own)
    assert capsys.readouterr().out.count("(160, 160)") == 8


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 2), (64, 8)])
def test_by_default_each_cpu_has_a_worker_up_to_eight(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cpus: int,
    workers: int,
) -> None:
    monkeypatch.setattr(run, "usable_cpus", lambda: cpus)
    folders = map(str, (many(tmp_path / "coco", 9), tmp_path / "out"))
    with pytest.raises(SystemExit):
        cli.main([*folders, "--samples-per-shard", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["workers"] == workers
