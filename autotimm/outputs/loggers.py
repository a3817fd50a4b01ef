"""The loggers of a run's numbers and pictures: ``metrics.csv``, TensorBoard, W&B and MLflow.

Invariants: a logger that fails does not end the run, and only its first failure causes a warning; a
logger that cannot be set up is refused before the run begins.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.loggers.logger import DummyExperiment, DummyLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from autotimm.outputs.metrics_file import MetricsLogger
from autotimm.redaction import guard_streams, redacted, shown_to_library
from autotimm.structures import InputError

NAMES = ("csv", "tensorboard", "wandb", "mlflow")

PROJECT = "autotimm"
"""The project or experiment of runs at W&B and MLflow, unless WANDB_PROJECT or
MLFLOW_EXPERIMENT_NAME is set."""

GIVEN_UP = 5
"""Consecutive failures after which a logger is no longer called, because each call may wait for a
network."""


def make_loggers(
    given: Any, root: str | Path, version: str | None = None, ids: dict[str, str] | None = None
) -> list[Logger]:
    """The guarded loggers of a run. The first is a CSVLogger, whose folder is that of the run.

    Args:
        given: a name of ``NAMES``, a Logger, or several; None for TensorBoard if it is installed;
            False for none at all, not even ``metrics.csv``.
        root: the folder that contains the run's folder.
        version: the name of the run's folder; by default the next free ``version_<n>``.
        ids: the ids of a resumed run at W&B and MLflow, by logger name.

    Raises:
        InputError: a name is unknown, or its package is not installed.
    """
    guard_streams()  # importing the class of a Logger object may have put wandb before the filter
    if given is False:
        return []
    if given is None or given is True:
        given = ["tensorboard"] if _installed("tensorboard") else []
    chosen = [given] if isinstance(given, str | Logger) else given
    if not isinstance(chosen, Iterable):
        raise InputError(f"logger={given!r}: give some of {', '.join(NAMES)}, or Logger objects")
    loggers: list[Logger] = [one for one in chosen if isinstance(one, Logger)]
    names = [one for one in chosen if not isinstance(one, Logger)]
    own = next((one for one in loggers if isinstance(one, CSVLogger)), None)
    if own is None:
        own = MetricsLogger(root, version)
    rest = [one for one in loggers if one is not own]
    for name in names:
        if name not in NAMES:
            raise InputError(f"logger={name!r} is unknown: choose from {', '.join(NAMES)}")
        if not _installed(name):
            raise InputError(f"logger={name!r} needs pip install {name}")
    for name in dict.fromkeys(names):
        if name != "csv":
            with shown_to_library():
                rest.append(_named(name, own, Path(root), (ids or {}).get(name)))
    return [guarded(logger) for logger in (own, *rest)]


def _named(name: str, own: CSVLogger, root: Path, known: str | None) -> Logger:
    if name == "tensorboard":
        return TensorBoard(own)
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return DummyLogger()  # so that only the first rank opens a database or connection
    run = Path(own.log_dir).name
    try:
        if name == "wandb":
            project = _setting("WANDB_PROJECT", PROJECT)
            return WandbLogger(name=run, save_dir=root, id=known, project=project)
        experiment = _setting("MLFLOW_EXPERIMENT_NAME", PROJECT)
        place = _setting("MLFLOW_TRACKING_URI", f"sqlite:///{root.absolute() / 'mlflow.db'}")
        return MLFlowLogger(experiment, run_name=run, tracking_uri=place, run_id=known)
    except Exception as error:
        raise InputError(f"logger={name!r} cannot be set up: {one_line(error)}") from error


def _setting(name: str, default: str) -> str:
    return os.environ.get(name) or default


def _installed(name: str) -> bool:
    if name == "tensorboard":
        return any(importlib.util.find_spec(one) for one in ("tensorboard", "tensorboardX"))
    return name == "csv" or importlib.util.find_spec(name) is not None


def run_ids(loggers: Sequence[Logger]) -> dict[str, str]:
    """The ids of the run at W&B and MLflow, by logger name, under which it can resume."""
    kinds = (("wandb", WandbLogger), ("mlflow", MLFlowLogger))
    ids = {n: one.version for n, kind in kinds for one in loggers if isinstance(one, kind)}
    return {name: str(known) for name, known in ids.items() if known}


def go_on(loggers: Sequence[Logger], step: int) -> None:
    """Remove the entries of optimizer step ``step``, from 0 on, and later from ``metrics.csv`` and
    TensorBoard, because a resumed run repeats these steps."""
    for logger in loggers:
        one: Any = guarded(logger)
        if isinstance(logger, MetricsLogger):
            one.go_on(step)
        elif isinstance(logger, TensorBoardLogger) and step:
            one.attempt(_restart, logger, step)


def sync(loggers: Sequence[Logger]) -> None:
    """Write the rows of ``metrics.csv`` and TensorBoard to the disk, before a checkpoint."""
    for logger in loggers:
        if isinstance(logger, MetricsLogger | TensorBoardLogger):
            logger.save()
        if isinstance(logger, MetricsLogger):
            cast(Any, logger).sync()


@rank_zero_only
def _restart(logger: TensorBoardLogger, step: int) -> None:
    proto: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
    start = proto.SessionLog(status=proto.SessionLog.START)
    logger.experiment.file_writer.add_event(proto.Event(session_log=start), step)


def run_folder(trainer: Trainer) -> Path:
    """The run's folder. All ranks call it together, because ``log_dir`` is a broadcast."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def log_picture(logger: Logger, name: str, picture: Any, step: int) -> None:
    """Log a picture [H, W, 3] uint8 to TensorBoard, W&B or MLflow; other loggers get nothing."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, picture, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [picture], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, picture, f"{name}-step{step}.png")


def one_line(error: BaseException) -> str:
    """The error as one line of at most 500 characters, without secrets."""
    return redacted(" ".join(f"{type(error).__name__}: {error}".split()))[:500]


# ---------------------------------------------------------------- a logger that may fail


def guarded(logger: Logger) -> Logger:
    """``logger`` in a :class:`Guard`; itself if it is one already."""
    return logger if isinstance(logger, Guard) else cast(Logger, Guard(logger))


class Guard:
    """Wraps a logger: warns when one of its methods fails, and continues.

    Its attributes are those of the logger. So is the class that ``isinstance`` sees, because
    Lightning, callbacks and users test for classes such as TensorBoardLogger. After ``GIVEN_UP``
    consecutive failures the guard no longer calls the logger, unless it is a CSVLogger, which keeps
    its rows until it can write them.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._failures = 0  # consecutive
        self._warned = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._logger)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._logger, name)
        guards = inspect.ismethod(attribute) and not name.startswith("_")
        return functools.partial(self.attempt, attribute) if guards else attribute

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in ("_logger", "_failures", "_warned")
        object.__setattr__(self if own else self._logger, name, value)

    def __reduce__(self) -> Any:
        return Guard, (self._logger,)

    @property
    def experiment(self) -> Any:
        """The library's object, or one that does nothing if it cannot be created."""
        made = self.attempt(getattr, self._logger, "experiment")
        return DummyExperiment() if made is None else made

    def attempt(self, do: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``do`` and return its result, or None with a warning if it fails."""
        if self._failures >= GIVEN_UP and not isinstance(self._logger, CSVLogger):
            return None
        if getattr(do, "__name__", "") == "log_hyperparams":  # they go to files, or to a server
            args, kwargs = redacted(args), redacted(kwargs)
        try:
            with shown_to_library():  # W&B keeps the command line and all output
                result = do(*args, **kwargs)
        except Exception as error:
            self._failures += 1
            self._warn(error)
            return None
        if getattr(do, "__name__", "") == "log_metrics":  # success of others may mean little
            self._failures = 0
        return result

    def _warn(self, error: Exception) -> None:
        name = type(self._logger).__name__
        if not self._warned:
            self._warned = True
            rank_zero_warn(f"{name} fails, and the run goes on without it ({one_line(error)})")
        elif self._failures == GIVEN_UP and not isinstance(self._logger, CSVLogger):
            rank_zero_warn(f"{name} failed {GIVEN_UP} times in a row, and is not called any more")


class TensorBoard(TensorBoardLogger):
    """Writes into the folder of another logger."""

    def __init__(self, beside: CSVLogger) -> None:
        super().__init__(beside.save_dir, name="", default_hp_metric=False)
        self._beside = beside

    @property
    def log_dir(self) -> str:
        return self._beside.log_dir
