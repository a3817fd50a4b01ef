"""Short fits of a small model that give the same numbers on one process and on several.

As a script it is what each rank runs: ``fits.py JOBS.json OUT`` runs each job of a JSON list (the
arguments of :func:`fit`) in these processes, one after the other, and the first rank writes what
they gave to OUT.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import forked
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from line import quiet
from torch._dynamo.utils import counters

from autotimm import InputError, InstanceSegmentationDataModule, InstanceSegmentor
from autotimm.outputs.pictures import SavePictures
from autotimm.strategies import fsdp, zero
from autotimm.tasks.precision import MixedPrecision


class Record(Callback):
    """What the ranks have seen together: a loss a batch, the images of each batch, the steps."""

    def __init__(self, empty: bool) -> None:
        self.empty = empty
        self.losses: list[float] = []
        self.images: list[list[int]] = []
        self.found: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """``empty``: the second half of the ranks' images has no instance in the second step."""
        if self.empty and batch_idx == 1:
            labels = batch["labels"]
            half = slice(len(labels) // 2, None) if trainer.world_size == 1 else slice(None)
            if trainer.global_rank == trainer.world_size - 1:
                labels[half] = -1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        real = batch["image_id"][~batch["padding"]] if "padding" in batch else batch["image_id"]
        loss = outputs["loss"].item() * trainer.accumulate_grad_batches
        parts = [(loss, real.tolist())]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, (loss, real.tolist()))
        self.losses.append(sum(part[0] for part in parts) / len(parts))
        self.images.append([i for part in parts for i in part[1]])

    def on_validation_start(self, trainer, pl_module) -> None:
        """The first rank finds something in every image, the others find nothing at all."""
        self.threshold = pl_module.hparams.score_thresh
        pl_module.hparams.score_thresh = float(trainer.global_rank > 0)

    def on_validation_batch_end(self, trainer, pl_module, outputs, *_) -> None:
        self.found.append(sum(len(found["scores"]) for found in outputs))

    def on_validation_end(self, trainer, pl_module) -> None:
        pl_module.hparams.score_thresh = self.threshold


class Spoilt(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * float("nan")


class Segmentor(InstanceSegmentor):
    """``spoil`` says what goes wrong in the third step of the last rank: the loss or a gradient."""

    spoil: str | None = None

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.spoil and batch_idx == 2 and self.global_rank == self.trainer.world_size - 1:
            return loss * float("nan") if self.spoil == "loss" else Spoilt.apply(loss)
        return loss


def fit(
    shards: str,
    folder: str,
    *,
    ckpt_path: str | None = None,
    save_at: int | None = None,
    batch_size: int = 2,
    model: dict[str, Any] | None = None,
    sixteen: float | None = None,
    spoil: str | None = None,
    empty: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Trains; returns ``losses``, ``images`` of each batch, ``steps``, ..., or ``error``.

    Args:
        shards: the data.
        folder: of the run; ``<folder>/step=<n>.ckpt`` where it saved.
        ckpt_path: what to go on from.
        save_at: a checkpoint after each so many steps.
        batch_size: of a rank.
        model: settings of the model.
        sixteen: 16-mixed, which is not to be had on CPUs otherwise, beginning with this scale.
        spoil: as in :class:`Segmentor`.
        empty: as in :class:`Record`.
        **options: of the trainer.
    """
    torch.manual_seed(1)
    counters.clear()
    settings = {
        "backbone": "test_resnet",
        "num_classes": 4,
        "pretrained": False,
        "fpn_channels": 16,
        "head_convs": 1,
        "mask_size": 12,
        "mask_rois": 16,  # more than there are: which are drawn would depend on the batch of a rank
        "backbone_norm": "frozen",
        "optimizer": "sgd",
        "lr": 0.05,
        "compile_model": False,
    }
    segmentor = Segmentor(**(settings | (model or {})))
    segmentor.spoil = spoil
    data = InstanceSegmentationDataModule(
        shards, image_size=64, batch_size=batch_size, num_workers=0
    )
    record = Record(empty)
    callbacks: list[Callback] = [record, SavePictures(0)]
    if save_at:
        callbacks.append(
            ModelCheckpoint(folder, "{step}", every_n_train_steps=save_at, save_top_k=-1)
        )
    plugin: Any = None
    if sixteen and str(options.get("strategy")).startswith("deepspeed"):
        plugin = zero.Autocast("16-mixed")
        plugin.scaler = {"scale": sixteen, "steps": 0}
    elif sixteen:
        scaler = torch.amp.GradScaler("cpu", init_scale=sixteen)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
    if plugin is not None:
        options["plugins"] = [plugin]
    trainer = quiet(
        folder,
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        **({"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 0} | options),
    )
    try:
        trainer.fit(segmentor, datamodule=data, ckpt_path=ckpt_path)
    except InputError as error:
        finite = all(bool(p.isfinite().all()) for p in segmentor.parameters())
        return {"error": str(error), "finite": finite, "losses": record.losses}
    return {
        "losses": record.losses,
        "images": record.images,
        "found": record.found,
        "steps": trainer.global_step,
        "scale": plugin and plugin.state_dict()["scale"],
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sorted(counters["graph_break"]),
    }


def fit_on_ranks(ranks: int, jobs: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """What each of ``jobs`` gave on so many ranks."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "jobs.json").write_text(json.dumps(jobs))
    done = forked.run_ranks(
        __file__, out / "jobs.json", out / "gave.json", ranks=ranks, timeout=1100
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads((out / "gave.json").read_text())


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    fsdp.LEAST_BLOCK = 10_000  # so that blocks of so small a model are gathered by themselves too
    jobs = json.loads(Path(sys.argv[1]).read_text())
    gave = [fit(**job) for job in jobs]
    if int(os.environ["RANK"]) == 0:
        Path(sys.argv[2]).write_text(json.dumps(gave))
