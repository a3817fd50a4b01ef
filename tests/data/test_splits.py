"""Splits: which there are, what they leave out, what is nothing to train on."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from data_fits import IMAGES, VAL, Recorder, module, trainer

from autotimm.data.synthetic import make_dataset
from autotimm.sharding.cli import shard
from autotimm.structures import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=IMAGES, val=VAL, size=(64, 96))
    return folder


@pytest.fixture(scope="module")
def shard_folder(coco_folder: Path) -> Path:
    shard(coco_folder, coco_folder.parent / "shards", samples_per_shard=4)
    return coco_folder.parent / "shards"


def test_splits(coco_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    data = module(folder, val_split=None)
    data.setup("fit")
    assert data.val_dataloader() == []
    model = Recorder()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    for run in ("validate", "test"):
        with pytest.raises(InputError, match="there is nothing to evaluate on: val_split is None"):
            getattr(trainer(tmp_path), run)(model, datamodule=data)
    with pytest.raises(InputError, match="no split 'other', only train, val; val_split=None"):
        module(folder, val_split="other").setup("fit")

    annotations = folder / "annotations"
    for name in ("instances_test2017.json", "instances_odd.json"):
        shutil.copy(annotations / "instances_val2017.json", annotations / name)
    shutil.copytree(folder / "val2017", folder / "test2017")
    assert module(folder).check("test") == ["test"]
    assert module(folder, test_split="val").check("test") == ["val"]

    content = json.loads((annotations / "instances_odd.json").read_text())
    content["categories"][0]["name"] = "ellipse"
    (annotations / "instances_odd.json").write_text(json.dumps(content))
    shutil.copytree(folder / "val2017", folder / "odd")
    with pytest.raises(
        InputError, match=r"odd\.json: category 1 is 'ellipse', but 'disc' in another split: give"
    ):
        module(folder, val_split="odd").setup("fit")

    # Other ids of the same names: those of the training split are taken.
    own = json.loads((annotations / "instances_odd.json").read_text())
    own["categories"][0]["name"] = "disc"
    for one in (*own["categories"], *own["annotations"]):
        one["category_id" if "image_id" in one else "id"] += 1
    (annotations / "instances_odd.json").write_text(json.dumps(own))
    with pytest.warns(UserWarning, match="split 'odd': category has another id .* by name"):
        renumbered = module(folder, val_split="odd")
        renumbered.setup("fit")
    source, usual = renumbered.source("odd"), module(folder).source("val")
    for i in range(2):
        assert source.record(0, i) == usual.record(0, i)

    # With one more category: the shards of both splits have it, so both have a label for it.
    content["categories"][0]["name"] = "disc"
    content["categories"].append({"id": 2, "name": "ellipse", "supercategory": ""})
    (annotations / "instances_odd.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"category 2 \('ellipse'\) .* join them with autotimm-sh"):
        module(folder, val_split="odd").setup("fit")
    shard(folder, tmp_path / "shards", splits=["train", "odd"])
    joined = module(tmp_path / "shards", val_split="odd")
    joined.setup("fit")
    assert joined.class_names == ["disc", "ellipse", "square", "triangle", "star"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_category_that_the_manifest_lacks_is_no_damage(
    shard_folder: Path, tmp_path: Path, workers: int
) -> None:
    folder = shutil.copytree(shard_folder, tmp_path / "shards")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["categories"] = [c for c in manifest["categories"] if c["id"] != 7]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    data = module(folder, num_workers=workers, max_corrupt=1.0, augmentation_preset="light")
    match = r"\(in .*shards/.*\.tar\): .* has category id 7, which .*manifest\.json"
    with warnings.catch_warnings(), pytest.raises(InputError, match=match) as error:
        warnings.simplefilter("error")  # nothing is skipped
        list(data.train_dataloader())
    assert "max_corrupt" not in str(error.value)


def test_what_a_folder_leaves_out_is_reported(
    coco_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    images = sorted((folder / "train2017").iterdir())
    images[0].unlink()
    with pytest.warns(UserWarning, match=f"coco, split 'train': .*: 1 .*{images[0].name}") as got:
        data = module(folder)
        data.setup("fit")
        assert data.num_classes == 4
    ours = [str(w.message) for w in got if "split 'train'" in str(w.message)]
    assert len(ours) == 1
    assert ours[0].startswith(str(folder))
    assert "autotimm-shard also counts problems in annotations" in ours[0]
    assert "\n" not in ours[0]
    assert not [w for w in got if "split 'val'" in str(w.message)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(coco_folder).setup()
        module(shard_folder).setup()


def test_a_split_of_crowds_is_nothing_to_train_on(coco_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    file.write_text(json.dumps(content))
    shard(folder, tmp_path / "shards")
    for data in (module(folder), module(tmp_path / "shards")):
        with pytest.raises(InputError, match="the 'train' split has no instance that is not a cr"):
            data.setup("fit")
        for stage in ("validate", "test", "predict"):
            data.setup(stage)
        module(Path(data.data_dir), train_split="val").setup("fit")
