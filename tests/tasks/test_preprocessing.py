"""The data module uses the model's preprocessing, and checkpoints record what was used."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from batches import small
from line import quiet
from PIL import Image
from safetensors.torch import save_file

from autotimm import AutoTrainer, InputError, ObjectDetector
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
from autotimm.structures import UPPER_BITS, Preprocessing
from autotimm.tasks.checkpoint import preprocessing_of

VIT = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")  # of test_vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(made, train=4, val=2, size=(64, 80))
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


def data(folder: Path, **options: Any) -> InstanceSegmentationDataModule:
    settings = {"image_size": 96, "batch_size": 2, "num_workers": 0, "masks": False}
    return InstanceSegmentationDataModule(folder, **{**settings, **options})


def detector(module: InstanceSegmentationDataModule, **options: Any) -> ObjectDetector:
    settings = {"fpn_channels": 16, "head_convs": 1, "compile_model": False}
    return ObjectDetector(num_classes=module.num_classes, **{**settings, **options})


def trainer(folder: Path, steps: int = 1) -> AutoTrainer:
    return quiet(folder, max_steps=steps, logger=False, enable_checkpointing=False)


def expected(folder: Path, wanted: Preprocessing) -> torch.Tensor:
    """The first validation image, resized by cv2 and normalised in float64."""
    path = sorted((folder / "val2017").iterdir())[0]
    image = np.asarray(Image.open(path).convert("RGB"))
    height, width = image.shape[:2]
    scale = 96 / max(height, width)
    how = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[wanted.interpolation]
    small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=how)
    canvas = np.broadcast_to(np.round(255 * np.array(wanted.mean)), (96, 96, 3)).copy()
    canvas[: small.shape[0], : small.shape[1]] = small
    return torch.from_numpy((canvas / 255 - wanted.mean) / wanted.std).permute(2, 0, 1).float()


class Look(ObjectDetector):
    """A model that keeps the first image that it gets for prediction."""

    def predict_step(self, batch, batch_idx):
        if not hasattr(self, "image"):
            self.image = batch["image"][0]
        return super().predict_step(batch, batch_idx)


def seen(folder: Path, checkpoint: str, tmp_path: Path, **options: Any) -> torch.Tensor:
    model = Look.load_from_checkpoint(checkpoint)
    trainer(tmp_path).predict(model, datamodule=data(folder, **options))
    return model.image


def trained(folder: Path, module, tmp_path: Path, **options: Any) -> tuple[ObjectDetector, str]:
    model = detector(module, **options)
    run = trainer(tmp_path)
    run.fit(model, datamodule=module)
    run.save_checkpoint(tmp_path / "model.ckpt")
    return model, str(tmp_path / "model.ckpt")


def test_data_without_a_model_have_the_default(folder: Path) -> None:
    assert data(folder).preprocessing == Preprocessing(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", (96, 96), "letterbox"
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pretrained_weights_bring_their_own_and_a_checkpoint_keeps_it(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    module = data(folder)
    model, path = trained(folder, module, tmp_path, backbone="test_vit", pretrained=str(weights))
    assert model.preprocessing == module.preprocessing == replace(VIT, image_size=(96, 96))
    torch.testing.assert_close(seen(folder, path, tmp_path), expected(folder, VIT))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_arguments_of_the_data_module_win_and_a_checkpoint_keeps_them(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    module = data(folder, mean=(0.1, 0.2, 0.3), interpolation="bilinear")
    model, path = trained(folder, module, tmp_path, backbone="test_vit", pretrained=str(weights))
    used = Preprocessing((0.1, 0.2, 0.3), VIT.std, "bilinear", (96, 96))
    assert model.preprocessing == used
    torch.testing.assert_close(seen(folder, path, tmp_path), expected(folder, used))
    other = Preprocessing(used.mean, (1.0, 1.0, 1.0), "bilinear")
    found = seen(folder, path, tmp_path, std=other.std)
    torch.testing.assert_close(found, expected(folder, other))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_that_goes_on_prepares_images_as_it_did(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    given = {"backbone": "test_vit", "pretrained": str(weights)}
    _, path = trained(folder, data(folder), tmp_path, **given)
    module = data(folder)
    model = detector(module, **{**given, "pretrained": False})
    assert model.preprocessing == Preprocessing()
    trainer(tmp_path, steps=2).fit(model, datamodule=module, ckpt_path=path)
    assert model.preprocessing == module.preprocessing == replace(VIT, image_size=(96, 96))


def test_a_checkpoint_keeps_each_part_of_it(tmp_path: Path) -> None:
    used = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", (64, 96), "stretch", (-1, 9))
    assert all(getattr(used, one.name) != one.default for one in fields(Preprocessing))
    saved: dict[str, Any] = {}
    model = small(ObjectDetector)
    model.preprocessing = used
    model.on_save_checkpoint(saved)
    torch.save(saved, tmp_path / "model.ckpt")
    other = small(ObjectDetector)
    other.on_load_checkpoint(torch.load(tmp_path / "model.ckpt", weights_only=True))
    assert other.preprocessing == used


def test_a_checkpoint_that_does_not_say_was_trained_with_the_default(folder: Path) -> None:
    model = detector(data(folder), backbone="resnet10t", pretrained=False)
    model.preprocessing = VIT
    model.on_load_checkpoint({"categories": None})
    assert model.preprocessing == Preprocessing(pixel_range=UPPER_BITS)


@pytest.mark.parametrize(
    ("saved", "match"),
    [
        ({"mean": (1, 1, 1)}, "the checkpoint's preprocessing is .* it is damaged"),
        ("bicubic", "the checkpoint's preprocessing is 'bicubic': it is damaged"),
        ({"mean": "?", "std": (1, 1, 1), "interpolation": "bicubic"}, "the checkpoint's mean is"),
        ({"mean": (0, 0, 0), "std": (1, 1, 0), "interpolation": "bicubic"}, "checkpoint's std is"),
        ({"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "area"}, "one of bilinear, bicub"),
        (
            {"mean": (0,) * 3, "std": (1,) * 3, "interpolation": "bicubic", "pixel_range": [4, 1]},
            r"the checkpoint's pixel_range is \[4, 1\]",
        ),
    ],
)
def test_a_checkpoint_with_invalid_preprocessing_is_refused(saved: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        preprocessing_of({"preprocessing": saved})


def test_synchronised_norms_on_cpu_ranks_are_refused(folder: Path, tmp_path: Path) -> None:
    model = detector(data(folder), backbone="resnet10t", pretrained=False, backbone_norm="sync")
    model.trainer = AutoTrainer(
        accelerator="cpu", devices=2, default_root_dir=tmp_path, logger=False
    )
    with pytest.raises(InputError, match=r"backbone_norm='sync' needs GPUs.*take frozen"):
        model.setup("fit")


def test_synchronised_norms_of_one_rank_are_its_own(folder: Path, tmp_path: Path) -> None:
    module = data(folder)
    model, path = trained(
        folder, module, tmp_path, backbone="resnet10t", pretrained=False, backbone_norm="sync"
    )
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
    assert ObjectDetector.load_from_checkpoint(path).hparams.backbone_norm == "sync"


def test_settings_that_contradict_synchronised_norms_are_refused(folder: Path) -> None:
    module = data(folder)
    given = {"backbone": "resnet10t", "pretrained": False, "backbone_norm": "sync"}
    with pytest.raises(InputError, match=r"backbone_norm='sync' has no effect"):
        detector(module, freeze_backbone=True, **given)
    with pytest.raises(InputError, match=r"sync_batchnorm=True .* backbone_norm='sync'"):
        AutoTrainer(sync_batchnorm=True)


def test_windows_that_do_not_fit_the_canvas_are_warned_of(folder: Path, tmp_path: Path) -> None:
    module = data(folder)
    model = detector(module, backbone="test_maxvit", pretrained=False)
    with pytest.warns(UserWarning, match=r"image_size 96 x 96 costs as much as 160 x 160"):
        trainer(tmp_path).fit(model, datamodule=module)


def test_frozen_norms_of_random_weights_are_warned_of(folder: Path, tmp_path: Path) -> None:
    module = data(folder)
    with pytest.warns(UserWarning, match="norms that have seen no image yet"):
        trained(
            folder, module, tmp_path, backbone="resnet10t", pretrained=False, backbone_norm="frozen"
        )
