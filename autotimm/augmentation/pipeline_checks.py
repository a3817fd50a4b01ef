"""Checks of an albumentations pipeline before it runs.

The names of their classes say what steps are, so that users without albumentations need not import
it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from autotimm.structures import InputError

_RESIZES = {
    "LongestMaxSize",
    "RandomResizedCrop",
    "RandomSizedBBoxSafeCrop",
    "RandomSizedCrop",
    "Resize",
    "SmallestMaxSize",
}
_BY_CORNERS = {*_RESIZES, "CropAndPad", "RandomScale"}  # steps that call cv2.resize
_NEAREST = 0  # cv2.INTER_NEAREST
_GIVEN = {"image", "masks", "bboxes"}
_FLAG = "custom_train_transforms"


def check(pipeline: Any) -> None:
    """Refuses what is no ``Compose`` or cannot train on boxes and masks.

    Raises:
        InputError: says what to change.
    """
    if not callable(pipeline) or not hasattr(pipeline, "processors"):
        raise InputError(
            f"{_FLAG} is {_kind(pipeline)}, but must be an albumentations Compose: "
            "A.Compose([...], bbox_params=A.BboxParams(format='coco', label_fields=['labels']))"
        )
    if boxes_of(pipeline) is None:
        raise InputError(
            f"{_FLAG} has no bbox_params, so that boxes would not follow the image: give Compose "
            "bbox_params=A.BboxParams(format='coco', label_fields=['labels'])"
        )
    if others := set(pipeline.processors) - {"bboxes"}:
        raise InputError(
            f"{_FLAG} works on {', '.join(sorted(others))} too, which this data does not have: "
            "leave keypoint_params out of Compose"
        )
    if pipeline.p < 1:
        raise InputError(
            f"{_FLAG}: Compose has p={pipeline.p:g}, but must have p=1: give its steps a p"
        )
    fields = boxes_of(pipeline).params.label_fields or []
    if isinstance(fields, str) or {*fields} & {*_GIVEN, "mask"}:
        raise InputError(
            f"{_FLAG}: label_fields is {fields!r}, but must be a list of names that are none of "
            "image, mask, masks and bboxes, such as ['labels']"
        )
    if sum(is_of(step, "Normalize") for step, _ in _steps(pipeline)) > 1:
        raise InputError(f"{_FLAG} has Normalize twice: leave one of them out")
    for step, always in _steps(pipeline):
        _check_step(step, always, set(fields))


def _check_step(step: Any, always: bool, fields: set[str]) -> None:
    """Refuses a single step with which boxes, masks and image would not fit each other."""
    name = type(step).__name__
    if getattr(step, "fill_mask", 0) == 1:
        raise InputError(
            f"{_FLAG}: {name} has fill_mask=1, which makes what it fills a part of every "
            "object: give fill_mask=0"
        )
    if wants := set(getattr(step, "targets_as_params", ())) - _GIVEN - fields:
        raise InputError(
            f"{_FLAG}: {name} needs {', '.join(sorted(wants))}, which a sample does not have: "
            "leave the step out"
        )
    if is_of(step, "DualTransform") and "bboxes" not in _targets(step):
        raise InputError(f"{_FLAG}: {name} does not move boxes: leave the step out")
    if is_of(step, "Normalize") and not always:
        raise InputError(
            f"{_FLAG}: Normalize is only applied by chance, so that images would differ in "
            "their range: give it p=1, outside of OneOf and SomeOf"
        )


def boxes_of(pipeline: Any) -> Any:
    """The pipeline's processor of boxes, whose ``params`` are its ``bbox_params``; None without."""
    return getattr(pipeline, "processors", {}).get("bboxes")


def normalisation(pipeline: Any) -> Any:
    """The step that normalises, None where images stay as they are."""
    return next((s for s, _ in _steps(pipeline) if is_of(s, "Normalize")), None)


def resizes(pipeline: Any) -> bool:
    """Whether every image comes out at a size that a step sets, whatever it was before."""
    return any(always and _resized(step) for step, always in _branches(pipeline))


def remarks(pipeline: Any, mean: Sequence[float], std: Sequence[float]) -> list[str]:
    """What to warn of before a pipeline is used, a line each.

    Args:
        pipeline: that :func:`check` has passed.
        mean: of R, G and B, by which evaluation normalises.
        std: of R, G and B, by which evaluation normalises.
    """
    return [*filter(None, (other_colours(pipeline, mean, std), shifted_masks(pipeline)))]


def other_colours(pipeline: Any, mean: Sequence[float], std: Sequence[float]) -> str | None:
    """A warning if a pipeline normalises by other numbers than evaluation; else None."""
    step = normalisation(pipeline)
    if step is None:
        return None
    if (kind := getattr(step, "normalization", "standard")) != "standard":
        return (
            f"{_FLAG} normalises by {kind}, but evaluation by mean={mean}, std={std}, so that "
            "training shows the model other colours: give A.Normalize normalization='standard'"
        )
    before = itertools.takewhile(lambda s: s is not step, (s for s, _ in _steps(pipeline)))
    white = 1.0 if any(is_of(s, "ToFloat") for s in before) else 255.0
    if step.max_pixel_value != white:
        return (
            f"{_FLAG} normalises by max_pixel_value={step.max_pixel_value:g}, but white is "
            f"{white:g} there, so that training shows the model other colours than evaluation: "
            f"give A.Normalize max_pixel_value={white:g}"
        )
    if np.allclose(step.mean, mean, atol=1e-4) and np.allclose(step.std, std, atol=1e-4):
        return None
    return (
        f"{_FLAG} normalises by mean={step.mean}, std={step.std}, but evaluation by mean={mean}, "
        f"std={std}: give the data module the same mean and std, or evaluation shows the model "
        "other colours than training"
    )


def shifted_masks(pipeline: Any) -> str | None:
    """A warning if a pipeline moves masks against their image; else None.

    ``cv2.resize`` places an image's pixels by their centres, and with INTER_NEAREST by their
    corners, which moves a mask right and down by up to half a pixel of the result: 0.5 from 150 to
    101 or to 211 pixels, with OpenCV 4.14 and 5.0; nothing where the new size is a multiple.
    INTER_NEAREST_EXACT goes by the centres. The steps that warp (``Affine``, ``Rotate``, ...) move
    nothing, and do not take INTER_NEAREST_EXACT.
    """
    found = [
        type(step).__name__
        for step, _ in _steps(pipeline)
        if is_of(step, *_BY_CORNERS)
        and getattr(step, "mask_interpolation", None) == _NEAREST
        and getattr(step, "interpolation", None) != _NEAREST
        and getattr(step, "keep_size", True)
    ]
    if not found:
        return None
    return (
        f"{_FLAG}: {', '.join(dict.fromkeys(found))} moves masks by up to half a pixel against the "
        "image, as OpenCV's INTER_NEAREST goes by the corners of pixels: give "
        "mask_interpolation=cv2.INTER_NEAREST_EXACT"
    )


def is_of(value: Any, *names: str) -> bool:
    """Whether one of the value's classes has one of the names."""
    return any(kind.__name__ in names for kind in type(value).__mro__)


def _resized(step: Any) -> bool:
    """A step, or a choice in which every step does."""
    if is_of(step, "OneOf"):
        return all(_resized(s) or resizes(s) for s in step.transforms)
    return is_of(step, *_RESIZES)


def _branches(step: Any, always: bool = True) -> Iterator[tuple[Any, bool]]:
    """Single steps and choices, and whether every image reaches each."""
    if not is_of(step, "Compose", "Sequential"):
        yield step, always and step.p >= 1
        return
    for one in step.transforms:
        yield from _branches(one, always and step.p >= 1)


def _steps(step: Any) -> Iterator[tuple[Any, bool]]:
    """Every single step, however deep, and whether it is always applied."""
    for one, always in _branches(step):
        if is_of(one, "BaseCompose"):
            for inner in one.transforms:
                yield from ((deep, False) for deep, _ in _steps(inner))
        else:
            yield one, always


def _targets(step: Any) -> set[str]:
    found = getattr(step, "_targets", ())
    every = found if isinstance(found, tuple | list) else [found]
    return {str(getattr(target, "value", target)).lower() for target in every}


def _kind(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
