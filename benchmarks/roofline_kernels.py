"""What Inductor makes of the network: its kernels, and the bytes that they move by its own account.

Inductor plans and writes its code, but nothing is compiled by g++ or computed, so a step of any
size takes a minute. It counts for the device that the network is on, a CPU. The fusion is decided
by the same scheduler as for a GPU, with a few other rules: so take the figures as close, not equal.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from roofline_step import CudaAutocast, Step
from step_models import Ours, compile_contestant


@dataclass(slots=True)
class Generated:
    """Of the network's forward and backward pass.

    Attributes:
        kernels: that Inductor wrote. Of one node, it may write several C++ kernels.
        nodes: of its schedule: what it fused, and calls of libraries (convolutions, RoIAlign).
        bytes: read and written by all of them.
        graphs: 2 for a training step without a break.
    """

    kernels: int = 0
    nodes: int = 0
    bytes: int = 0
    graphs: int = 0


def generated(one: Ours, size: int, images: int, precision: str) -> Generated:
    """Has Inductor plan a training step, and counts. The optimizer has a kernel of its own."""
    from torch._inductor import metrics  # here, because it takes seconds to import

    found = Generated()
    own = copy.copy(one)
    own.model = copy.deepcopy(one.model)
    step = Step(own, size, images, precision)
    torch._dynamo.reset()
    metrics.reset()
    compile_contestant(own, "whole", None)
    with only_planned(found), CudaAutocast():
        step.run()
    torch._dynamo.reset()
    found.kernels = metrics.generated_kernel_count
    return found


@contextmanager
def only_planned(found: Generated) -> Iterator[None]:
    """Inside, a compiled graph returns memory of the right shapes and computes nothing."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    def planned(graph: GraphLowering) -> Any:
        graph.codegen()
        found.graphs += 1
        found.bytes += graph.count_bytes()[0]
        found.nodes += len(graph.scheduler.nodes)
        hint = graph.sizevars.optimization_hint
        shapes = [
            (tuple(map(hint, out.get_size())), tuple(map(hint, out.get_stride())), out.get_dtype())
            if out.has_tensor_output()
            else None
            for out in graph.graph_outputs
        ]

        def call(arguments: list[Any]) -> list[Any]:
            arguments.clear()
            return [
                shape and torch.empty_strided(shape[0], shape[1], dtype=shape[2])
                for shape in shapes
            ]

        return SimpleNamespace(call=call, runner=None)

    with (
        mock.patch.object(GraphLowering, "compile_to_module", planned),
        config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield
