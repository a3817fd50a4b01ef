"""The configs of launch/: each is read, builds, and trains as its source says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml

import autotimm
from autotimm import InstanceSegmentationDataModule, MetricConfig
from autotimm.cli import train as cli
from autotimm.tasks import optimization, parameters

LAUNCH = Path(__file__).parents[1] / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))
SCHEDULES = {"1x": (12, 90, 60, 80), "2x": (24, 180, 120, 160), "3x": (36, 270, 210, 250)}
"""Epochs, and thousands of steps in all and before each drop, in detectron2's configs."""


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@cache
def built(path: Path) -> Any:
    """The model of a config, without memory for its weights; not to be changed."""
    return build(read(path))


def build(config: dict[str, Any]) -> Any:
    options = {**config["model"]["init_args"], "pretrained": False, "compile_model": False}
    assert [MetricConfig(**metric) for metric in options.pop("metrics")]
    cls = getattr(autotimm, config["model"]["class_path"].removeprefix("autotimm."))
    with torch.device("meta"):
        return cls(num_classes=80, **options)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_command_line_takes_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.train(["fit", "--config", str(path), "--print_config"])
    assert done.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    config = read(path)
    printed, config = (
        {**c["trainer"], **c["data"], **c["model"]["init_args"]} for c in (printed, config)
    )
    for name, value in config.items():
        if isinstance(value, dict):  # the other fields have defaults
            assert value.items() <= printed[name].items(), name
        elif name != "metrics":
            assert printed[name] == value, name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_model_and_the_data_are_made(path: Path, tmp_path: Path) -> None:
    config = read(path)
    model = built(path)
    options = model.hparams
    groups = parameters.groups(
        model.network, options.backbone, lr=options.lr, weight_decay=options.weight_decay
    )
    assert optimization.build(options.optimizer, groups).defaults["weight_decay"] is not None
    InstanceSegmentationDataModule(**{**config["data"], "data_dir": tmp_path})


@pytest.mark.parametrize("times", SCHEDULES)
def test_the_schedule_is_detectron2s(times: str) -> None:
    epochs, total, first, second = SCHEDULES[times]
    config = read(LAUNCH / f"coco_r50_{times}.yaml")
    options = built(LAUNCH / f"coco_r50_{times}.yaml").hparams
    assert config["trainer"]["max_epochs"] == epochs
    assert (options.optimizer, options.lr, options.weight_decay) == ("sgd", 0.01, 1e-4)

    def rate(step: int) -> float:
        return optimization.lr_factor(
            step, total * 1000, options.warmup_steps, options.scheduler, options.milestones
        )

    assert rate(0) == pytest.approx(0.001)
    assert rate(1000) == rate(first * 1000 - 2) == 1.0
    assert rate(first * 1000 + 2) == rate(second * 1000 - 2) == pytest.approx(0.1)
    assert rate(second * 1000 + 2) == rate(total * 1000) == pytest.approx(0.01)


def test_the_schedules_differ_in_nothing_else() -> None:
    def rest(times: str) -> dict[str, Any]:
        config = read(LAUNCH / f"coco_r50_{times}.yaml")
        del config["trainer"]["max_epochs"], config["model"]["init_args"]["milestones"]
        return config

    assert rest("1x") == rest("2x") == rest("3x")


def test_the_canvases_of_the_published_figures_can_be_had(tmp_path: Path) -> None:
    """As the recipes' comments say."""
    text = (LAUNCH / "coco_r50_1x.yaml").read_text()
    (line,) = (line for line in text.splitlines() if "--image-size" in line)
    words = line.removeprefix("#").split(maxsplit=3)
    assert words[0] == "--image-size" and words[2] == "--data.aspect_buckets"
    buckets = yaml.safe_load(words[3].strip("'"))
    data = InstanceSegmentationDataModule(
        tmp_path, image_size=int(words[1]), aspect_buckets=buckets
    )
    assert data.canvases == ((1344, 1344), (800, 1344), (1344, 800))


def test_fine_tuning_has_what_it_is_for() -> None:
    config = read(LAUNCH / "finetune.yaml")
    options, trainer = config["model"]["init_args"], config["trainer"]
    assert trainer["accelerator"] == "auto"
    assert options["pretrained"] is True
    assert 0 < options["backbone_lr_factor"] < 1
    assert options["warmup_steps"] > 0
    assert 0 < trainer["ema_decay"] < 1
    assert trainer["patience"] > 1 and "best_metric" not in trainer
    first, *_ = options["metrics"]  # what best.ckpt and patience go by
    assert first["name"] == "mask_mAP"


@pytest.mark.slow
@pytest.mark.parametrize("validated", [True, False])
def test_fine_tuning_trains_and_stops(validated: bool, tmp_path: Path) -> None:
    """A rate of nearly nothing makes nothing better, so the second measurement is the last."""
    done = forked.run(
        *("-m", "autotimm", "fit", "--config", LAUNCH / "finetune.yaml"),
        *("--data.data_dir", LAUNCH.parent / "shards/sample", "--data.image_size", 64),
        *("--data.num_workers", 0, "--trainer.default_root_dir", tmp_path),
        *("--trainer.accelerator", "cpu", "--trainer.patience", 1),
        *("--trainer.check_val_every_n_epoch", 1, "--trainer.max_epochs", 4),
        *("--model.init_args.pretrained=false", "--model.init_args.backbone=test_resnet"),
        *("--model.init_args.fpn_channels=16", "--model.init_args.head_convs=1"),
        *("--model.init_args.lr=1e-12", "--model.init_args.weight_decay=0"),
        *([] if validated else ["--data.val_split=null"]),
    )
    assert done.returncode == 0, done.stderr
    run = json.loads(next(tmp_path.glob("*/run.json")).read_text())
    assert run["epoch"] == (2 if validated else 4)
