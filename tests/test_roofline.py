"""The roofline's counts, against PyTorch's own counter and allocator and against hand-made sums."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import roofline
import roofline_kernels
import roofline_model
import roofline_step
import roofline_trace
from roofline_model import Card, cost, fused
from roofline_ops import POINTWISE, REDUCTION, Access, Op
from step_models import Ours

from autotimm.models.fcos import FCOSHead
from autotimm.models.network import Network

SIZE = 64


@pytest.fixture(scope="module")
def network() -> Any:
    """Small enough to compute."""
    torch.manual_seed(0)
    one = Ours("resnet10t", True)
    one.model = Network(
        *("resnet10t", 80), pretrained=False, fpn_channels=32, head_convs=1, with_masks=True
    )
    one.model.add_masks(rois=2)
    return one


@pytest.fixture(scope="module")
def traced(network) -> roofline_trace.Trace:
    return roofline_step.trace(network, SIZE, 2, "32")


def peak_of(step: roofline_step.Step) -> int:
    """The most bytes that PyTorch's allocator has handed out between two ops of a step.

    Within an op, oneDNN takes and returns memory of its own, which another device does not need.
    """
    before = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in step.tensors()}
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(profile_memory=True, activities=activities) as profiled:
        step.run()
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    memory = [event for event in events if event.name() == "[memory]"]
    now = most = sum(before.values())
    end = 0
    for op in events:
        if op.name().startswith(("aten::", "torchvision::")) and op.end_ns() > end:
            end = op.end_ns()
            while memory and memory[0].start_ns() <= end:
                now += memory.pop(0).nbytes()
            most = max(most, now)
    return most


@pytest.mark.slow
def test_flops_and_peak_memory_are_those_of_a_step_that_computes(network, traced) -> None:
    step = roofline_step.Step(network, SIZE, 2, "32")
    with FlopCounterMode(display=False) as counter:
        step.run()
    counted = sum(op.flops for op in traced.ops)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert traced.peak == pytest.approx(peak_of(step), rel=0.05)


def test_every_part_of_the_network_has_its_ops(traced) -> None:
    found = {(op.part, op.phase) for op in traced.ops}
    learning = ("backbone", "pyramid", "box and class heads", "mask head", "RoIAlign")
    losses = ("losses of boxes and classes", "mask targets and loss")
    for part in learning + losses:
        assert {(part, "forward"), (part, "backward")} <= found, part
    assert {part for part, _ in found} == set(roofline_trace.PARTS)
    backbone = dict.fromkeys(("forward", "backward", "update"), 0)
    for op in traced.ops:
        if op.part == "backbone":
            backbone[op.phase] += op.flops
    # A product has two gradients; the image needs none.
    assert 1.7 < backbone["backward"] / backbone["forward"] < 2


def test_a_wait_for_the_host_is_an_error(network, monkeypatch) -> None:
    monkeypatch.setattr(
        "autotimm.models.losses.giou_loss", lambda a, b: (a - b).sum(-1) * a.sum().item()
    )
    with pytest.raises(DataDependentOutputException):
        roofline_step.trace(network, SIZE, 1, "16-mixed")


def dtypes_of_heads(device: str) -> Counter[tuple[str, torch.dtype]]:
    """Of the results of the heads' ops under autocast to float16."""
    found: Counter[tuple[str, torch.dtype]] = Counter()

    class See(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            first = result[0] if isinstance(result, tuple) else result
            if isinstance(first, Tensor) and first.is_floating_point():
                name = func._schema.name.partition("::")[2].replace("cudnn", "native")
                found[name, first.dtype] += 1
            return result

    with FakeTensorMode(allow_non_fake_inputs=True), See(), roofline_step.CudaAutocast():
        maps = [torch.rand(1, 256, s, s, device=device) for s in (8, 4, 2, 2, 2)]
        with torch.device(device):
            head = FCOSHead(256, 80)
        torch.set_autocast_enabled(device, True)
        try:
            torch.set_autocast_dtype(device, torch.float16)
            head(maps)
        finally:
            torch.set_autocast_enabled(device, False)
            torch.clear_autocast_cache()
    return found


class Block(nn.Module):
    """4 channels on 8 x 8 cells: products, a norm, an activation in place and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)), inplace=True)
        return (self.second(x).view(2, -1) * 2 + 1).sum()


def ops_of_block() -> roofline_trace.Trace:
    with FakeTensorMode():
        block, x = Block(), torch.rand(2, 4, 8, 8)
        recorder = roofline_trace.Recorder()
        recorder.hold([*block.parameters(), x])
        with recorder, torch.no_grad():
            block(x)
        return recorder.finish()


MAP = 2 * 4 * 8 * 8 * 4
"""Bytes of the block's maps in float32."""
STATISTICS = 2 * 2 * 2 * 4
"""Bytes of the mean and the deviation of two groups of two images."""


def test_bytes_and_flops_of_ops_by_hand() -> None:
    ops = ops_of_block().ops
    assert [(op.name, op.kind, op.flops, op.bytes) for op in ops] == [
        ("convolution", "products", 2 * 9 * 4 * 4 * 2 * 64, 2 * MAP + 4 * 4 * 9 * 4),
        ("native_group_norm", REDUCTION, 0, MAP + STATISTICS),
        ("native_group_norm", POINTWISE, 0, 2 * MAP + STATISTICS + 2 * 4 * 4),
        ("relu_", POINTWISE, 0, 2 * MAP),
        ("convolution", "products", 2 * 4 * 4 * 2 * 64, 2 * MAP + 4 * 4 * 4),
        ("mul", POINTWISE, 0, 2 * MAP),
        ("add", POINTWISE, 0, 2 * MAP),
        ("sum", REDUCTION, 0, MAP + 4),
    ]


def test_a_fused_chain_reads_once_and_writes_what_others_read() -> None:
    ops = fused(ops_of_block())
    assert [(op.name, op.bytes) for op in ops] == [
        ("convolution", 2 * MAP + 4 * 4 * 9 * 4),
        ("native_group_norm", MAP + STATISTICS),
        ("native_group_norm + relu_", 2 * MAP + STATISTICS + 2 * 4 * 4),
        ("convolution", 2 * MAP + 4 * 4 * 4),
        ("mul + add + sum", MAP),  # and nothing reads the sum
    ]


def test_a_chain_does_not_close_around_an_op_that_needs_it() -> None:
    with FakeTensorMode():
        x, weight = torch.rand(2, 4, 8, 8), torch.rand(4, 4, 1, 1)
        recorder = roofline_trace.Recorder()
        recorder.hold([x, weight])
        with recorder:
            doubled = x * 2
            out = F.conv2d(doubled, weight) + doubled
        kernels = fused(recorder.finish())
        del out
    assert [op.name for op in kernels] == ["mul", "convolution", "add"]
    assert [op.bytes for op in kernels] == [2 * MAP, 2 * MAP + 64, 3 * MAP]


def test_an_op_takes_the_slower_of_products_and_memory() -> None:
    card = Card("a card", 100e12, 10e12, 1e12, 1e9, "")
    products, memory = roofline_model.PRODUCTS_REACHED, roofline_model.MEMORY_REACHED

    def op(flops: int, moved: int, bits: int = 16) -> Op:
        access = Access(0, 0, moved)
        return Op("", "", "", "", flops, bits, 1, (access,), ())

    for one, seconds, bound in (
        (op(10**12, 10**9), 1e12 / (100e12 * products), False),
        (op(10**12, 10**9, bits=32), 1e12 / (10e12 * products), False),
        (op(10**9, 10**9), 1e9 / (1e12 * memory), True),
    ):
        found = cost([one, one], card)
        assert found.seconds == pytest.approx(2 * seconds)
        assert found.bound_by_memory == pytest.approx(2 * seconds if bound else 0)
    assert cost([op(0, 1)] * 3, card, launch=1e-3).seconds == pytest.approx(3e-3)


def test_autocast_has_the_types_of_a_gpu() -> None:
    """Without a GPU, PyTorch runs the forward pass on fake GPUs, and no more."""
    found = dtypes_of_heads("cpu")
    assert found == dtypes_of_heads("cuda")
    assert found["native_group_norm", torch.float32] == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "100"), "--size: 100 is no multiple of 32"),
        (("--batch", "8,many"), "--batch: '8,many' is no list of numbers"),
        (("--batch", "0"), "--batch: '0' has a batch without images"),
    ],
)
def test_a_step_that_cannot_be_is_refused(monkeypatch, options, message) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline.py", *options])
    with pytest.raises(SystemExit, match=message):
        roofline.main()


@pytest.mark.slow
def test_what_inductor_plans_is_counted_and_not_computed() -> None:
    block, found = Block(), roofline_kernels.Generated()
    x = torch.rand(2, 4, 8, 8, requires_grad=True)
    torch._dynamo.reset()
    block.compile(dynamic=False)
    with roofline_kernels.only_planned(found):
        block(x).backward()
    torch._dynamo.reset()
    assert [p.grad.shape for p in (x, *block.parameters())] == [
        p.shape for p in (x, *block.parameters())
    ]
    assert found.graphs == 2
    # Each way: two convolutions, and at least two passes of the norm over the map.
    assert 2 * 4 <= found.nodes <= 30
    assert 2 * 7 * MAP < found.bytes < 2 * 25 * MAP


@pytest.mark.release
def test_inductor_plans_a_step_of_two_graphs(network, traced) -> None:
    found = roofline_kernels.generated(network, SIZE, 2, "32")
    assert found.graphs == 2
    assert 0 < found.nodes < len(traced.ops)
    assert found.kernels > 0
    eager = sum(op.bytes for op in traced.ops if op.phase != "update")
    assert 0.2 * eager < found.bytes < eager
