"""Save the state of a run: when, under which names, and which checkpoints to keep.

    <run>/checkpoints/
        step_1200.ckpt    the state after 1,200 optimizer steps: a file, or a folder if sharded
        step_1400.ckpt
        last.ckpt         a link to the newest
        best.ckpt         a link to the one with the best metric

Invariants: a name or link appears only after its checkpoint is whole on the disk; a checkpoint is
removed only after a newer one was written, and only if this run, or the one that it resumes in the
same folder, wrote it, and no other process trains there; no step is saved in the middle of an
accumulation; a failure to save does not end a run that can try again later; all ranks decide alike.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from weakref import proxy

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.checkpoints import best_metric
from autotimm.checkpoints.clock import SaveClock
from autotimm.checkpoints.ownership import Ownership
from autotimm.checkpoints.retention import clear, kept, point, remove
from autotimm.checkpoints.settings import SaveSettings
from autotimm.checkpoints.storage import SaveError, on_all_ranks, sync_folder
from autotimm.lightning_private import validates_next
from autotimm.outputs.loggers import run_folder
from autotimm.plain import plain
from autotimm.structures import InputError
from autotimm.tasks.archive import check_readable


class Checkpoints(Checkpoint):
    """Saves the state of the training regularly, and keeps the best checkpoints by a metric.

    Args:
        settings: when to save, and what to keep.

    Raises:
        InputError: in a fit: the metric is not logged, or the last checkpoint cannot be written.
    """

    def __init__(self, settings: SaveSettings | None = None) -> None:
        self.settings = settings or SaveSettings()
        self.monitor: str | None = None  # the names of these three are those of ModelCheckpoint
        self.mode = "max"
        self.dirpath = Path()
        self._files: dict[str, float | None] = {}
        self._restored: dict[str, float | None] = {}
        self._owned = Ownership()
        self._step = 0  # the last step that was seen
        self._saved = 0  # the last step that was saved
        self._due = False
        self._score: float | None = None  # of a validation after the last step
        self._problem: str | None = None  # that the last validation has shown
        self._clock = SaveClock(self.settings.save_every_minutes)

    # ------------------------------------------------------------- the checkpoints

    @property
    def last_model_path(self) -> str:
        """The path of the newest checkpoint; empty if there is none."""
        return str(self.dirpath / next(reversed(self._files))) if self._files else ""

    @property
    def best_model_path(self) -> str:
        """The path of the best checkpoint, or of the newest if none has a score."""
        best = kept(self._files, 0, 1, self.mode)
        return str(self.dirpath / best[0]) if best else self.last_model_path

    @property
    def best_k_models(self) -> dict[str, torch.Tensor]:
        """The scores of the best checkpoints by path, best first."""
        names = kept(self._files, 0, self.settings.keep_best, self.mode)
        return {str(self.dirpath / name): torch.tensor(self._files[name]) for name in names}

    @property
    def best_model_score(self) -> torch.Tensor | None:
        """The score of the best checkpoint."""
        return next(iter(self.best_k_models.values()), None)

    @property
    def current_score(self) -> torch.Tensor | None:
        """The score of the newest checkpoint."""
        score = next(reversed(self._files.values()), None)
        return None if score is None else torch.tensor(score)

    def state_dict(self) -> dict[str, Any]:
        return {"files": dict(self._files)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Other names could lead out of the folder, and files would be removed there.
        given = state_dict.get("files") if isinstance(state_dict, dict) else None
        self._restored = {
            name: score
            for name, score in (given.items() if isinstance(given, dict) else ())
            if re.fullmatch(r"step_\d+\.ckpt", str(name))
            and (score is None or isinstance(score, float))
        }

    # -------------------------------------------------------------- when to save

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = run_folder(trainer).absolute() / "checkpoints"
        if stage == "fit":
            self.monitor, self.mode = best_metric.chosen(self.settings, trainer, pl_module)
            self._files, self._restored = {}, {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check_states(trainer, pl_module)
        if trainer.is_global_zero:
            there = {n: s for n, s in self._restored.items() if (self.dirpath / n).exists()}
            if self._owned.enter(self.dirpath, there):
                clear(self.dirpath)
            else:
                rank_zero_warn(
                    f"another process trains in {self.dirpath.parent}, too: checkpoints that this "
                    f"one has not written are kept; stop one of both"
                )
        self._files = trainer.strategy.broadcast(there if trainer.is_global_zero else {})
        self._step = trainer.global_step
        self._saved = 0  # so that the step is saved again, with the score of its validation
        self._due, self._score, self._problem = False, None, None
        self._clock.start(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # in the middle of an accumulation
            return
        self._step, self._score = step, None
        every = self.settings.save_every_n_steps
        self._due |= bool(every and step % every == 0)
        self._due |= self._clock.is_up(trainer)
        # If a validation or the end of the epoch follows, save after it: a resumed run would skip
        # it.
        if self._due and not trainer.is_last_batch and not _validates_next(trainer):
            self._save_and_go_on(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._problem = best_metric.missing(self.monitor, trainer.callback_metrics)
        if trainer.sanity_checking:
            if self._problem:
                raise InputError(self._problem)
            return
        self._score = None if self._problem else self._measured(trainer)
        if not trainer.is_last_batch:
            self._save_what_is_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs, every = trainer.current_epoch + 1, self.settings.save_every_n_epochs
        self._due |= bool(every and epochs % every == 0)
        self._save_what_is_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved != trainer.global_step:
            self.save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._owned.leave()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._owned.leave()

    def _measured(self, trainer: Trainer) -> float | None:
        """The value of the monitored metric, the same on all ranks."""
        if self.monitor is None:
            return None
        return trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))

    def _is_best(self, trainer: Trainer) -> bool:
        name = _name(trainer)
        return self._score is not None and name in kept(
            {**self._files, name: self._score}, 0, self.settings.keep_best, self.mode
        )

    # ------------------------------------------------------------------- saving

    def _save_what_is_due(self, trainer: Trainer) -> None:
        if self._due or self._problem or self._is_best(trainer):
            self._save_and_go_on(trainer)
        if self._problem:  # without a sanity check it shows only hours after the start
            raise InputError(self._problem)

    def _save_and_go_on(self, trainer: Trainer) -> None:
        try:
            self.save(trainer)
        except SaveError as error:
            self._due = False
            there = self.last_model_path or "none yet"
            rank_zero_warn(
                f"{error}; the training goes on, and tries again when the next one is due (newest "
                f"checkpoint: {there})"
            )

    def save(self, trainer: Trainer) -> Path:
        """Saves the state after the last optimizer step. All ranks call it.

        It does nothing if the state is already saved, with the score of the validation if any.

        Returns:
            The path of the checkpoint.

        Raises:
            SaveError: on all ranks, if it cannot be written; the older checkpoints stay.
        """
        name = _name(trainer)
        path = self.dirpath / name
        known = self._score is None or self._files.get(name) is not None
        done = self._saved == trainer.global_step and name in self._files and known
        if trainer.fast_dev_run or done:  # type: ignore[attr-defined]
            self._due = False
            return path
        before = dict(self._files)
        # Before saving, because the state contains this list, which has to include itself.
        self._files.pop(name, None)
        self._files[name] = self._score
        try:
            trainer.save_checkpoint(path)
        except BaseException:
            self._files = before
            raise
        if trainer.is_global_zero:
            self._owned.wrote(path)
        self._saved, self._due = trainer.global_step, False
        self._clock.saved(trainer.global_step)
        self._link(trainer, path)
        # After an error above, all checkpoints stay, because a link may lead to any of them.
        self._remove_old(trainer)
        return path

    def _link(self, trainer: Trainer, path: Path) -> None:
        """Points ``last.ckpt`` at the checkpoint that was saved, and ``best.ckpt`` at the best."""
        with on_all_ranks(path):
            if trainer.is_global_zero:
                point(self.dirpath / "last.ckpt", path.name)
                if best := kept(self._files, 0, min(self.settings.keep_best, 1), self.mode):
                    point(self.dirpath / "best.ckpt", best[0])
                sync_folder(self.dirpath)

    def _remove_old(self, trainer: Trainer) -> None:
        """Removes the checkpoints that are no longer kept, and informs the loggers."""
        names = kept(self._files, self.settings.keep_last, self.settings.keep_best, self.mode)
        gone = [old for old in self._files if old not in names]
        self._files = {n: s for n, s in self._files.items() if n in names}
        if trainer.is_global_zero:
            for old in gone:
                if self._owned.may_remove(self.dirpath / old):
                    remove(self.dirpath / old)
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))


def _check_states(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raise InputError now, not hours later, if the first checkpoint could not be read again."""
    check_readable(plain(dict(pl_module.hparams)), "hyper_parameters")
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        check_readable(callback.state_dict(), f"the state of {type(callback).__name__}: ")


def _name(trainer: Trainer) -> str:
    return f"step_{trainer.global_step}.ckpt"


def _validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just ended.

    False if validations follow a time interval: each rank reads its own clock later.
    """
    by_clock = trainer.val_check_batch is None
    return not by_clock and validates_next(trainer)
