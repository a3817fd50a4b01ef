"""The names of Lightning's that begin with an underscore and that this package needs.

Any release of Lightning may change them, so ``pyproject.toml`` has an upper bound for it. This
module is the only one that uses them: each function and class says why it needs the name and which
public name would replace it. ``tests/test_lightning_private.py`` tests each of them and fails if
the name disappears or changes its meaning. To raise the bound, run those tests with the new
release.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities import cloud_io
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

INSTANTIATOR = "_instantiator"
"""The hyper-parameter in which Lightning's command line saves the name of a function.

``load_from_checkpoint`` imports that function and calls it, so we reject checkpoints that have the
key. An argument of ``load_from_checkpoint`` that ignores it would replace this name.
"""


# ------------------------------------------------------------ the start of a run


def import_no_object_stores() -> None:
    """Lets Lightning take a local folder for one without importing s3fs, adlfs and gcsfs.

    It imports each that is installed to see whether a file system is one of theirs: with s3fs half
    a CPU second for aiohttp and botocore. None is as long as its package has not been imported. A
    ``_is_object_storage`` that does not import would replace this function.
    """
    cloud_io.module_available = _is_imported  # type: ignore[assignment]


def _is_imported(name: str) -> bool:
    return name in sys.modules


class HookedTrainer(Trainer):
    """A trainer that calls :meth:`before_run` at the start of fit, validate, test and predict.

    The ranks agree on the checkpoint there, before they form a process group, in which the others
    would wait for a rank that has failed. ``Callback.setup`` is called too late for that and cannot
    choose the checkpoint. A public hook that does both would replace ``Trainer._run``.
    """

    def before_run(self, model: LightningModule, ckpt_path: Any) -> Any:
        """Chooses the checkpoint of a run. All ranks call it.

        Args:
            model: the model to train or to evaluate.
            ckpt_path: the checkpoint that Lightning would load.

        Returns:
            The checkpoint to load instead; None to load none.
        """
        return ckpt_path

    def _run(self, model: Any, ckpt_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super()._run(model, self.before_run(model, ckpt_path), *args, **kwargs)


class CheckpointConnector(_CheckpointConnector):
    """The part of a trainer that finds and restores checkpoints, limited to those that users name.

    Under SLURM, Lightning's loads ``hpc_ckpt_<n>.ckpt`` from the root folder, where another job may
    have left it. Public hooks to choose a checkpoint and to look at it before the optimizers are
    restored would replace ``_hpc_resume_path``, ``_select_ckpt_path`` and ``_loaded_checkpoint``.
    """

    @property
    def _hpc_resume_path(self) -> None:
        return None

    def _select_ckpt_path(
        self, state_fn: Any, ckpt_path: Any, model_provided: bool, model_connected: bool
    ) -> Any:
        def by_lightning() -> Any:
            return super(CheckpointConnector, self)._select_ckpt_path(
                state_fn, ckpt_path, model_provided, model_connected
            )

        return self.select(ckpt_path, by_lightning)

    def select(self, ckpt_path: Any, by_lightning: Callable[[], Any]) -> Any:
        """Chooses the checkpoint to load.

        Args:
            ckpt_path: the argument of fit, validate, test or predict.
            by_lightning: returns Lightning's choice, or raises ValueError if it has none.
        """
        return by_lightning()

    @property
    def loaded(self) -> dict[str, Any]:
        """The content of the checkpoint that is being restored; empty if there is none."""
        return self._loaded_checkpoint


def use_connector(trainer: Trainer, connector: CheckpointConnector) -> None:
    """Replaces the connector of ``trainer``; an argument of Trainer would replace this function."""
    trainer._checkpoint_connector = connector


def checkpoint_of(trainer: Trainer, weights_only: bool) -> dict[str, Any]:
    """The content of a checkpoint of ``trainer``, as ``Trainer.save_checkpoint`` writes it.

    AutoTrainer removes secrets from it and has all ranks agree before it is written. A public
    ``Trainer.dump_checkpoint`` would replace this function.
    """
    return trainer._checkpoint_connector.dump_checkpoint(weights_only)


def begin_next_epoch(trainer: Trainer) -> None:
    """Makes a fit that resumes at the end of an epoch begin the next one.

    The fit loop's public ``restarting`` stays True in every fit with ``max_steps``, whatever it is
    set to. A setter without this exception would replace ``_restarting``.
    """
    fit = trainer.fit_loop
    fit._restarting = fit.epoch_loop.restarting = False


def uncount_step(progress: dict[str, Any]) -> None:
    """Subtracts one from the number of steps by which loggers count.

    Lightning adds one when it resumes from a batch that is not complete, and this package saves
    such batches. There is no public name for the count.

    Args:
        progress: the fit loop's part of a checkpoint; changed in place.
    """
    progress["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


# ------------------------------------------------------------ during a run


def leave_signals_alone(trainer: Trainer) -> None:
    """Stops Lightning from handling signals and from telling the other ranks about them.

    Its handler of SIGTERM calls a broadcast wherever the rank happens to be, and the ranks hang.
    At every step it also broadcasts whether a signal has come, and the host waits for the device to
    do so. An argument of Trainer that switches both off would replace this function.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    pass


class RowsAhead:
    """Logs the metrics of a step or an epoch before a checkpoint of it is saved.

    Lightning logs them after the callbacks that save, so a process killed in between would lose
    them: the run resumes behind them. Public hooks after a row was logged, in which a callback
    could save, would replace ``_logger_connector`` and its private attributes here.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._connector = trainer, trainer._logger_connector
        self._log = self._connector.log_metrics
        self._place: tuple[int, bool] | None = None
        self._names: set[str] = set()  # of the metrics that were logged ahead at this place
        self._connector.log_metrics = self._log_rest  # type: ignore[method-assign]

    def log(self) -> None:
        """Logs what Lightning would log after the hook that is running; nothing in other hooks."""
        trainer, connector = self._trainer, self._connector
        hook = getattr(trainer.lightning_module, "_current_fx_name", None)
        loop = trainer.fit_loop.epoch_loop
        at_end = connector._first_loop_iter is None
        if trainer.state.fn != "fit" or trainer.validating:
            return
        if hook == "on_train_epoch_end" and at_end:
            metrics = dict(connector.metrics["log"])
        elif hook == "on_train_batch_end" and not at_end and not loop._should_accumulate():
            if not (connector.should_update_logs or trainer.fast_dev_run):  # type: ignore[attr-defined]
                return
            behind = self._logged_behind()
            metrics = {n: one for n, one in connector.metrics["log"].items() if n not in behind}
        else:
            return
        loop._batches_that_stepped -= at_end  # as Lightning does around its own call
        connector.log_metrics(metrics)
        loop._batches_that_stepped += at_end
        self._place = self._now()
        self._names |= metrics.keys()

    def _logged_behind(self) -> set[str]:
        """Metrics that the model's own ``on_train_batch_end`` may log, which Lightning calls last.

        Until then they have the values of the step before.
        """
        model = self._trainer.lightning_module
        if not is_overridden("on_train_batch_end", model):
            return set()
        results: Any = self._trainer._results or {}
        metas = [one.meta for one in results.values() if one.meta.fx == "on_train_batch_end"]
        return {name for meta in metas for name in (meta.name, f"{meta.name}_step")}

    def _log_rest(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """As Lightning's, without what was logged ahead."""
        if self._now() != self._place:
            self._place, self._names = None, set()
        self._log({name: one for name, one in metrics.items() if name not in self._names}, step)

    def _now(self) -> tuple[int, bool]:
        return self._trainer.global_step, self._connector._first_loop_iter is None


def validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just ended, asked in ``on_train_batch_end``.

    A checkpoint that is due waits for that validation. Lightning has no public name for this
    decision, which depends on seven settings.
    """
    fit = trainer.fit_loop
    assert fit._data_fetcher is not None
    return fit.epoch_loop._should_check_val_fx(fit._data_fetcher)


# ------------------------------------------------------------ strategies and precision


def before_optimizer_step(plugin: Precision, model: LightningModule, optimizer: Optimizer) -> None:
    """Calls the hooks ``on_before_optimizer_step`` and clips the gradients.

    A precision plugin that steps the optimizer itself has to do this between the backward pass and
    the step. A public method of Precision would replace ``_after_closure``.
    """
    plugin._after_closure(model, optimizer)


def set_static_graph(strategy: DDPStrategy, static: bool) -> None:
    """Sets the ``static_graph`` of the DistributedDataParallel that ``strategy`` will make.

    DDPStrategy takes it as an argument, but the right value depends on the trainer, which is made
    later. A public attribute for these arguments would replace ``_ddp_kwargs``.
    """
    strategy._ddp_kwargs["static_graph"] = static


class ConfiguredDeepSpeed(DeepSpeedStrategy):
    """A DeepSpeed strategy that completes its config in :meth:`complete_config`.

    Lightning's version turns weights and inputs into half precision, and rejects a config that it
    has completed before. A public hook would replace ``_format_config``.
    """

    def complete_config(self) -> None:
        """Adds the trainer's settings to ``self.config``. Called once, before the engine exists."""
        raise NotImplementedError

    def _format_config(self) -> None:
        self.complete_config()


# ------------------------------------------------------------ command line


class FlagsOnlyCLI(LightningCLI):
    """Lightning's command line, with a model made from flags and config files alone.

    Lightning's replaces them, without a word, by the settings in the checkpoint of ``--ckpt_path``.
    An argument of LightningCLI that switches this off would replace ``_parse_ckpt_path``.
    """

    def _parse_ckpt_path(self) -> None:
        pass

    def parser_of(self, verb: str) -> LightningArgumentParser:
        """The parser of a verb's flags. A public name of it would replace ``_parser``."""
        return self._parser(verb)
