"""The command line of ``launch/train.py``: Lightning's own, with this package's classes.

``fit``, ``validate``, ``test``, ``predict``, ``find_lr`` and ``find_batch_size`` take ``--config``,
``--print_config``, ``--help`` and a flag for every argument of AutoTrainer, the model and the data
module.
"""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from autotimm import urls
from autotimm.cli import refusals
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.lightning_private import FlagsOnlyCLI
from autotimm.streaming.loader import killed_worker
from autotimm.structures import InputError
from autotimm.tasks.detector import ObjectDetector
from autotimm.training import signals
from autotimm.training.lost import LostRanksError
from autotimm.training.preemption import Stopped
from autotimm.training.setup_check import tell
from autotimm.training.trainer import AutoTrainer

_ABOUT = {
    "validate": "Measures a checkpoint on the split to validate on.",
    "test": "Measures a checkpoint on the split to test on, and writes what it finds there.",
    "predict": "Writes what a checkpoint finds in the images of the split to test on.",
}
_SAYS_ENOUGH = (InputError, MisconfigurationException, OSError, UnicodeDecodeError)


class SaveConfig(SaveConfigCallback):
    """Lightning's ``config.yaml`` in the run's folder, without the secrets of URLs.

    A run goes on from its flags and its checkpoint, never from this file; who uses it for another
    one gives the URLs again that had a user, a password or a signature.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        super().__init__(parser, _shown(config), **options)


def _shown(config: Any) -> Any:
    if isinstance(config, Namespace):
        return Namespace(**{key: _shown(value) for key, value in vars(config).items()})
    if isinstance(config, list):
        return [_shown(one) for one in config]
    return urls.all_shown(config)


class TrainCLI(FlagsOnlyCLI):
    """``--model`` chooses the class, InstanceSegmentor unless told; the data say num_classes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model": {"class_path": "autotimm.InstanceSegmentor"}})
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and two that look for a setting; with the arguments that are no flags."""
        own = {name: {"model", "datamodule"} for name in ("find_lr", "find_batch_size")}
        return {**LightningCLI.subcommands(), **own}

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """As Lightning's, whose first lines on these end in mid-sentence."""
        about = {name: {"description": text} for name, text in _ABOUT.items()}
        super().setup_parser(add_subcommands, main_kwargs, about | subparser_kwargs)
        listed: Any = self.parser._subcommands_action  # jsonargparse has no public name for it
        for action in listed._choices_actions:
            action.help = _ABOUT.get(action.dest, action.help)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As Lightning's, but what is wrong is told in a line, not below a list of all flags."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                super().parse_arguments(parser, args)
        except SystemExit as stop:
            told, _, wrong = said.getvalue().partition("\nerror: ")
            if stop.code != 2 or not wrong:
                raise
            said = io.StringIO(told.partition("usage: ")[0])
            flag = "--help-all" if parser.prog == "autotimm" else "--help"
            raise InputError(f"{refusals.plain(wrong)} ({flag} lists the flags)") from None
        finally:
            sys.stderr.write(said.getvalue())

    def before_instantiate_classes(self) -> None:
        pipeline = self.config[self.subcommand].data.custom_train_transforms
        if isinstance(pipeline, Namespace | dict):
            raise InputError(
                "--data.custom_train_transforms is built in Python: give MODULE.NAME of a Compose, "
                "such as my_pipeline.transforms for one in my_pipeline.py"
            )
        if self.subcommand != "fit":
            signals.release()  # nothing is there to be saved
        if self.subcommand in ("validate", "test", "predict"):
            options = self.config[self.subcommand]
            if not options.ckpt_path:
                raise InputError(
                    f"{self.subcommand} needs --ckpt_path: without it the weights are random"
                )
            # They come from there: none are to be downloaded first.
            options.model.init_args.pretrained = False
        if self.subcommand == "predict":
            # They are written as they come; nobody is there to take them in the end.
            options.return_predictions = False


_CLASSES: dict[str, Any] = {
    "model_class": ObjectDetector,
    "datamodule_class": InstanceSegmentationDataModule,
    "trainer_class": AutoTrainer,
    "subclass_mode_model": True,
    # The model has its own optimizers: these flags would be taken and not be used.
    "auto_configure_optimizers": False,
    "seed_everything_default": 0,
}


class _Parsed(TrainCLI):
    """Reads the settings, and makes and runs nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        self.config[self.config["subcommand"]]["seed_everything"] = False  # nothing is drawn

    def instantiate_classes(self) -> None:
        """Makes none."""

    def after_instantiate_classes(self) -> None:
        self.subcommand = None  # which Lightning would run now


def settings(args: list[str]) -> dict[str, Any]:
    """What a fit with these words would be given: ``data``, ``trainer``, ``model``, ...

    Raises:
        InputError: a flag or a value of the config cannot be used.
    """
    words, sys.argv = sys.argv, sys.argv[:1]  # Lightning warns of words that it does not use
    try:
        parsed = _Parsed(**_CLASSES, save_config_callback=None, args=args)
    finally:
        sys.argv = words
    return parsed.config["fit"].as_dict()


def _is_lightnings_refusal(error: BaseException) -> bool:
    """Whether it is the ValueError with which Lightning itself refuses a setting."""
    if type(error) is not ValueError or error.__traceback__ is None:
        return False
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return frame.f_globals.get("__name__", "").startswith("lightning.")


def train(args: list[str] | None = None, prog: str | None = None) -> None:
    """Run the command line with ``args``, or those of the process, as the command ``prog``.

    Exits with 2 on bad input, after one line that says so, and with 85 where a signal has stopped a
    fit, which goes on when it is started again.
    """
    try:
        with signals.caught(ends=True):  # from here: it may be minutes to the first step
            TrainCLI(
                **_CLASSES,
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                args=args,
                parser_kwargs={"prog": prog} if prog else None,
            )
    except Stopped:
        # torchrun signals the other processes as soon as one has ended: they end with this, too.
        signals.ignore()
        raise
    except LostRanksError as error:
        if error.tells:
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error
    except Exception as error:
        # jsonargparse and Lightning wrap what a constructor or a hook raised.
        cause: Any = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        # A worker's end is told in whatever code runs just then, a training step's too.
        cause = cause or killed_worker(error) or error
        if not isinstance(cause, _SAYS_ENOUGH) and not _is_lightnings_refusal(cause):
            raise
        tell(cause, str(cause))
        raise SystemExit(2) from error
