"""What a checkpoint holds besides what Lightning keeps in it: random numbers, settings, versions.

Invariants: every value is a tensor or a plain one, so that the checkpoint loads with weights only;
a run that goes on with as many ranks draws on each the random numbers of the undisturbed run; no
password or signature of the data's URL is in it.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from autotimm.checkpoints.resume import STATE
from autotimm.outputs import provenance
from autotimm.structures import InputError


class KeepState(Callback):
    """Keeps in every checkpoint, under the key ``autotimm``:

    - ``saved``: when, in seconds since 1970;
    - ``versions``: of Python and the packages;
    - ``settings``: of the model, the data and the trainer, as ``run.json`` has them;
    - ``random``: for each rank the states of Python's, NumPy's and PyTorch's random numbers.
    """

    def __init__(self) -> None:
        self._random: dict[str, Any] | None = None
        self._versions = provenance.versions()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._random = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        here = random_state(trainer.strategy.root_device)
        every: list[Any] = [here]
        if dist.is_available() and dist.is_initialized():
            every = [None] * trainer.world_size
            dist.all_gather_object(every, here)
        checkpoint[STATE] = {
            "saved": time.time(),
            "versions": self._versions,
            "settings": provenance.settings(trainer, pl_module),
            "random": every,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING or STATE not in checkpoint:
            return
        try:
            _tell_versions(checkpoint[STATE]["versions"], self._versions)
            every = checkpoint[STATE]["random"]
            if len(every) == trainer.world_size:
                self._random = every[trainer.global_rank]
                # An epoch's loader that is made next draws from it.
                set_random_state(every[trainer.global_rank], trainer.strategy.root_device)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"what the checkpoint to go on from has under {STATE!r} is not what a run saves "
                f"there ({type(error).__name__}): it is damaged"
            ) from error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._random is not None and not trainer.is_last_batch:
            # In mid-epoch, it was made long before.
            set_random_state(self._random, trainer.strategy.root_device)
        self._random = None


def _tell_versions(saved: dict[str, str], here: dict[str, str]) -> None:
    """Says so where results may differ in their last digits from those of the undisturbed run."""
    other = [n for n in ("torch", "autotimm") if saved.get(n) != here.get(n)]
    if other:
        was, now = (", ".join(f"{n} {found.get(n)}" for n in other) for found in (saved, here))
        rank_zero_warn(f"the checkpoint to go on from was saved with {was}, and this is {now}")


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of this process's random numbers, those of the device included."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = np.random.get_state(legacy=False)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Has the random numbers of this process go on from what :func:`random_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    inner = state["numpy"]["state"]
    key = np.array(inner["key"], np.uint32)
    np.random.set_state({**state["numpy"], "state": {**inner, "key": key}})
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
