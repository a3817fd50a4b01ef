"""Runs start from weights: under every strategy, by the command line, from files and folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from batches import small
from ranks import on_ranks

from autotimm.checkpoints.sources import read_source
from autotimm.tasks.transfer import take

SAMPLE = Path(__file__).parents[2] / "shards/sample"  # disc, square, triangle and star
NAMES = ("star", "moon", "Disc")
ROWS = {0: 2, 3: 0}  # of the sample's classes, and of NAMES
OPTIONS = {"backbone": "test_resnet", "fpn_channels": 16, "backbone_norm": "frozen"}

CODE = """
import json, sys
from pathlib import Path
from autotimm import AutoTrainer, InputError, InstanceSegmentationDataModule, InstanceSegmentor

folder, sample, strategy, weights = sys.argv[1:5]
trainer = AutoTrainer(
    accelerator="cpu", devices=2, strategy=strategy, max_steps=1, logger=False,
    default_root_dir=folder, limit_val_batches=0, num_sanity_val_steps=0,
)
model = InstanceSegmentor(
    num_classes=4, pretrained=False, head_convs=1, optimizer="sgd", lr=1e-30, scheduler="constant",
    compile_model=strategy in ("ddp", "fsdp"), compile_kwargs={"backend": "eager"},
    **json.loads(sys.argv[5]),
)
data = InstanceSegmentationDataModule(sample, image_size=64, batch_size=2, num_workers=0)
weights = weights.replace("RANK", str(trainer.global_rank))
try:
    trainer.fit(model, datamodule=data, weights=weights)
except InputError as error:
    print("refused:", error, flush=True)
    raise SystemExit(2)
trainer.save_checkpoint(Path(folder, "done.ckpt"))
"""


def saved(path: Path, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """A checkpoint of a model of these classes, with weights of its own."""
    model = small(num_classes=len(names), **OPTIONS)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "running_var" not in key:
                tensor.add_(0.01 * torch.randn(tensor.shape))
    torch.save(
        {
            "state_dict": model.state_dict(),
            "hyper_parameters": dict(model.hparams),
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        },
        path,
    )
    return model.network.state_dict()


def assert_has(content: dict[str, Any], source: dict[str, Any]) -> None:
    assert [one["name"] for one in content["categories"]] == ["disc", "square", "triangle", "star"]
    for key, value in source.items():
        found = content["state_dict"][f"network.{key}"]
        if key.startswith(("head.classes", "mask_head.masks")):
            assert all(torch.equal(found[here], value[there]) for here, there in ROWS.items()), key
        else:
            assert torch.equal(found, value), key


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_stage_2", "deepspeed_stage_3"])
def test_every_strategy_starts_from_the_weights(strategy: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "old.ckpt")
    words = (tmp_path, SAMPLE, strategy, tmp_path / "old.ckpt", json.dumps(OPTIONS))
    done = on_ranks(CODE, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    told = "classes kept: disc, star; new: square, triangle"
    assert (done.stdout + done.stderr).count(told) == 1
    content = read_source(tmp_path / "done.ckpt")  # a folder of DeepSpeed's is a source itself
    assert_has(content, source)
    again = small(num_classes=4, **OPTIONS)
    line = take(again, content, "done.ckpt", ["triangle", "STAR", "disc", "square"])
    assert "classes kept: triangle, STAR, disc, square" in line
    theirs = content["state_dict"]["network.mask_head.masks.weight"]
    assert torch.equal(again.network.mask_head.masks.weight, theirs[[2, 3, 0, 1]])


@pytest.mark.slow
def test_a_file_that_one_rank_lacks_ends_all_ranks_with_one_line(tmp_path: Path) -> None:
    saved(tmp_path / "rank_0.ckpt")
    words = (tmp_path, SAMPLE, "ddp", tmp_path / "rank_RANK.ckpt", json.dumps(OPTIONS))
    done = on_ranks(CODE, tmp_path, *words)
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if "refused:" in line]
    assert len(lines) == 2
    assert all("rank 1" in one and "there is no checkpoint at" in one for one in lines)


def flags(folder: Path) -> list[object]:
    model = {**OPTIONS, "pretrained": "false", "head_convs": 1, "compile_model": "false"}
    return [
        *("-m", "autotimm", "fit", "--data.data_dir", SAMPLE, "--data.image_size", 64),
        *("--data.num_workers", 0, "--trainer.accelerator", "cpu", "--trainer.max_steps", 1),
        *("--trainer.limit_val_batches", 0, "--trainer.default_root_dir", folder),
        *(f"--model.init_args.{key}={value}" for key, value in model.items()),
    ]


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    saved(tmp_path / "old.ckpt")
    whole = (tmp_path / "old.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    old = str(tmp_path / "old.ckpt")
    for words, code, told in (
        (["--weights", old], 0, "classes kept: disc, star; new: square, triangle"),
        (["--weights", old, "--model.init_args.mask_size", "14"], 2, "has mask_size=28, but"),
        (
            ["--weights", old, "--weights-only-fitting", "--model.init_args.mask_size", "14"],
            0,
            "classes kept: disc, star",
        ),
        (["--weights", old, "--ckpt_path", old], 2, "--ckpt_path resumes a run and --weights"),
        (["--weights-only-fitting"], 2, "--weights-only-fitting has no effect without --weights"),
        (["--weights", str(tmp_path / "half.ckpt")], 2, "half.ckpt is damaged"),
        (["--weights", str(tmp_path / "text.ckpt")], 2, "text.ckpt is not a checkpoint"),
        (
            ["--weights", old, "--model.init_args.pretrained", old],
            2,
            "has no effect with --weights",
        ),
    ):
        done = forked.run(*flags(tmp_path / "runs"), *words)
        assert done.returncode == code, (words, done.stderr)
        assert told in done.stdout + done.stderr, words
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == (code == 2), words
    # A run that goes on has the weights in its checkpoint.
    words = ["--weights", str(tmp_path / "gone.ckpt"), "--ckpt_path", "last"]
    done = forked.run(*flags(tmp_path / "runs"), *words, "--trainer.max_steps", "2")
    assert done.returncode == 0, done.stderr
    assert "--weights is not read again" in done.stdout + done.stderr
    # As it does by its config.yaml, which has no --weights and what was asked of the backbone.
    run = tmp_path / "runs" / "version_0"
    config = (run / "config.yaml").read_text()
    assert "weights:" not in config and "weights_only_fitting" not in config
    last = ("--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    for words in (("fit", *last, "--trainer.max_steps", 2), ("test", *last)):
        done = forked.run("-m", "autotimm", *words)
        assert done.returncode == 0, done.stderr
