"""find_lr and find_batch_size, with a loss whose best rate is known and with the real model."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import small
from coco_folder import mixed
from line import Line, loader, quiet

from autotimm import AutoTrainer, InputError, InstanceSegmentationDataModule
from autotimm.cli import train as cli
from autotimm.training import tuning
from autotimm.training.tuning import steepest

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_the_steepest_fall_is_found_on_a_logarithmic_scale() -> None:
    rates = [10 ** (-6 + i / 10) for i in range(61)]
    # A fall around 1e-3, of a sigmoid's shape, and a rise around 1e-1.
    losses = [
        2 - 1 / (1 + math.exp(-4 * (math.log10(r) + 3))) + 9 / (1 + math.exp(-9 * math.log10(r)))
        for r in rates
    ]
    assert steepest(rates, losses) == pytest.approx(1e-3, rel=0.05)
    # After a rate that is too high the loss jumps, and then falls more steeply than before.
    thrown = [loss + (9 - 12 * i / 20) * (i < 15) for i, loss in enumerate([losses[0]] * 20)]
    longer = [10 ** (-6 + i / 10) for i in range(61 + 20)]
    assert steepest(longer, losses + thrown) == pytest.approx(1e-3, rel=0.05)
    with pytest.raises(InputError, match="falls at no learning rate between 1e-06 and 1"):
        steepest(rates, sorted(losses))
    with pytest.raises(InputError, match="or more steps"):
        steepest(rates[:11], losses[:11])


class Bowl(Line):
    """Half of the squared distance: a rate of 1 reaches the minimum in one step, and 2 diverges."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = torch.nn.Parameter(torch.tensor(0.0))
        self.rates: list[tuple[float, float]] = []
        self.scheduled = 0

    def training_step(self, batch, batch_idx):
        groups = self.trainer.optimizers[0].param_groups
        self.rates.append((groups[0]["lr"], groups[1]["lr"]))
        return (self.weight - 100 - batch_idx % 2) ** 2 / 2 + self.slow * 0

    def configure_optimizers(self):
        groups = [{"params": [self.weight]}, {"params": [self.slow], "lr": 0.1}]
        optimizer = torch.optim.SGD(groups, lr=1.0)

        def factor(step: int) -> float:
            self.scheduled = max(self.scheduled, step)
            return 1.0

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


@pytest.mark.parametrize("batches_a_step", [1, 3])
def test_the_rate_grows_by_a_factor_and_keeps_each_groups_share(
    tmp_path: Path, batches_a_step: int
) -> None:
    from lightning.pytorch import LightningDataModule

    class Data(LightningDataModule):
        def train_dataloader(self):
            return loader(6)

        def val_dataloader(self):
            raise AssertionError("nothing is validated")

    model = Bowl()
    run = quiet(
        tmp_path, max_epochs=1, accumulate_grad_batches=batches_a_step, gradient_clip_val=1e9
    )
    found = tuning.find_lr(run, model, Data(), 1e-4, 1e6, 101)
    assert 1e-2 < found < 2  # it diverges above 2 and hardly moves far below
    fast, slow = zip(*model.rates[::batches_a_step], strict=True)
    assert fast[0] == pytest.approx(1e-4)
    growth = [b / a for a, b in itertools.pairwise(fast)]
    assert growth == pytest.approx([10**0.1] * len(growth))
    assert [b / a for a, b in zip(fast, slow, strict=True)] == pytest.approx([0.1] * len(fast))
    assert len(fast) < 101  # it ended when the loss diverged
    assert model.scheduled <= 1  # without effect of the schedule
    assert model.weight.item() == 1.0  # as before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("least", "most", "steps"), [(1e-3, 1e-3, 50), (0, 1, 50), (1e-6, 1, 20)])
def test_empty_ranges_and_too_few_steps_are_refused(least: float, most: float, steps: int) -> None:
    with pytest.raises(InputError, match="find_lr: steps="):
        tuning.find_lr(quiet(Path()), Line(), Any, least, most, steps)


def test_sharded_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="find_lr takes one device or strategy=ddp"):
        quiet(tmp_path, strategy="fsdp").find_lr(Line(), Any)
    with pytest.raises(InputError, match="find_batch_size takes one process and strategy=auto"):
        quiet(tmp_path, strategy="ddp", devices=2).find_batch_size(Line(), Any)


def test_a_batch_size_needs_a_gpu_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="find_batch_size needs a GPU"):
        quiet(tmp_path).find_batch_size(Line(), Any)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "coco"
    mixed(folder)
    return folder


@pytest.mark.slow
def test_the_largest_batch_that_fits_is_found(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory holds five images, and the loader orders and counts its samples."""
    model = small(num_classes=4)
    data = InstanceSegmentationDataModule(
        data_folder, image_size=64, batch_size=4, num_workers=0, multi_scale=[32]
    )
    tried: list[int] = []

    def step(batch: Any, batch_idx: int) -> torch.Tensor:
        assert batch["image"].shape[2:] == (64, 64), "all steps have the largest canvas"
        tried.append(len(batch["image"]))
        if tried[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return next(model.parameters()).sum() * 0

    monkeypatch.setattr(model, "training_step", step)
    monkeypatch.setattr(tuning, "_has_limited_memory", lambda _: True)
    before = copy.deepcopy(model.state_dict())
    run = quiet(tmp_path, max_epochs=3)
    assert run.find_batch_size(model, data, most=64) == 4  # of five, less 5 %
    assert tried[:9] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert max(tried) == 8
    assert (data.batch_size, data.scales) == (4, ((64, 64), (32, 32)))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_the_command_line_finds_a_rate(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(AutoTrainer, "fit", lambda *_, **__: None)
    monkeypatch.setattr(tuning, "steepest", lambda *_: 0.0125)
    monkeypatch.setattr("warnings.warn", lambda *_, **__: None)
    cli.train(
        [
            *("find_lr", "--steps=30", "--most=0.1", "--model.backbone=resnet10t"),
            *("--model.pretrained=false", "--model.compile_model=false"),
            *(f"--data.data_dir={data_folder}", "--trainer.accelerator=cpu"),
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    assert "learning rate: 0.0125 (--model.init_args.lr 0.0125)" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rate_is_found_for_the_real_model(data_folder: Path, tmp_path: Path) -> None:
    data = InstanceSegmentationDataModule(data_folder, image_size=64, batch_size=4, num_workers=0)
    model = small(backbone="test_resnet", fpn_channels=16, num_classes=4, layer_decay=0.8)
    before = copy.deepcopy(model.state_dict())
    found = quiet(tmp_path, max_epochs=1).find_lr(model, data, steps=40)
    assert 1e-6 < found < 1
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not list(tmp_path.iterdir())
