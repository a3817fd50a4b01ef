"""Published weights: from a checkpoint to one safetensors file and back to a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch
from batches import random_batch, small
from torch.utils.data import DataLoader

from autotimm import AutoTrainer, InputError, InstanceSegmentor
from autotimm.checkpoints.convert import convert, main
from autotimm.tasks.checkpoint import read_checkpoint

CATEGORIES = [{"id": 7 * i, "name": f"kind {i}"} for i in range(3)]


def saved(path: Path, **more: Any) -> InstanceSegmentor:
    """A model whose checkpoint is written to ``path``."""
    model = small(mask_size=12, metrics=[{"name": "mAP", "metric_class": "MeanAveragePrecision"}])
    torch.save(
        {
            "state_dict": model.state_dict(),
            "hyper_parameters": dict(model.hparams),
            "categories": CATEGORIES,
            "preprocessing": asdict(model.preprocessing),
            "epoch": 2,
            "global_step": 30,
            "pytorch-lightning_version": "2.6.4",
            "optimizer_states": [],
            **more,
        },
        path,
    )
    return model


def test_a_published_file_is_the_checkpoints_model(tmp_path: Path) -> None:
    model = saved(tmp_path / "last.ckpt")
    path = convert(tmp_path / "last.ckpt", tmp_path / "new" / "weights.safetensors")
    loaded = InstanceSegmentor.load_from_checkpoint(path)
    assert loaded.categories == CATEGORIES
    assert loaded.preprocessing == model.preprocessing
    assert loaded.hparams == {**model.hparams, "pretrained": False, "compile_model": False}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    # Other programs can read the weights without this package.
    assert safetensors.torch.load_file(path).keys() == model.state_dict().keys()
    with fsspec.open("memory://weights.safetensors", "wb") as file:
        file.write(path.read_bytes())
    again = InstanceSegmentor.load_from_checkpoint("memory://weights.safetensors")
    assert torch.equal(again.network.head.classes.weight, model.network.head.classes.weight)


def test_the_average_of_the_weights_is_published_where_there_is_one(tmp_path: Path) -> None:
    average = {name: torch.full_like(w, 3) for name, w in small(mask_size=12).state_dict().items()}
    saved(tmp_path / "last.ckpt", ema={"decay": 0.9, "state_dict": average})
    path = convert(tmp_path / "last.ckpt", tmp_path / "weights.safetensors")
    loaded = InstanceSegmentor.load_from_checkpoint(path)
    assert all((weight == 3).all() for weight in loaded.state_dict().values())


def test_it_can_be_evaluated_and_is_no_training_to_go_on_with(tmp_path: Path) -> None:
    model = saved(tmp_path / "last.ckpt")
    path = convert(tmp_path / "last.ckpt", tmp_path / "weights.safetensors")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    run = AutoTrainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, default_root_dir=tmp_path
    )
    batch = {
        **random_batch([1], 64, 64),
        "image_id": torch.tensor([1]),
        "file_name": ["a.jpg"],
        "padding": torch.tensor([False]),
        "scale": torch.ones(1, 2),
        "offset": torch.zeros(1, 2),
        "original_size": torch.tensor([[64, 64]]),
    }
    loader = DataLoader([batch], batch_size=None)
    run.predict(model, loader, ckpt_path=str(path))
    assert model.network.head.classes.weight.abs().sum() > 0
    assert model.categories == CATEGORIES
    with pytest.raises(InputError, match="holds weights alone, without the optimizer's state"):
        run.fit(model, loader, ckpt_path=str(path))


def test_what_is_not_one_of_ours_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3)}, path)
    with pytest.raises(InputError, match="has no settings of a model of this package") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    safetensors.torch.save_file({"a": torch.ones(3)}, path, {"autotimm": "[]"})
    with pytest.raises(InputError, match="settings that are not a JSON object"):
        read_checkpoint(path)
    saved(tmp_path / "last.ckpt")
    whole = convert(tmp_path / "last.ckpt", path).read_bytes()
    for length in (9, 100, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cannot be read as safetensors"):
            read_checkpoint(path)
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{" + whole[9:])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_checkpoint(path)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "last.ckpt")
    out = tmp_path / "weights.safetensors"
    main([str(tmp_path / "last.ckpt"), str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    (tmp_path / "empty").mkdir()
    for given, message in (
        (["nowhere.ckpt", str(out)], "there is no checkpoint at nowhere.ckpt"),
        ([str(tmp_path / "last.ckpt"), "out.bin"], "has to end in .safetensors"),
        ([str(tmp_path / "bare.ckpt"), str(out)], "has no settings of a model"),
        ([str(tmp_path / "empty"), str(out)], "is not a DeepSpeed checkpoint"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(given)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert message in lines[0]
    assert read_checkpoint(out)["categories"] == CATEGORIES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_of_numpys_numbers_is_loaded_published_and_gone_on_with(tmp_path: Path) -> None:
    """Settings as users compute them, of the model, the trainer, a subclass and its optimizer."""

    class Own(InstanceSegmentor):
        def __init__(self, margin: Any = 1.0, **settings: Any) -> None:
            super().__init__(**settings)
            self.save_hyperparameters({"margin": margin})

    labels = np.array([0, 2])
    model = small(
        Own,
        margin=np.float32(0.5),
        num_classes=labels.max() + 1,
        fpn_channels=np.int64(32),
        mask_size=torch.tensor(12),
        lr=np.float32(1e-3),
        weight_decay=np.float64(1e-4),
        score_thresh=torch.tensor(0.0),
        freeze_backbone=np.bool_(False),
        backbone=np.str_("resnet10t"),
    )
    model.hparams.lr = np.float32(2e-3)
    loader = DataLoader([random_batch([1], 64, 64)] * 2, batch_size=None)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "default_root_dir": tmp_path,
        "ema_decay": np.float64(0.5),
        "gradient_clip_val": np.float32(1),
        "keep_last": np.int64(2),
        "save_every_n_steps": torch.tensor(1),
    }
    AutoTrainer(max_epochs=np.int64(1), **settings).fit(model, loader)
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    loaded = Own.load_from_checkpoint(last)
    assert loaded.hparams.margin == 0.5
    assert loaded.hparams.num_classes == 3
    assert type(loaded.hparams.lr) is float
    again = Own.load_from_checkpoint(convert(last, tmp_path / "out.safetensors"))
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    run = AutoTrainer(max_epochs=2, **settings)
    run.fit(model, loader, ckpt_path="last")
    assert run.global_step == 4
