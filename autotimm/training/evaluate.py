"""What a model finds in a split, written as COCO's results file by all ranks of a job together."""

from __future__ import annotations

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
from autotimm.training.progress import ProgressBar
from autotimm.training.quiet import quiet_libraries


def find_all(
    model: LightningModule,
    data: InstanceSegmentationDataModule,
    path: Path,
    *,
    accelerator: str = "auto",
    precision: Any = None,
) -> bool:
    """Writes what ``model`` finds in the split that ``data`` tests on.

    Every rank of a job that torchrun or srun has started calls it; each takes its share of the
    images, and every image counts once.

    Args:
        model: with its weights.
        data: whose ``test_split`` is read.
        path: of the results file, which the first rank writes, whole or not at all.
        accelerator: "cpu", "gpu", or "auto".
        precision: as of AutoTrainer.

    Returns:
        Whether this is the first rank, which has the file.

    Raises:
        InputError: the data and the model do not fit, or the launcher and the machine.
    """
    quiet_libraries()
    devices, nodes = launcher_world("auto", 1, accelerator)
    if nodes == 1 and devices == "auto":
        devices = 1  # by hand: one process
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
    trainer.predict(model, datamodule=data, return_predictions=False)
    return trainer.is_global_zero
