"""torch.compile: one graph per canvas, no breaks, no waits, the same numbers as uncompiled.

Tests of the capture alone use ``backend="eager"``, which runs the captured graph without minutes of
code generation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from batches import random_batch
from batches import small as uncompiled
from line import quiet
from ranks import on_ranks
from timm.models import register_model
from timm.models.vgg import VGG
from torch import Tensor
from torch._dynamo.testing import CompileCounter, EagerAndRecordGraphs
from torch._dynamo.utils import counters
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from autotimm import (
    AutoTrainer,
    InputError,
    InstanceSegmentationDataModule,
    InstanceSegmentor,
    ObjectDetector,
)
from autotimm.models import compiled

CANVASES = [(64, 96), (96, 64)]
CAPTURE = {"backend": "eager", "fullgraph": True}
"""Options that only capture, and raise an error at a graph break."""
OTHER_LOSSES = {"box_quality": "iou", "mask_loss": "bce+dice"}
UNOPTIMISED = {"aot_inductor.debug_compile": True, "cpp.simdlen": 1}
"""Of inductor: g++ neither optimises its code nor reads the headers of vectors, which takes a
quarter of the time. The code computes the same."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def small(cls: type = InstanceSegmentor, **options: Any) -> Any:
    settings: dict[str, Any] = {"compile_model": True, "compile_kwargs": CAPTURE}
    if cls is InstanceSegmentor:
        settings |= {"mask_size": 12, "mask_rois": 16}
    return uncompiled(cls, **{**settings, **options})


SEGMENTOR_FIRST = [InstanceSegmentor, pytest.param(ObjectDetector, marks=pytest.mark.release)]


def batches() -> list[dict[str, Tensor]]:
    """Batches of every canvas with every number of slots."""
    return [
        random_batch([0, count], *canvas, slots=count)
        for canvas in CANVASES
        for count in (8, 32, 16)
    ]


def batch_of(*counts: int, **options: int) -> dict[str, Tensor]:
    return random_batch([*counts], *CANVASES[0], **options)


def step(model: ObjectDetector, batch: dict[str, Any]) -> Tensor:
    losses = model.losses(batch)
    total = torch.stack(list(losses.values())).sum()
    model.zero_grad()
    total.backward()
    return total.detach()


def trained_on_canvases(cls: type, recorder: Any, **options: Any) -> list[int]:
    """The number of graphs after an epoch of every canvas, after an evaluation, and after a second
    epoch."""
    model = small(cls, compile_model=False, **options)
    model.network.compile(backend=recorder, fullgraph=True, dynamic=False)
    seen = []
    for epoch in (batches(), batches()[::2]):
        for batch in epoch:
            step(model, batch)
        seen.append(graphs())
        if len(seen) == 1:
            model.eval()
            with torch.no_grad():
                model.network(epoch[0]["image"])
            model.train()
            seen.append(graphs())
    return seen


def assert_nothing_to_wait_for(nodes: list[Any]) -> None:
    """The captured step holds nothing whose size or value the host would wait for."""
    assert len(nodes) > 200
    for node in nodes:
        assert node.target not in {"item", "tolist", "nonzero", "cpu", "numpy"}, node
        assert not free_unbacked_symbols(node.meta.get("example_value")), node


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        pytest.param(InstanceSegmentor, {}, marks=pytest.mark.release),
        pytest.param(InstanceSegmentor, OTHER_LOSSES, marks=pytest.mark.release),
        pytest.param(ObjectDetector, {}, marks=pytest.mark.release),
    ],
)
def test_a_canvas_is_one_graph_whatever_the_number_of_instances(
    cls: type, options: dict[str, Any]
) -> None:
    """An evaluation between epochs has a graph of its own, and changes nothing for training."""
    recorder = EagerAndRecordGraphs()
    assert trained_on_canvases(cls, recorder, **options) == [2, 3, 3]
    assert not counters["graph_break"]
    for captured in recorder.graphs[: len(CANVASES)]:
        assert_nothing_to_wait_for(list(captured.graph.nodes))


def test_many_canvases_stay_compiled() -> None:
    """With torch's default limit, it would run uncompiled after eight graphs."""
    with torch._dynamo.config.patch(recompile_limit=8):
        small()
        counter, module = CompileCounter(), torch.nn.Sequential(torch.nn.ReLU())
        module.compile(backend=counter, dynamic=False)
        for side in range(2, 22):
            module(torch.ones(side))
    assert counter.frame_count == 20


def test_keys_of_a_compiled_model_are_those_of_an_uncompiled_one() -> None:
    compiled, plain = small(), small(compile_model=False)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert compiled.network._compiled_call_impl is not None
    assert plain.network._compiled_call_impl is None


class OnOneDevice(TorchDispatchMode):
    """Raises if an operation mixes host and device tensors: the copy would make the host wait.

    Tensors without dimensions are exempt, because they are passed as arguments of the kernel.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        tensors = [t for t in flat if isinstance(t, Tensor) and t.ndim]
        kinds = {t.device.type for t in tensors}
        out = func(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves(out)
        kinds |= {t.device.type for t in leaves if isinstance(t, Tensor) and t.ndim}
        if len(kinds) > 1:
            raise AssertionError(f"{func} moves data between {kinds}")
        return out


@pytest.mark.parametrize(
    ("cls", "options"),
    [(InstanceSegmentor, {}), (InstanceSegmentor, OTHER_LOSSES), (ObjectDetector, {})],
)
def test_the_uncompiled_step_never_asks_the_device_for_a_value(
    cls: type, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device has no values, so every operation that reads one or has a shape that depends
    on one raises. The test includes the backward pass and the optimizer."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not on meta
    model = small(cls, compile_model=False, **options).to("meta")
    model.log = model.log_dict = lambda *_, **__: None
    batch = {k: v.to("meta") for k, v in random_batch([3, 5]).items()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        with OnOneDevice():
            loss = model.training_step(batch, 0)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_wait_would_be_found() -> None:
    meta = torch.zeros(3, device="meta")
    for wait in (meta.sum().item, meta.nonzero, lambda: meta[meta > 0], meta.tolist):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
    with pytest.raises(AssertionError, match="moves data"), OnOneDevice():
        torch.zeros(3).to("meta")


ROIS = 64  # per image


@register_model
def vgg_narrow(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """Five convolutions, of which inductor makes ten kernels and not forty."""
    for name in ("pretrained_cfg", "pretrained_cfg_overlay"):
        options.pop(name, None)
    features = {"flatten_sequential": True, "out_indices": options.pop("out_indices", range(6))}
    return timm.models.build_model_with_cfg(
        VGG,
        "vgg_narrow",
        pretrained,
        model_cfg=[8, "M", 16, "M", 16, "M", 16, "M", 16, "M"],
        feature_cfg=features,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "backend", "options"),
    [
        (torch.float32, "inductor", UNOPTIMISED),
        (torch.bfloat16, "aot_eager", None),
        pytest.param(torch.float32, "inductor", None, marks=pytest.mark.release),
        pytest.param(torch.bfloat16, "inductor", None, marks=pytest.mark.release),
    ],
)
def test_compiled_equals_uncompiled(
    precision: torch.dtype, backend: str, options: dict[str, Any] | None
) -> None:
    """Losses and gradients of one graph for several numbers of slots, and the outputs for an image.
    There are enough RoIs for every candidate, so the random choice, which differs, has no
    effect."""
    more = {"mask_rois": ROIS} | ({"backbone": "vgg_narrow"} if options else {})
    plain = small(compile_model=False, **more)
    arguments = {"backend": backend, "fullgraph": True} | ({"options": options} if options else {})
    model = small(compile_kwargs=arguments, **more)
    close = {torch.float32: (1e-3, 1e-4), torch.bfloat16: (0.1, 0.02)}[precision]
    for slots in (8, 32, 16):
        batch = batch_of(3, slots, slots=slots, seed=slots)
        for one in (plain, model):
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                losses = one.losses(batch)
            one.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            one.seen = {k: v.detach() for k, v in losses.items()}
        for name, loss in plain.seen.items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(model.seen[name], loss, rtol=close[0], atol=close[1])
        gradients = dict(plain.named_parameters())
        for name, parameter in model.named_parameters():
            wanted, got = gradients[name].grad, parameter.grad
            error = (got - wanted).norm() / wanted.norm().clamp(min=1e-3)
            assert error < (0.2 if precision == torch.bfloat16 else 0.01), name
    assert graphs() == 1
    if not options:  # code of half the size again
        with torch.no_grad():
            found, wanted = (one.eval().network(batch["image"]) for one in (model, plain))
        assert graphs() == 2
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert plain.train().network(**batch).rois < 2 * ROIS  # moves batch norms: so it comes last


@pytest.mark.slow
def test_an_epoch_of_real_batches(shared_data) -> None:
    """Three canvases with zero to dozens of instances have one graph each, also after the epoch."""
    data = InstanceSegmentationDataModule(
        shared_data / "coco_mini",
        image_size=128,
        batch_size=2,
        num_workers=0,
        aspect_buckets=True,
        augmentation_preset="default",
    )
    data.setup("fit")
    model = small(num_classes=data.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    loader = data.train_dataloader()
    seen = set()

    def train(batch: dict[str, Any]) -> tuple[int, ...]:
        batch = data.on_after_batch_transfer(batch, 0)
        seen.add((canvas := tuple(batch["image"].shape[2:]), batch["boxes"].shape[1]))
        assert torch.isfinite(step(model, batch))
        optimizer.step()
        return canvas

    canvases = {train(batch) for batch in loader}
    assert graphs() == len(canvases) == 3
    again = set()
    for batch in loader:
        again.add(train(batch))
        if again == canvases:
            break
    assert graphs() == len(again) == 3
    assert not counters["graph_break"]
    assert len(loader) == 40
    assert len({slots for _, slots in seen}) >= 3
    data.teardown()


@pytest.mark.slow
@pytest.mark.parametrize("cls", SEGMENTOR_FIRST)
def test_pictures_of_ever_new_sizes_compile_nothing(cls: type) -> None:
    model = small(cls, max_detections_per_image=5)
    for i in range(6):
        model.predict(torch.randn(1, 3, 64, 64 + 32 * i))
    assert graphs() == 0
    expected = small(cls, max_detections_per_image=5, compile_model=False)
    for _ in range(3):  # a size that repeats is compiled
        image = torch.randn(1, 3, 64, 96)
        found, wanted = model.predict(image)[0], expected.predict(image)[0]
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value)
    count = 2 if cls is InstanceSegmentor else 1  # the mask head has its own
    assert graphs() == count
    model.predict(torch.randn(1, 3, 96, 96))  # seen once before
    model.predict(torch.randn(1, 3, 96, 96))
    assert graphs() == count + 1  # the mask head takes any number of boxes of any picture


@pytest.mark.slow
def test_only_so_many_sizes_are_compiled(monkeypatch) -> None:
    monkeypatch.setattr(compiled, "MOST_SIZES", 1)
    model = small(ObjectDetector, max_detections_per_image=5)
    for i in range(3):
        for _ in range(2):
            model.predict(torch.randn(1, 3, 32, 32 + 32 * i))
    assert graphs() == 1


def fitted(model: Any, folder: Path, epochs: int, **options: Any) -> AutoTrainer:
    """The trainer of a run of two steps an epoch."""
    run = quiet(folder, max_epochs=epochs, num_sanity_val_steps=0)
    data = [batch_of(3, 5), batch_of(0, 2, seed=1)]
    run.fit(model, DataLoader(data, batch_size=None), **options)
    return run


@pytest.mark.slow
def test_checkpoints_go_between_compiled_and_uncompiled_runs(tmp_path) -> None:
    """The run resumes from them like an uncompiled one, with the optimizer's state."""

    def detector(compile_model: bool) -> ObjectDetector:
        return small(ObjectDetector, compile_model=compile_model)

    paths = {first: tmp_path / f"{first}.ckpt" for first in (True, False)}
    for first, path in paths.items():
        fitted(detector(first), tmp_path / f"first-{first}", 1).save_checkpoint(path)
    truth = detector(False)
    fitted(truth, tmp_path / "truth", 2, ckpt_path=str(paths[False]))
    for first, path in paths.items():
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert not any("_orig_mod" in key for key in weights)
        assert list(weights) == list(truth.state_dict())
        for wanted in (True, False):
            loaded = ObjectDetector.load_from_checkpoint(path, compile_model=wanted)
            assert (loaded.network._compiled_call_impl is not None) == wanted
            for key, value in loaded.state_dict().items():
                assert torch.equal(value, weights[key]), key
        other = detector(not first)
        fitted(other, tmp_path / f"resumed-{first}", 2, ckpt_path=str(path))
        for key, value in other.state_dict().items():
            torch.testing.assert_close(value, truth.state_dict()[key], rtol=1e-4, atol=1e-5)
            moved = not torch.equal(value, weights[key])
            assert not value.is_floating_point() or moved or "bn" in key


@pytest.mark.slow
def test_a_copy_of_a_compiled_model_works_by_itself() -> None:
    """Callbacks that average weights make such copies."""
    model = small(ObjectDetector)
    batch = batch_of(3, 5)
    for _ in range(2):  # a size is compiled when it comes again
        model.predict(batch["image"])
    assert graphs() == 1
    twin = copy.deepcopy(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        twin.network.head.classes.bias.fill_(20)
    for _ in range(2):
        assert twin.predict(batch["image"])[0]["scores"].min() > 0.5
        assert model.predict(batch["image"])[0]["scores"].max() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fastest"}, "fastest"),
        ({"mod": "default"}, "'mod'.*mode"),
        ({"backend": "inducto"}, "inducto"),
        ({"options": {"no_such": 1}}, "no_such"),
        ({"mode": "default", "options": {"max_autotune": True}}, "mode or options"),
    ],
)
def test_arguments_that_the_compiler_does_not_take_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=f"compile_kwargs.*{message}") as caught:
        small(compile_kwargs=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "default"},
        {"mode": "reduce-overhead"},
        {"mode": "max-autotune"},
        {"mode": "max-autotune-no-cudagraphs"},
        {"options": {"max_autotune": True}},
        {"dynamic": None},
        {"disable": True},
    ],
)
def test_arguments_that_it_takes_are_passed_on(options) -> None:
    model = small(compile_kwargs=options)
    assert model.network._compiled_call_impl is not None
    assert model.hparams.compile_kwargs == options


def test_an_error_of_the_compiler_is_one_line_with_the_way_out() -> None:
    def broken(graph, inputs):
        raise OSError("no g++ anywhere\nhere")

    model = small(compile_model=False)
    model.network.fpn.compile(backend=broken)
    with pytest.raises(InputError, match=r"no g\+\+ anywhere here.*compile_model=False") as caught:
        model.losses(batch_of(2))
    assert "\n" not in str(caught.value)


class Losses(torch.nn.Module):
    """DDP hooks into forward."""

    def __init__(self, model: ObjectDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(self.model.losses(batch).values())).sum()


def gradients_of_a_rank(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = small(compile_kwargs={"backend": "aot_eager", "fullgraph": True})
    parallel = DistributedDataParallel(Losses(model), gradient_as_bucket_view=True)
    for slots in (8, 32, 16):
        parallel.zero_grad()
        parallel(batch_of(2, 3 + rank, slots=slots, seed=rank)).backward()
    assert graphs() == 1, graphs()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    torch.save(gradients, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_have_one_graph_and_the_same_gradients(tmp_path) -> None:
    """Under DDP, torch splits the graph at the gradient buckets, but compiles it only once."""
    code = f"import test_compile; test_compile.gradients_of_a_rank({str(tmp_path)!r})"
    done = on_ranks(code, tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert sum(gradient.abs().sum() > 0 for gradient in one.values()) > 30
    for name, gradient in one.items():
        assert torch.equal(gradient, other[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("options", [None, {}, {"mode": "reduce-overhead"}], ids=str)
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_a_step_on_a_gpu_never_waits(options, precision) -> None:
    model = small(compile_model=options is not None, compile_kwargs=options).cuda()
    model.log = model.log_dict = lambda *_, **__: None
    several = [{k: v.cuda() for k, v in random_batch([3, n], slots=n).items()} for n in (8, 32, 16)]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    scaler = torch.amp.GradScaler(enabled=precision == torch.float16)

    def train(batch: dict[str, Tensor]) -> None:
        with torch.autocast("cuda", precision):
            loss = model.training_step(batch, 0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    for batch in several * 3:  # compiles, records graphs, sets up the scaler
        train(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in several:
            train(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
