"""A fit that goes on: at the very batch where the checkpoint was written."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fits import IMAGES, VAL, Recorder, Scheduled, module, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

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


@pytest.mark.parametrize("stop", [1, 4, 7, 9])
def test_lightning_resumes_at_the_very_batch(shard_folder: Path, tmp_path: Path, stop: int) -> None:
    """A run resumed from a checkpoint of any step gets the batches of an uninterrupted run."""
    truth = Recorder()
    trainer(tmp_path, limit_val_batches=0).fit(truth, datamodule=module(shard_folder))

    saving = ModelCheckpoint(tmp_path / str(stop), every_n_train_steps=stop, save_top_k=-1)
    first = Recorder()
    trainer(
        tmp_path,
        limit_val_batches=0,
        callbacks=[saving],
        enable_checkpointing=True,
        max_steps=stop,
        max_epochs=-1,
    ).fit(first, datamodule=module(shard_folder))
    assert first.batches == truth.batches[:stop]

    second = Recorder()
    trainer(tmp_path, limit_val_batches=0).fit(
        second,
        datamodule=module(shard_folder),
        ckpt_path=next((tmp_path / str(stop)).glob("*.ckpt")),
    )
    assert second.batches == truth.batches[stop:]
    assert torch.equal(second.weight, truth.weight)


@pytest.fixture(scope="module", params=[{}, {"limit_train_batches": 3}], ids=["all", "limited"])
def stopped(
    request: pytest.FixtureRequest, shard_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[list[int]], dict[int, Path]]:
    """A run of two epochs: its limits, its batches, and checkpoints by the batches before them."""
    folder = tmp_path_factory.mktemp("stopped")
    saving = [
        ModelCheckpoint(folder, "step-{step}", every_n_train_steps=2, save_top_k=-1),
        ModelCheckpoint(folder, "end-{step}", every_n_epochs=1, save_top_k=-1),
    ]
    model, options = Scheduled(), {"max_epochs": 2, "limit_val_batches": 0} | request.param
    run = trainer(folder, callbacks=saving, enable_checkpointing=True, **options)
    run.fit(model, datamodule=module(shard_folder))
    run.save_checkpoint(folder / "after.ckpt")
    steps = {int(f.stem.partition("step=")[2]): f for f in folder.glob("step-*.ckpt")}
    assert len(steps) == len(model.batches) // 2
    ends = {-int(f.stem.partition("step=")[2]): f for f in folder.glob("end-*.ckpt")}
    assert len(ends) == 2
    return options, model.batches, steps | ends | {0: folder / "after.ckpt"}


def test_a_schedule_does_not_lose_the_position(
    stopped: tuple[dict[str, Any], list[list[int]], dict[int, Path]],
    shard_folder: Path,
    tmp_path: Path,
) -> None:
    """Saves at every other step, at the end of each epoch (negative) and after the fit (0)."""
    options, truth, checkpoints = stopped
    anew = {"reload_dataloaders_every_n_epochs": 1}
    for taken, checkpoint in checkpoints.items():
        for kind, more in ((Scheduled, {}), (Scheduled, anew), (Recorder, {})):
            model = kind()
            run = trainer(tmp_path, **(options | more | {"max_epochs": 3}))
            run.fit(model, datamodule=module(shard_folder), ckpt_path=checkpoint)
            left = truth[abs(taken) or len(truth) :]
            assert model.batches[: len(left)] == left, (taken, kind, more)
            third = model.batches[len(left) :]
            assert len(third) == len(truth) / 2
            assert third not in [truth[i : i + len(third)] for i in range(len(truth))]


def test_only_a_fit_goes_on_from_a_checkpoint(
    stopped: tuple[dict[str, Any], list[list[int]], dict[int, Path]],
    shard_folder: Path,
    coco_folder: Path,
    tmp_path: Path,
) -> None:
    options, truth, checkpoints = stopped
    for kind in (Recorder, Scheduled):
        for data, match in (
            (module(coco_folder), "not the data that the checkpoint was trained on"),
            (module(shard_folder, seed=1), "seed is 1, but the checkpoint was trained with seed 0"),
        ):
            for run in ("validate", "test", "predict"):
                evaluating = trainer(tmp_path)
                getattr(evaluating, run)(kind(), datamodule=data, ckpt_path=checkpoints[2])
            with pytest.raises(InputError, match=match):
                trainer(tmp_path, **options).fit(kind(), datamodule=data, ckpt_path=checkpoints[2])
            trainer(tmp_path, **options).fit(kind(), datamodule=data)  # the refused state is gone
        data = module(shard_folder)
        first, second = kind(), kind()
        trainer(tmp_path, **options).fit(first, datamodule=data, ckpt_path=checkpoints[2])
        assert first.batches == truth[2:]
        trainer(tmp_path, **options).fit(second, datamodule=data)
        assert second.batches == truth


def test_the_state_reaches_a_loader_that_is_there_already(shard_folder: Path) -> None:
    """Like a strategy that restores checkpoints only after it has created the optimizers."""
    first, second, third = (module(shard_folder) for _ in range(3))
    assert first.state_dict() == {}
    batches = iter(first.train_dataloader())
    next(batches)
    loader = second.train_dataloader()
    second.load_state_dict(first.state_dict())
    third.load_state_dict(first.state_dict())
    left = [batch["file_name"] for batch in batches]
    assert [batch["file_name"] for batch in loader] == left
    assert [batch["file_name"] for batch in third.train_dataloader()] == left


def test_loaders_made_anew_go_on(shard_folder: Path, tmp_path: Path) -> None:
    truth, model = Recorder(), Recorder()
    trainer(tmp_path, limit_val_batches=0).fit(truth, datamodule=module(shard_folder))
    every = trainer(tmp_path, limit_val_batches=0, reload_dataloaders_every_n_epochs=1)
    every.fit(model, datamodule=module(shard_folder))
    assert model.batches == truth.batches


def test_loaders_made_anew_leave_no_workers(shard_folder: Path, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    counts = []

    class Counting(Recorder):
        def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
            counts.append(len(set(multiprocessing.active_children()) - before))
            return super().training_step(batch)

    every = {"reload_dataloaders_every_n_epochs": 1, "limit_train_batches": 2, "max_epochs": 4}
    data = module(shard_folder, num_workers=1)
    trainer(tmp_path, num_sanity_val_steps=0, **every).fit(Counting(), datamodule=data)
    assert counts[:2] == [1, 1]
    assert max(counts) == 2  # one for training and one for validation
    assert not set(multiprocessing.active_children()) - before
