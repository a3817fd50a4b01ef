"""The command line of ``cli/train.py``: LightningCLI with this package's classes.

``fit``, ``validate``, ``test``, ``predict``, ``find_lr`` and ``find_batch_size`` take ``--config``,
``--print_config``, ``--help`` and a flag for every argument of AutoTrainer, the model and the data
module.
"""

from __future__ import annotations

import sys
import traceback
from argparse import ArgumentError
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from yaml import YAMLError  # type: ignore[import-untyped]

from autotimm.cli import flags, parse_errors
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.distributed import signals
from autotimm.distributed.lost_ranks import LostRanksError
from autotimm.files.shortage import name_file, shortage
from autotimm.lightning_private import FlagsOnlyCLI
from autotimm.redaction import guard_process, redacted
from autotimm.setup.check import report_error
from autotimm.streaming.loader import killed_worker
from autotimm.structures import InputError
from autotimm.tasks.detector import ObjectDetector
from autotimm.tasks.torchvision_weights import PREFIX
from autotimm.training.preemption import Stopped
from autotimm.training.trainer import AutoTrainer

_yaml = get_loader("yaml")


def _load_yaml(text: str) -> Any:
    """A value of a flag or a config; YAML alone takes a name that begins with # for a comment."""
    return text if text.startswith("#") and "\n" not in text else _yaml(text)


set_loader("yaml", _load_yaml, exceptions=(YAMLError,))

_DESCRIPTIONS = {
    "validate": "Measures a checkpoint on the split to validate on.",
    "test": "Measures a checkpoint on the split to test on, and writes what it finds there.",
    "predict": "Writes what a checkpoint finds in the images of the split to test on.",
}
_EARLY_STOPPING = "lightning.pytorch.callbacks.early_stopping"
# Their messages are enough for a user; any other error is a fault of the program.
_USER_ERRORS = (InputError, MisconfigurationException, OSError, UnicodeDecodeError)


class SaveConfig(SaveConfigCallback):
    """Lightning's ``config.yaml`` in the run's folder, without the secrets in URLs.

    A run resumes from its flags and its checkpoint, never from this file. To start another run from
    the file, give the URLs that had a user, a password or a signature again, and ``--weights``: the
    file has none, because a resumed run and a test refuse it. ``run.json`` names it. It has no
    ``run_name`` either, which no other run can have. That of a fit has no ``ckpt_path``: the same
    settings are a new run again, until ``--ckpt_path`` is given. ``run.json`` has it as ``from``.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        config = redacted(config)
        for name in ("weights", "weights_only_fitting", "trainer.run_name"):
            config.pop(name, None)
        super().__init__(parser, config, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.config.pop("ckpt_path", None)
        try:
            super().setup(trainer, pl_module, stage)
        except OSError as error:
            # The first rank alone comes here, and trainer.log_dir would wait for the others.
            folder = getattr(trainer.logger, "log_dir", None) or trainer.default_root_dir
            name_file(error, Path(folder, self.config_filename))
            raise


class TrainCLI(FlagsOnlyCLI):
    """LightningCLI with ``--model`` to choose the class and num_classes taken from the data.

    The class is InstanceSegmentor by default.
    """

    def __init__(self, *, args: ArgsType = None, **options: Any) -> None:
        words = sys.argv[1:] if args is None else args
        self._verb = words[0] if words and isinstance(words, list) else None
        super().__init__(args=args, **options)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning's, but the parser raises an ArgumentError where it would print and exit."""
        return super().init_parser(exit_on_error=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model": {"class_path": "autotimm.InstanceSegmentor"}})
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Lightning's and our two searches, with the arguments of each that get no flag.

        A command line that begins with one of them gets that one: its parser costs a quarter of a
        second, as does each of the others.
        """
        own = {name: {"model", "datamodule"} for name in ("find_lr", "find_batch_size")}
        known = {**LightningCLI.subcommands(), **own}
        return {self._verb: known[self._verb]} if self._verb in known else known

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """As Lightning's, which cuts the descriptions of these three off in mid-sentence."""
        described = {name: {"description": text} for name, text in _DESCRIPTIONS.items()}
        super().setup_parser(add_subcommands, main_kwargs, described | subparser_kwargs)
        listed: Any = self.parser._subcommands_action  # jsonargparse has no public name for it
        for action in listed._choices_actions:
            action.help = _DESCRIPTIONS.get(action.dest, action.help)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As Lightning's.

        Raises:
            InputError: a flag, or a value of a flag or of the config, cannot be used.
        """
        words = sys.argv
        try:
            if args is None or isinstance(args, list):
                args, sys.argv = flags.expanded(words[1:] if args is None else args), words[:1]
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            line, flag = parse_errors.reword(str(error)), flags.help_flag(parser.prog)
            raise InputError(f"{line} ({flag} lists the flags)") from error
        finally:
            sys.argv = words

    def before_fit(self) -> None:
        """Leave a finished run as it is, without a folder for another one."""
        assert isinstance(self.trainer, AutoTrainer)
        self.trainer.leaves_finished_runs = True

    def before_instantiate_classes(self) -> None:
        pipeline = self.config[self.subcommand].data.custom_train_transforms
        if isinstance(pipeline, Namespace | dict):
            raise InputError(
                "--data.custom_train_transforms is built in Python: give MODULE.NAME of a Compose, "
                "such as my_pipeline.transforms for one in my_pipeline.py"
            )
        if self.subcommand != "fit":
            signals.release()  # only a fit has something to save
        options = self.config[self.subcommand]
        if options.get("weights"):
            _prepare_for(options.weights, options.weights_only_fitting, options.model.init_args)
        if self.subcommand in ("validate", "test", "predict"):
            if not options.ckpt_path:
                raise InputError(
                    f"{self.subcommand} needs --ckpt_path: without it the weights are random"
                )
            # The checkpoint has all weights: do not download any first.
            options.model.init_args.pretrained = False
        if self.subcommand == "predict":
            # A callback writes the predictions batch by batch; nothing uses a list of all of them.
            options.return_predictions = False


def _prepare_for(weights: str, only_fitting: bool, model: Namespace) -> None:
    """Change the settings of a model that starts from ``weights``.

    Raises:
        InputError: weights of the backbone are given besides.
    """
    if only_fitting:
        return
    if isinstance(model.get("pretrained"), str):
        raise InputError(
            f"--model.init_args.pretrained {model.pretrained} has no effect with --weights, "
            f"which has the backbone too: leave one of them out"
        )
    model.pretrained = False  # do not download any first
    if str(weights).startswith(PREFIX):
        model.layout = "torchvision"


OPTIONS: dict[str, Any] = {
    "model_class": ObjectDetector,
    "datamodule_class": InstanceSegmentationDataModule,
    "trainer_class": AutoTrainer,
    "subclass_mode_model": True,
    # The model makes its own optimizers: Lightning's flags for them would have no effect.
    "auto_configure_optimizers": False,
    "seed_everything_default": 0,
}


class _ParseOnlyCLI(TrainCLI):
    """Parses the settings; instantiates and runs nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        self.config[self.config["subcommand"]]["seed_everything"] = False  # nothing is drawn

    def instantiate_classes(self) -> None:
        """Does nothing."""

    def after_instantiate_classes(self) -> None:
        """Leaves Lightning no subcommand to run."""
        self.subcommand = None


def settings(args: list[str]) -> dict[str, Any]:
    """The settings that a fit with these arguments would use: ``data``, ``trainer``, ``model``, ...

    Raises:
        InputError: a flag or a value of the config cannot be used.
    """
    words, sys.argv = sys.argv, sys.argv[:1]  # Lightning warns of words that it does not use
    try:
        parsed = _ParseOnlyCLI(**OPTIONS, save_config_callback=None, args=args)
    finally:
        sys.argv = words
    return parsed.config["fit"].as_dict()


def _is_raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning's own code rejects a setting with it: by a ValueError, or, where early
    stopping monitors what nothing logs, a RuntimeError."""
    if type(error) not in (ValueError, RuntimeError) or error.__traceback__ is None:
        return False
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    home = frame.f_globals.get("__name__", "")
    return home.startswith("lightning.") if type(error) is ValueError else home == _EARLY_STOPPING


def run(args: list[str] | None = None, prog: str | None = None) -> None:
    """Runs the command line, as :func:`autotimm.cli.train.train` describes it."""
    guard_process()
    try:
        with signals.caught(ends=True):  # from here: it may be minutes to the first step
            TrainCLI(
                **OPTIONS,
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                args=args,
                parser_kwargs={"prog": prog} if prog else None,
            )
    except Stopped:
        # Once one process has ended, torchrun signals the others, which shall end with 85, too.
        signals.ignore()
        raise
    except LostRanksError as error:
        if error.reports:
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error
    except Exception as error:
        # jsonargparse and Lightning wrap what a constructor or a hook raised.
        cause: Any = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        # A worker's end may interrupt any code, such as a training step.
        cause = cause or killed_worker(error) or error
        if line := shortage(cause):
            report_error(error, line)
            raise SystemExit(2) from error
        if not isinstance(cause, _USER_ERRORS) and not _is_raised_by_lightning(cause):
            raise
        report_error(cause, str(cause))
        raise SystemExit(2) from error
