"""Presets and colours: against torchvision's."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from canvas import picture
from torchvision.transforms.v2 import functional as tv

from autotimm.augmentation import presets
from autotimm.augmentation.presets import (
    PRESETS,
    Augmentation,
    augmentation_of,
    color_matrix,
    recolor,
)
from autotimm.augmentation.transforms import jitter
from autotimm.structures import InputError


def test_colours_are_torchvisions() -> None:
    image = picture()
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    import torch

    tensor = torch.from_numpy(planes)
    for matrix, truth in [
        (color_matrix(brightness=0.7), tv.adjust_brightness(tensor, 0.7)),
        (color_matrix(saturation=0.3), tv.adjust_saturation(tensor, 0.3)),
        (color_matrix(saturation=0.0), tv.rgb_to_grayscale(tensor, 3)),
    ]:
        found = cv2.transform(image, matrix).transpose(2, 0, 1)
        assert np.abs(found.astype(int) - truth.numpy().astype(int)).max() <= 2


def test_color_matrices() -> None:
    assert np.array_equal(color_matrix(), np.eye(3, 4))
    grey = np.array([80.0, 80, 80, 1])
    for turn in (0.1, -0.3):
        assert np.allclose(color_matrix(turn=turn) @ grey, 80, atol=0.5)  # greys have no hue
    third = color_matrix(turn=1 / 3)[:, :3]
    assert np.allclose(np.linalg.matrix_power(third, 3), np.eye(3), atol=1e-9)  # a full circle
    assert np.allclose(color_matrix(contrast=0.5) @ (114, 114, 114, 1), 114)
    assert np.allclose(color_matrix(contrast=0.5) @ (214, 114, 14, 1), (164, 114, 64))


def test_every_strength_is_used() -> None:
    for name in ("brightness", "contrast", "saturation", "hue", "grayscale", "blur"):
        image = picture()
        strength = 0.5 if name == "hue" else 1.0
        recolor(image, Augmentation(**{name: strength}), np.random.default_rng(0))
        assert not np.array_equal(image, picture()), name
    image = picture()
    recolor(image, Augmentation(), np.random.default_rng(0))
    assert np.array_equal(image, picture())


def test_colours_are_varied_to_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, float]] = []
    matrix = presets.color_matrix
    monkeypatch.setattr(
        presets, "color_matrix", lambda **given: drawn.append(given) or matrix(**given)
    )
    strengths = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}
    for seed in range(200):
        recolor(picture(), Augmentation(**strengths), np.random.default_rng(seed))
    for name, strength in strengths.items():
        middle, key = (0, "turn") if name == "hue" else (1, name)
        found = [given[key] - middle for given in drawn]
        assert -strength <= min(found) < -0.9 * strength, name
        assert 0.9 * strength < max(found) <= strength, name


def test_presets_differ_and_grow() -> None:
    assert list(PRESETS) == ["light", "default", "strong", "lsj"]
    light, default, strong, _ = (augmentation_of(name) for name in PRESETS)
    assert light.scale[1] < default.scale[1] < strong.scale[1]
    assert light.brightness < default.brightness < strong.brightness


def test_large_scale_jitter_is_that_of_its_paper() -> None:
    """Sizes from 0.1 to 2, drawn uniformly: a quarter of them below 0.575."""
    rng = np.random.default_rng(0)
    made = [jitter(640, 480, (640, 640), "letterbox", PRESETS["lsj"], rng) for _ in range(4000)]
    found = np.quantile([one.scale[0] for one in made], [0, 0.25, 0.5, 0.75, 1])
    assert np.allclose(found, [0.1, 0.575, 1.05, 1.525, 2.0], atol=0.05)
    assert 0.45 < np.mean([one.flip for one in made]) < 0.55


def test_an_augmentation_of_ones_own() -> None:
    own = augmentation_of({"flip": 0.25, "scale": [0.9, 1.5]})
    assert own == Augmentation(flip=0.25, scale=(0.9, 1.5))
    assert augmentation_of(own) is own


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("medium", "'medium', but must be one of light, default, strong"),
        (["light"], "must be one of light, default, strong"),
        ({"fip": 0.5}, "no field 'fip', only flip, scale"),
        ({"flip": 1.5}, "flip is 1.5, but must be 0 to 1"),
        ({"hue": 0.6}, "hue is 0.6, but must be 0 to 0.5"),
        ({"blur": "much"}, "blur is 'much', but must be a number"),
        ({"linear_scale": 1}, "linear_scale is 1, but must be true or false"),
        ({"scale": 2}, r"scale is 2, but must be \[lowest, highest\]"),
        ({"scale": [2, 1]}, r"scale is \[2, 1\], but"),
        ({"scale": [0, 1]}, r"scale is \[0, 1\], but"),
    ],
)
def test_bad_augmentations_are_refused(value: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        augmentation_of(value)
