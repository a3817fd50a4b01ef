"""Every name of Lightning's that begins with an underscore and that this package uses.

Lightning may change any of them in any release, which is why ``pyproject.toml`` has an upper bound
for it. Each is used in one place here, which says what it is needed for and which public name would
replace it; ``tests/test_lightning_private.py`` has a test of each that fails when it is gone or
means something else. A new release is tried by these tests, and the bound is moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from torch.optim import Optimizer

INSTANTIATOR = "_instantiator"
"""The key of a checkpoint's hyper-parameters under which Lightning's command line saves the name of
a function, which ``load_from_checkpoint`` imports and calls. Needed to refuse such a checkpoint. A
way to load one without this key would replace it."""


# ------------------------------------------------------------ where a run begins


class HookedTrainer(Trainer):
    """A trainer with a hook in front of all verbs: :meth:`before_run`.

    The ranks agree on the checkpoint there, before they form a process group, which a rank that has
    failed would have the others wait for. ``Callback.setup`` comes too late for that and cannot
    choose the checkpoint; a public hook with both properties would replace ``Trainer._run``.
    """

    def before_run(self, model: LightningModule, ckpt_path: Any) -> Any:
        """Called by all ranks at the start of fit, validate, test and predict.

        Args:
            model: what is trained or evaluated.
            ckpt_path: the checkpoint that Lightning would load.

        Returns:
            The checkpoint to load in its place; None for none.
        """
        return ckpt_path

    def _run(self, model: Any, ckpt_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super()._run(model, self.before_run(model, ckpt_path), *args, **kwargs)


class CheckpointConnector(_CheckpointConnector):
    """What finds and restores a trainer's checkpoint, without what Lightning looks for unasked.

    Under SLURM it loads ``hpc_ckpt_<n>.ckpt`` from the root folder, which any other job may have
    left there. A trainer's argument for the connector, or for each of the three things done here,
    would replace ``_hpc_resume_path``, ``_select_ckpt_path`` and ``_loaded_checkpoint``.
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
        """The checkpoint to load.

        Args:
            ckpt_path: as fit, validate, test or predict was given it.
            by_lightning: gives Lightning's choice; raises ValueError where it has none.
        """
        return by_lightning()

    @property
    def loaded(self) -> dict[str, Any]:
        """The content of the checkpoint that is being restored; empty if there is none."""
        return self._loaded_checkpoint


def use_connector(trainer: Trainer, connector: CheckpointConnector) -> None:
    """Has ``trainer`` find and restore checkpoints by ``connector``; see there."""
    trainer._checkpoint_connector = connector


def checkpoint_of(trainer: Trainer, weights_only: bool) -> dict[str, Any]:
    """The content of a checkpoint of ``trainer``, as ``Trainer.save_checkpoint`` writes it.

    Needed to take secrets out of it and to agree with the other ranks before it is written. A
    public ``Trainer.dump_checkpoint`` would replace it.
    """
    return trainer._checkpoint_connector.dump_checkpoint(weights_only)


def begin_next_epoch(trainer: Trainer) -> None:
    """Has a fit that goes on from an epoch's end take it for one that begins an epoch.

    The public ``restarting`` of the fit loop cannot be set to False in a fit with ``max_steps``,
    which Lightning always takes for one that restarts. A setter that obeys would replace this.
    """
    fit = trainer.fit_loop
    fit._restarting = fit.epoch_loop.restarting = False


def uncount_step(progress: dict[str, Any]) -> None:
    """Takes one off the steps that loggers count, in the fit loop's part of a checkpoint.

    Needed where a batch is to be completed once more. Lightning counts that step itself then; if it
    saved the count of a complete batch, as a TODO of its own says, this would go.
    """
    progress["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


# ------------------------------------------------------------ in the course of a run


def leave_signals_alone(trainer: Trainer) -> None:
    """Has Lightning neither handle signals nor speak of them with the other ranks.

    Its handler of SIGTERM broadcasts wherever the ranks are just then, and they hang; what it asks
    the other ranks at each step instead, the host waits for the device to hear. A trainer's
    argument that leaves signals to the caller would replace this.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    pass


def validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just ended. Asked in ``on_train_batch_end``.

    Needed to save after that validation rather than before it. ``Trainer`` has no public name for
    it; its rules are too many to be kept here a second time.
    """
    fit = trainer.fit_loop
    assert fit._data_fetcher is not None
    return fit.epoch_loop._should_check_val_fx(fit._data_fetcher)


# ------------------------------------------------------------ strategies and precision


def before_optimizer_step(plugin: Precision, model: LightningModule, optimizer: Optimizer) -> None:
    """What Lightning does between the backward pass and the optimizer's step: it calls the hooks
    ``on_before_optimizer_step`` and clips the gradients.

    Needed by a precision that steps the optimizer itself. A public name for it in ``Precision``
    would replace it.
    """
    plugin._after_closure(model, optimizer)


def set_static_graph(strategy: DDPStrategy, static: bool) -> None:
    """Whether the model will be wrapped with PyTorch's ``static_graph``.

    DDPStrategy takes it as an argument, but it depends on the trainer, which is not there yet then.
    A public name for the keywords that the wrapper is made with would replace this.
    """
    strategy._ddp_kwargs["static_graph"] = static


class ConfiguredDeepSpeed(DeepSpeedStrategy):
    """A DeepSpeed strategy whose config is completed by :meth:`complete_config`.

    Lightning's own way switches on half precision of weights and inputs, and refuses a config that
    it has completed before. A public hook for it would replace ``_format_config``.
    """

    def complete_config(self) -> None:
        """Called once, before the engine is made: adds to ``self.config`` what the trainer says."""
        raise NotImplementedError

    def _format_config(self) -> None:
        self.complete_config()


# ------------------------------------------------------------ command line


class FlagsOnlyCLI(LightningCLI):
    """Lightning's command line, in which flags and configs alone say how the model is made.

    Lightning replaces them silently by the settings of the checkpoint in ``--ckpt_path``. An
    argument of LightningCLI that switches this off would replace ``_parse_ckpt_path``.
    """

    def _parse_ckpt_path(self) -> None:
        pass
