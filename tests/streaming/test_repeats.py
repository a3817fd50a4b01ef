"""Images of rare classes come more often: the paper's rule against what really comes."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_folder import annotation, picture, write
from data_fits import Recorder, module, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from autotimm.data import datamodule
from autotimm.data.loaders import Run
from autotimm.format.index import build_index, index_bytes
from autotimm.sharding.cli import shard
from autotimm.streaming.repeats import Repeats, repeat_factors
from autotimm.streaming.store import open_source
from autotimm.structures import InputError, World

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

THRESHOLD = 0.4
BUCKETS = {"aspect_buckets": [[64, 32]]}
IMAGES = 20


def naive(content: dict[str, Any], threshold: float) -> dict[int, float]:
    """Gupta et al. 2019, word by word: image id -> repeat factor."""
    has: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for one in content["annotations"]:
        if not one["iscrowd"] and not one.get("ignore") and one["segmentation"]:
            has[one["image_id"]].add(one["category_id"])
    factors = {}
    for image, categories in has.items():
        factors[image] = 1.0
        for category in categories:
            share = sum(category in other for other in has.values()) / len(has)
            factors[image] = max(factors[image], math.sqrt(threshold / share))
    return factors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images: class 3 is in 19, 7 in five, 9 in one, 11 only where it teaches nothing."""
    root = tmp_path_factory.mktemp("rare") / "coco"
    entries, annotations = [], []
    for number in range(1, IMAGES + 1):
        width = 64 if number % 2 else 40
        entries.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": 48})
        classes = {3} if number < IMAGES else set()
        classes |= {7} if number % 4 == 1 else set()
        classes |= {9} if number == 6 else set()
        for class_ in sorted(classes) * 2:
            annotations.append(annotation(image_id=number, category_id=class_))
    odd: list[dict[str, Any]] = [{"iscrowd": 1}, {"ignore": 1}, {"segmentation": []}]
    annotations += [annotation(image_id=8 + n, category_id=11) | one for n, one in enumerate(odd)]
    for number, one in enumerate(annotations, 1):
        one["id"] = number
    files = {e["file_name"]: picture(e["width"], 48) for e in entries}
    names = [{"id": id_, "name": f"class{id_}"} for id_ in (3, 7, 9, 11)]
    write(root, entries, annotations, names, files)
    val = [annotation(category_id=id_, id=id_) for id_ in (3, 7, 9, 11)]
    return write(root, annotations=val, categories=names, split="val")


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[int, float]:
    content = json.loads((folder / "annotations/instances_train.json").read_text())
    factors = naive(content, THRESHOLD)
    assert {round(f, 3) for f in factors.values()} == {1.0, 1.265, 2.828}
    return factors


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    shard(folder, folder.parent / "shards", samples_per_shard=6, workers=1)
    return folder.parent / "shards"


@pytest.fixture(scope="module")
def tars(shards: Path) -> Path:
    """The same as another tool's tars."""
    folder = shards.parent / "tars"
    folder.mkdir()
    for path in shards.glob("*.tar"):
        shutil.copy(path, folder)
    return folder


def test_factors_are_the_papers() -> None:
    draw = np.random.default_rng(0)
    for images, classes, threshold in [(1, 1, 1.0), (50, 7, 0.2), (300, 40, 0.01), (99, 5, 1e-9)]:
        weights = 0.5 ** np.arange(classes)
        has = draw.random((images, classes)) < weights
        has[:, 0] = draw.random(images) < 0.9
        owners, ids = np.nonzero(has)
        content = {
            "images": [{"id": i} for i in range(images)],
            "annotations": [
                {"image_id": i, "category_id": 10 * c, "iscrowd": 0, "segmentation": "x"}
                for i, c in zip(owners.tolist(), ids.tolist(), strict=True)
            ],
        }
        factors = repeat_factors(images, owners, ids * 10, threshold)
        known = naive(content, threshold)
        assert factors.tolist() == pytest.approx([known[i] for i in range(images)], rel=1e-6)
    assert repeat_factors(3, np.zeros(0, int), np.zeros(0, int), 0.5).tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_counts_are_exact_in_an_epoch_and_approach_the_factors_over_epochs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    for images in (1, 2, 7, 400):
        factors = (1 + draw.exponential(0.7, images) * (draw.random(images) < 0.6)).astype("f4")
        repeats = Repeats(factors, 0.1)
        epochs = np.array([repeats.counts(seed, epoch) for epoch in range(200)]).astype(int)
        assert (epochs.sum(1) == repeats.samples).all()
        assert repeats.samples == round(float((factors - np.floor(factors)).cumsum()[-1])) + int(
            np.floor(factors).sum()
        )
        assert (epochs >= np.floor(factors)).all() and (epochs <= np.ceil(factors)).all()
        # An image's own share moves by what rounding the sum changes; the rest is discrepancy.
        moved = abs(repeats.samples - factors.astype(float).sum())
        assert moved <= 0.5 + 1e-4
        for first in (20, 200):
            mean = epochs[:first].mean(0)
            assert abs(mean - factors).sum() <= moved + images * 3 / first
            assert abs(mean - factors).max() <= moved + 3 / first
        if images == 400:
            assert (epochs[0] != epochs[1]).any()
            assert (repeats.counts(seed + 1, 0) != epochs[0]).any()


def test_counts_are_the_same_for_ever() -> None:
    """Resuming relies on it: these numbers must not change with NumPy or with this code."""
    repeats = Repeats(np.array([1, 1.5, 2.25, 1, 1.75, 3.5, 1.2], np.float32), 0.1)
    assert repeats.samples == 12
    counts = [repeats.counts(7, epoch).tolist() for epoch in range(3)]
    assert counts == [[1, 2, 2, 1, 2, 3, 1], [1, 1, 3, 1, 1, 4, 1], [1, 2, 2, 1, 2, 3, 1]]


@pytest.mark.parametrize(
    ("data", "ranks", "options"),
    [
        ("folder", 1, {}),
        ("folder", 2, BUCKETS),
        ("shards", 1, BUCKETS),
        ("shards", 2, {}),
        ("shards", 3, BUCKETS),
        ("tars", 3, {}),
    ],
)
def test_what_comes_from_the_loader_is_what_the_paper_says(
    data: str,
    request: pytest.FixtureRequest,
    truth: dict[int, float],
    ranks: int,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epochs = 8
    batch = 6 // ranks
    loaders = []
    for rank in range(ranks):
        one = module(
            request.getfixturevalue(data),
            batch_size=batch,
            repeat_threshold=THRESHOLD,
            val_split=None,
            cache_dir=tmp_path,
            image_size=64,
            **options,
        )
        run = Run(world=World(rank, ranks), on_gpu=False)
        monkeypatch.setattr(datamodule, "training_run", lambda _, run=run: run)
        one.check("fit")
        loaders.append(one.train_dataloader())
    samples = round(sum(truth.values()))
    told = (
        f"an epoch has {samples} samples of 20 images; 6 with rare classes come more often, up to"
    )
    assert f"{told} 3 times" in one.repeats().summary()
    assert {loader.stream.samples for loader in loaders} == {samples}
    total: Counter[int] = Counter()
    for _ in range(epochs):
        parts = [[b["image_id"].tolist() for b in loader] for loader in loaders]
        assert {len(part) for part in parts} == {len(loaders[0])} == {-(-samples // 6)}
        seen = [id_ for step in zip(*parts, strict=True) for part in step for id_ in part]
        counts = Counter(seen[:samples])
        for id_, factor in truth.items():
            assert math.floor(factor) <= counts[id_] <= math.ceil(factor), id_
        total += counts
        assert loaders[0].state_dict()["consumed"] == samples
    for id_, factor in truth.items():
        assert total[id_] / epochs == pytest.approx(factor, abs=0.3), id_
    assert sum(total.values()) == epochs * samples


def test_every_kind_of_source_names_the_same_categories(
    folder: Path, shards: Path, tars: Path, tmp_path: Path
) -> None:
    found = []
    for path in (folder, shards, tars):
        source = open_source(path, "train", tmp_path)
        found.append([[*map(int, part)] for part in source.image_categories(enough=1000)])
    assert found[0] == found[1] == found[2]
    assert set(found[0][1]) == {3, 7, 9}  # 11 is a crowd, to be ignored, or has no mask
    # A COCO folder stops to check masks of a class once enough images have it.
    images, ids = open_source(folder, "train").image_categories(enough=3)
    assert Counter(ids.tolist()) == {3: 3, 7: 3, 9: 1}
    assert images.tolist() == sorted(images.tolist())


def test_an_index_is_made_again_from_the_tar(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    (copy / "train-000001.idx.npy").unlink()
    for enough in (1, 1000):
        was, now = (open_source(path, "train").image_categories(enough) for path in (shards, copy))
        assert all(np.array_equal(a, b) for a, b in zip(was, now, strict=True))


def older(shards: Path, folder: Path) -> Path:
    """The same shards as version 3 wrote them."""
    import hashlib

    shutil.copytree(shards, folder)
    content = json.loads((folder / "manifest.json").read_text()) | {"version": 3}
    del content["sha256"]
    for split in content["splits"].values():
        for entry in split["shards"]:
            old = index_bytes(build_index((folder / entry["name"]).read_bytes()))
            (folder / entry["index"]["name"]).write_bytes(old)
            entry["index"] = {
                "name": entry["index"]["name"],
                "sha256": hashlib.sha256(old).hexdigest(),
            }
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_shards_of_an_older_version_train_but_repeat_nothing(shards: Path, tmp_path: Path) -> None:
    old = older(shards, tmp_path / "old")
    assert module(old, val_split=None).check("fit") == ["train"]
    with pytest.raises(InputError, match=r"older version.*run autotimm-shard again") as told:
        module(old, val_split=None, repeat_threshold=0.1).check("fit")
    assert "data.repeat_threshold" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "value", [-0.1, 1.1, math.nan, math.inf, "0.1", True, [0.1], 10**400], ids=repr
)
def test_odd_thresholds_are_refused(folder: Path, value: Any) -> None:
    with pytest.raises(InputError, match=r"repeat_threshold is .* from 0 to 1") as told:
        module(folder, repeat_threshold=value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("value", [None, 0, 0.0, 1e-9])
def test_nothing_is_rare(folder: Path, value: float | None) -> None:
    loader = module(folder, repeat_threshold=value).train_dataloader()
    plain = module(folder).train_dataloader()
    assert len(loader) == len(plain) == IMAGES // 2
    seen = [[b["image_id"].tolist() for b in one] for one in (loader, plain)]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("stop", [5, 16])
def test_a_fit_goes_on_at_the_very_batch(
    shards: Path, truth: dict[int, float], tmp_path: Path, stop: int
) -> None:
    options = {"repeat_threshold": THRESHOLD, "val_split": None}
    whole = Recorder()
    trainer(tmp_path).fit(whole, datamodule=module(shards, **options))
    length = -(-round(sum(truth.values())) // 2)
    assert [len(epoch) for epoch in whole.seen] == [2 * length] * 2
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=stop, save_top_k=-1)
    keep = {"callbacks": [saving], "enable_checkpointing": True, "max_epochs": -1}
    trainer(tmp_path, max_steps=stop, **keep).fit(Recorder(), datamodule=module(shards, **options))
    saved = next((tmp_path / "saved").glob("*.ckpt"))
    rest = Recorder()
    trainer(tmp_path).fit(rest, datamodule=module(shards, **options), ckpt_path=saved)
    assert rest.batches == whole.batches[stop:]
    for other in (None, 0.2):
        with pytest.raises(InputError, match=r"data.repeat_threshold is .* trained with 0.4"):
            trainer(tmp_path).fit(
                Recorder(),
                datamodule=module(shards, **options | {"repeat_threshold": other}),
                ckpt_path=saved,
            )
