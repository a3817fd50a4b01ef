"""Multi-scale training: the canvas of each step, on any rank, with any workers, after a resume."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotimm.data import options
from autotimm.data.collate import collate
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
from autotimm.streaming.dataset import SampleStream
from autotimm.streaming.loader import StreamLoader
from autotimm.streaming.order import drawn_size
from autotimm.structures import InputError, World

SIZES = ((128, 128), (64, 64), (96, 128))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scales") / "coco"
    make_dataset(root, train=24, val=3, size=128)
    return root


def module(folder: Path, batch_size: int = 2, workers: int = 0, **more: Any) -> Any:
    given = {"image_size": 128, "multi_scale": [64, [96, 128]], **more}
    return InstanceSegmentationDataModule(
        folder, batch_size=batch_size, num_workers=workers, **given
    )


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in ("image", "boxes", "labels", "masks"))


def test_the_draw_is_pure_and_even() -> None:
    drawn = [drawn_size(1, 2, n, 5) for n in range(0, 40000, 8)]
    assert drawn == [drawn_size(1, 2, n, 5) for n in range(0, 40000, 8)]
    # Literals, because a resumed run has to draw the same numbers.
    assert drawn[:12] == [3, 0, 0, 4, 2, 3, 3, 2, 2, 1, 3, 0]
    assert np.allclose(np.bincount(drawn, minlength=5) / 5000, 0.2, atol=0.02)
    assert drawn != [drawn_size(1, 3, n, 5) for n in range(0, 40000, 8)]


def test_each_step_has_one_of_the_canvases(folder: Path) -> None:
    data = module(folder)
    loader = data.train_dataloader()
    first, second = list(loader), list(loader)
    shapes = [[tuple(b["image"].shape[2:]) for b in epoch] for epoch in (first, second)]
    assert set(shapes[0]) == set(SIZES)
    assert shapes[0] != shapes[1]
    for batch in first:
        height, width = batch["image"].shape[2:]
        assert (batch["boxes"][..., 2] <= width).all()
        assert (batch["boxes"][..., 3] <= height).all()
    names = [name for b in first for name in b["file_name"]]
    plain = module(folder, multi_scale=False).train_dataloader()
    assert names == [name for b in plain for name in b["file_name"]]
    assert {tuple(b["image"].shape[2:]) for b in data.val_dataloader()} == {(128, 128)}


def test_small_canvases_stay_canvases() -> None:
    assert options.scales(True, (96, 32)) == ((96, 32), (64, 32))
    with pytest.raises(
        InputError, match="multi_scale has no canvas besides that of image_size, 32 x 32"
    ):
        options.scales(True, (32, 32))


def test_neither_workers_nor_a_resume_change_it(folder: Path) -> None:
    whole = list(module(folder).train_dataloader())
    other = module(folder, workers=2)
    assert all(same(a, b) for a, b in zip(whole, other.train_dataloader(), strict=True))
    other.teardown()
    first = module(folder).train_dataloader()
    list(islice(first, 5))
    second = module(folder).train_dataloader()
    second.load_state_dict(first.state_dict())
    assert all(same(a, b) for a, b in zip(whole[5:], second, strict=True))


def test_all_ranks_have_the_same_canvas(folder: Path) -> None:
    data = module(folder, batch_size=6)
    alone = data.train_dataloader()
    whole = list(alone)

    def rank(number: int) -> list[Any]:
        stream = SampleStream(
            alone.stream.source,
            alone.stream.load,
            collate,
            world=World(number, 3),
            batch_size=2,
            shuffle=True,
            sizes=data.scales,
        )
        return list(StreamLoader(stream, finish=alone._finish))

    for batch, *parts in zip(whole, *(rank(n) for n in range(3)), strict=True):
        assert torch.equal(batch["image"], torch.cat([part["image"] for part in parts]))


def test_the_canvases_of_true() -> None:
    assert options.scales(True, (640, 640)) == ((640, 640), *((s, s) for s in (384, 448, 512, 576)))
    assert options.scales([480, 640], (640, 640)) == ((640, 640), (480, 480))
    assert options.scales(False, (640, 640)) == ()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"multi_scale": 480}, "multi_scale is 480, but must be true, false or a list"),
        ({"multi_scale": [160]}, "160 x 160 is larger than image_size, 128 x 128"),
        ({"multi_scale": [128]}, "multi_scale has no canvas besides that of image_size"),
        ({"multi_scale": []}, "multi_scale has no canvas besides that of image_size"),
        ({"multi_scale": ["a"]}, "a size of multi_scale is 'a'"),
        (
            {"multi_scale": [*range(32, 300, 32)], "image_size": 640},
            "multi_scale has 9 canvases besides that of image_size, but fewer than 8",
        ),
        ({"aspect_buckets": True}, "multi_scale and aspect_buckets both set the canvas"),
    ],
)
def test_what_is_no_list_of_sizes_is_refused(
    given: dict[str, Any], match: str, folder: Path
) -> None:
    with pytest.raises(InputError, match=match):
        module(folder, **given)
