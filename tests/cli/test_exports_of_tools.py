"""What annotation tools export goes through every verb that takes a data folder, as it is."""

from __future__ import annotations

import json
import tarfile
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from coco_folder import annotation, image, picture

from autotimm.cli import evaluate, preview
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.doctor import run as doctor
from autotimm.format.manifest_file import read_manifest
from autotimm.sharding import cli

pytestmark = pytest.mark.usefixtures("one_worker")
CATEGORIES = [{"id": 1, "name": "box"}, {"id": 2, "name": "disc"}]


def put(
    root: Path,
    file: str,
    folder: str,
    count: int,
    written: Callable[[Path], str] = lambda path: path.name,
    categories: list[dict] | None = None,
) -> None:
    """An annotation file whose images are named by what ``written`` makes of their paths."""
    images = []
    for n in range(1, count + 1):
        path = root / folder / unicodedata.normalize("NFD", f"bü{n}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
        images.append(image(id=n, file_name=written(path)))
    annotations = [annotation(id=n, image_id=n, category_id=1 + n % 2) for n in range(1, count + 1)]
    content = {"images": images, "annotations": annotations}
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content | {"categories": categories or CATEGORIES}))


def names(root: Path, written: Callable[[Path], str]) -> dict[str, int]:
    for split, count in (("train", 3), ("val", 2)):
        put(root, f"annotations/instances_{split}.json", f"images/{split}", count, written)
    return {"train": 3, "val": 2}


def roboflow(root: Path) -> dict[str, int]:
    top = {"id": 0, "name": "things", "supercategory": "none"}
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        file = f"{split}/_annotations.coco.json"
        put(root, file, split, count, categories=[top, *CATEGORIES])
    return {"train": 3, "valid": 2, "test": 1}


def cvat(root: Path) -> dict[str, int]:
    put(root, "annotations/instances_default.json", "images/default", 3)
    return {"train": 3}


CASES: dict[str, tuple[Callable[[Path], dict[str, int]], str]] = {
    "absolute names": (lambda root: names(root, lambda p: str(p.resolve())), "absolute path"),
    "folders in names": (
        lambda root: names(root, lambda p: f"images/{p.parent.name}/{p.name}"),
        "own name",
    ),
    "NFC for NFD": (
        lambda root: names(root, lambda p: unicodedata.normalize("NFC", p.name)),
        "Unicode form",
    ),
    "Roboflow": (roboflow, "for the others' group"),
    "CVAT": (cvat, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_every_verb_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    paint, told = CASES[case]
    root, out = tmp_path / "data", tmp_path / "shards"
    expected = paint(root)
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(root), str(out)])
    assert not exit_.value.code and told in capsys.readouterr().out
    manifest = read_manifest(out)
    assert {name: (s.images, s.instances) for name, s in manifest.splits.items()} == {
        name: (count, count) for name, count in expected.items()
    }
    for split in manifest.splits.values():
        with tarfile.open(out / split.shards[0].name) as tar:
            images = [tar.extractfile(m) for m in tar.getmembers() if m.name.endswith(".jpg")]
            assert all(file and file.read() == picture() for file in images)

    findings = doctor.data(str(root))
    assert not [one for one in findings if one.level == "fail"]
    assert told in " ".join(one.text for one in findings)

    with_val = "val" in expected or "valid" in expected
    for place in (root, out):
        if with_val:
            args = evaluate.parser().parse_args(["--results", "r.json", "--data", str(place)])
            assert int(evaluate._open_source(args).shard_sizes.sum()) == 2
            assert ("called 'valid' there" in capsys.readouterr().err) == ("valid" in expected)
        data = InstanceSegmentationDataModule(
            place, image_size=32, batch_size=1, num_workers=0, val_split="val" if with_val else None
        )
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            data.check("fit")
            assert len(list(data.train_dataloader())) == 3
            assert not with_val or len(list(data.val_dataloader())) == 2
        lines = " ".join(str(one.message) for one in warned)
        assert ("split 'val': it is called 'valid' there" in lines) == ("valid" in expected)

    drawn = tmp_path / "drawn.png"
    arguments = ["--data", str(root), "--out", str(drawn), "--image-size", "32", "--samples", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd, once more
        assert preview.run(preview.parser().parse_args([*arguments, "--preset", "light"])) == 0
    assert drawn.stat().st_size
