"""``flags.json`` is what the parser knows, and the short forms mean what they are short for."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotimm.cli import early_checks, flags, lightning_help
from autotimm.cli.lightning_cli import settings
from autotimm.cli.write_flags import make_table

SAMPLE = "shards/sample"


def test_the_file_is_what_the_parser_knows() -> None:
    made = make_table()
    assert flags.table() == made, "run python -m autotimm.cli.write_flags"
    assert set(lightning_help.VERBS) | {"predict"} == set(made["flags"])
    kinds = made["flags"]["fit"]
    assert kinds["--trainer.max_epochs"] == "int or None" and kinds["--data"] == "config"
    assert (
        kinds["--data.data_dir"] == ""
        and "mask_rois" in made["classes"]["autotimm.InstanceSegmentor"]
    )


def test_every_short_form_is_short_for_a_flag() -> None:
    classes = flags.table()["classes"]["autotimm.ObjectDetector"]
    of_model = {f"--model.init_args.{name}" for name in classes}
    assert {*flags.SHORT.values()} <= {*flags.flags_of("fit")} | of_model
    assert {"--data", "--epochs", "--image-size", "--batch-size", "--devices", "--out"} <= {
        *flags.SHORT
    }


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (["--data", "s"], ["--data.data_dir", "s"]),
        (["--data=s"], ["--data.data_dir=s"]),
        (["--data", "s.yaml"], ["--data", "s.yaml"]),  # a config of the data alone
        (["--data", '{"seed": 1}'], ["--data", '{"seed": 1}']),
        (
            ["--batch-size", "2", "--batch_size=3"],
            ["--data.batch_size", "2", "--data.batch_size=3"],
        ),
        (["--image-size", "64"], ["--data.image_size", "64"]),
        (
            ["--image-size", "64", "96", "--epochs", "1"],
            ["--data.image_size=[64, 96]", "--trainer.max_epochs", "1"],
        ),
        (
            ["--weights-only-fitting", "--seed_everything", "1"],
            ["--weights_only_fitting=true", "--seed_everything", "1"],
        ),
        (["--data"], ["--data.data_dir"]),
        (["--model.lr", "1"], ["--model.init_args.lr", "1"]),
        (["--model.mask_rois=8"], ["--model.init_args.mask_rois=8"]),
        (["--model.class_path", "a.B"], ["--model.class_path", "a.B"]),
    ],
)
def test_short_forms_are_spelt_out(short: list[str], long: list[str]) -> None:
    assert flags.expanded(short) == long


def test_a_fit_takes_the_short_forms() -> None:
    words = ["fit", "--config", "launch/small_cpu.yaml", "--data", SAMPLE, "--epochs", "3"]
    words += ["--image-size", "96", "128", "--batch-size", "5", "--devices", "1", "--out", "there/"]
    words += ["--model.lr", "0.5", "--weights", "w.ckpt", "--model.backbone=resnet34"]
    found = settings(words)
    data, trainer, model = found["data"], found["trainer"], found["model"]["init_args"]
    assert (data["data_dir"], data["image_size"], data["batch_size"]) == (SAMPLE, (96, 128), 5)
    assert (trainer["max_epochs"], trainer["devices"]) == (3, "1")
    assert (trainer["default_root_dir"], found["weights"]) == ("there/", "w.ckpt")
    assert (model["lr"], model["backbone"]) == (0.5, "resnet34")
    assert early_checks.check_words(words, "--help") is not None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("--batchsize", "--batch-size"),
        ("--epoch", "--epochs"),
        ("--max_epochs", "--trainer.max_epochs"),
        ("--image_sizes", "--image-size"),
        ("--imgsz", "--image-size"),
        ("--lr", "--model.lr"),
        ("--learning_rate", "--model.lr"),
        ("--gpus", "--devices"),
        ("--workers", "--data.num_workers"),
        ("--dataa", "--data"),
        ("--data.dat_dir", "--data.data_dir"),
        ("--data.batchsize", "--data.batch_size"),
        ("--trainer.batch_size", "--data.batch_size"),
        ("--mask_rois", "--model.mask_rois"),
        ("--output", "--out"),
        ("--nothing-like-it", ""),
    ],
)
def test_what_was_meant(name: str, near: str) -> None:
    assert flags.near_flag(name, "fit") == (f" (did you mean {near}?)" if near else "")


def test_the_flags_of_every_recipe_pass() -> None:
    for recipe in Path("launch").glob("*.yaml"):
        words = ["fit", "--config", str(recipe), "--data", SAMPLE]
        assert early_checks.check_words(words, "--help") is not None, recipe
