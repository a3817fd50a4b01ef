"""One shard: which images are left out, and that it is written whole or not at all."""

from __future__ import annotations

import errno
import os
import tarfile
from pathlib import Path

import orjson
import pytest
from coco_folder import image, picture, write
from PIL import Image
from shard_runs import contents, many

from autotimm.coco import index as coco
from autotimm.format.manifest_file import read_manifest
from autotimm.images.usable import AS_STORED
from autotimm.sharding import cli, writer
from autotimm.sharding.plan import plan_shards, sample_sizes


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
        "image cannot be opened (image left out)": 3,  # the cut TIFF and WebP among them
        "file is empty (0 bytes) (image left out)": 1,
        "file is not an image (PostScript): save it as PNG first (image left out)": 1,
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
    assert problems.pop(AS_STORED) == 6  # 2, 3, and squares
    assert problems == {
        "width or height missing (picture's taken)": len(paths) - 1,
        "file is a TIFF of 5 channels of 16-bit integers, which is not read: save one or three of "
        "its channels with 8 or 16 bits, uncompressed or by deflate (image left out)": 1,
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


def test_a_shard_of_nothing_is_not_written(tmp_path: Path) -> None:
    files = {f"{n}.jpg": picture() if n > 2 else b"x" for n in range(5)}
    images = [image(id=n, file_name=name) for n, name in enumerate(files)]
    write(tmp_path / "coco", images, [], files=files)
    manifest = cli.shard(tmp_path / "coco", tmp_path / "out", samples_per_shard=2)
    names = ["train-000001.tar", "train-000002.tar"]
    assert [s.name for s in manifest.splits["train"].shards] == names
    assert [s.samples for s in manifest.splits["train"].shards] == [1, 1]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tar")) == names


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
    before = contents(out)
    left = iter([0, 0])

    def fail(record: object) -> bytes:
        if next(left, None) is None:
            assert len(list(out.iterdir())) == 3  # the unfinished shard has another name
            raise error
        return orjson.dumps(record)

    monkeypatch.setattr(writer.orjson, "dumps", fail)
    with pytest.raises(type(error)):
        writer.write_shard(out, second, index)
    assert contents(out) == before


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
