"""The LightningModules: prediction, checkpoints, settings."""

from __future__ import annotations

import os
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from batches import random_batch, small
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from line import quiet
from torch.utils.data import DataLoader

from autotimm import AutoTrainer, InputError, InstanceSegmentor, MetricConfig, ObjectDetector
from autotimm.coco import masks
from autotimm.evaluation.metrics import StageMetrics
from autotimm.tasks.data_checks import matched_categories


def test_predict_gives_boxes_labels_scores_and_binary_masks_at_the_inputs_size() -> None:
    model = small(max_detections_per_image=20)
    image = torch.randn(2, 3, 100, 150)  # neither side is a multiple of 32
    found = model.predict(image)
    assert len(found) == 2
    for detections in found:
        count = len(detections["scores"])
        assert 0 < count <= 20
        assert detections["boxes"].shape == (count, 4)
        assert (detections["boxes"][:, 2:] <= torch.tensor([150, 100])).all()
        assert detections["labels"].dtype == torch.int64
        assert detections["masks"].shape == (count, 100, 150)
        assert set(detections["masks"].unique().tolist()) <= {0, 1}
    assert model.training  # as it was before
    alone = model.predict(image[0])
    torch.testing.assert_close(alone[0]["scores"], found[0]["scores"])
    assert "masks" not in small(ObjectDetector).predict(image)[0]


def test_predict_returns_boxes_and_masks_in_pixels_of_another_size() -> None:
    """The size is that of a photo before it was resized for the network; also with RLEs."""
    model = small(max_detections_per_image=20)
    image = torch.randn(3, 100, 150)
    (own,) = model.predict(image)
    (large,) = model.predict(image, (300, 300), rles=True)
    assert "masks" not in large
    torch.testing.assert_close(large["boxes"], own["boxes"] * torch.tensor([2.0, 3.0, 2.0, 3.0]))
    assert torch.equal(large["scores"], own["scores"])
    (dense,) = model.predict(image, (300, 300))
    assert dense["masks"].shape == (20, 300, 300)
    for rle, mask, coarse in zip(large["rles"], dense["masks"], own["masks"], strict=True):
        assert np.array_equal(masks.decode(rle), mask.numpy())
        near = mask[1::3, 1::2]
        assert (near != coarse).float().mean() < 0.05
    (rles,) = model.predict(image, rles=True)
    assert [masks.area(rle) for rle in rles["rles"]] == own["masks"].sum((1, 2)).tolist()
    for size in ((0, 100), (100,), 100, (100.5, 100), "ab"):
        with pytest.raises(InputError, match="size of"):
            model.predict(image, size)


@pytest.mark.parametrize(
    "image",
    [torch.zeros(1, 4, 64, 64), torch.zeros(1, 3, 64, 64).byte(), np.zeros((1, 3, 64, 64), "f4")],
)
def test_predict_refuses_anything_but_normalised_images(image) -> None:
    with pytest.raises(InputError, match=r"normalised float images (\[B, 3, H, W\]|as a tensor)"):
        small().predict(image)


def test_predict_takes_images_of_any_float() -> None:
    """NumPy's arithmetic converts photos to float64."""
    model = small(score_thresh=0.0)
    image = torch.randn(3, 64, 64).half()
    expected = model.predict(image.float())[0]
    for given in (image, image.double()):
        found = model.predict(given)[0]
        assert torch.equal(found["boxes"], expected["boxes"])
        assert torch.equal(found["scores"], expected["scores"])


def test_loss_weights_weigh() -> None:
    batch = random_batch([3, 4], 64, 96)
    losses = small().losses(batch)
    assert set(losses) == {"classes", "boxes", "centerness", "masks"}
    plain = small().training_step(batch, 0)
    torch.testing.assert_close(plain, sum(losses.values()))
    weights = {"classes": 2.0, "boxes": 3.0, "centerness": 5.0, "masks": 7.0}
    heavy = small(
        class_loss_weight=weights["classes"],
        box_loss_weight=weights["boxes"],
        centerness_loss_weight=weights["centerness"],
        mask_loss_weight=weights["masks"],
    )
    # RoIs are sampled at random, so fix the seed to compare the two steps.
    torch.manual_seed(1)
    heavy_loss = heavy.training_step(batch, 0)
    torch.manual_seed(1)
    parts = heavy.losses(batch)
    expected = sum(weights[name] * loss for name, loss in parts.items())
    torch.testing.assert_close(heavy_loss, expected, rtol=1e-3, atol=1e-3)
    assert set(small(ObjectDetector).losses(batch)) == {"classes", "boxes", "centerness"}


def test_losses_are_divided_by_the_mean_of_the_counts_of_all_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two ranks, of which the other has these counts."""
    model, batch = small(ObjectDetector).eval(), random_batch([3, 5])
    sums = model.network(batch["image"], batch["boxes"], batch["labels"])
    other = torch.tensor([40.0, 30.0, 20.0])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda counts: counts.add_(other))
    losses = model.losses(batch)
    positives, centerness = (sums.positives + 40) / 2, (sums.box_weights + 30) / 2
    torch.testing.assert_close(losses["classes"], sums.classes / positives)
    torch.testing.assert_close(losses["boxes"], sums.boxes / centerness)
    torch.testing.assert_close(losses["centerness"], sums.centerness / positives)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_repeats_that_even_out_the_ranks_are_not_measured(stage, monkeypatch) -> None:
    measured = []
    monkeypatch.setattr(StageMetrics, "update", lambda own, *given: measured.append((own, *given)))
    model = small(max_detections_per_image=5)
    batch = {
        "image": torch.randn(3, 3, 64, 64),
        "image_id": torch.tensor([4, 5, 6]),
        "original_size": torch.full((3, 2), 64),
        "scale": torch.ones(3, 2),
        "offset": torch.zeros(3, 2),
        "padding": torch.tensor([False, True, False]),
        "target": [{"of": 4}, {"of": 5}, {"of": 6}],
    }
    step = model.validation_step if stage == "val" else model.test_step
    found = step(batch, 0)
    assert len(found) == 3
    [(metrics, detections, targets, ids)] = measured
    assert metrics.stage == stage
    assert ids == [4, 6]
    assert targets == [{"of": 4}, {"of": 6}]
    assert [id(one) for one in detections] == [id(found[0]), id(found[2])]


def trained(model, folder) -> AutoTrainer:
    """A trainer that has trained the model for one step."""
    trainer = AutoTrainer(
        accelerator="cpu",
        max_steps=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, one_batch())
    return trainer


def one_batch() -> DataLoader:
    return DataLoader([random_batch([2, 3], 64, 96)], batch_size=None)


def checkpoint_of(model, folder) -> str:
    path = f"{folder}/model.ckpt"
    trained(model, folder).save_checkpoint(path)
    return path


@pytest.mark.slow
def test_a_resumed_run_reports_settings_that_changed(tmp_path) -> None:
    path = checkpoint_of(small(scheduler="constant"), tmp_path)

    def go_on(**settings) -> None:
        quiet(tmp_path, max_steps=2).fit(small(**settings), one_batch(), ckpt_path=path)

    with pytest.warns(
        UserWarning,
        match="follows scheduler=cosine, warmup_steps=1, but the .* "
        "trained with scheduler=constant, warmup_steps=0",
    ):
        go_on(scheduler="cosine", warmup_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "from here the learning rate")
        go_on(scheduler="constant")
    with pytest.warns(UserWarning, match="learns by box_quality=iou, but .* with centerness"):
        go_on(scheduler="constant", box_quality="iou")
    with pytest.raises(InputError, match=r"optimizer=sgd, but .* was trained with adamw: give"):
        go_on(scheduler="constant", optimizer="sgd")


def test_a_checkpoint_without_settings_of_losses_was_trained_by_those_of_before(tmp_path) -> None:
    path = checkpoint_of(small(box_quality="iou", mask_loss="bce+dice"), tmp_path)
    assert InstanceSegmentor.load_from_checkpoint(path).network.box_quality == "iou"
    content = torch.load(path, weights_only=True)
    for name in ("box_quality", "mask_loss"):
        del content["hyper_parameters"][name]
    torch.save(content, path)
    loaded = InstanceSegmentor.load_from_checkpoint(path)
    assert (loaded.settings.box_quality, loaded.mask_settings.mask_loss) == ("centerness", "bce")
    assert (loaded.network.box_quality, loaded.network.mask_loss) == ("centerness", "bce")
    with pytest.warns(UserWarning, match="learns by mask_loss=bce.dice, but .* with bce$"):
        quiet(tmp_path, max_steps=2).fit(small(mask_loss="bce+dice"), one_batch(), ckpt_path=path)


def test_a_run_does_not_go_on_from_weights_alone(tmp_path) -> None:
    model = small()
    trainer = trained(model, tmp_path)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert InstanceSegmentor.load_from_checkpoint(tmp_path / "weights.ckpt")
    with pytest.raises(InputError, match=r"holds weights alone, without the optimizer"):
        trainer.fit(small(), one_batch(), ckpt_path=tmp_path / "weights.ckpt")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "bare.ckpt")
    with pytest.raises(InputError, match=r"bare\.ckpt was not saved by a trainer"):
        trainer.fit(small(), one_batch(), ckpt_path=tmp_path / "bare.ckpt")


def test_a_checkpoint_gives_the_same_predictions(tmp_path) -> None:
    metrics = [MetricConfig(name="mAP", params={"iou_type": "segm"})]
    model = small(metrics=metrics, mask_size=12)
    path = checkpoint_of(model, tmp_path)
    image = torch.randn(1, 3, 96, 128)
    before = model.predict(image)[0]
    loaded = InstanceSegmentor.load_from_checkpoint(path)
    after = loaded.predict(image)[0]
    for key in ("boxes", "labels", "scores", "masks"):
        assert torch.equal(before[key], after[key]), key
    assert loaded.hparams.mask_size == 12
    assert loaded.hparams.metrics[0]["name"] == "mAP"
    changed = InstanceSegmentor.load_from_checkpoint(path, score_thresh=0.9)
    assert len(changed.predict(image)[0]["scores"]) == 0
    with pytest.raises(InputError, match="ObjectDetector"):
        ObjectDetector.load_from_checkpoint(path)


def test_a_checkpoint_does_not_need_the_pretrained_weights_again(tmp_path, monkeypatch) -> None:
    model = small()
    model.hparams["pretrained"] = True
    path = checkpoint_of(model, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert InstanceSegmentor.load_from_checkpoint(path).hparams.pretrained is False


class Canary:
    def __reduce__(self):
        return (os.mkdir, (Canary.path,))


def test_a_checkpoint_that_carries_code_is_refused_and_nothing_of_it_runs(tmp_path) -> None:
    Canary.path = str(tmp_path / "ran")
    for name, payload in {
        "torch.ckpt": {"state_dict": {}, "hyper_parameters": {"backbone": Canary()}},
        "plain.ckpt": Canary(),
    }.items():
        path = tmp_path / name
        if name.startswith("torch"):
            torch.save(payload, path)
        else:
            path.write_bytes(pickle.dumps(payload))
        with pytest.raises(InputError, match=f"{name} (is not|cannot be read as) a checkpoint"):
            InstanceSegmentor.load_from_checkpoint(path)
        assert not (tmp_path / "ran").exists()


def test_missing_and_foreign_checkpoints_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint at .*nowhere\.ckpt"):
        InstanceSegmentor.load_from_checkpoint(tmp_path / "nowhere.ckpt")
    torch.save({"epoch": 1}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other\.ckpt is not a checkpoint of a trained model"):
        InstanceSegmentor.load_from_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("categories", 5, "categories are not a list"),
        ("categories", [1], "categories are not a list"),
        ("categories", [{"id": 1}], "categories are not a list"),
        ("preprocessing", torch.ones(3), "preprocessing is"),
        (
            "preprocessing",
            {"mean": [10**400, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"},
            "mean is",
        ),
        ("hyper_parameters", {"backbone": 5}, r"odd\.ckpt is not a checkpoint of Inst"),
        ("hyper_parameters", {"lr": torch.ones(2)}, r"odd\.ckpt is not a checkpoint of Inst"),
        ("hyper_parameters", {"fpn_channels": float("nan")}, r"odd\.ckpt is not a checkpoint of"),
        ("state_dict", {3: torch.ones(1)}, "weights do not fit"),
    ],
)
def test_a_checkpoint_with_invalid_values_is_refused(tmp_path, key, value, message) -> None:
    model = small()
    whole = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    if key == "hyper_parameters":
        value = {**whole[key], **value}
    torch.save({**whole, key: value}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=message):
        InstanceSegmentor.load_from_checkpoint(tmp_path / "odd.ckpt")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_classes", 0, "num_classes=0"),
        ("score_thresh", 1.5, r"score_thresh=1\.5"),
        ("optimizer", "lion", "optimizer='lion'.*adamw"),
        ("scheduler", "linear", "scheduler='linear'.*cosine"),
        ("lr", -1.0, "lr=-1"),
        ("mask_size", 27, "mask_size=27"),
        ("mask_loss_weight", -1.0, "mask_loss_weight=-1"),
        ("warmup_steps", -1, "warmup_steps=-1"),
        ("backbone_lr_factor", 0.0, r"backbone_lr_factor=0\.0 must be a positive"),
        ("layer_decay", 1.2, r"layer_decay=1\.2"),
        ("frozen_stages", -1, "frozen_stages=-1"),
        ("milestones", [0.5], "milestones have no effect with scheduler=cosine"),
    ],
)
def test_invalid_settings_are_refused_by_name(option, value, message) -> None:
    with pytest.raises(InputError, match=message):
        small(**{option: value})


def test_a_missing_device_is_reported_in_one_line(tmp_path) -> None:
    path = checkpoint_of(small(), tmp_path)
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(InputError, match=f"map_location='{device}' is not available"):
            InstanceSegmentor.load_from_checkpoint(path, map_location=device)


def test_weights_that_do_not_fit_are_reported_in_one_line(tmp_path) -> None:
    path = checkpoint_of(small(), tmp_path)
    with pytest.raises(InputError, match=r"weights do not fit .*num_classes") as caught:
        InstanceSegmentor.load_from_checkpoint(path, num_classes=5)
    assert "\n" not in str(caught.value)


def test_a_model_of_other_classes_is_not_evaluated_on_these() -> None:
    model = small()
    model.categories = [{"id": 1, "name": "disc"}, {"id": 3, "name": "square"}]
    model.on_load_checkpoint({"categories": None})
    assert model.categories[0]["name"] == "disc"
    with pytest.raises(InputError, match=r"same classes.*star.*square"):
        model.on_load_checkpoint(
            {"categories": [{"id": 1, "name": "disc"}, {"id": 3, "name": "star"}]}
        )


def test_classes_are_the_same_whatever_their_ids() -> None:
    mine = [{"id": 1, "name": "disc"}, {"id": 3, "name": "square"}]
    texts = [
        {"id": 1, "name": "disc", "given_id": "d"},
        {"id": 2, "name": "square", "given_id": "s"},
    ]
    assert matched_categories(mine, texts) == texts
    assert matched_categories(texts, mine) == mine
    assert matched_categories(None, texts) == matched_categories(texts, None) == texts
    assert matched_categories(mine, texts[::-1], any_order=True) == texts
    with pytest.raises(InputError, match="in another order"):
        matched_categories(mine, texts[::-1])
    model = small()
    model.categories = texts  # as of the data, when a run goes on
    model.on_load_checkpoint({"categories": mine})
    assert model.categories == texts


def test_classes_of_one_name_are_told_apart_by_their_ids() -> None:
    cats = [{"id": 1, "name": "cat"}, {"id": 3, "name": "cat"}]
    assert matched_categories(cats, cats) == cats
    for other in ([*cats[:1], {"id": 4, "name": "cat"}], cats[::-1], cats[:1]):
        with pytest.raises(InputError, match="same classes"):
            matched_categories(cats, other, any_order=True)


def test_images_that_are_not_normalised_are_refused() -> None:
    batch = random_batch([2])
    batch["image"] = batch["image"].to(torch.uint8)
    with pytest.raises(InputError, match="datamodule="):
        small().losses(batch)


def test_gradients_are_unscaled_before_they_are_clipped(tmp_path) -> None:
    """The step does not depend on the scaler's factor in the gradients."""
    batch = random_batch([3, 4], 64, 64)  # a CPU has no fast convolution in float16
    moved = []
    for scale in (1.0, 1024.0):
        model = small(ObjectDetector, optimizer="sgd", lr=1.0, scheduler="constant").eval()
        before = [p.detach().clone() for p in model.parameters()]
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer = Trainer(
            accelerator="cpu",
            plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
            max_steps=1,
            gradient_clip_val=0.5,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader([batch], batch_size=None))
        steps = [p - b for p, b in zip(model.parameters(), before, strict=True)]
        moved.append(torch.cat([step.flatten() for step in steps]))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-2, atol=1e-4)
    assert moved[1].norm().item() == pytest.approx(0.5, rel=0.05)
