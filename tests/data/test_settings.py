"""Settings: every argument keeps its name, is checked, and can be changed later."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from batches import random_batch, small

from autotimm import AutoTrainer, InputError, InstanceSegmentationDataModule, InstanceSegmentor
from autotimm.augmentation.presets import Augmentation
from autotimm.checkpoints.callback import Checkpoints
from autotimm.checkpoints.settings import SaveSettings
from autotimm.data.synthetic import make_dataset
from autotimm.files import urls
from autotimm.streaming import foreign
from autotimm.structures import Preprocessing
from autotimm.tasks.detector import ObjectDetector
from autotimm.tasks.settings import by_name

DETECTOR = {
    "backbone": "resnet10t",
    "num_classes": 3,
    "pretrained": False,
    "fpn_channels": 32,
    "head_convs": 1,
    "layout": "torchvision",
    "box_quality": "iou",
    "class_loss_weight": 0.1,
    "box_loss_weight": 0.2,
    "centerness_loss_weight": 0.3,
    "score_thresh": 0.4,
    "nms_thresh": 0.6,
    "max_detections_per_image": 7,
    "freeze_backbone": False,
    "frozen_stages": 1,
    "backbone_norm": "frozen",
    "optimizer": "sgd",
    "lr": 0.5,
    "backbone_lr_factor": 0.7,
    "layer_decay": 0.8,
    "weight_decay": 0.9,
    "scheduler": "multistep",
    "milestones": [0.25],
    "warmup_steps": 5,
    "compile_model": False,
    "compile_kwargs": {"mode": "default"},
}
MASKS = {"mask_size": 12, "mask_rois": 3, "mask_loss": "bce+dice", "mask_loss_weight": 0.35}
DATA = {
    "image_size": (96, 64),
    "batch_size": 3,
    "val_batch_size": 5,
    "num_workers": 0,
    "prefetch_factor": 6,
    "seed": 7,
    "augmentation": Augmentation(flip=1.0),
    "resize": "stretch",
    "canvases": (),
    "custom_train_transforms": None,
    "copy_paste": 0.25,
    "repeat_threshold": 0.125,
    "scales": ((96, 64), (64, 64)),
    "max_corrupt": 0.5,
    "train_split": "val",
    "val_split": "train",
    "test_split": "odd",
    "masks": False,
    "cache_dir": "cache",
    "cache_limit": 1000,
    "retry_minutes": 3.0,
    "whole_shards": True,
    "persistent_workers": False,
    "pin_memory": True,
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "interpolation": "bicubic",
    "pixel_range": (0.0, 4095.0),
}
SAVE = {
    "save_every_n_epochs": 2,
    "save_every_n_steps": 3,
    "save_every_minutes": 4.0,
    "keep_last": 5,
    "keep_best": 6,
    "best_metric": "val/AP",
    "best_mode": "min",
}


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=3, val=2, size=(64, 96))
    return folder


def keywords(kind: type, *left_out: str) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name not in left_out]


def test_a_models_keywords_are_its_settings_and_hyper_parameters() -> None:
    assert keywords(ObjectDetector, "metrics") == list(DETECTOR), "every one is tried here"
    model = InstanceSegmentor(**DETECTOR, **MASKS)
    assert by_name(model.settings) == DETECTOR
    assert by_name(model.mask_settings) == MASKS
    assert list(model.hparams.items()) == [*DETECTOR.items(), ("metrics", []), *MASKS.items()]
    weights = {"classes": 0.1, "boxes": 0.2, "centerness": 0.3, "masks": 0.35}
    assert model._loss_weights() == weights


def test_data_modules_keywords_are_its_settings(coco_folder: Path) -> None:
    renamed = {"augmentation": "augmentation_preset", "canvases": "aspect_buckets"}
    renamed |= {"scales": "multi_scale"}
    given = {renamed.get(name, name): value for name, value in DATA.items()}
    assert sorted(keywords(InstanceSegmentationDataModule, "data_dir")) == sorted(given)
    given |= {"aspect_buckets": False, "multi_scale": [[64, 64]], "cache_limit": "1kB"}
    data = InstanceSegmentationDataModule(coco_folder, **given)
    assert by_name(data.settings) == {"location": urls.locate(coco_folder), **DATA}
    assert data.data_dir == str(coco_folder)
    public = set(DATA) - {"mean", "std", "interpolation", "pixel_range"}
    assert {name: getattr(data, name) for name in public} == {n: DATA[n] for n in public}


def test_a_trainers_keywords_are_its_save_settings(tmp_path: Path) -> None:
    assert [one.name for one in fields(SaveSettings)] == list(SAVE)
    trainer = AutoTrainer(accelerator="cpu", default_root_dir=tmp_path, **SAVE)
    assert isinstance(trainer.checkpoint_callback, Checkpoints)
    assert by_name(trainer.checkpoint_callback.settings) == SAVE
    usual = {name: inspect.signature(AutoTrainer).parameters[name].default for name in SAVE}
    assert by_name(SaveSettings()) == usual


def test_a_changed_hyper_parameter_counts_and_is_checked() -> None:
    """Lightning's learning rate finder changes hyperparameters, and so do users."""
    model = small(max_detections_per_image=5).eval()
    image = random_batch([2])["image"]
    assert len(model.predict(image)[0]["scores"]) == 5
    model.hparams.max_detections_per_image = 2
    assert model.settings.max_detections_per_image == 2
    assert len(model.predict(image)[0]["scores"]) == 2
    with pytest.raises(FrozenInstanceError):
        model.settings.lr = 1.0
    model.hparams.nms_thresh = 2
    with pytest.raises(InputError, match="nms_thresh=2 must lie between 0 and 1"):
        model.predict(image)


def test_a_changed_attribute_of_the_data_counts_and_is_checked(coco_folder: Path) -> None:
    data = InstanceSegmentationDataModule(coco_folder, image_size=64, num_workers=0)
    before = by_name(data.settings)
    data.batch_size = 2
    assert by_name(data.settings) == {**before, "batch_size": 2}
    assert len(next(iter(data.train_dataloader()))["image_id"]) == 2
    with pytest.raises(InputError, match="batch_size is 0, but must be a whole number, 1 or more"):
        data.batch_size = 0
    with pytest.raises(InputError, match="copy_paste is 2, but must be a number from 0 to 1"):
        data.copy_paste = 2
    with pytest.raises(FrozenInstanceError):
        data.settings.batch_size = 1
    assert data.batch_size == 2


def test_another_folder_can_be_assigned_before_the_first_look(
    coco_folder: Path, tmp_path: Path
) -> None:
    data = InstanceSegmentationDataModule(tmp_path, image_size=64, num_workers=0)
    data.data_dir = coco_folder
    assert data.data_dir == str(coco_folder)
    assert data.check("fit") == ["train", "val"]


def test_a_folder_is_parsed_and_looked_at_once(
    coco_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Any] = []
    looked: list[Path] = []
    expanded, are_tars = urls.home_expanded, foreign.are_tars
    monkeypatch.setattr(
        "autotimm.files.urls.home_expanded", lambda path: parsed.append(path) or expanded(path)
    )
    monkeypatch.setattr(
        "autotimm.streaming.foreign.are_tars", lambda path: looked.append(path) or are_tars(path)
    )
    data = InstanceSegmentationDataModule(coco_folder, image_size=64, num_workers=0)
    assert looked == []  # the folder may be filled until setup()
    data.setup("fit")
    data.train_dataloader()
    data.val_dataloader()
    assert parsed == [str(coco_folder)]
    assert looked == [coco_folder]


@pytest.mark.parametrize("argument", [None, (1.0, 2.0)])
@pytest.mark.parametrize("of_model", [None, (3.0, 4.0)])
def test_the_range_of_pixels_is_the_arguments_then_the_models_then_that_of_the_data(
    tmp_path: Path, argument: Any, of_model: Any
) -> None:
    data = InstanceSegmentationDataModule(tmp_path, pixel_range=argument)
    model = Preprocessing(pixel_range=of_model)
    looked: list[None] = []

    def found() -> tuple[float, float]:
        looked.append(None)
        return 5.0, 6.0

    wanted = data.settings.preprocessing(model, found).pixel_range
    assert wanted == (argument or of_model or (5.0, 6.0))
    assert bool(looked) == (argument is None and of_model is None)  # looking reads images
