"""A loss or gradient that is not finite stops the run, and weights and checkpoints stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from ranks import on_ranks
from torch.utils.data import DataLoader

from autotimm import AutoTrainer, InputError
from autotimm.tasks import optimization
from autotimm.tasks.precision import MixedPrecision
from autotimm.training import check_loss

NAN, INF = float("nan"), float("inf")


class SpoilGradient(torch.autograd.Function):
    """The identity with a gradient of NaN."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * NAN


class Line(LightningModule):
    """Learns two numbers. ``spoil`` determines what goes wrong, at which batch and rank."""

    def __init__(self, spoil: dict[int, str] | None = None, fused: bool = False, rank=0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.other = torch.nn.Parameter(torch.tensor(0.0))
        self.spoil, self.fused, self.bad_rank = spoil or {}, fused, rank
        self.seen: list[list[float]] = []  # the weights at the start of each step

    def training_step(self, batch, batch_idx):
        self.seen.append(self.weight.tolist())
        how = self.spoil.get(batch_idx) if self.global_rank == self.bad_rank else None
        weight = SpoilGradient.apply(self.weight) if how == "own" else self.weight
        loss = (weight * batch["image"].mean()).square().sum() + self.other.square()
        if how == "gradient":
            loss = SpoilGradient.apply(loss)
        elif how in ("nan", "inf"):
            # The gradient is finite, and only the loss is not.
            loss = loss + {"nan": NAN, "inf": INF}[how]
        return loss

    def validation_step(self, batch, batch_idx):
        return [{}, {}]

    def configure_optimizers(self):
        groups = [{"params": list(self.parameters()), "lr": 0.1}]
        return optimization.build("sgd", groups, self.fused)


def loader(batches: int = 8, rank: int = 0) -> DataLoader:
    made = [
        {
            "image": torch.ones(2, 3, 4, 4),
            "file_name": [f"{rank}-{i}a.jpg", f"{rank}-{i}b.jpg"],
            "padding": torch.ones(2),
        }
        for i in range(batches)
    ]
    return DataLoader(made, batch_size=None)


def trainer(folder: Path, **options) -> AutoTrainer:
    return AutoTrainer(
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"accelerator": "cpu", "devices": 1, "max_epochs": 2, **options},
    )


def sixteen(**scaler) -> dict:
    """16-mixed on a CPU, which Lightning would replace by bf16."""
    grad_scaler = torch.amp.GradScaler("cpu", **scaler)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", grad_scaler)]}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_the_run_stops_before_the_weights_change(
    how: str, precision: str, fused: bool, tmp_path: Path
) -> None:
    options = sixteen() if precision == "16-mixed" else {"precision": precision}
    model = Line({5: how}, fused)
    run = trainer(tmp_path, **options)
    if how == "gradient" and precision == "16-mixed":
        run.fit(model, loader())  # the scaler skips this step, which is not an error
        # In both epochs the sixth step was skipped, and the others were not.
        moved = [a != b for a, b in zip(model.seen, model.seen[1:], strict=False)]
        assert [i for i, changed in enumerate(moved) if not changed] == [5, 13]
        return
    message = "its gradients are not," if how == "gradient" else f"loss is {how}"
    with pytest.raises(
        InputError, match=f"{message}.* at step 6 .images 0-5a.jpg, 0-5b.jpg"
    ) as error:
        run.fit(model, loader())
    assert "\n" not in str(error.value)
    # Fused kernels skip the step, and the host learns of it one step later.
    assert len(model.seen) == (7 if fused else 6)
    assert model.weight.tolist() == model.seen[5]
    assert model.weight.isfinite().all()


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_is_saved_after_it(fused: bool, tmp_path: Path) -> None:
    """Not even if it is the last step of an epoch, after which checkpoints are saved."""

    class LaterEpoch(Line):
        def training_step(self, batch, batch_idx):
            self.spoil = {7: "nan"} if self.current_epoch == 1 else {}
            return super().training_step(batch, batch_idx)

    with pytest.raises(InputError, match="loss is nan at step 16"):
        trainer(tmp_path, max_epochs=3).fit(LaterEpoch(fused=fused), loader(), loader(1))
    (folder,) = tmp_path.glob("version_0/checkpoints")
    state = torch.load(folder / "last.ckpt", weights_only=True)
    assert state["global_step"] == 8
    assert state["state_dict"]["weight"].isfinite().all()
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "step_8.ckpt"]


@pytest.mark.parametrize("fused", [False, True])
def test_the_last_step_of_a_run_counts_too(fused: bool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at step 6"):
        trainer(tmp_path, max_steps=6).fit(Line({5: "nan"}, fused), loader())
    assert not list(tmp_path.glob("**/*.ckpt"))


@pytest.mark.parametrize("fused", [False, True])
def test_a_checkpoint_of_the_step_itself_is_not_written(fused: bool, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    every = ModelCheckpoint(tmp_path / "every", "{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(InputError, match="at step 4"):
        trainer(tmp_path, callbacks=every).fit(Line({3: "nan"}, fused), loader())
    saved = {p.name for p in (tmp_path / "every").iterdir()}
    assert saved == {"step=1.ckpt", "step=2.ckpt", "step=3.ckpt"}


def test_all_batches_of_an_accumulated_step_are_named(tmp_path: Path) -> None:
    model = Line({4: "nan"})
    with pytest.raises(InputError) as error:
        trainer(tmp_path, accumulate_grad_batches=4).fit(model, loader())
    assert "at step 2 (images 0-4a.jpg, 0-4b.jpg, 0-5a.jpg" in str(error.value)
    assert "0-7b.jpg)" in str(error.value) and "0-3b" not in str(error.value)


def test_many_images_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_loss, "_MOST_NAMED", 3)
    with pytest.raises(InputError, match=r"0-4a.jpg, 0-4b.jpg, 0-5a.jpg and 5 more\)"):
        trainer(tmp_path, accumulate_grad_batches=4).fit(Line({4: "nan"}), loader())


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_that_overflows_at_first_is_left_to_it(fused: bool, tmp_path: Path) -> None:
    """The weights and the momentum equal those of a run without these steps."""

    class Steep(Line):
        def training_step(self, batch, batch_idx):
            self.seen.append(self.weight.tolist())
            inside = self.weight * 2.0**-40  # with a gradient that is larger than the weight's
            return (inside * 2.0**40 * batch["image"].mean()).square().sum()

    truth, model = Steep(fused=fused), Steep(fused=fused)
    trainer(tmp_path, max_epochs=1).fit(truth, loader(16))
    run = trainer(tmp_path, **sixteen(init_scale=2.0**96), max_epochs=1)
    run.fit(model, loader(16))
    pairs = zip(model.seen, [*model.seen[1:], model.weight.tolist()], strict=True)
    moved = [after for before, after in pairs if before != after]
    assert 3 <= len(moved) <= 13
    torch.testing.assert_close(torch.tensor(moved), torch.tensor(truth.seen[1 : len(moved) + 1]))
    assert run.precision_plugin.scaler.get_scale() == 2.0 ** (96 - 16 + len(moved))


def test_a_scaler_that_never_stops_skipping_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_loss, "MOST_SKIPPED", 6)
    model = Line(dict.fromkeys(range(1, 20), "gradient"))
    with pytest.raises(InputError, match=r"its gradients are not, at step 7 "):
        trainer(tmp_path, **sixteen()).fit(model, loader(20))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_clipping_goes_with_fused_kernels(precision: str, tmp_path: Path) -> None:
    """Lightning alone refuses this in mixed precision."""
    weights = []
    for fused in (False, True):
        model = Line(fused=fused)
        options = sixteen() if precision == "16-mixed" else {"precision": precision}
        trainer(tmp_path, gradient_clip_val=0.5, **options).fit(model, loader())
        weights.append(model.weight.tolist())
        assert model.seen[1][0] == pytest.approx(1 - 0.1 * 0.5 / 5**0.5, rel=1e-3)
    assert weights[0] == pytest.approx(weights[1], rel=1e-4)


SPOILT = [("nan", True, 32), ("nan", True, 16), ("inf", False, 32)]
SUMMED = [("gradient", False, 32), ("own", True, 32)]
RANKS = """
import json, os, sys
from pathlib import Path
from test_check_loss import Line, loader, sixteen, trainer

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
results = []
for how, fused, bits in json.loads(sys.argv[2]):
    model = Line({5: how}, fused, rank=1)
    if how == "own":  # each rank has its own gradient of these, as where they are sharded
        model._ddp_params_and_buffers_to_ignore = ["weight"]
    options = sixteen() if bits == 16 else {}
    try:
        trainer(folder, devices="auto", **options).fit(model, loader(rank=rank))
    except ValueError as error:
        results.append([model.weight.tolist() == model.seen[5], str(error)])
(folder / f"{rank}.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_two_ranks_stop_together(tmp_path: Path) -> None:
    """They name the images of the rank with the bad loss, or of both if only gradients are bad."""
    done = on_ranks(RANKS, tmp_path, tmp_path, json.dumps([*SPOILT, *SUMMED]))
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert all(unchanged for unchanged, _ in first), first
    losses, gradients = [text for _, text in first[:3]], [text for _, text in first[3:]]
    for (how, *_), text in zip(SPOILT, losses, strict=True):
        assert f"the loss is {how} at step 6 on rank 1 (images 1-5a.jpg, 1-5b.jpg)" in text
    for _, text in zip(SUMMED, gradients, strict=True):
        assert "at step 6 (images 0-5a.jpg, 0-5b.jpg, 1-5a.jpg, 1-5b.jpg)" in text
    assert not list(tmp_path.glob("**/*.ckpt"))
