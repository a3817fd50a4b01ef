"""Every argument of every constructor, given as other libraries' numbers, paths and enumerations.

The arguments come from the signatures, so a new one is covered without a line here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.connectors import callback_connector
from torch import nn

from autotimm import (
    AutoTrainer,
    InputError,
    InstanceSegmentationDataModule,
    InstanceSegmentor,
    MetricConfig,
    ObjectDetector,
)
from autotimm.augmentation.presets import Augmentation
from autotimm.checkpoints.settings import SaveSettings
from autotimm.outputs import provenance
from autotimm.plain import plain
from autotimm.structures import Preprocessing
from autotimm.tasks import detector
from autotimm.tasks.archive import check_readable
from autotimm.training.ema import AverageWeights


class Choice(Enum):
    NUMBER = 2
    SHARE = 0.5
    TEXT = "text"


ODD = [
    np.int64(2),
    np.float32(0.5),
    np.bool_(True),
    torch.tensor(2),
    torch.tensor(0.5, requires_grad=True),
    Path("text"),
    Choice.NUMBER,
    {"flip": np.float32(0.5)},
]


class Backbone(nn.Module):
    preprocessing = Preprocessing()


class NoNetwork(nn.Module):
    """In the place of the network, which takes long to make."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.backbone = Backbone()

    def add_masks(self, *_: Any) -> nn.Module:
        return nn.Module()


def saved_of_model(kind: type, **given: Any) -> Any:
    return dict(kind(**{"compile_model": False, "pretrained": False} | given).hparams)


def saved_of_data(folder: Path, **given: Any) -> Any:
    data = InstanceSegmentationDataModule(**{"data_dir": folder} | given)
    recorded = provenance._arguments(data)
    return {k: v for k, v in recorded.items() if k not in ("augmentation", "prepare_data_per_node")}


def saved_of_trainer(folder: Path, **given: Any) -> Any:
    usual = {"accelerator": "cpu", "default_root_dir": folder, "logger": False}
    trainer = AutoTrainer(**usual | given)
    return {n: getattr(trainer, n) for n in ("max_epochs", "max_steps", "accumulate_grad_batches")}


LIGHTNINGS = set(inspect.signature(lightning.pytorch.Trainer.__init__).parameters)
CONSTRUCTORS: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "ObjectDetector": (
        lambda _, **given: saved_of_model(ObjectDetector, **given),
        set(inspect.signature(ObjectDetector.__init__).parameters),
    ),
    "InstanceSegmentor": (
        lambda _, **given: saved_of_model(InstanceSegmentor, **given),
        set(inspect.signature(InstanceSegmentor.__init__).parameters) - {"detector"},
    ),
    "InstanceSegmentationDataModule": (
        saved_of_data,
        set(inspect.signature(InstanceSegmentationDataModule.__init__).parameters),
    ),
    "AutoTrainer": (
        saved_of_trainer,
        set(inspect.signature(AutoTrainer.__init__).parameters) | LIGHTNINGS - {"kwargs"},
    ),
    "AverageWeights": (lambda _, **given: vars(AverageWeights(**given)), {"decay"}),
    "SaveSettings": (
        lambda _, **given: asdict_slots(SaveSettings(**given)),
        set(SaveSettings.__dataclass_fields__),
    ),
    "MetricConfig": (
        lambda _, **given: asdict(MetricConfig(**{"name": "mAP"} | given)),
        set(MetricConfig.__dataclass_fields__),
    ),
    "Augmentation": (
        lambda _, **given: asdict_slots(Augmentation(**given)),
        set(Augmentation.__dataclass_fields__),
    ),
}
SWEPT = [
    (kind, argument)
    for kind, (_, arguments) in CONSTRUCTORS.items()
    for argument in sorted(arguments - {"self", "kwargs", "args"})
]


def asdict_slots(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "argument"), SWEPT)
def test_an_odd_value_is_made_plain_or_refused_by_name(
    kind: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "Network", NoNetwork)
    # What takes long and depends on no argument: a compiler's import, files of every package.
    monkeypatch.setattr(detector.compiled, "compile_in_place", lambda *_: None)
    monkeypatch.setattr(provenance, "versions", dict)
    monkeypatch.setattr(callback_connector, "_load_external_callbacks", lambda _: [])
    monkeypatch.chdir(tmp_path)
    construct, _ = CONSTRUCTORS[kind]
    for value in ODD:
        try:
            saved = construct(tmp_path, **{argument: value})
        except (TypeError, AttributeError) as error:
            raise AssertionError(f"{argument}={value!r}: {error!r}") from error
        except Exception as error:  # ours, or Lightning's
            assert argument[:5] in str(error), (value, error)  # a name, or a word from it
            assert "\n" not in str(error) or not isinstance(error, InputError)
            continue
        check_readable(saved, "saved")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.int64(4), 4),
        (np.float64(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (torch.tensor(4), 4),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (np.array([1, 2]), [1, 2]),
        (Path("a/b"), "a/b"),
        (Choice.TEXT, "text"),
        ((np.int64(1), [np.float32(0.5)]), (1, [0.5])),
        ({np.str_("a"): {Choice.NUMBER: Path("b")}}, {"a": {2: "b"}}),
        (None, None),
    ],
)
def test_plain_values(given: Any, expected: Any) -> None:
    found = plain(given)
    assert found == expected
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)  # the types inside


def test_the_numbers_that_users_compute_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "Network", NoNetwork)
    labels = np.array([0, 3])
    settings = saved_of_model(
        InstanceSegmentor,
        num_classes=labels.max() + 1,
        lr=np.float64(1e-3),
        mask_size=torch.tensor(14),
        milestones=np.array([0.5, 0.75]),
        scheduler="multistep",
        compile_kwargs={"dynamic": np.bool_(False)},
    )
    assert (settings["num_classes"], settings["lr"], settings["mask_size"]) == (4, 1e-3, 14)
    assert settings["milestones"] == [0.5, 0.75]
    assert repr(settings["compile_kwargs"]) == "{'dynamic': False}"
    assert type(settings["lr"]) is float
    trainer = AutoTrainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, max_epochs=np.int64(3)
    )
    assert type(trainer.max_epochs) is int
    data = InstanceSegmentationDataModule(tmp_path, image_size=np.int64(64))
    data.batch_size = np.int64(8)
    assert data.image_size == (64, 64)
    assert type(data.batch_size) is int


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_classes": Path("four")}, "num_classes is 'four', but must be a whole number"),
        ({"lr": torch.ones(2)}, r"lr is \[1.0, 1.0\], but must be a number"),
        ({"lr": 10**400}, "lr is 1000.*, but must be a number"),  # no float holds it
        ({"lr": object()}, "lr is <object object .*>, but must be a number"),
        ({"num_classes": 1 + 0j}, "num_classes is .*, but must be a whole number"),
        ({"metrics": 7}, "metrics is 7, but must be a list, each MetricConfig or none"),
        ({"compile_kwargs": {"backend": print}}, "compile_kwargs is .*must be a dict of plain"),
        ({"mask_size": "28"}, "mask_size is '28', but must be a whole number"),
    ],
)
def test_what_is_no_plain_value_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        InstanceSegmentor(pretrained=False, **given)
