"""Images that two splits share are counted and told, by every verb that opens both splits."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from coco_folder import image, picture, write
from shard_commands import run

from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.doctor import run as doctor
from autotimm.format.manifest_file import read_manifest

pytestmark = pytest.mark.usefixtures("one_worker")
KIND = "image is in split 'train', too (kept)"


def folder(root: Path) -> Path:
    """Two of three images of val are train's: one under its name there, one under another."""
    pictures = [picture(quality=quality) for quality in (70, 80, 90)]
    names = ["a.jpg", "b.jpg", "c.jpg"]
    images = [image(id=n, file_name=name) for n, name in enumerate(names, 1)]
    write(root, images, files=dict(zip(names, pictures, strict=True)))
    other = [pictures[0], picture(quality=60), pictures[1]]
    return write(root, images, split="val", files=dict(zip(names, other, strict=True)))


def warned(data: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        InstanceSegmentationDataModule(data, image_size=64, num_workers=0).check("fit")
    return [str(one.message) for one in caught if "image is in split" in str(one.message)]


def test_shard_counts_them_by_their_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, out = folder(tmp_path / "coco"), tmp_path / "out"
    line = f"val: {KIND}: 2 (a.jpg, c.jpg, there b.jpg)"
    for flags in ([out, "--samples-per-shard", "1"], ["--dry-run"]):
        code, said, _ = run(coco, *flags, capsys=capsys)
        assert code == 0 and line in said.splitlines()
        assert "train: image is in split" not in said
    splits = read_manifest(out).splits
    assert splits["val"].problems == {KIND: 2} and splits["train"].problems == {}
    assert splits["val"].images == 3  # they stay where they are
    (told,) = warned(out)
    assert told.endswith(f"split 'val': {KIND}: 2")
    code, _, err = run(coco, "--dry-run", "--strict", capsys=capsys)
    assert code == 2 and err.endswith(f"--strict: split '{line.replace(':', chr(39) + ':', 1)}\n")


def test_shards_of_an_earlier_run_are_compared_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, out = folder(tmp_path / "coco"), tmp_path / "out"
    options = [coco, out, "--samples-per-shard", "1"]
    for part in ("1/2", "2/2"):
        code, said, _ = run(*options, "--part", part, capsys=capsys)
        assert code == 0 and KIND not in said  # who writes a part has not seen the others
    code, said, _ = run(*options, capsys=capsys)
    assert code == 0 and f"val: {KIND}: 2 (a.jpg, c.jpg, there b.jpg)" in said
    assert "wrote 0 shards, kept 6" in said


def test_a_folder_is_compared_by_name_and_bytes(tmp_path: Path) -> None:
    coco = folder(tmp_path / "coco")
    (told,) = warned(coco)
    assert told == f"{coco}, split 'val': {KIND}: 1 (a.jpg)"
    (found,) = (one for one in doctor.data(str(coco)) if one.name == "shared images")
    assert found.level == "warn" and found.text == f"val: {KIND}: 1 (a.jpg)"


def test_splits_of_one_folder_of_images(tmp_path: Path) -> None:
    coco = folder(tmp_path / "coco")
    for name, ids in (("train", (1, 2)), ("val", (2, 3))):
        file = coco / f"annotations/instances_{name}.json"
        content = json.loads(file.read_text())
        content["images"] = [one for one in content["images"] if one["id"] in ids]
        content["annotations"] = [{**content["annotations"][0], "image_id": ids[0]}]
        file.write_text(json.dumps(content))
    shutil.move(coco / "train", coco / "images")
    shutil.rmtree(coco / "val")
    assert [one.split("split 'val': ")[1] for one in warned(coco)] == [f"{KIND}: 1 (b.jpg)"]


def test_files_of_one_name_and_size_may_be_two_images(tmp_path: Path) -> None:
    write(tmp_path, files={"a.jpg": picture()})
    write(tmp_path, split="val", files={"a.jpg": picture()[:-3] + b"\0\xff\xd9"})
    assert (tmp_path / "train/a.jpg").stat().st_size == (tmp_path / "val/a.jpg").stat().st_size
    assert warned(tmp_path) == []
    assert [one for one in doctor.data(str(tmp_path)) if one.name == "shared images"] == []
