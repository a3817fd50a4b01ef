"""The files of a checkpoint of DeepSpeed's, which is a folder, and what may be in them.

Invariant: no code from one runs. DeepSpeed unpickles its files whole, so each is looked into before
that, for more than tensors, plain values and a few objects of DeepSpeed's own.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autotimm.structures import InputError

TAG = "checkpoint"
"""The folder inside of a checkpoint that has the files, as Lightning names it."""


def stage_of(path: Path) -> int:
    """3, or 2 where it is 1 or 2, which write the same."""
    return 3 if (path / TAG / "zero_pp_rank_0_mp_rank_00_model_states.pt").exists() else 2


def check_folder(path: Path, rank: int | None = None) -> list[Path]:
    """The files of the ranks' optimizer states in a DeepSpeed checkpoint that holds no code.

    Args:
        path: of the checkpoint.
        rank: whose files are looked into, with those that all ranks share: of n ranks each would
            open n files. None for all.

    Raises:
        InputError: it is none, or a file has more than tensors and plain values, or is cut off.
    """
    states = sorted(_files(path, "optim_states"))
    if not states:
        raise InputError(
            f"{path} is no checkpoint of DeepSpeed's: a run with strategy=deepspeed_stage_<n> goes "
            f"on from its own alone; begin from the weights of another with load_from_checkpoint"
        )
    for file in [*states, *_files(path, "model_states")]:
        owner = re.search(r"zero_pp_rank_(\d+)_", file.name)
        if rank is not None and owner and int(owner[1]) != rank:
            continue
        try:
            with torch.serialization.safe_globals(of_deepspeed()):
                # Mapped, not read: what it would build is looked at, the tensors are not.
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
    """As :func:`check_folder`, by all ranks, which hear what one of them has found.

    Returns:
        How many ranks wrote it.
    """
    problem, states = "", list[Path]()
    try:
        states = check_folder(path, rank)
    except InputError as error:
        problem = str(error)
    problems = [problem]
    if dist.is_available() and dist.is_initialized():
        problems = [""] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
    if told := next(filter(None, problems), None):
        raise InputError(told)
    return len(states)


def _files(path: Path, kind: str) -> Iterator[Path]:
    return path.glob(f"{TAG}/*_{kind}.pt")


def of_deepspeed() -> list[Any]:
    """The classes of DeepSpeed's, with numbers inside, of which its checkpoints have objects."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]
