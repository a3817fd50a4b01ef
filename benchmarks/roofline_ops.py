"""What one op of PyTorch costs: its kind, its FLOP, and the tensors that it reads and writes.

Bytes are counted once for each tensor that an op reads and each that it writes, whatever a kernel
does inside. So they are the least that any kernel moves. Views and uninitialised memory are free.
A norm counts as two ops, as its kernels pass over the input twice: a reduction that finds the
statistics, and a pointwise op that applies them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Access(NamedTuple):
    """What an op reads or writes of one storage.

    Attributes:
        storage: its number in the trace.
        version: how often the storage was changed in place before, or by this write.
        bytes: no more than the storage has.
    """

    storage: int
    version: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Op:
    """One op of a step.

    Attributes:
        name: PyTorch's, such as ``convolution_backward``.
        part: of the network, or ``update``.
        phase: ``forward``, ``backward`` or ``update``.
        kind: one of :data:`KINDS`.
        flops: of matrix products and convolutions; zero for other kinds.
        bits: of a number of the product, 16 or 32.
        size: the number of elements of its largest tensor.
        reads, writes: one for each storage.
    """

    name: str
    part: str
    phase: str
    kind: str
    flops: int
    bits: int
    size: int
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]

    @property
    def bytes(self) -> int:
        """Bytes that it moves."""
        return sum(one.bytes for one in (*self.reads, *self.writes))


class Call(NamedTuple):
    """An op with the tensors of one call, before storages have numbers."""

    name: str
    kind: str
    flops: int
    reads: list[Tensor]
    changes: list[Tensor]  # written in place
    makes: list[Tensor]  # new ones


PRODUCT, POINTWISE, REDUCTION, ROI, OPTIMIZER, OTHER = KINDS = (
    *("products", "pointwise", "reductions", "RoIAlign", "optimizer"),
    "gather, sort, resize, rest",
)
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
_POINTWISE = {  # beside those that PyTorch itself tags
    *("_to_copy", "arange", "clone", "copy_", "fill_", "fill", "full", "full_like", "new_full"),
    *("new_zeros", "ones", "ones_like", "zero_", "zeros", "zeros_like", "threshold_backward"),
    *("rand", "native_dropout", "scalar_tensor", "new_ones"),
}
_REDUCTIONS = {
    *("all", "amax", "amin", "any", "argmax", "linalg_vector_norm", "max", "mean", "min", "sum"),
    *("_foreach_norm", "var_mean"),
}
_OPTIMIZER = ("_fused_", "_amp_")
_ONLY_WRITES = {"copy_", "fill_", "zero_"}
_NORMS = ("native_batch_norm", "native_group_norm", "native_layer_norm")
_UNCHANGED = {"grads"}
"""Arguments that the schema of a fused optimizer marks as written. It writes them only if it has to
unscale the gradients, which mixed precision does beforehand."""


def calls(func: OpOverload, args: Any, kwargs: dict[str, Any], result: Any) -> Iterator[Call]:
    """The ops that a call counts as: none, one, or for a norm two."""
    name = func._schema.name.partition("::")[2]
    outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    reads, changes = _arguments(func, name, args, kwargs)
    if name in _FREE or func.is_view:
        return
    if name.removesuffix("_backward") in _NORMS:
        yield from _norm(name, reads, outputs)
        return
    packet = func._overloadpacket
    count = flop_registry.get(packet)
    flops = int(count(*args, **kwargs, out_val=result)) if count else 0
    yield Call(name, _kind(func, name, count is not None), flops, reads, changes, outputs)


def _kind(func: OpOverload, name: str, is_product: bool) -> str:
    if is_product:
        return PRODUCT
    if "roi_align" in name:
        return ROI
    if name.startswith(_OPTIMIZER):
        return OPTIMIZER
    if name in _REDUCTIONS:
        return REDUCTION
    if name in _POINTWISE or torch.Tag.pointwise in func.tags or name.startswith("_foreach_"):
        return POINTWISE
    return OTHER


def _arguments(
    func: OpOverload, name: str, args: Any, kwargs: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that are read and those that are changed in place."""
    reads: list[Tensor] = []
    changes: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        given = args[i] if i < len(args) else kwargs.get(argument.name)
        tensors = [t for t in tree_leaves(given) if isinstance(t, Tensor)]
        alias = argument.alias_info
        written = alias is not None and alias.is_write
        if written and not (name.startswith("_fused_") and argument.name in _UNCHANGED):
            changes += tensors
            if name in _ONLY_WRITES:
                continue
        reads += tensors
    return reads, changes


def _norm(name: str, reads: list[Tensor], outputs: list[Tensor]) -> Iterator[Call]:
    """Its reduction over the large tensors, unless it keeps its statistics, and the rest.

    A norm that keeps them is a product and a sum. So its gradient does not need its input.
    """
    normalised, *statistics = outputs
    statistics = [t for t in statistics if t.numel()]
    large = [t for t in reads if t.numel() == normalised.numel()]
    if statistics:
        yield Call(name, REDUCTION, 0, large, [], statistics)
    else:
        reads = [t for t in reads if t is large[0] or t.numel() != normalised.numel()]
    yield Call(name, POINTWISE, 0, [*reads, *statistics], [], [normalised])


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the elements that lie in memory: an expanded dimension counts once."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in sides if stride or not size) * tensor.element_size()
