"""torch.compile of the network: in place, one graph a canvas, whatever the number of instances.

Invariants: the keys of the state dict stay what they are; a canvas is compiled once for training
and once for detection; slots for instances are a dynamic dimension, so that batches whose slots
differ (``data/collate.py``) share a graph; pictures of ever new sizes compile nothing; what cannot
be compiled is said in one line.
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
"""Of batches that detection is compiled for; a data module has one, users' own pictures any."""
_MOST_GRAPHS = 64
"""Beyond the usual 8 torch gives up and goes on uncompiled; eight canvases, in training and in
evaluation, and the sizes above are fewer than these."""


def compile_in_place(module: nn.Module, options: Mapping[str, Any] | None) -> None:
    """Has calls of ``module`` go through torch.compile.

    Shapes are static unless ``options`` says otherwise: a canvas deserves code of its own.

    Args:
        module: whose ``forward`` is compiled at its first call.
        options: arguments of torch.compile, ``{"mode": "reduce-overhead"}`` for example.

    Raises:
        InputError: torch.compile does not take these arguments.
    """
    arguments = {"dynamic": False, **(options or {})}
    _check_names(arguments)
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_GRAPHS)
    try:
        module.compile(**arguments)
    # What it checks, it checks at once, with an exception class of its own for each thing.
    except Exception as error:
        raise InputError(
            f"compile_kwargs={dict(options or {})}: torch.compile refuses it "
            f"({_one_line(error)}); leave it out, or take mode=default, reduce-overhead or "
            f"max-autotune"
        ) from error


def mark_dynamic(dimension: int, *tensors: Tensor | None) -> None:
    """Tells the compiler that this dimension of the tensors differs from call to call, as slots
    for instances do: each size would otherwise compile a graph of its own."""
    for tensor in tensors:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)


class Sizes:
    """Which sizes of batches detection is compiled for: those that come again.

    A size that comes for the first time takes code that is there already, or runs uncompiled; so a
    few pictures need no minutes of compilation, and pictures of ever new sizes never do.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[int, ...]] = set()
        self._compiled: set[tuple[int, ...]] = set()

    def stance(self, image: Tensor) -> AbstractContextManager[Any]:
        """In what to run the network on ``image`` [B, 3, H, W]."""
        size = tuple(image.shape)
        if size in self._seen and len(self._compiled) < MOST_SIZES:
            self._compiled.add(size)
        self._seen.add(size)
        if size in self._compiled:
            return nullcontext()
        return torch.compiler.set_stance("eager_on_recompile")


@contextmanager
def explained() -> Iterator[None]:
    """Turns a failure of the compiler in the calls inside into an InputError of one line."""
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
