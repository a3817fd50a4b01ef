"""Every verb checks its inputs before it makes an output: a refusal leaves no file or folder."""

from __future__ import annotations

import os
from pathlib import Path

import forked
import pytest
from conftest import SAMPLE

FIT = ["--trainer.default_root_dir", "OUT", "--trainer.accelerator", "cpu", "--data.num_workers=0"]
FIT += ["--model.init_args.backbone=resnet10t", "--model.init_args.pretrained=false"]
FIT += ["--data.image_size=64", "--trainer.max_steps=1"]
EVALUATE = ["evaluate", "--out", "OUT", "--split", "train", "--accelerator", "cpu"]
PREDICT = ["predict", "--out", "OUT/x", "--device", "cpu"]
CASES = {
    "evaluate: no checkpoint": [*EVALUATE, "--checkpoint", "gone.ckpt", "--data", "SAMPLE"],
    "evaluate: a bad checkpoint": [*EVALUATE, "--checkpoint", "bad", "--data", "SAMPLE"],
    "evaluate: no data": [*EVALUATE, "--checkpoint", "GOOD", "--data", "gone"],
    "evaluate: bad data": [*EVALUATE, "--checkpoint", "GOOD", "--data", "empty"],
    "evaluate: no split": [*EVALUATE, "--checkpoint", "GOOD", "--data", "SAMPLE", "--split", "x"],
    "evaluate: no results": [*EVALUATE, "--results", "gone.json", "--data", "SAMPLE"],
    "evaluate: bad results": [*EVALUATE, "--results", "bad", "--data", "SAMPLE"],
    "evaluate: results, no data": [*EVALUATE, "--results", "none.json", "--data", "gone"],
    "evaluate: bad annotations": [
        *("evaluate", "--out", "OUT", "--results", "none.json", "--annotations", "bad")
    ],
    "evaluate: out is a file": [
        *EVALUATE,
        "--results",
        "none.json",
        "--data",
        "SAMPLE",
        "--out",
        "bad/x",
    ],
    "predict: no checkpoint": [*PREDICT, "PHOTO", "--checkpoint", "gone.ckpt"],
    "predict: a bad checkpoint": [*PREDICT, "PHOTO", "--checkpoint", "bad"],
    "predict: no image": [*PREDICT, "gone.jpg", "--checkpoint", "GOOD"],
    "predict: a bad image": [*PREDICT, "bad", "--checkpoint", "GOOD"],
    "predict: an empty folder": [*PREDICT, "empty", "--checkpoint", "GOOD"],
    "predict: no device": [*PREDICT, "PHOTO", "--checkpoint", "GOOD", "--device", "cuda:99"],
    "export: no checkpoint": ["export", "--checkpoint", "gone.ckpt", "--out", "OUT/a.onnx"],
    "export: a bad checkpoint": ["export", "--checkpoint", "bad", "--out", "OUT/a.safetensors"],
    "export: bad metrics": [
        *("export", "--checkpoint", "GOOD", "--out", "OUT/a.safetensors", "--metrics", "bad")
    ],
    "preview: no data": ["preview", "--data", "gone", "--out", "OUT/a.png"],
    "preview: bad data": ["preview", "--data", "empty", "--out", "OUT/a.png"],
    "preview: no split": ["preview", "--data", "SAMPLE", "--split", "x", "--out", "OUT/a.png"],
    "shard: no source": ["shard", "gone", "OUT"],
    "shard: a bad source": ["shard", "empty", "OUT"],
    "fit: no data": ["fit", *FIT, "--data.data_dir", "gone"],
    "fit: bad data": ["fit", *FIT, "--data.data_dir", "empty"],
    "fit: no split": ["fit", *FIT, "--data.data_dir", "SAMPLE", "--data.train_split", "x"],
    "fit: no checkpoint": ["fit", *FIT, "--data.data_dir", "SAMPLE", "--ckpt_path", "gone.ckpt"],
    "fit: a bad checkpoint": ["fit", *FIT, "--data.data_dir", "SAMPLE", "--ckpt_path", "bad"],
    "fit: no backbone": [
        *("fit", *FIT, "--data.data_dir", "SAMPLE", "--model.init_args.backbone", "gone")
    ],
    "validate: no checkpoint": [
        "validate",
        *FIT,
        "--data.data_dir",
        "SAMPLE",
        "--ckpt_path",
        "gone.ckpt",
    ],
    "test: a bad checkpoint": ["test", *FIT, "--data.data_dir", "SAMPLE", "--ckpt_path", "bad"],
    "find_lr: no data": ["find_lr", *FIT, "--data.data_dir", "gone"],
    "find_batch_size: bad data": ["find_batch_size", *FIT, "--data.data_dir", "empty"],
}


@pytest.mark.slow  # some thirty processes
@pytest.mark.parametrize("case", CASES)
def test_a_refusal_leaves_nothing(case: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").write_bytes(b"neither a picture nor anything else")
    (tmp_path / "none.json").write_text("[]")
    photo = tmp_path / "photo.png"
    photo.write_bytes((Path(__file__).parents[2] / "docs" / "demo.png").read_bytes())
    places = {"GOOD": checkpoint, "SAMPLE": SAMPLE, "PHOTO": photo, "OUT": "out"}
    words = CASES[case]
    for name, path in places.items():
        words = [word.replace(name, str(path)) for word in words]
    before = sorted(tmp_path.rglob("*"))
    env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / "cache"))
    done = forked.run("-m", "autotimm", *words, cwd=tmp_path, env=env)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before, done.stderr
