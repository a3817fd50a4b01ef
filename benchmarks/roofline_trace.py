"""Records every op of a training step: what it costs, which part of the network it belongs to, and
how much memory is alive.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import roofline_ops
import torch
from roofline_ops import Access, Call, Op, tensor_bytes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import autotimm.models

_MODELS = str(Path(autotimm.models.__file__).parent)
_PARTS = {  # file and function of autotimm/models, from the inside out: the part of the network
    ("backbone.py", "forward"): "backbone",
    ("pyramid.py", "forward"): "pyramid",
    ("fcos.py", "forward"): "box and class heads",
    ("fcos.py", "locations"): "assignment",
    ("fcos.py", "decode_boxes"): "choice of RoIs",
    ("assign.py", "targets"): "assignment",
    ("losses.py", "detection_losses"): "losses of boxes and classes",
    ("mask_head.py", "sample_rois"): "choice of RoIs",
    ("mask_head.py", "pool"): "RoIAlign",
    ("mask_head.py", "forward"): "mask head",
    ("mask_head.py", "mask_targets"): "mask targets and loss",
    ("losses.py", "mask_loss"): "mask targets and loss",
}
REST, UPDATE = "rest", "update"
PARTS = (*dict.fromkeys(_PARTS.values()), REST, UPDATE)


@dataclass(slots=True)
class Trace:
    """A step.

    Attributes:
        ops: in the order of their calls.
        kept: numbers of the storages that live on after the step.
        peak: the most bytes that were alive at once, weights and optimizer included.
        images: of the batch.
    """

    ops: list[Op] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    peak: int = 0
    images: int = 0


class Recorder(TorchDispatchMode):
    """Notes every op while it is active, and which storages are alive.

    Attributes:
        trace: what it has seen.
        phase: of the ops that follow; to be set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self.phase = "forward"
        self._numbers = WeakIdKeyDictionary()  # of storages that live
        self._versions: list[int] = []
        self._alive = 0
        self._part_of_node: dict[int, str] = {}
        self._last = REST

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that exist before the step as alive."""
        for tensor in tensors:
            self._number(tensor)

    def finish(self) -> Trace:
        """The trace, after the step."""
        self.trace.kept = set(self._numbers.values())
        return self.trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        part = self._part()
        for call in roofline_ops.calls(func, args, kwargs, result):
            self._note(call, part)
        self.hold(t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor))
        return result

    def _note(self, call: Call, part: str) -> None:
        reads = self._accesses(call.reads)
        for number in {self._number(tensor) for tensor in call.changes}:
            self._versions[number] += 1
        new = [t for t in call.makes if self._is_new(t)]
        writes = self._accesses([*call.changes, *new])
        if not writes:  # a view by another name
            return
        tensors = [*call.reads, *call.changes, *new]
        product = [t.element_size() for t in call.reads if t.is_floating_point()]
        op = Op(
            call.name,
            part,
            self.phase,
            call.kind,
            call.flops,
            8 * min(max(product, default=4), 4),
            max(t.numel() for t in tensors),
            reads,
            writes,
        )
        self.trace.ops.append(op)

    def _accesses(self, tensors: list[Tensor]) -> tuple[Access, ...]:
        parts: dict[int, dict[Any, int]] = {}
        wholes: dict[int, int] = {}
        for tensor in tensors:
            number = self._number(tensor)
            place = (tensor.storage_offset(), tensor.shape, tensor.stride())
            parts.setdefault(number, {})[place] = tensor_bytes(tensor)
            wholes[number] = tensor.untyped_storage().nbytes()
        return tuple(
            Access(number, self._versions[number], min(sum(part.values()), wholes[number]))
            for number, part in parts.items()
        )

    def _is_new(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage() not in self._numbers

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage not in self._numbers:
            self._numbers[storage] = len(self._versions)
            self._versions.append(0)
            self._alive += storage.nbytes()
            self.trace.peak = max(self.trace.peak, self._alive)
            weakref.finalize(storage, self._freed, storage.nbytes()).atexit = False
        return self._numbers[storage]

    def _freed(self, size: int) -> None:
        self._alive -= size

    def _part(self) -> str:
        """Of the op that is being called.

        In the forward pass the functions that are running say it. An op of the backward pass
        belongs to the part whose op made its node of the autograd graph.
        """
        if self.phase == UPDATE:
            return UPDATE
        node = torch._C._current_autograd_node()
        if self.phase == "backward":
            number = None if node is None else node._sequence_nr()
            self._last = self._part_of_node.get(number, self._last)  # type: ignore[arg-type]
            return self._last
        part = _running_part(sys._getframe(2))
        self._part_of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, part)
        return part


def _running_part(frame: FrameType | None) -> str:
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_MODELS):
            part = _PARTS.get((Path(path).name, frame.f_code.co_name))
            if part:
                return part
        frame = frame.f_back
    return REST
