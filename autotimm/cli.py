"""The command line of ``launch/train.py``: Lightning's own, with this package's classes.

``fit``, ``validate``, ``test`` and ``predict`` take ``--config``, ``--print_config``, ``--help``
and a flag for every argument of AutoTrainer, the model and the data module.
"""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.structures import InputError
from autotimm.tasks.detector import ObjectDetector
from autotimm.training.trainer import AutoTrainer


class TrainCLI(LightningCLI):
    """``--model`` chooses the class, InstanceSegmentor unless told; the data say num_classes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model": {"class_path": "autotimm.InstanceSegmentor"}})
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )


def train(args: list[str] | None = None) -> None:
    """Run the command line with ``args``, or those of the process. Exits with 2 on bad input."""
    try:
        TrainCLI(
            ObjectDetector,
            InstanceSegmentationDataModule,
            trainer_class=AutoTrainer,
            subclass_mode_model=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            args=args,
        )
    except InputError as error:
        _fail(error)
    except Exception as error:
        # jsonargparse and Lightning wrap what a constructor or a hook raised.
        cause: Any = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        _fail(cause)


def _fail(error: InputError) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from error
