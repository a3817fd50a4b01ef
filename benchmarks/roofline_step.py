"""A training step of our network on fake tensors, which have shapes and no content.

So a step of any size takes seconds and no memory. A fake tensor also raises an error where an op
would make the host wait for the device to learn a value or a shape.

PyTorch without a GPU runs no backward pass on fake ``cuda`` tensors
(``findings/torch_fake_cuda_stops_at_backward.sh``). So the tensors are fake ``cpu`` ones, and
:class:`CudaAutocast` adds what autocast does on a GPU and not on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from roofline_trace import UPDATE, Recorder, Trace
from step_models import CLASSES, Ours, Truth
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.overrides import TorchFunctionMode

DTYPES = {"32": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
INSTANCES = 7  # an image, about COCO's average


class CudaAutocast(TorchFunctionMode):
    """Computes GroupNorm and LayerNorm in float32 under autocast, as autocast of a GPU does.

    Both are in PyTorch's list of ops that autocast to float32 on CUDA, and not in its list for
    CPUs. Of that list, these alone occur in the network where autocast is on.
    """

    _functions = (F.group_norm, torch.group_norm, F.layer_norm, torch.layer_norm)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._functions and torch.is_autocast_enabled("cpu"):
            args = [_as_float32(one) for one in args]
            kwargs = {key: _as_float32(one) for key, one in kwargs.items()}
        return func(*args, **kwargs)


def _as_float32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value


class Step:
    """A training step of our network with the masks, as ``16-mixed`` and AdamW run it.

    Args:
        one: the network.
        size: side of the canvas.
        images: of the batch.
        precision: a key of :data:`DTYPES`.
    """

    def __init__(self, one: Ours, size: int, images: int, precision: str) -> None:
        self.one = one
        self.one.model.train()
        self.dtype = DTYPES[precision]
        truth = Truth(
            torch.rand(images, 3, size, size).contiguous(memory_format=torch.channels_last),
            [_boxes(size)] * images,
            [torch.arange(INSTANCES) % CLASSES] * images,
        )
        self.inputs: list[Tensor] = self.one.inputs(truth, torch.device("cpu"))
        parameters = [p for p in self.one.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-7, fused=True)
        self.scaler = torch.amp.GradScaler(
            "cpu", enabled=self.dtype == torch.float16, init_scale=1024.0
        )

    def run(self, phase: Callable[[str], None] = lambda _: None) -> None:
        """Takes one step, and says before each phase which one begins."""
        phase("forward")
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            loss = self.one.loss(self.inputs)
        phase("backward")
        self.scaler.scale(loss).backward()
        phase(UPDATE)
        self.scaler.unscale_(self.optimizer)
        # autotimm/training/check_loss.py looks at the norm of all gradients in every step. On a GPU
        # it takes a few kernels, as here.
        gradients = [p.grad for p in self.one.model.parameters() if p.grad is not None]
        torch.stack(torch._foreach_norm(gradients)).norm()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def tensors(self) -> list[Tensor]:
        """All that lives between steps."""
        states = [t for state in self.optimizer.state.values() for t in state.values()]
        model = self.one.model
        return [*model.parameters(), *model.buffers(), *states, *self.inputs]


def _boxes(size: int) -> Tensor:
    """[7, 4] boxes of COCO's sizes: 16 pixels to half of the canvas."""
    sides = torch.linspace(size / 40, size / 2, INSTANCES)
    return torch.stack([sides * 0, sides * 0, sides, sides], 1)


def trace(one: Ours, size: int, images: int, precision: str) -> Trace:
    """The second step of a network, which has the optimizer's state; it computes nothing.

    Raises:
        torch._subclasses.fake_tensor.DataDependentOutputException: the host asks for a value.
        torch._subclasses.fake_tensor.DynamicOutputShapeException: a shape depends on a value.
    """
    mode, fake = FakeTensorMode(), copy.copy(one)
    with FakeCopyMode(mode):
        fake.model = copy.deepcopy(one.model)
    with mode, CudaAutocast():
        step = Step(fake, size, images, precision)
        step.run()
        return record(step)


def record(step: Step) -> Trace:
    """One step, on fake tensors or real ones."""
    recorder = Recorder()
    recorder.hold(step.tensors())

    def phase(name: str) -> None:
        recorder.phase = name

    with recorder:
        step.run(phase)
    found = recorder.finish()
    found.images = len(step.inputs[0])
    return found
