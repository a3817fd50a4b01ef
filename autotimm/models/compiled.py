"""torch.compile of the network in place, with one graph per canvas for any number of instances.

Invariants: the keys of the state dict do not change; each canvas is compiled once for training and
once for detection; instance slots are a dynamic dimension, so batches with different numbers of
slots (``data/collate.py``) share a graph; pictures whose sizes never repeat compile nothing; an
error of the compiler becomes one line.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._dynamo.exc import TorchDynamoException

from autotimm.structures import InputError

MOST_SIZES = 8
"""The most batch sizes to compile detection for. Batches of a data module have one size, but those
that users pass to ``predict`` may have any."""
_MOST_GRAPHS = 64
"""torch's limit of recompilations, which is 8 by default; beyond it torch runs uncompiled. Eight
canvases, in training and in evaluation, and ``MOST_SIZES`` need fewer graphs than this."""


def compile_in_place(module: nn.Module, options: Mapping[str, Any] | None) -> None:
    """Compile ``module`` at its first call.

    Shapes are static unless ``options`` says otherwise, because code for one canvas is faster.

    Args:
        module: its ``forward`` is compiled.
        options: arguments of torch.compile, for example ``{"mode": "reduce-overhead"}``.

    Raises:
        InputError: torch.compile rejects the arguments.
    """
    arguments = {"dynamic": False, **(options or {})}
    _check_names(arguments)
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_GRAPHS)
    try:
        module.compile(**arguments)
    # It checks its arguments here and raises a different exception for each.
    except Exception as error:
        raise InputError(
            f"compile_kwargs={dict(options or {})}: torch.compile refuses it "
            f"({_one_line(error)}); leave it out, or take mode=default, reduce-overhead or "
            f"max-autotune"
        ) from error


def mark_dynamic(dimension: int, *tensors: Tensor | None) -> None:
    """Tell the compiler that this dimension of the tensors varies, as that of instance slots does.

    Otherwise it would compile a graph for each size.
    """
    for tensor in tensors:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)


class Sizes:
    """Limits the compilation of detection to batch sizes that occur more than once.

    The first batch of a size uses existing code if it fits, and runs uncompiled otherwise. So a few
    pictures do not cost minutes of compilation, nor do pictures whose sizes never repeat.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[int, ...]] = set()
        self._compiled: set[tuple[int, ...]] = set()

    def stance(self, image: Tensor) -> AbstractContextManager[Any]:
        """The context in which to run the network on ``image`` [B, 3, H, W]."""
        size = tuple(image.shape)
        if size in self._seen and len(self._compiled) < MOST_SIZES:
            self._compiled.add(size)
        self._seen.add(size)
        if size in self._compiled:
            return nullcontext()
        return torch.compiler.set_stance("eager_on_recompile")


@contextmanager
def explained() -> Iterator[None]:
    """Turn a failure of the compiler inside the block into an InputError of one line."""
    try:
        yield
    except TorchDynamoException as error:
        raise InputError(
            f"the network does not compile on this machine ({_one_line(error)}): "
            f"compile_model=False (--model.compile_model=false) does without, and an install of a "
            f"C++ compiler, or of Triton for a GPU, may be all that is missing"
        ) from error


def _check_names(arguments: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(torch.compile).parameters if name != "model"]
    for name in arguments:
        if name not in known:
            raise InputError(
                f"compile_kwargs has {name!r}, but torch.compile takes {', '.join(known)}"
            )


def _one_line(error: BaseException) -> str:
    text = str(error).partition("Set TORCHDYNAMO_VERBOSE")[0]  # advice for torch's developers
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
