"""The data module under a trainer: every image once, the same batches whatever the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import mixed
from data_fits import IMAGES, VAL, Recorder, module, run_ranks, trainer

from autotimm.augmentation.presets import Augmentation
from autotimm.data.synthetic import make_dataset
from autotimm.sharding.cli import shard

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=IMAGES, val=VAL, size=(64, 96))
    return folder


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed(tmp_path_factory.mktemp("mixed") / "coco")


@pytest.fixture(scope="module")
def shard_folder(coco_folder: Path) -> Path:
    shard(coco_folder, coco_folder.parent / "shards", samples_per_shard=4)
    return coco_folder.parent / "shards"


@pytest.mark.parametrize("workers", [0, 2])
def test_fit_sees_each_image_once_an_epoch(
    coco_folder: Path, shard_folder: Path, tmp_path: Path, workers: int
) -> None:
    for folder in (coco_folder, shard_folder):
        model = Recorder()
        data = module(folder, num_workers=workers)
        trainer(tmp_path).fit(model, datamodule=data)
        assert len(model.seen) == 2
        for epoch in model.seen:
            assert len(epoch) == 14  # seven batches; one image repeats
            assert len(set(epoch[:IMAGES])) == IMAGES
            assert epoch[IMAGES] == epoch[0]
        assert model.seen[0] != model.seen[1]
        # Lightning's sanity check takes two batches before training; then it validates each epoch.
        assert len(model.evaluated) == 4 + 2 * VAL
        assert len(set(model.evaluated)) == VAL


def test_loaders_are_made_as_the_flags_say(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class Loader(list):
        multiprocessing_context = None

        def __init__(self, _, **options: Any) -> None:
            made.append(options)

    monkeypatch.setattr("autotimm.streaming.loader.DataLoader", Loader)
    flags = {"num_workers": 3, "prefetch_factor": 5, "persistent_workers": False}
    data = module(shard_folder, pin_memory=True, **flags)
    for one in (data.train_dataloader(), data.val_dataloader()):
        list(one)
        assert {**made[-1], **flags, "pin_memory": True} == made[-1]


def test_evaluation_and_prediction_see_each_image_once(shard_folder: Path, tmp_path: Path) -> None:
    model, data = Recorder(), module(shard_folder, val_batch_size=3, num_workers=1)
    for run in ("validate", "test"):
        model.evaluated.clear()
        getattr(trainer(tmp_path), run)(model, datamodule=data, verbose=False)
        assert len(set(model.evaluated)) == len(model.evaluated) == VAL
    trainer(tmp_path).predict(model, datamodule=data)
    assert sorted(model.predicted) == sorted(model.evaluated)


def test_images_are_normalised_once_on_the_device(shard_folder: Path, tmp_path: Path) -> None:
    model = Recorder()
    data = module(shard_folder, batch_size=1, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, datamodule=data)
    assert model.image is not None
    *_, batch = module(shard_folder, batch_size=1).train_dataloader()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.1, 0.2, 0.4)))
    truth = (batch["image"].double() / 255 - mean) / std
    seen = (batch["image"] != torch.tensor([124, 116, 104]).view(3, 1, 1)).any(1, keepdim=True)
    assert torch.allclose(model.image.double() * seen, truth * seen, atol=1e-4)
    assert model.image.dtype == torch.float32
    again = data.on_after_batch_transfer({"image": model.image}, 0)
    assert again["image"] is model.image


def test_overfitting_keeps_to_its_batches(shard_folder: Path, tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path, overfit_batches=2).fit(model, datamodule=module(shard_folder))
    assert model.batches[:2] == model.batches[2:]
    assert len(model.batches) == 4


RANK = """
    import json, sys
    from data_fits import Recorder, module, trainer
    from pathlib import Path

    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    model = Recorder()
    run = trainer(out, devices=2, strategy="ddp", use_distributed_sampler=sys.argv[3] == "1")
    data = module(folder, num_workers=1, repeat_threshold=float(sys.argv[4]))
    run.fit(model, datamodule=data)
    run.validate(model, datamodule=module(folder), verbose=False)
    found = {"seen": model.seen, "evaluated": model.evaluated[-5:]}
    (out / f"{run.global_rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "threshold"), [("0", 0.0), ("1", 0.0), ("0", 0.95)])
def test_two_ranks_share_an_epoch(
    shard_folder: Path, tmp_path: Path, sampler: str, threshold: float
) -> None:
    ranks = run_ranks(RANK, tmp_path, shard_folder, tmp_path, sampler, threshold)
    one, data = Recorder(), module(shard_folder, batch_size=4, repeat_threshold=threshold)
    trainer(tmp_path, limit_val_batches=0).fit(one, datamodule=data)
    for epoch, truth in enumerate(one.seen):
        first, second = (r["seen"][epoch] for r in ranks)
        assert len(first) == len(second) == len(truth) / 2
        if threshold:
            repeats = data.repeats()
            assert repeats is not None and IMAGES < repeats.samples <= len(truth)
            assert len({*truth[: repeats.samples]}) == IMAGES
        else:
            assert len(first) == 8 and len(set(first[:6]) & set(second[:6])) == 0
        joined = np.concatenate([np.reshape(part, (-1, 2)) for part in (first, second)], axis=1)
        assert joined.ravel().tolist() == truth
    evaluated = [r["evaluated"] for r in ranks]
    assert len(set(evaluated[0]) | set(evaluated[1])) == VAL


def test_a_folder_and_its_shards_give_the_same_batches(
    coco_folder: Path, shard_folder: Path
) -> None:
    for folder in (coco_folder, shard_folder):
        assert module(folder).class_names == ["disc", "square", "triangle", "star"]
        assert module(folder).num_classes == 4
    a, b = (list(module(f).val_dataloader()) for f in (coco_folder, shard_folder))
    assert len(a) == len(b) == 3
    for x, y in zip(a, b, strict=True):
        assert x["target"][0].keys() == y["target"][0].keys()
        for key in set(x) - {"target"}:
            equal = torch.equal if isinstance(x[key], torch.Tensor) else lambda p, q: p == q
            assert equal(x[key], y[key]), key
        assert [t["rles"] for t in x["target"]] == [t["rles"] for t in y["target"]]


@pytest.mark.parametrize("preset", ["light", "default", "strong"])
def test_same_seed_same_batches_for_any_workers(shard_folder: Path, preset: str) -> None:
    def batches(workers: int, seed: int = 0) -> list[dict[str, Any]]:
        data = module(shard_folder, num_workers=workers, augmentation_preset=preset, seed=seed)
        loader = data.train_dataloader()
        found = [batch for _ in range(2) for batch in loader]
        data.teardown()
        return found

    truth = batches(0)
    for workers in (1, 2):
        for x, y in zip(truth, batches(workers), strict=True):
            assert x["file_name"] == y["file_name"]
            for key in set(x) - {"file_name"}:
                assert torch.equal(x[key], y[key]), key
    assert any(
        not torch.equal(x["image"], y["image"]) for x, y in zip(truth, batches(0, 1), strict=True)
    )


def test_one_image_looks_different_in_every_epoch(shard_folder: Path) -> None:
    loader = module(shard_folder, augmentation_preset="strong").train_dataloader()
    looks: dict[int, list[torch.Tensor]] = {}
    for _ in range(2):
        for batch in loader:
            for number, image in zip(batch["image_id"].tolist(), batch["image"], strict=True):
                looks.setdefault(number, []).append(image)
    assert all(not torch.equal(a, b) for a, b, *_ in looks.values())


def test_masks_and_sizes(shard_folder: Path) -> None:
    data = module(shard_folder, image_size=(70, 97), masks=False)
    assert data.image_size == (96, 128)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 96, 128)
    assert "masks" not in batch
    data = module(shard_folder, resize="stretch")
    assert next(iter(data.train_dataloader()))["masks"].shape[2:] == (112, 112)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        batch = next(iter(loader))
        assert batch["scale"].tolist() == [[pytest.approx(64 / 96), 1.0]] * 2
        assert "masks" not in batch  # evaluation does not use crops
        assert all(len(t["rles"]) == len(t["labels"]) for t in batch["target"])
        assert (batch["labels"] >= 0).any()


def test_aspect_buckets(mixed_folder: Path) -> None:
    """Wide, tall and square images come on matching canvases, each once, at full size."""
    options = {"image_size": 96, "aspect_buckets": True, "augmentation_preset": Augmentation()}
    data = module(mixed_folder, **options)
    assert data.canvases == ((96, 96), (64, 96), (96, 64))
    batches = list(data.train_dataloader())
    seen = [i for batch in batches for i in batch["image_id"].tolist()]
    assert len(seen) == 14
    assert len(set(seen[:IMAGES])) == IMAGES
    shapes = set()
    for batch in batches:
        canvas = tuple(batch["image"].shape[2:])
        shapes.add(canvas)
        for (height, width), (across, down) in zip(
            batch["original_size"].tolist(), batch["scale"].tolist(), strict=True
        ):
            assert canvas in ((96, 96), (height, width))
            assert across == down == pytest.approx(96 / max(height, width))
        inside = batch["boxes"] <= torch.tensor([canvas[1], canvas[0]] * 2)
        assert inside.all()
    assert shapes == set(data.canvases)
    assert {b["image"].shape[2:] for b in data.val_dataloader()} == {(96, 96)}


def test_an_augmentation_of_ones_own(coco_folder: Path) -> None:
    data = module(coco_folder, augmentation_preset={"flip": 1.0})
    assert data.augmentation == Augmentation(flip=1.0)
    plain = module(coco_folder, augmentation_preset=Augmentation())
    for a, b in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        # 96 x 64 pixels become 64 x 43, padded above or below at random.
        assert torch.equal(a["image"].flip(-1), b["image"])
