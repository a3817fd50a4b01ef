"""The state that a checkpoint holds besides Lightning's: random numbers, settings, versions.

Invariants: every value is a tensor or a plain value, so the checkpoint loads with ``weights_only``;
a run that resumes with the same number of ranks draws the random numbers of the uninterrupted run
on each; the checkpoint contains no password or signature of the data's URL.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.checkpoints.resume import STATE
from autotimm.distributed.gather import from_all_ranks
from autotimm.outputs import provenance
from autotimm.strategies.norms import from_first_rank
from autotimm.structures import InputError


class KeepState(Callback):
    """Saves in every checkpoint, under the key ``autotimm``:

    - ``saved``: the time in seconds since 1970;
    - ``versions``: of Python and the packages;
    - ``settings``: of the model, the data and the trainer, as in ``run.json``;
    - ``random``: for each rank, the states of the generators of Python, NumPy and PyTorch.

    After the training all ranks hold the model that the last checkpoint has.
    """

    def __init__(self) -> None:
        self._random: dict[str, Any] | None = None
        self._versions = provenance.versions()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._random = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[STATE] = {
            "saved": time.time(),
            "versions": self._versions,
            "settings": provenance.settings(trainer, pl_module),
            "random": from_all_ranks(random_state(trainer.strategy.root_device)),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING or STATE not in checkpoint:
            return
        try:
            _warn_of_versions(checkpoint[STATE]["versions"], self._versions)
            states = checkpoint[STATE]["random"]
            if len(states) == trainer.world_size:
                self._random = states[trainer.global_rank]
                # Lightning makes the loader of the epoch next, which draws random numbers.
                set_random_state(states[trainer.global_rank], trainer.strategy.root_device)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint to resume from is damaged: its entry {STATE!r} is not what a run "
                f"saves there ({type(error).__name__})"
            ) from error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._random is not None and not trainer.is_last_batch:
            # In mid-epoch, the uninterrupted run made its loader long before, so undo its draws.
            set_random_state(self._random, trainer.strategy.root_device)
        self._random = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from_first_rank(pl_module)  # DDP equals them before a step, and one more has followed


def _warn_of_versions(saved: dict[str, str], here: dict[str, str]) -> None:
    """Warn of other versions, with which results may differ in their last digits."""
    changed = [n for n in ("torch", "autotimm") if saved.get(n) != here.get(n)]
    if changed:
        then, now = (", ".join(f"{n} {v.get(n)}" for n in changed) for v in (saved, here))
        rank_zero_warn(f"the checkpoint to resume from was saved with {then}, and this is {now}")


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of this process's random generators, with that of the device."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = np.random.get_state(legacy=False)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set this process's random generators to the states from :func:`random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    inner = state["numpy"]["state"]
    key = np.array(inner["key"], np.uint32)
    np.random.set_state({**state["numpy"], "state": {**inner, "key": key}})
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
