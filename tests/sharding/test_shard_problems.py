"""What is odd in a source: counted and shown, or refused."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from coco_folder import SQUARE, annotation, image, picture, write
from shard_commands import run, two_splits

from autotimm.format.manifest_file import read_manifest

pytestmark = pytest.mark.usefixtures("one_worker")


@pytest.mark.parametrize("name", ["", ".", ".hid", "a\\b"])
@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_file_that_names_no_split_is_refused_before_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, flags: tuple[str, ...]
) -> None:
    coco, out = two_splits(tmp_path / "coco"), tmp_path / "out"
    (coco / "train").rename(coco / "images")
    file = coco / f"annotations/instances_{name}.json"
    file.write_text("not read")
    code, _, err = run(coco, *([] if flags else [out]), *flags, capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and f"{file}: names a split" in err
    assert not out.exists()
    assert run(coco, out, "--splits", "train", capsys=capsys)[0] == 0
    assert list(read_manifest(out).splits) == ["train"]


def test_problems_are_listed_with_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = [annotation(id=n, segmentation=[]) for n in range(2, 7)]
    images = [image(), image(id=2, file_name="[red]gone.jpg")]
    write(tmp_path / "coco", images, [annotation(), *odd])
    code, out, _ = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    lines = out.splitlines()
    assert code == 0
    assert "train: image file missing (image left out): 1 ([red]gone.jpg)" in lines
    assert (
        "train: no segmentation (instance left out): 5 "
        "(annotation 2 of a.jpg, annotation 3 of a.jpg, annotation 4 of a.jpg, ...)" in lines
    )
    assert "trains nothing" not in out
    write(tmp_path / "coco", annotations=[])
    _, out, _ = run(tmp_path / "coco", tmp_path / "out", "--overwrite", capsys=capsys)
    assert "train: there are no instances at all, so this split trains nothing" in out.splitlines()
    write(tmp_path / "coco", annotations=[annotation(iscrowd=1)])
    _, out, _ = run(tmp_path / "coco", tmp_path / "out", "--overwrite", capsys=capsys)
    assert (
        "train: there are no instances but crowds, so this split trains nothing" in out.splitlines()
    )


@pytest.mark.parametrize(
    "content",
    [
        {"annotations": [annotation(segmentation=[SQUARE[0], [1, 2]])]},
        {"images": [image(), image(id=2, file_name="gone.jpg")]},
        {"images": [image(), image(id=2, width=65)]},
    ],
)
def test_strict_refuses_anything_odd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict
) -> None:
    write(tmp_path / "coco", **content)
    code, out, err = run(tmp_path / "coco", tmp_path / "out", "--strict", capsys=capsys)
    assert code == 2 and not out and err.count("\n") == 1 and "--strict: split 'train'" in err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    write(tmp_path / "sound")
    assert run(tmp_path / "sound", tmp_path / "out", "--strict", capsys=capsys)[0] == 0


def test_what_is_no_plain_annotation_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "coco")
    file = tmp_path / "coco" / "annotations" / "instances_train.json"
    file.unlink()
    os.mkfifo(file)
    named = ["--annotations", "/dev/zero", "--images", tmp_path / "coco" / "train"]
    for arguments in ([tmp_path / "coco"], named):
        code, out, err = run(*arguments, tmp_path / "out", capsys=capsys)
        assert code == 2 and not out and err.count("\n") == 1 and "is no plain file" in err
    assert not (tmp_path / "out").exists()


def test_a_shard_without_a_usable_image_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [image(id=n, file_name=f"{n}.jpg") for n in range(9)]
    files = {f"{n}.jpg": b"broken" if n in (0, 3, 4, 5) else picture() for n in range(9)}
    write(tmp_path / "coco", images, [], files=files)
    out, flags = tmp_path / "out", ["--samples-per-shard", 3]
    for arguments in (["--dry-run"], [tmp_path / "all"], [out, "--part", "2/3"], [out]):
        code, printed, _ = run(tmp_path / "coco", *arguments, *flags, capsys=capsys)
        words = {"--dry-run": "; 2 shards would", "--part": "wrote 0 shards"}
        expected = next((words[a] for a in arguments if a in words), "wrote 2 shards in")
        assert code == 0 and expected in printed
    shards = read_manifest(out).splits["train"].shards
    assert [shard.name for shard in shards] == ["train-000000.tar", "train-000002.tar"]
    assert (out / "manifest.json").read_bytes() == (tmp_path / "all/manifest.json").read_bytes()
    code, printed, _ = run("--verify", out, capsys=capsys)
    assert code == 0 and "2 shards, 5 images" in printed


def test_new_ids_have_64_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    least, most = -(2**63), 2**63 - 1
    images = [image(id=least), image(id=most, file_name="b.jpg")]
    ids = [most, 1, most, 3, most]
    annotations = [annotation(id=id_, image_id=least) for id_ in ids]
    files = {"a.jpg": picture(), "b.jpg": picture()}
    write(tmp_path / "coco", images, annotations, files=files)
    code, out, _ = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 0 and "annotation id occurs twice (numbered anew): 2" in out
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        member = tar.extractfile("a.json")
        record = json.loads(member.read() if member else b"")
    assert [a["id"] for a in record["annotations"]] == [most, 1, 2, 3, 4]
    code, out, _ = run("--verify", tmp_path / "out", capsys=capsys)
    assert code == 0, out


def test_a_split_of_no_usable_image_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "coco", files={"a.jpg": b"broken"})
    code, _, err = run(tmp_path / "coco", tmp_path / "out", capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "no image can be used: image cannot be" in err
    assert not list((tmp_path / "out").iterdir())
