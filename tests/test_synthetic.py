"""The painted dataset: pycocotools reads the painted pixels from its files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from autotimm.data import synthetic
from autotimm.data.painting import CATEGORIES, MIN_VISIBLE, Painted, paint
from autotimm.data.synthetic import main, make_dataset
from autotimm.structures import InputError

SIZE = (96, 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=48, val=4, size=SIZE, seed=1)
    return folder


@pytest.fixture(scope="module")
def coco(folder: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "annotations/instances_train2017.json"))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def repaint(number: int) -> list[Painted]:
    """The instances of picture ``number`` of the training split, painted again."""
    rng = np.random.default_rng([1, 0, number])
    empty, crowd = number % 16 == 15, number % 12 == 6
    return paint(rng, *SIZE, instances=0 if empty else None, crowd=crowd)[1]


def test_pycocotools_reads_the_masks_that_were_painted(coco: COCO) -> None:
    for number, image in enumerate(coco.dataset["images"]):
        annotations = coco.imgToAnns[image["id"]]
        painted = repaint(number)
        assert len(annotations) == len(painted)
        for annotation, one in zip(annotations, painted, strict=True):
            mask = coco.annToMask(annotation)
            np.testing.assert_array_equal(mask, one.mask)
            assert annotation["category_id"] == CATEGORIES[one.category]
            assert annotation["area"] == mask.sum() >= MIN_VISIBLE * one.full_area > 0
            rows, cols = np.nonzero(mask)
            x, y, w, h = annotation["bbox"]
            assert (x, y) == (cols.min(), rows.min())
            assert (x + w, y + h) == (cols.max() + 1, rows.max() + 1)


def test_no_pixel_belongs_to_two_instances(coco: COCO) -> None:
    for instances in filter(None, coco.imgToAnns.values()):
        assert np.sum([coco.annToMask(one) for one in instances], axis=0).max() == 1


def test_masks_are_the_shapes(coco: COCO) -> None:
    """The area and corners of whole instances, found by OpenCV, are those of their shape."""
    corners = {"square": 4, "triangle": 3, "star": 10}
    names = {category_id: name for name, category_id in CATEGORIES.items()}
    seen = set()
    for annotation in coco.dataset["annotations"]:
        if not isinstance(annotation["segmentation"], list) or annotation["area"] < 300:
            continue
        name = names[annotation["category_id"]]
        seen.add(name)
        points = np.array(annotation["segmentation"][0], np.float32).reshape(-1, 2)
        assert annotation["area"] == pytest.approx(cv2.contourArea(points), rel=0.1)
        radius = cv2.minEnclosingCircle(points)[1]
        assert 0.14 * min(SIZE) <= 2 * radius <= 0.46 * min(SIZE)
        if name == "disc":
            assert annotation["area"] == pytest.approx(np.pi * radius**2, rel=0.1)
        else:
            assert len(points) == corners[name]
            full = {"square": 2.0, "triangle": 1.3, "star": 10 * 0.42 * 0.2939}[name]
            assert annotation["area"] == pytest.approx(full * radius**2, rel=0.15)
    assert seen == set(CATEGORIES)


def test_instances_can_be_seen(folder: Path, coco: COCO) -> None:
    """Instances change the picture, not only the annotation file."""
    contrasts = []
    for image in coco.dataset["images"]:
        picture = cv2.imread(str(folder / "train2017" / image["file_name"])).astype(float)
        assert picture.shape == (*SIZE, 3)
        for annotation in coco.imgToAnns[image["id"]]:
            mask = coco.annToMask(annotation)
            ring = cv2.dilate(mask, np.ones((9, 9), np.uint8)) - mask
            inside, outside = picture[mask > 0].mean(axis=0), picture[ring > 0].mean(axis=0)
            contrasts.append(np.abs(inside - outside).max())
    assert np.median(contrasts) > 40


def test_all_that_coco_files_hold_occurs(folder: Path, coco: COCO) -> None:
    ids = sorted(coco.getCatIds())
    assert ids == [1, 3, 7, 18]
    assert {one["category_id"] for one in coco.dataset["annotations"]} == set(ids)
    segmentations = [one["segmentation"] for one in coco.dataset["annotations"]]
    assert any(isinstance(one, list) for one in segmentations)
    runs = [one["counts"] for one in segmentations if isinstance(one, dict)]
    assert {type(counts) for counts in runs} == {str, list}
    crowds = [one for one in coco.dataset["annotations"] if one["iscrowd"]]
    assert crowds
    assert {one["category_id"] for one in crowds} == {CATEGORIES["disc"]}
    counts = [len(coco.getAnnIds(i, iscrowd=False)) for i in coco.getImgIds()]
    assert sorted(set(counts))[0] == 0
    assert set(counts) <= {0, 1, 2, 3, 4, 5, 6}
    assert counts.count(0) <= 4

    both = [json.loads(path.read_text()) for path in (folder / "annotations").iterdir()]
    for key in ("images", "annotations"):
        all_ids = [one["id"] for split in both for one in split[key]]
        assert len(set(all_ids)) == len(all_ids)


def test_the_seed_decides_every_byte(folder: Path, tmp_path: Path) -> None:
    # In another process, whose hash seed and object ids differ.
    command = [sys.executable, "-m", "autotimm.data.synthetic", str(tmp_path / "again")]
    command += ["--train", "48", "--val", "4", "--size", str(list(SIZE)), "--seed", "1"]
    subprocess.run(command, check=True)
    assert digests(tmp_path / "again") == digests(folder)
    make_dataset(tmp_path / "fewer", train=5, val=1, size=SIZE, seed=1)
    make_dataset(tmp_path / "other", train=5, val=1, size=SIZE, seed=2)
    fewer, other, full = (
        digests(path) for path in (tmp_path / "fewer", tmp_path / "other", folder)
    )
    pictures = {name for name in fewer if name.endswith(".jpg")}
    assert len(pictures) == 6
    assert all(fewer[name] == full[name] for name in pictures)
    assert all(fewer[name] != other[name] for name in pictures)


def test_the_folder_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic.simplejpeg, "encode_jpeg", full)
    with pytest.raises(InputError, match=r"cannot write .*/painted: No space left on device"):
        make_dataset(tmp_path / "painted", train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_a_full_one_left_alone(tmp_path: Path) -> None:
    make_dataset(tmp_path, train=1, val=1, size=64)
    before = digests(tmp_path)
    with pytest.raises(InputError, match="not an empty folder"):
        make_dataset(tmp_path, train=1, val=1, size=64)
    with pytest.raises(InputError, match="not an empty folder"):
        make_dataset(tmp_path / "annotations/instances_val2017.json", train=1, val=1, size=64)
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "0"], "train is 0: give at least 1 picture"),
        (["--val", "-3"], "val is -3"),
        (["--size", "8"], "size 8 x 8 is too small: use 64 or more"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "new"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_command_writes_a_dataset(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new"), "--train", "2", "--val", "1", "--size", "[64, 80]"]) == 0
    assert len(list((tmp_path / "new/train2017").iterdir())) == 2
    annotations = json.loads((tmp_path / "new/annotations/instances_val2017.json").read_text())
    assert (annotations["images"][0]["height"], annotations["images"][0]["width"]) == (64, 80)
