"""Stop a run on a signal: save the last step on all ranks and exit, so that it can resume later.

The signal may reach only one rank, and at any time: before the first step, in a step, in
validation. Invariants: all ranks stop after the same optimizer step; the resumed run has the
losses, the order of samples and the validations of an uninterrupted one; a stopped process exits
with ``CODE`` after all ranks have saved and closed their logs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from autotimm.checkpoints.callback import Checkpoints
from autotimm.distributed import signals
from autotimm.distributed.agreement import Agreement, over_gloo
from autotimm.distributed.launcher import find_launch
from autotimm.distributed.lost_ranks import is_of_another_rank, ranks_lost
from autotimm.distributed.rendezvous import Rendezvous
from autotimm.strategies.choice import shards_weights
from autotimm.training.next_commands import resume_command

CODE = 85
"""Exit code of a run that a signal stopped and that resumes when it is started again."""

MARK = "AUTOTIMM_STOPPED"
"""Environment variable with the path of a file. A process of each node of a stopped run writes the
number of its steps there, and all exit with 0. With another code, srun would kill the other tasks
of the job and return the code of the killed ones, and torchrun would make it 1."""

_GOES_ON = "the job goes on from there once it is requeued"
_SAME_COMMAND = "the same command with --ckpt_path last, and without --out NAME, goes on from there"


class Stopped(SystemExit):
    """Ends a process after a signal has stopped its run.

    Attributes:
        steps: optimizer steps since this start.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(CODE)
        self.steps = steps


class Preemption(Checkpoint):
    """Stops a fit after a signal.

    It is a checkpoint callback, because Lightning calls those after all others, which have then
    finished their work of a step before it is saved. ``Checkpoints`` comes before it.

    Args:
        timeout: after which a rank that does not answer is an error.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.agreement = Agreement()
        self.rendezvous: Rendezvous | None = None
        self.hosts: list[str] = []  # the node of every rank
        self._timeout = timeout
        self._begun = 0  # optimizer steps when the fit began
        self._seen = 0  # optimizer steps at the last boundary
        self._due = 0  # the signal that stops the run at the end of the epoch
        self._validates = False  # whether the resumed run has to begin with a validation
        self._stopped: Stopped | None = None  # to raise once everything is saved

    def join(self, rendezvous: Rendezvous | None, hosts: list[str]) -> None:
        """Sets the rendezvous of the ranks, or None for one process, and the node of every rank."""
        self.rendezvous, self.hosts = rendezvous, hosts

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._due, self._validates, self._stopped = 0, False, None
            self.agreement = Agreement()
            if self.rendezvous is not None:
                self.agreement = over_gloo(self.rendezvous, self._timeout)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = self._seen = trainer.global_step
        if number := self.agreement.now():
            self._leave(trainer, number)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen:  # gradients are being accumulated
            return
        self._seen = trainer.global_step
        number = self.agreement.answer()
        if not number:
            self.agreement.ask()
        elif trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._due = number  # resuming from here, Lightning would skip the end of the epoch
        else:
            self._save(trainer, number, validation=True)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Here rather than at the end of the last batch, whose metrics are logged after that hook.
        if self._stopped is not None:
            raise self._stopped

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self._stopped is not None:
            raise self._stopped
        if number := self._due or self.agreement.answer():
            self._leave(trainer, number, validation=True)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        # All ranks meet at the last batch, before they wait for each other's results. A rank that
        # knows of a signal waits for them at once, unless they need it for their next batch, as
        # with sharded weights: then all meet at every batch.
        last = trainer.fit_loop.epoch_loop.val_loop.batch_progress.is_last_batch
        meets = last or shards_weights(trainer.strategy) or self.agreement.signalled()
        if meets and (number := self.agreement.now()):
            self._leave(trainer, number, validation=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stopped is not None:
            raise self._stopped
        if self._due:
            self._leave(trainer, self._due)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._validates:
            loops = checkpoint["loops"]["fit_loop"]
            _begin_validation(loops["epoch_loop.val_loop.batch_progress"])

    def _leave(self, trainer: Trainer, number: int, validation: bool = False) -> None:
        raise self._save(trainer, number, validation)

    def _save(self, trainer: Trainer, number: int, validation: bool = False) -> Stopped:
        """Saves a checkpoint on all ranks if there were new steps.

        Returns:
            The exception with which to end the run.
        """
        steps = 0 if trainer.sanity_checking else trainer.global_step - self._begun
        message = f"stopped by {signal.Signals(number).name} at step {trainer.global_step}: "
        if steps:
            self._validates = validation
            savers: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            saver = next(one for one in savers if isinstance(one, Checkpoints))
            path = saver.save(trainer)
            launch = find_launch()
            # A requeued job finds its run, but a new process or a new call of torchrun does not.
            requeued = launch is not None and launch.name is not None
            message += f"saved {path}\n"
            message += _GOES_ON if requeued else _how_to_go_on(trainer, path)
        else:
            message += "no step was taken since the start, so that there is nothing to save"
        if trainer.is_global_zero:
            print(message, file=sys.stderr, flush=True)
        self._stopped = Stopped(steps)
        return self._stopped


def _how_to_go_on(trainer: Trainer, checkpoint: Path) -> str:
    """The lines that say how to resume from a checkpoint, with a command if one is known."""
    command = ""
    if trainer.num_nodes == 1:
        command = resume_command(checkpoint.parents[1], checkpoint, trainer.world_size)
    return f"go on with:\n  {command}" if command else _SAME_COMMAND


@contextmanager
def stoppable(trainer: Trainer) -> Iterator[None]:
    """During a fit, leave signals to its ``Preemption`` callback and name ranks that are lost.

    Without that callback, signals have their usual effect.

    Raises:
        Stopped: on all ranks, after all have saved and closed their logs.
        LostRanksError: other ranks have died or hang.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    own = next((c for c in callbacks if isinstance(c, Preemption)), None)
    if own is None:
        signals.release()
        yield
        return
    with signals.caught():
        try:
            yield
            own.agreement.leave()
        except Stopped as stopped:
            own.agreement.barrier()
            if mark := os.environ.get(MARK):
                if trainer.local_rank == 0:
                    Path(mark).write_text(f"{stopped.steps}\n")
                stopped.code = 0
            raise
        except Exception as error:
            lost = None
            if own.rendezvous is not None and is_of_another_rank(error):
                lost = ranks_lost(own.rendezvous, own.hosts, error)
            if lost is None:
                raise
            raise lost from error


def _begin_validation(progress: dict[str, Any]) -> None:
    """Set the progress of a validation to its first batch.

    Lightning repeats the whole validation if a checkpoint was saved in that batch.

    Args:
        progress: of the validation loop in a checkpoint; changed in place.
    """
    done = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    progress["current"] |= done | {"ready": 1, "started": 1}
    total = progress["total"]["completed"]
    progress["total"] |= dict.fromkeys(done, total) | {"ready": total + 1, "started": total + 1}
    progress["is_last_batch"] = False
