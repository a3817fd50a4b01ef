"""The user guide's Python blocks, run as written and in order on real photos.

Only what they cost is reduced, from outside: timm's weights are not downloaded, nothing is
compiled, a fit takes one step of one epoch, training pictures are a fifth as wide, and the mask
head trains on four boxes an image.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot
import pytest
import torch
from batches import random_batch
from conftest import SHARED_DATA
from torchvision.ops import box_iou

import autotimm
from autotimm import AutoTrainer, InputError, InstanceSegmentationDataModule, InstanceSegmentor
from autotimm.models import backbone, compiled
from autotimm.tasks import optimization

GUIDE = SHARED_DATA.parent / "reference/instance-segmentation.md"
"""Beside the checkout, as the real data."""
Names = dict[str, Any]


class Seen:
    """What the blocks did: every object that they made, and what they asked torch for."""

    def __init__(self) -> None:
        self.data: list[InstanceSegmentationDataModule] = []
        self.models: list[InstanceSegmentor] = []
        self.compiled: list[Any] = []
        self.norms: list[float] = []  # of the gradients at each optimizer step
        self.figures: list[Any] = []

    def clear(self) -> None:
        for kept in vars(self).values():
            kept.clear()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Has the blocks cost less, and notes what they do."""
    seen = Seen()
    create, show = backbone.timm.create_model, mpl.pyplot.show

    class Data(InstanceSegmentationDataModule):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.asked, side = self.image_size, self.image_size[0] // 5 // 32 * 32
            self.image_size = (side, side)
            seen.data.append(self)

    class Trainer(AutoTrainer):
        def __init__(self, **given: Any) -> None:
            one = dict.fromkeys(("train", "val", "test"), 1)
            limits = {f"limit_{stage}_batches": n for stage, n in one.items()}
            super().__init__(**{**given, **limits, "max_epochs": 1, "num_sanity_val_steps": 0})

    class Model(InstanceSegmentor):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{"mask_rois": 4, **kwargs})
            seen.models.append(self)

        def on_train_start(self) -> None:
            super().on_train_start()
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.register_step_post_hook(lambda *_: seen.norms.append(self.norm()))

        def norm(self) -> float:
            given = [p.grad.norm() for p in self.parameters() if p.grad is not None]
            return float(torch.stack(given).norm())

    Data.__name__, Model.__name__ = "InstanceSegmentationDataModule", "InstanceSegmentor"
    for name, kind in (("DataModule", Data), ("or", Model)):
        whole = f"InstanceSegmentation{name}" if kind is Data else "InstanceSegmentor"
        monkeypatch.setitem(autotimm.__dict__, whole, kind)
    monkeypatch.setitem(autotimm.__dict__, "AutoTrainer", Trainer)
    monkeypatch.setattr(
        backbone.timm, "create_model", lambda *a, **k: create(*a, **{**k, "pretrained": False})
    )
    monkeypatch.setattr(compiled, "compile_in_place", lambda _, kw: seen.compiled.append(kw))
    monkeypatch.setattr(mpl.pyplot, "show", lambda: seen.figures.append(mpl.pyplot.gcf()))
    yield seen
    monkeypatch.setattr(mpl.pyplot, "show", show)
    mpl.pyplot.close("all")


def trained(seen: Seen, names: Names) -> None:
    """The quick start: one step, its metrics, its checkpoint, which becomes the guide's own."""
    assert [data.asked for data in seen.data] == [(640, 640)]
    assert names["trainer"].global_step == len(seen.norms) == 1
    assert 0 <= names["trainer"].callback_metrics["val/mask_mAP"] <= 1
    [model] = seen.models
    assert model.hparams.lr == 1e-4
    # After a step nothing is found at 0.05. A classifier that says "perhaps" everywhere is found
    # with too many objects, and the limits of what is found have something to do.
    torch.nn.init.zeros_(model.network.head.classes.bias)
    names["trainer"].save_checkpoint("best_model.ckpt")


def parts_of_the_mask_branch(seen: Seen, _: Names) -> None:
    [model] = seen.models
    head = model.network.mask_head
    assert head(torch.zeros(3, 256, 14, 14)).shape == (3, 80, 28, 28)


def presets_differ(seen: Seen, _: Names) -> None:
    assert [data.asked for data in seen.data] == [(640, 640)] * 3
    images = []
    for data in seen.data:
        data.num_workers = 0
        batch = next(iter(data.train_dataloader()))
        images.append(batch)
        data.teardown()
    for one, other in pairwise([*images, images[0]]):
        assert one["image_id"].tolist() == other["image_id"].tolist()
        assert not torch.equal(one["image"], other["image"])


def own_pipeline_is_used(seen: Seen, names: Names) -> None:
    [data] = seen.data
    assert data.custom_train_transforms is names["transforms"]
    data.num_workers = 0
    batch = next(iter(data.train_dataloader()))
    data.teardown()
    assert batch["image"].dtype == torch.float32, "the pipeline has normalised"
    wanted = batch["labels"] >= 0
    assert wanted.any()
    assert batch["masks"][wanted].any(-1).any(-1).all(), "every box has a mask with it"


def found_what_it_says(_: Seen, names: Names) -> None:
    [found] = names["predictions"]
    assert not names["model"].training
    count = len(found["boxes"])
    assert 0 < count <= 100
    assert found["boxes"].shape == (count, 4)
    assert found["labels"].shape == found["scores"].shape == (count,)
    assert found["masks"].shape == (count, 640, 640)
    assert set(found["masks"].unique().tolist()) <= {0, 1}
    assert found["boxes"].min() >= 0
    assert found["boxes"].max() <= 640
    assert (found["boxes"][:, 2:] >= found["boxes"][:, :2]).all()
    assert (found["scores"][:-1] >= found["scores"][1:]).all()


def drawn(seen: Seen, names: Names) -> None:
    [figure] = seen.figures
    [axes] = figure.axes
    sure = int((names["predictions"][0]["scores"] > 0.5).sum())
    assert len(axes.texts) == len(axes.patches) == sure
    assert len(axes.images) == 1 + sure


def frozen(seen: Seen, _: Names) -> None:
    """Also the statistics of the norms: a step changes the rest and nothing of the backbone."""
    [model] = seen.models
    parts = {"backbone": model.network.backbone, "head": model.network.head}
    before = {k: {n: v.clone() for n, v in p.state_dict().items()} for k, p in parts.items()}
    optimizer = optimizer_of(model)
    model.train()
    model.losses(random_batch([2, 1], slots=4))["classes"].backward()
    optimizer.step()
    for name, part in parts.items():
        same = [torch.equal(before[name][n], v) for n, v in part.state_dict().items()]
        assert all(same) == (name == "backbone")


def optimizer_is_that(seen: Seen, _: Names) -> None:
    groups = optimizer_of(seen.models[0]).param_groups
    assert {group["weight_decay"] for group in groups} == {0, 1e-5}
    assert all(group["initial_lr"] == 1e-4 for group in groups)


def optimizer_of(model: InstanceSegmentor) -> torch.optim.Optimizer:
    real = AutoTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer: Any = SimpleNamespace(**vars(real), strategy=real.strategy)
    trainer.estimated_stepping_batches = 5
    chosen: Any = optimization.configure(model.network, model.settings, trainer)
    assert isinstance(chosen["optimizer"], torch.optim.AdamW)
    return chosen["optimizer"]


def limits_hold(seen: Seen, _: Names) -> None:
    """On a model which would find everything: scores, overlaps and counts are within limits."""
    model = seen.models[0].eval()
    torch.nn.init.normal_(model.network.head.classes.bias, -2.0, 2.0)
    for _ in range(2):
        [found] = model.predict(torch.randn(1, 3, 128, 128))
        assert 0 < len(found["scores"]) <= 100
        assert found["scores"].min() >= 0.05
        same = found["labels"][:, None] == found["labels"]
        overlaps = box_iou(found["boxes"], found["boxes"]) * same
        assert overlaps.fill_diagonal_(0).max() <= 0.5
    model.hparams.max_detections_per_image = 7
    assert len(model.predict(torch.randn(1, 3, 128, 128))[0]["scores"]) == 7


def compiled_as_said(seen: Seen, _: Names) -> None:
    """The network and its mask head by default, neither if disabled, and with the options."""
    assert seen.compiled == [None, None, *[{"mode": "reduce-overhead"}] * 2]


def sizes_are(*sides: int) -> Callable[[Seen, Names], None]:
    def check(seen: Seen, _: Names) -> None:
        assert [data.asked for data in seen.data] == [(side, side) for side in sides]

    return check


def weights_weigh(*wanted: float) -> Callable[[Seen, Names], None]:
    def check(seen: Seen, _: Names) -> None:
        assert [model._loss_weights()["masks"] for model in seen.models] == list(wanted)

    return check


def clips(seen: Seen, names: Names) -> None:
    assert names["trainer"].gradient_clip_val == 1.0


def whole_example(seen: Seen, names: Names) -> None:
    assert len(seen.norms) == 1
    assert seen.norms[0] == pytest.approx(1, abs=1e-3), "longer gradients are cut to 1"
    assert {"test/mask_mAP", "test/bbox_mAP"} <= set(names["trainer"].callback_metrics)
    assert seen.models[0].lr_schedulers().__class__.__name__ == "LambdaLR"


def nothing(_: Seen, __: Names) -> None:
    """The block makes an object, and promises nothing else."""


CHECKS: list[tuple[str, Callable[[Seen, Names], None]]] = [
    ("# Train\n", trained),
    ("mask_size=28", parts_of_the_mask_branch),
    ("# Weight for mask loss", weights_weigh(1.0)),
    ("batch_size=4", sizes_are(640)),
    ("# Strong augmentation", presets_differ),
    ("A.RandomScale", own_pipeline_is_used),
    ('"mask_mAP"', nothing),
    ('"bbox_mAP"', nothing),
    ("load_from_checkpoint", found_what_it_says),
    ("def visualize_instance_segmentation", drawn),
    ("freeze_backbone=True", frozen),
    ('optimizer="adamw"', optimizer_is_that),
    ("max_detections_per_image", limits_hold),
    ("compile_kwargs", compiled_as_said),
    ("image_size=800", sizes_are(640, 800, 512)),
    ("mask_loss_weight=0.5", weights_weigh(2.0, 0.5)),
    ("gradient_clip_val", clips),
    ("trainer.test", whole_example),
    ("# Smaller", sizes_are(512)),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:precision=16-mixed needs a GPU")
@pytest.mark.filterwarnings("ignore:custom_train_transforms. RandomScale moves masks")
def test_every_block_runs_and_does_what_the_text_says(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    if not GUIDE.is_file():
        pytest.skip("needs the user guide beside the checkout")
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(CHECKS)
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    Path("coco").symlink_to(shared_data / "coco_mini")
    shutil.copy(next(iter(sorted(Path("coco/val2017").iterdir()))), "test.jpg")
    torch.manual_seed(0)
    names: Names = {"__name__": "guide"}
    for number, (block, (sign, check)) in enumerate(zip(blocks, CHECKS, strict=True)):
        assert sign in block, f"block {number} is another one now"
        seen.clear()
        exec(compile(block, f"block {number}", "exec"), names)  # noqa: S102
        check(seen, names)


def test_masks_are_as_fine_as_asked() -> None:
    model = InstanceSegmentor(
        "resnet10t", 3, mask_size=56, pretrained=False, fpn_channels=32, compile_model=False
    )
    head = model.network.mask_head
    assert head is not None
    assert head(torch.zeros(2, 32, 28, 28)).shape == (2, 3, 56, 56)


@pytest.mark.slow
def test_the_advice_against_losses_that_are_no_numbers_works(
    mixed_shards: Path, tmp_path: Path
) -> None:
    """A rate that is far too high ends in a loss that is no number; the guide's advice trains."""

    def fit(lr: float, clip: float | None) -> int:
        torch.manual_seed(0)
        data = InstanceSegmentationDataModule(
            mixed_shards, image_size=64, batch_size=2, num_workers=0
        )
        small: Any = {"pretrained": False, "fpn_channels": 32, "head_convs": 1}
        model = InstanceSegmentor(
            "resnet10t", data.num_classes, optimizer="sgd", lr=lr, compile_model=False, **small
        )
        trainer = AutoTrainer(
            accelerator="cpu",
            max_steps=6,
            max_epochs=-1,
            limit_val_batches=0,
            gradient_clip_val=clip,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(model, datamodule=data)
        return trainer.global_step

    with pytest.raises(InputError, match="gradient"):
        fit(1e6, None)
    assert fit(1e-2, 1.0) == 6
