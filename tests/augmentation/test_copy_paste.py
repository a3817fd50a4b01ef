"""Copy-paste, against dense masks from pycocotools that are combined pixel by pixel."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from autotimm.augmentation.copy_paste import paste
from autotimm.augmentation.presets import Augmentation
from autotimm.augmentation.sample import Sample, training_sample
from autotimm.coco import masks
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.load import Load
from autotimm.data.synthetic import make_dataset
from autotimm.images.decode import DataError
from autotimm.streaming.order import partner
from autotimm.streaming.store import open_source
from autotimm.structures import InputError, Record

SIZE = 128
LABELS = {n: n - 1 for n in range(1, 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pasted") / "coco"
    make_dataset(root, train=14, val=1, size=SIZE)
    return root


@pytest.fixture(scope="module")
def truth(folder: Path) -> COCO:
    return COCO(str(folder / "annotations" / "instances_train2017.json"))


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    source = open_source(folder, "train")
    return [source.read(0, i)[1] for i in range(14)]


def laid(record: Record, folder: Path, flip: bool, with_masks: bool = True) -> Sample:
    image = np.array(Image.open(folder / "train2017" / record["file_name"]).convert("RGB"))
    how: Any = {"resize": "letterbox", "fill": (0, 0, 0), "with_masks": with_masks}
    rng, vary = np.random.default_rng(0), Augmentation(flip=float(flip))
    return training_sample(image, record, LABELS, (SIZE, SIZE), vary, rng, **how)


def tight(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


@pytest.mark.parametrize("flip", [False, True])
def test_what_is_covered_is_cut_out(
    flip: bool, folder: Path, records: list[Record], truth: COCO
) -> None:
    """On a canvas of the image's size, so that canvas and image pixels coincide."""
    side = -1 if flip else 1
    cut = dropped = some = several = 0
    pairs = [(a, b) for a in records[:8] for b in records[8:]]
    for seed, (one, two) in enumerate(pairs):
        base, other = laid(one, folder, flip), laid(two, folder, flip)
        before, above = base.image.copy(), other.image
        made = paste(base, other, np.random.default_rng(seed))
        dense = [truth.annToMask(truth.anns[a["id"]])[:, ::side] > 0 for a in made.annotations]
        ids = {a["id"] for a in one["annotations"]}
        pasted = [m for m, a in zip(dense, made.annotations, strict=True) if a["id"] not in ids]
        assert pasted
        assert len(pasted) <= len(two["annotations"])
        several += len(two["annotations"]) > 2
        some += 2 < len(two["annotations"]) > len(pasted)
        cover = np.any(pasted, axis=0)
        assert np.array_equal(made.image, np.where(cover[..., None], above, before))
        for mask, box, crop, annotation, label in zip(
            dense, made.boxes, made.masks, made.annotations, made.labels, strict=True
        ):
            seen = mask & ~cover if annotation["id"] in ids else mask
            cut += bool((seen != mask).any())
            assert np.abs(tight(seen) - box).max() <= 1.5
            assert label == LABELS[annotation["category_id"]]
            cropped = masks.crop(masks.encode(seen), np.eye(2, 3), box)
            same = (cropped == crop).mean()
            assert same > 0.97 if flip else same == 1  # a flip rounds centres differently
        left = {a["id"] for a in made.annotations}
        for annotation in base.annotations:
            mask = truth.annToMask(truth.anns[annotation["id"]])[:, ::side] > 0
            share = (mask & ~cover).sum() / mask.sum()
            dropped += annotation["id"] not in left
            if not 0.07 < share < 0.13:
                assert (annotation["id"] in left) == (share > 0.1)
        boxes_only = paste(
            laid(one, folder, flip, False),
            laid(two, folder, flip, False),
            np.random.default_rng(seed),
        )
        assert np.array_equal(boxes_only.boxes, made.boxes)
        assert boxes_only.masks is None
    assert several / 2 < some, "a random part, seldom all"
    assert cut >= 5
    assert dropped >= 1


def test_scaled_pastes_lie_where_their_masks_do(folder: Path, records: list[Record]) -> None:
    """White objects on black, at any scale: the white pixels are those of the pasted masks."""
    vary, how = Augmentation(flip=0.5, scale=(0.3, 2.0)), {"resize": "letterbox"}
    for seed, record in enumerate(records):
        rng = np.random.default_rng(seed)
        white = np.full((SIZE, SIZE, 3), 255, np.uint8)
        given: Any = (record, LABELS, (SIZE, SIZE), vary, rng)
        options: Any = {**how, "fill": (0, 0, 0), "with_masks": True}
        other = training_sample(white, *given, **options)
        bare: Any = {**record, "annotations": []}
        base = training_sample(white * 0, bare, *given[1:], **options)
        made = paste(base, other, rng)
        for box, crop in zip(made.boxes, made.masks, strict=True):
            x, y = (
                np.floor(box[a] + (box[a + 2] - box[a]) * (np.arange(112) + 0.5) / 112).astype(int)
                for a in (0, 1)
            )
            found = made.image[np.ix_(y.clip(0, SIZE - 1), x.clip(0, SIZE - 1))][..., 0] > 0
            assert (crop <= found).mean() > 0.93  # except for pixels on the edge


def test_nothing_to_paste_and_nothing_below(folder: Path, records: list[Record]) -> None:
    empty: Any = {**records[0], "annotations": []}
    rng = np.random.default_rng(0)
    base = laid(records[0], folder, False)
    before = base.image.copy()
    same = paste(base, laid(empty, folder, False), rng)
    assert same is base
    assert np.array_equal(same.image, before)
    made = paste(laid(empty, folder, False), laid(records[1], folder, False), rng)
    assert 1 <= len(made.boxes) == len(made.labels) == len(made.masks)


def test_what_is_covered_whole_is_dropped(folder: Path, records: list[Record]) -> None:
    everything = masks.encode(np.ones((SIZE, SIZE), np.uint8))
    one = records[1]["annotations"][0]
    over: Any = one | {"id": 999, "bbox": [0, 0, SIZE, SIZE], "segmentation": everything}
    record: Any = {**records[1], "annotations": [over]}
    other = laid(record, folder, False)
    made = paste(laid(records[0], folder, False), other, np.random.default_rng(0))
    assert [a["id"] for a in made.annotations] == [999]
    assert np.array_equal(made.image, other.image)


def test_partners_are_a_pure_function() -> None:
    chosen = [partner(3, 1, p, 0.4) for p in range(5000)]
    assert chosen == [partner(3, 1, p, 0.4) for p in range(5000)]
    # Literals, because a resumed run has to draw the same numbers.
    assert chosen[:12] == [1, 2, 3, *[None] * 5, 9, None, 11, None]
    assert {c - p for p, c in enumerate(chosen) if c is not None} == {1}
    assert 0.37 < np.mean([c is not None for c in chosen]) < 0.43
    assert [partner(3, 1, p, 0.0) for p in range(9)] == [None] * 9
    assert [partner(3, 1, p, 1.0) for p in range(9)] == [*range(1, 10)]
    assert chosen != [partner(3, 2, p, 0.4) for p in range(5000)]


def module(folder: Path, share: float, workers: int = 0, **options: Any) -> Any:
    return InstanceSegmentationDataModule(
        folder, image_size=96, batch_size=4, num_workers=workers, copy_paste=share, **options
    )


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in ("image", "boxes", "labels", "masks"))


def test_batches_depend_on_the_order_alone(folder: Path) -> None:
    loader = module(folder, 0.5).train_dataloader()
    whole = list(loader)
    for workers in (0, 2):
        other = module(folder, 0.5, workers)
        assert all(same(a, b) for a, b in zip(whole, other.train_dataloader(), strict=True))
        other.teardown()
    first = module(folder, 0.5).train_dataloader()
    list(islice(first, 2))
    second = module(folder, 0.5).train_dataloader()
    second.load_state_dict(first.state_dict())
    assert all(same(a, b) for a, b in zip(whole[2:], second, strict=True))
    plain = module(folder, 0.0).train_dataloader()
    for step, (a, b) in enumerate(zip(whole, plain, strict=True)):
        for i in range(4):
            alone = partner(0, 0, 4 * step + i, 0.5) is None
            assert torch.equal(a["image"][i], b["image"][i]) == alone


def test_each_paste_is_varied_by_itself(folder: Path, records: list[Record]) -> None:
    """Grey of random brightness pasted onto black."""
    record, vary = records[0], Augmentation(brightness=0.5)
    black, grey = (png(np.full((SIZE, SIZE, 3), value, np.uint8)) for value in (0, 128))
    bare: Any = {**record, "annotations": []}
    load = Load(LABELS, (SIZE, SIZE), vary, "letterbox", (0, 0, 0), with_masks=True)
    levels = {
        int(load(black, bare, np.random.default_rng(seed), other=(grey, record)).image.max())
        for seed in range(8)
    }
    assert len(levels) > 4


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_masks_that_cannot_be_used(folder: Path, records: list[Record]) -> None:
    """Damaged masks of the other sample leave the base unchanged; the base's own raise an error."""
    bad: Any = {"size": [SIZE, SIZE], "counts": "#"}
    broken: Any = [
        {**record, "annotations": [{**a, "segmentation": bad} for a in record["annotations"]]}
        for record in records[:2]
    ]
    base = laid(records[0], folder, False, with_masks=False)
    rng, before = np.random.default_rng(0), base.image.copy()
    assert paste(base, laid(broken[1], folder, False, with_masks=False), rng) is base
    spoilt = laid(broken[0], folder, False, with_masks=False)
    with pytest.raises(DataError):
        paste(spoilt, laid(records[1], folder, False), rng)
    for one in (base, spoilt):
        assert np.array_equal(one.image, before)


def test_goes_with_canvases_of_each_step(folder: Path) -> None:
    for how in ({"multi_scale": [64, [64, 96]]}, {"aspect_buckets": [[64, 96]]}):
        batches = list(module(folder, 1.0, **how).train_dataloader())
        alone = list(module(folder, 0.0, **how).train_dataloader())
        assert [b["image"].shape for b in batches] == [b["image"].shape for b in alone]
        assert sum((b["labels"] >= 0).sum() for b in batches) > sum(
            (b["labels"] >= 0).sum() for b in alone
        )
        # Checks the pixels too, because OpenCV silently pastes nothing if sizes differ.
        for b, plain in zip(batches, alone, strict=True):
            assert (b["image"] != plain["image"]).flatten(1).any(1).all()


def test_errors_of_the_pasted_image_name_it(records: list[Record], folder: Path) -> None:
    data = (folder / "train2017" / records[0]["file_name"]).read_bytes()
    odd: Any = {**records[0], "file_name": "odd.png"}
    odd["annotations"] = [{**a, "category_id": 99} for a in odd["annotations"]]
    vary = Augmentation()
    load = Load(LABELS, (SIZE, SIZE), vary, "letterbox", (0, 0, 0), with_masks=True)
    with pytest.raises(InputError, match=r"to paste odd\.png: "):
        load(data, records[0], np.random.default_rng(0), other=(data, odd))


@pytest.mark.parametrize("gone", [False, True])
def test_a_partner_that_cannot_be_used_is_left_out(gone: bool, tmp_path: Path) -> None:
    make_dataset(tmp_path, train=4, val=1, size=96)
    order = [
        name for batch in module(tmp_path, 0.0).train_dataloader() for name in batch["file_name"]
    ]
    plain = next(iter(module(tmp_path, 0.0).train_dataloader()))
    loader = module(tmp_path, 1.0, max_corrupt=1.0).train_dataloader()
    path = tmp_path / "train2017" / order[1]
    if gone:
        path.unlink()
    else:
        path.write_bytes(b"no image")
    with pytest.warns(UserWarning, match=f"cannot be used: .*{order[1]}"):
        batch = next(iter(loader))
    assert batch["file_name"][0] == order[0]
    assert torch.equal(batch["image"][0], plain["image"][0])


def test_shares_and_pipelines_are_checked(folder: Path) -> None:
    with pytest.raises(InputError, match="copy_paste is 2, but must be a number from 0 to 1"):
        module(folder, 2)
    A = pytest.importorskip("albumentations")
    own = A.Compose([], bbox_params=A.BboxParams(format="coco", label_fields=["labels"]))
    with pytest.raises(InputError, match="copy_paste goes with augmentation_preset"):
        module(folder, 0.5, custom_train_transforms=own)
