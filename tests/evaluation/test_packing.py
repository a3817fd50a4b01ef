"""Images packed for the way between ranks come out as they went in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autotimm.evaluation.packing import pack, unpack


def image(count: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(count)
    return {
        "boxes": torch.rand(count, 4, generator=generator),
        "labels": torch.arange(count),
        "scores": torch.rand(count, generator=generator),
        "rles": [{"size": [480 + i, 640], "counts": "2é" * i + f"x{count}"} for i in range(count)],
    }


@pytest.mark.parametrize("counts", [(3, 0, 7, 1), (0, 0), (2,), ()])
def test_what_is_packed_comes_out_as_it_was(counts: tuple[int, ...]) -> None:
    images = [image(count) for count in counts]
    found = unpack(pack(images))
    assert len(found) == len(images)
    for one, other in zip(found, images, strict=True):
        assert one.keys() == other.keys()
        assert one["rles"] == other["rles"]
        for key in ("boxes", "labels", "scores"):
            assert one[key].dtype == other[key].dtype
            assert torch.equal(one[key], other[key])
