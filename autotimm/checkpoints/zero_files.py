"""Check the files of a DeepSpeed checkpoint, which is a folder, before DeepSpeed reads them.

Invariants: no file with a changed or missing byte is read; no code from a checkpoint runs.
DeepSpeed unpickles its files without protection, so each is checked first, and may contain only
tensors, plain values and a few classes of DeepSpeed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from autotimm.checkpoints.storage import COMPLETE
from autotimm.checkpoints.storage import check_folder as check_files
from autotimm.distributed.gather import from_all_ranks
from autotimm.files.checksums import DamagedError, check
from autotimm.structures import InputError

TAG = "checkpoint"
"""The folder with the files inside a checkpoint, as Lightning names it."""


def stage_of(path: Path) -> int:
    """The ZeRO stage of a checkpoint: 3, or 2 for both 1 and 2, whose files are alike."""
    return 3 if (path / TAG / "zero_pp_rank_0_mp_rank_00_model_states.pt").exists() else 2


def check_folder(path: Path, rank: int | None = None) -> list[Path]:
    """Check that a DeepSpeed checkpoint is what was written, and contains no code.

    Args:
        path: of the checkpoint.
        rank: check only the files of this rank and those that all ranks share, so that n ranks do
            not open n files each. None for all files.

    Returns:
        The files with the optimizer states of the ranks.

    Raises:
        InputError: this is not a DeepSpeed checkpoint, or a file is damaged or contains more than
            tensors and plain values.
    """
    states = sorted(_files(path, "optim_states"))
    if not states:
        raise InputError(
            f"{path} is not a DeepSpeed checkpoint: a run with strategy=deepspeed_stage_<n> only "
            f"resumes from one; begin from the weights of another with load_from_checkpoint"
        )

    def concerns(name: str) -> bool:
        owner = re.search(r"zero_pp_rank_(\d+)_", name)
        return rank is None or owner is None or int(owner[1]) == rank

    files = [file for file in [*states, *_files(path, "model_states")] if concerns(file.name)]
    try:
        if (path / COMPLETE).exists():
            check_files(path, concerns)
        else:  # Lightning's own strategy wrote it
            _check_crcs(files)
    except (DamagedError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}): give another checkpoint") from error
    for file in files:
        try:
            with torch.serialization.safe_globals(of_deepspeed()):
                # Mapped into memory: this checks the classes without reading the tensors.
                torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{file} has more than weights and plain values: it is damaged, or carries code, "
                f"which was not run"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read ({type(error).__name__}): cut off?") from error
    return states


def check_on_all_ranks(path: Path, rank: int | None) -> int:
    """As :func:`check_folder`, but all ranks call it and raise the error of any of them.

    Returns:
        The number of ranks that wrote the checkpoint.
    """
    problem, states = "", list[Path]()
    try:
        states = check_folder(path, rank)
    except InputError as error:
        problem = str(error)
    if message := next(filter(None, from_all_ranks(problem)), None):
        raise InputError(message)
    return len(states)


def _check_crcs(files: Iterable[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            try:
                check(opened)
            except DamagedError as error:
                raise DamagedError(f"{file.name}: {error}") from error


def _files(path: Path, kind: str) -> Iterator[Path]:
    return path.glob(f"{TAG}/*_{kind}.pt")


def of_deepspeed() -> list[Any]:
    """The classes of DeepSpeed whose objects its checkpoints contain. They only hold numbers."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]
