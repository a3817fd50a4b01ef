"""The average of the weights, compared with float64 and with an uninterrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from batches import random_batch, small
from coco_folder import mixed
from fits import fit, fit_on_ranks
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from line import Line, quiet
from ranks import on_ranks
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader

from autotimm import AutoTrainer, InputError, InstanceSegmentor
from autotimm.checkpoints.convert import convert
from autotimm.models.compiled import compile_in_place
from autotimm.sharding.cli import shard
from autotimm.strategies import zero
from autotimm.strategies.fsdp import FSDP
from autotimm.training.ema import AverageWeights, check_strategy, decay_at

DECAY = 0.7
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Net(Line):
    """A model with a norm, its statistics and its count, and with a weight that has two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.second = self.first
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.losses: list[float] = []
        self.validated: list[dict[str, torch.Tensor]] = []
        self.trained: list[dict[str, torch.Tensor]] = []

    def training_step(self, batch, batch_idx):
        found = self.second(self.norm(self.first(batch["image"])))
        loss = ((found - self.weight) ** 2).mean()
        self.losses.append(loss.item())
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.trained.append(copied(self))

    def validation_step(self, batch, batch_idx):
        self.validated.append(copied(self))
        return [{}, {}]


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def batches(count: int) -> DataLoader:
    g = torch.Generator().manual_seed(1)
    every = [
        {"image": torch.randn(2, 3, 4, 4, generator=g), "padding": torch.ones(2)}
        for _ in range(count)
    ]
    return DataLoader(every, batch_size=None)


def run(folder: Path, model: Net, ckpt_path: Any = None, **options: Any) -> AutoTrainer:
    settings = {"max_epochs": 2, "ema_decay": DECAY, "num_sanity_val_steps": 1, "logger": False}
    trainer = quiet(folder, **(settings | options))
    trainer.fit(model, batches(6), batches(1), ckpt_path=ckpt_path)
    return trainer


def reference(steps: list[dict[str, torch.Tensor]], start: dict[str, torch.Tensor]) -> Any:
    """The average after each optimizer step, computed in float64 by its definition."""
    average, averages = {n: t.double() for n, t in start.items()}, []
    for number, state in enumerate(steps, 1):
        stays = min(DECAY, (1 + number) / (10 + number))
        average = {
            name: stays * average[name] + (1 - stays) * tensor.double()
            if tensor.is_floating_point()
            else tensor.double()
            for name, tensor in state.items()
        }
        averages.append(average)
    return averages


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], exactly: bool = True):
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        if exactly:
            assert torch.equal(tensor, expected[name]), name
        else:
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7)


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("batches_a_step", [1, 2])
def test_it_is_the_average_over_the_steps(batches_a_step: int, tmp_path: Path) -> None:
    model, start = Net(), copied(Net())
    trainer = run(tmp_path, model, accumulate_grad_batches=batches_a_step)
    expected = reference(model.trained[batches_a_step - 1 :: batches_a_step], start)
    steps = 6 // batches_a_step
    # Validations use the average, but not the sanity check before the training.
    same(model.validated[0], start)
    same(model.validated[1], expected[steps - 1], exactly=False)
    same(model.validated[2], expected[-1], exactly=False)
    assert expected[-1]["norm.num_batches_tracked"] == 12
    # Checkpoints hold both sets of weights. After the fit, the model has the average.
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    for path in (tmp_path / "version_0" / "checkpoints" / "last.ckpt", tmp_path / "after.ckpt"):
        saved = state(path)
        same(saved["state_dict"], model.trained[-1])
        same(saved["ema"]["state_dict"], expected[-1], exactly=False)
        assert saved["ema"]["decay"] == DECAY
    same(copied(model), saved["ema"]["state_dict"])
    assert model.first.weight is model.second.weight


def test_the_training_does_not_know_of_it(tmp_path: Path) -> None:
    model, plain = Net(), Net()
    run(tmp_path / "with", model)
    run(tmp_path / "without", plain, ema_decay=None)
    assert model.losses == plain.losses
    same(model.trained[-1], copied(plain))


@pytest.mark.parametrize(
    ("stop", "batches_a_step"), [(2, 1), (4, 1), (6, 1), (8, 1), (2, 2), (4, 2)]
)
def test_a_run_that_goes_on_has_the_average_of_the_undisturbed_one(
    stop: int, batches_a_step: int, tmp_path: Path
) -> None:
    """With checkpoints in mid-epoch, before a validation in mid-epoch and at an epoch's end."""
    options = {"val_check_interval": 2, "save_every_n_steps": 2, "keep_last": -1, "max_epochs": 2}
    options["accumulate_grad_batches"] = batches_a_step
    seen = stop * batches_a_step
    truth = Net()
    run(tmp_path / "whole", truth, **options)
    parts = tmp_path / "whole" / "version_0" / "checkpoints" / f"step_{stop}.ckpt"

    rest = Net()
    trainer = quiet(
        tmp_path / "rest",
        ema_decay=DECAY,
        logger=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(rest, Skipping(seen % 6), batches(1), ckpt_path=parts)
    assert rest.losses == truth.losses[seen:]
    same(copied(rest), copied(truth))
    whole, gone_on = (
        state(tmp_path / f / "version_0" / "checkpoints" / "last.ckpt") for f in ("whole", "rest")
    )
    same(gone_on["ema"]["state_dict"], whole["ema"]["state_dict"])
    same(gone_on["state_dict"], whole["state_dict"])
    for seen, expected in zip(reversed(rest.validated), reversed(truth.validated), strict=False):
        same(seen, expected)


class Skipping:
    """A loader whose first epoch starts in the middle, as in a resumed run."""

    def __init__(self, skipped: int) -> None:
        self.skipped = skipped

    def __len__(self) -> int:
        return 6

    def __iter__(self):
        # Lightning creates iterators that it does not use.
        skipped, self.skipped = self.skipped, 0
        yield from [*batches(6)][skipped:]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def test_saved_in_a_validation_the_weights_are_those_of_the_training(tmp_path: Path) -> None:
    class Save(Callback):
        def on_validation_batch_end(self, trainer, *_) -> None:
            if not trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / "during.ckpt")

    model = Net()
    run(tmp_path, model, callbacks=[Save()], max_epochs=1)
    during, after = (
        state(tmp_path / "during.ckpt"),
        state(tmp_path / "version_0" / "checkpoints" / "last.ckpt"),
    )
    same(during["state_dict"], after["state_dict"])
    same(during["ema"]["state_dict"], after["ema"]["state_dict"])
    same(during["state_dict"], model.trained[-1])


def test_a_callback_that_saves_before_its_turn_has_the_step_in_the_average(tmp_path: Path) -> None:
    class Early(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    model = Net()
    start = copied(model)
    run(tmp_path, model, callbacks=[Early()], max_epochs=1)
    expected = reference(model.trained, start)
    for step in (1, 6):
        found = state(tmp_path / f"{step}.ckpt")["ema"]["state_dict"]
        same(found, expected[step - 1], exactly=False)


def test_begun_late_the_average_begins_with_the_checkpoints_weights(tmp_path: Path) -> None:
    first = Net()
    run(tmp_path / "first", first, max_epochs=1, ema_decay=None)
    last = tmp_path / "first" / "version_0" / "checkpoints" / "last.ckpt"
    model = Net()
    with pytest.warns(UserWarning, match="has no average of the weights"):
        run(tmp_path / "second", model, ckpt_path=last)
    stays = [min(DECAY, (1 + n) / (10 + n)) for n in range(7, 13)]
    expected = first.trained[-1]["weight"].double()
    for share, after in zip(stays, model.trained, strict=True):
        expected = share * expected + (1 - share) * after["weight"].double()
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-6, atol=1e-7)


def test_left_out_later_the_training_goes_on_with_its_own_weights(tmp_path: Path) -> None:
    truth = Net()
    run(tmp_path / "whole", truth)
    run(tmp_path / "first", Net(), max_epochs=1)
    model = Net()
    last = tmp_path / "first" / "version_0" / "checkpoints" / "last.ckpt"
    run(tmp_path / "second", model, ckpt_path=last, ema_decay=None)
    assert model.losses == truth.losses[6:]
    assert "ema" not in state(tmp_path / "second" / "version_0" / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("odd", [None, torch.ones(3), 5])
def test_an_average_of_another_model_is_refused(odd: Any, tmp_path: Path) -> None:
    run(tmp_path, Net(), max_epochs=1)
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    content = state(last)
    content["ema"]["state_dict"]["weight"] = odd
    if odd is None:
        del content["ema"]["state_dict"]["weight"]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="is of another model"):
        run(tmp_path, Net(), ckpt_path=tmp_path / "other.ckpt")
    torch.save({**content, "ema": []}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=r"average of the weights \(ema\) is damaged"):
        run(tmp_path, Net(), ckpt_path=tmp_path / "odd.ckpt")


def test_the_model_of_a_checkpoint_is_the_average(tmp_path: Path) -> None:
    model = small(InstanceSegmentor)
    callback = AverageWeights(0.5)
    batch = random_batch([2, 1], height=64, width=64) | {"padding": torch.ones(2)}
    trainer = quiet(tmp_path, logger=False, max_epochs=1, callbacks=[callback], limit_val_batches=0)
    trainer.fit(model, DataLoader([batch] * 3, batch_size=None))
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    saved = state(last)
    average, trained = saved["ema"]["state_dict"], saved["state_dict"]
    name = "network.head.classes.weight"
    assert not torch.equal(average[name], trained[name])
    same(copied(InstanceSegmentor.load_from_checkpoint(last)), average)

    class Look(InstanceSegmentor):
        def validation_step(self, batch, batch_idx):
            self.seen = copied(self)
            return [{}, {}]

    looking = Look(**model.hparams)
    data = DataLoader([batch], batch_size=None)
    quiet(tmp_path, logger=False).validate(looking, data, ckpt_path=last, verbose=False)
    same(looking.seen, average)


def test_compiled_networks_are_evaluated_with_it(tmp_path: Path) -> None:
    class Look(Line):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

        def training_step(self, batch, batch_idx):
            return self.network(batch["image"]).square().mean() * self.weight

        def validation_step(self, batch, batch_idx):
            self.seen = self.network(batch["image"])
            return [{}, {}]

    model, plain, counter = Look(), Look(), CompileCounter()
    torch._dynamo.reset()
    compile_in_place(model.network, {"backend": counter})
    data = batches(3)
    trainer = quiet(tmp_path, logger=False, max_epochs=2, ema_decay=0.5, num_sanity_val_steps=0)
    trainer.fit(model, data, data)
    assert counter.frame_count >= 2  # in training and in evaluation
    saved = state(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    *_, last = data
    plain.eval().load_state_dict(saved["ema"]["state_dict"])
    torch.testing.assert_close(model.seen, plain.network(last["image"]))
    plain.load_state_dict(saved["state_dict"])
    # The trained weights give others.
    assert (model.seen - plain.network(last["image"])).abs().max() > 1e-3


def test_weights_of_less_precision_are_averaged_in_float32() -> None:
    callback, model = AverageWeights(0.999), Net().to(torch.bfloat16)

    class At:
        global_step = 0

    callback.on_train_start(At, model)  # type: ignore[arg-type]
    assert callback._average["weight"].dtype == torch.float32
    assert callback._average["norm.num_batches_tracked"].dtype == torch.int64
    before = copied(model)
    with torch.no_grad():
        model.weight += 1
    At.global_step = 100_000
    callback._update_average(At, model)  # type: ignore[arg-type]
    # A change that bfloat16 would lose.
    assert callback._average["weight"].item() == pytest.approx(1.001)
    with torch.no_grad():
        model.weight -= 1
    callback._show(model)
    callback._put_back(model)
    same(copied(model), before)


@pytest.mark.parametrize(("step", "expected"), [(1, 2 / 11), (10, 11 / 20), (10**6, 0.9998)])
def test_the_beginning_is_soon_forgotten(step: int, expected: float) -> None:
    assert decay_at(step, 0.9998) == pytest.approx(expected)


def test_strategies_that_shard_the_weights_are_refused() -> None:
    check_strategy(DDPStrategy())
    for strategy in (FSDP(), FSDPStrategy(), ModelParallelStrategy()):
        with pytest.raises(InputError, match="ema_decay does not work with strategy=fsdp"):
            check_strategy(strategy)
    pytest.importorskip("deepspeed")
    check_strategy(zero.ZeRO(config=zero.stage_config(2)))
    with pytest.raises(InputError, match="ema_decay does not work with strategy=deepspeed_stage_3"):
        check_strategy(zero.ZeRO(config=zero.stage_config(3)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mixed")
    shard(mixed(folder / "coco"), folder / "shards", samples_per_shard=4)
    return str(folder / "shards")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_on_two_ranks_it_is_that_of_one_process(shards: str, tmp_path: Path) -> None:
    """Under DDP and DeepSpeed, also in an interrupted run. Other strategies are refused."""
    pytest.importorskip("deepspeed")
    common = {"shards": shards, "ema_decay": 0.5, "max_epochs": 2, "keep_last": -1}
    alone = tmp_path / "alone"
    fit(folder=str(alone), batch_size=4, **common)
    expected = state(alone / "version_0" / "checkpoints" / "last.ckpt")["ema"]["state_dict"]
    jobs, kinds = [], ("ddp", "deepspeed_stage_2")
    for kind in kinds:
        whole, rest = str(tmp_path / kind), str(tmp_path / f"{kind} rest")
        jobs.append({"folder": whole, "strategy": kind, **common})
        first = str(tmp_path / kind / "version_0" / "checkpoints" / "step_3.ckpt")
        often = {"save_every_n_steps": 1, "keep_last": 1}
        jobs.append({"folder": rest, "strategy": kind, "ckpt_path": first, **common, **often})
    refused = ("fsdp", "deepspeed_stage_3")
    jobs += [{"folder": str(tmp_path / kind), "strategy": kind, **common} for kind in refused]
    gave = fit_on_ranks(2, jobs, tmp_path / "jobs")
    for kind, answer in zip(refused, gave[4:], strict=True):
        assert f"ema_decay does not work with strategy={kind}" in answer["error"]
    for kind in kinds:
        left = {
            path.name
            for path in (tmp_path / f"{kind} rest" / "version_0" / "checkpoints").iterdir()
        }
        assert left == {"step_6.ckpt", "last.ckpt"}
        for folder in (kind, f"{kind} rest"):
            out = tmp_path / f"{folder}.safetensors"
            convert(tmp_path / folder / "version_0" / "checkpoints" / "last.ckpt", out)
            got = copied(InstanceSegmentor.load_from_checkpoint(out))
            for name, tensor in expected.items():
                torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


ON_RANKS = """
import sys
import torch, torch.distributed as dist
from line import quiet
from test_ema import Net, copied
from torch.utils.data import DataLoader

class Differing(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step({"image": batch["image"] + self.global_rank}, batch_idx)

generator = torch.Generator().manual_seed(3)
image = torch.randn(2, 3, 4, 4, generator=generator)
batch = {"image": image, "file_name": ["a", "b"], "padding": torch.ones(2)}
for decay in (None, 0.5):
    folder = f"{sys.argv[1]}/{decay}"
    model = Differing()
    trainer = quiet(folder, max_epochs=2, ema_decay=decay, strategy="ddp", limit_val_batches=0,
                    logger=False)
    trainer.fit(model, DataLoader([batch] * 3, batch_size=None))
    content = torch.load(f"{folder}/version_0/checkpoints/last.ckpt", weights_only=True)
    saved = content["ema"]["state_dict"] if decay else content["state_dict"]
    for name, tensor in copied(model).items():
        assert torch.equal(tensor, saved[name]), (decay, trainer.global_rank, name)
    print(f"equal {decay} {trainer.global_rank}", flush=True)
"""


@pytest.mark.slow
def test_after_a_fit_on_two_ranks_both_hold_the_checkpoints_model(tmp_path: Path) -> None:
    """Also the statistics of batch norms, which each rank computes over its own images."""
    done = on_ranks(ON_RANKS, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("equal")) == [
        f"equal {decay} {rank}" for decay in ("0.5", "None") for rank in (0, 1)
    ]
