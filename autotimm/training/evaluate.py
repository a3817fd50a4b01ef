"""Detect the objects in a whole split on all ranks, and write COCO's results file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.distributed.agreement import settle_at_exit
from autotimm.distributed.launcher import launcher_world
from autotimm.outputs.results import SaveResults
from autotimm.strategies import choice
from autotimm.structures import Detections
from autotimm.training.progress import ProgressBar
from autotimm.training.quiet import quiet_libraries


def find_all(
    model: LightningModule,
    data: InstanceSegmentationDataModule,
    path: Path,
    *,
    accelerator: str = "auto",
    precision: Any = None,
    look: Callable[[Any], list[Detections]] | None = None,
) -> bool:
    """Write the detections of ``model`` in the test split of ``data``.

    Under torchrun or srun, every rank calls it and processes its share of the images. Each image is
    in the results once.

    Args:
        model: a trained model.
        data: its ``test_split`` is read.
        path: of the results file, which the first rank writes whole or not at all.
        accelerator: "cpu", "gpu", or "auto".
        precision: as in AutoTrainer.
        look: finds the objects of a batch in place of the model's own ``predict_step``.

    Returns:
        True on the first rank, which wrote the file.

    Raises:
        InputError: the model does not fit the data, or the launcher does not fit the machine.
    """
    quiet_libraries()
    devices, nodes = launcher_world("auto", 1, accelerator)
    if nodes == 1 and devices == "auto":
        devices = 1  # without a launcher, use one process
    alone = devices == 1 and nodes == 1
    strategy = choice.strategy("auto", accelerator, alone, timedelta(minutes=30))
    precision, plugins = choice.precision(precision, accelerator, strategy, [])
    callbacks: list[Callback] = [SaveResults(path), ProgressBar()]
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision=precision,
        plugins=plugins,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if trainer.world_size > 1:
        settle_at_exit()
    if look is not None:

        def step(batch: Any, batch_idx: int) -> list[Detections]:  # noqa: ARG001 (Lightning's name)
            return look(batch)

        model.predict_step = step  # type: ignore[method-assign]
    trainer.predict(model, datamodule=data, return_predictions=False)
    return trainer.is_global_zero
