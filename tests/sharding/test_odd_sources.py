"""What annotation files of other tools become, from the command to what a training learns."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from coco_folder import SQUARE, annotation, image, picture, write

from autotimm.coco.checks import RULES
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.doctor import run as doctor
from autotimm.format.manifest_file import read_manifest
from autotimm.sharding import cli
from autotimm.streaming.store import open_source
from autotimm.structures import InputError, is_trained_on

pytestmark = pytest.mark.usefixtures("one_worker")
FROM_BELOW = [10, 2, 30, 2, 30, 12, 10, 12]
FAR = (
    "bbox is far from its mask, fits with y counted from below, or its polygon has its y so "
    "(kept; autotimm preview shows which is wrong; --boxes mask takes the mask's)"
)


def shard(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


def both(root: Path, **content: Any) -> Path:
    """A folder whose train and val are made of the same content, but of other pictures."""
    write(root, **content)
    return write(root, split="val", **{"files": {"a.jpg": picture(quality=80)}, **content})


def fitted(folder: Path) -> list[str]:
    """What a fit on this folder warns of before it begins."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = InstanceSegmentationDataModule(folder, image_size=64, num_workers=0)
        module.check("fit")
    return [str(one.message) for one in caught]


def finding(folder: Path, split: str = "train") -> doctor.Finding:
    (found,) = (one for one in doctor.data(str(folder)) if one.name == f"split {split}")
    return found


def records(folder: Path) -> list[Any]:
    source = open_source(folder, "train")
    return [source.record(0, i) for i in range(int(source.shard_sizes.sum()))]


def test_boxes_from_below_are_told_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = annotation(segmentation=[FROM_BELOW], bbox=[10, 36, 20, 10])
    folder = both(tmp_path / "coco", annotations=[odd])
    code, out, _ = shard(folder, tmp_path / "out", capsys=capsys)
    assert code == 0
    assert f"train: {FAR}: 1 (annotation 1 of a.jpg)" in out.splitlines()
    for data in (folder, tmp_path / "out"):
        assert finding(data).level == "warn"
        assert f"{FAR}: 1" in finding(data).text
        assert any(f"{FAR}: 1" in line for line in fitted(data))
        assert records(data)[0]["annotations"][0]["bbox"] == [10, 36, 20, 10]
    code, out, _ = shard(folder, tmp_path / "mended", "--boxes", "mask", capsys=capsys)
    assert code == 0
    assert records(tmp_path / "mended")[0]["annotations"][0]["bbox"] == [10, 2, 20, 10]
    assert finding(tmp_path / "mended").level == "warn"
    code, _, err = shard(folder, tmp_path / "out", "--boxes", "mask", capsys=capsys)
    assert code == 2
    assert "--boxes was not given, now mask" in err


def test_a_class_of_crowds_is_named_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd = annotation(id=2, category_id=7, iscrowd=1)
    folder = both(tmp_path / "coco", annotations=[annotation(), crowd])
    code, out, _ = shard(folder, tmp_path / "out", capsys=capsys)
    assert code == 0
    said = "every annotation of star is a crowd or to be ignored"
    assert f"train: {said}" in out
    assert "--crowd instance" in out
    for data in (folder, tmp_path / "out"):
        assert finding(data).level == "warn"
        assert said in finding(data).text
        assert any(said in line for line in fitted(data))
    assert read_manifest(tmp_path / "out").splits["train"].untrained == [7]
    code, out, _ = shard(folder, tmp_path / "out", capsys=capsys)
    assert code == 0
    assert said in out  # of shards that are there already
    code, _, err = shard(folder, "--dry-run", "--strict", capsys=capsys)
    assert code == 2
    assert said in err
    code, out, _ = shard(folder, tmp_path / "taken", "--crowd", "instance", capsys=capsys)
    assert code == 0
    kind = "iscrowd is 1 (taken as an ordinary instance): 1 (annotation 2 of a.jpg)"
    assert f"train: {kind}" in out.splitlines()
    assert [a["iscrowd"] for a in records(tmp_path / "taken")[0]["annotations"]] == [0, 0]
    assert not read_manifest(tmp_path / "taken").splits["train"].untrained
    assert fitted(tmp_path / "taken") == []


@pytest.mark.parametrize("flag", [1, True, "1", 1.0, "true"])
def test_what_is_to_be_ignored_is_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: object
) -> None:
    ignored = annotation(id=2, ignore=flag)
    folder = both(tmp_path / "coco", annotations=[annotation(ignore=0), ignored])
    code, out, _ = shard(folder, tmp_path / "out", "--strict", capsys=capsys)
    assert code == 0  # nothing is wrong with it
    said = "1 annotations with ignore: 1 are not trained on, as crowds are not"
    assert f"train: {said}" in out.splitlines()
    for data in (folder, tmp_path / "out"):
        (record,) = records(data)
        assert [a.get("ignore") for a in record["annotations"]] == [None, 1]
        assert [a["iscrowd"] for a in record["annotations"]] == [0, 0]
        assert [is_trained_on(a) for a in record["annotations"]] == [True, False]
        assert said in finding(data).text
    assert read_manifest(tmp_path / "out").splits["train"].ignored == 1
    code, out, _ = shard("--verify", tmp_path / "out", capsys=capsys)
    assert code == 0


def test_a_split_that_is_ignored_altogether_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = both(tmp_path / "coco", annotations=[annotation(ignore=1)])
    code, out, _ = shard(folder, tmp_path / "out", capsys=capsys)
    assert code == 0
    assert "train: there are no instances but crowds, so this split trains nothing" in out
    for data in (folder, tmp_path / "out"):
        assert finding(data).level == "fail"
        with pytest.raises(InputError, match="there is nothing to train on; every annotation of d"):
            fitted(data)


def test_a_split_that_loses_all_its_instances_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = [annotation(segmentation=[]), annotation(id=2, segmentation=[[1, 2]])]
    folder = write(tmp_path / "coco")
    write(folder, split="val", annotations=lost)
    code, _, err = shard(folder, tmp_path / "out", capsys=capsys)
    assert code == 2
    kinds = "no segmentation (instance left out): 1 (annotation 1 of a.jpg)"
    assert f"val.json: no instance can be used: {kinds}; polygon with fewer than 3 points" in err
    assert not (tmp_path / "out/manifest.json").exists()
    assert finding(folder).level == "ok"
    assert finding(folder, "val").level == "fail"
    assert kinds in finding(folder, "val").text
    with pytest.raises(InputError, match=r"split 'val': no instance can be used: no segmentation"):
        fitted(folder)
    # A split that lists none is none that lost some, and one is enough.
    write(folder, split="val", annotations=[])
    assert shard(folder, tmp_path / "none", capsys=capsys)[0] == 0
    write(folder, split="val", annotations=[*lost, annotation(id=3)])
    assert shard(folder, tmp_path / "one", capsys=capsys)[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"category_id": 99},
            "annotation of an unknown category (left out): 1 (annotation 1 of im",
        ),
        (
            {"image_id": 99},
            "annotation of an unknown image (left out): 1 (annotation 1 of image 99",
        ),
        ({"segments_info": []}, "holds panoptic annotations ('segments_info', masks in PNG files)"),
    ],
)
def test_annotations_that_belong_to_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    lost = annotation(**changes)
    if "segments_info" in changes:
        lost = {"image_id": 1, "file_name": "a.png", **changes}
    folder = both(tmp_path / "coco", annotations=[lost])
    code, _, err = shard(folder, tmp_path / "out", capsys=capsys)
    assert code == 2
    assert message in err
    assert message in finding(folder).text
    assert "--dry-run" in finding(folder).remedy  # --verify is for shards
    with pytest.raises(InputError, match=r"instances_train\.json: "):
        fitted(folder)


def test_text_ids_come_back_in_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from autotimm.evaluation.coco_eval import compare
    from autotimm.evaluation.ground_truth import of_records

    folder = both(
        tmp_path / "coco",
        images=[image(id="b-1"), image(id="a-1", file_name="b.jpg")],
        annotations=[
            annotation(image_id="b-1", category_id="d"),
            annotation(id=2, image_id="a-1", category_id="s"),
        ],
        categories=[{"id": "s", "name": "star"}, {"id": "d", "name": "disc"}],
        files={"a.jpg": picture(), "b.jpg": picture()},
    )
    assert shard(folder, tmp_path / "out", capsys=capsys)[0] == 0
    results = [
        {"image_id": i, "category_id": c, "score": 0.9, "segmentation": SQUARE, "bbox": None}
        for i, c in (("b-1", "d"), ("a-1", "s"))
    ]
    for data in (folder, tmp_path / "out"):
        source = open_source(data, "train")
        found = records(data)
        assert [r["given_id"] for r in found] == ["b-1", "a-1"]
        assert [c.given_id for c in source.categories] == ["s", "d"]
        truth = of_records(found, source.categories)
        assert compare(truth, results, "segm").stats["AP"] == pytest.approx(1.0)
        swapped = [one | {"image_id": "a-1"} for one in results]
        assert compare(truth, swapped, "segm").stats["AP"] < 1.0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["categories"][0] == {
        "id": 1,
        "name": "star",
        "supercategory": "",
        "given_id": "s",
    }


def test_manifests_of_ordinary_data_have_no_new_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that shards, and runs that versions without the rules began, stay what they are."""
    folder = both(tmp_path / "coco")
    assert shard(folder, tmp_path / "out", capsys=capsys)[0] == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["splits"]["train"].keys() == {
        "images",
        "instances",
        "crowd",
        "problems",
        "shards",
    }
    assert manifest["source"]["options"].keys() == {
        "samples_per_shard",
        "max_shard_size",
        "limit",
        "shuffle",
    }
    assert not hasattr(RULES, "__dict__")
    assert fitted(tmp_path / "out") == fitted(folder) == []
