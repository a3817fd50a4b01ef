"""Draw instances over an image: masks, outlines, boxes and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from autotimm.coco import masks as rle
from autotimm.images.banded import array_of, bands
from autotimm.structures import RLE
from autotimm.visualize.colours import Colour, class_colour
from autotimm.visualize.duplicates import found_twice
from autotimm.visualize.labels import Space, font_of, write_label
from autotimm.visualize.lines import draw_box, draw_contours
from autotimm.visualize.scaling import scaled_window

Picture = NDArray[np.uint8]

_BAND = 2**22  # pixels that are tinted at once, as floats


def draw_instances(
    image: Any,
    boxes: Any,
    labels: Any,
    scores: Any = None,
    masks: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
    alpha: float = 0.2,
    draw_boxes: bool = True,
    draw_labels: bool = True,
) -> Picture:
    """Draw N instances over an image, the large ones first, so that the small ones stay visible.

    An object that is found twice (:func:`autotimm.visualize.duplicates.found_twice`) has dashed
    lines without a tint where its score is the lower one, and a label that begins with "again".

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes: [N, 4] x1, y1, x2, y2 in pixels.
        labels: [N] 0-based class indices.
        scores: [N] 0 to 1, written after the names if given.
        masks: N RLEs of the image's size, or [N, H, W] with values above 0.5 inside.
        class_names: the name of each label; labels are written as numbers without it.
        size: height and width of the image whose pixels boxes and masks are in, if ``image`` shows
            it larger or smaller.
        alpha: the opacity of the colour over the pixels of a mask, 0 to 1; low by default, so
            that an object keeps its own colours inside its outline.
        draw_boxes: whether to draw the boxes.
        draw_labels: whether to write names and scores.

    Returns:
        A new picture, [H, W, 3] uint8.

    Raises:
        ValueError: the shapes do not match, or a box is not finite.
    """
    picture = _copied(image)
    height, width = picture.shape[:2]
    size = (height, width) if size is None else size
    boxes, labels = _checked(boxes, labels, scores, masks, size)
    again = np.zeros(len(boxes), bool)
    if scores is not None:
        again = found_twice(boxes, scores, masks)
    boxes = (boxes * np.tile([width / size[1], height / size[0]], 2)).clip(-1e6, 1e6)
    line = max(1, round(min(height, width) / 400))
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    order = np.lexsort((-sides.prod(axis=1), again)).tolist()  # what is found again over the rest
    colours = [class_colour(label) for label in labels.tolist()]
    space = Space(height, width) if draw_labels and len(boxes) else None
    for i in order:
        if masks is not None:
            x, y, inside = scaled_window(*_window(masks[i]), size, (height, width))
            if not again[i]:
                _tint(picture, x, y, inside, colours[i], alpha)
            draw_contours(picture, x, y, inside, colours[i], line, again[i])
            if space:
                space.add_object(x, y, inside)
        elif space:
            space.add_box(boxes[i].tolist())
    for i in order if draw_boxes else ():
        draw_box(picture, boxes[i].tolist(), colours[i], line, again[i])
    if space is None:
        return picture
    canvas = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(canvas), font_of(max(9, min(28, round(min(height, width) / 32))))
    for i in order:
        score = None if scores is None else float(scores[i])
        text = _label(int(labels[i]), score, class_names, again=again[i])
        write_label(pen, text, boxes[i].tolist(), space, colours[i], font)
    return array_of(canvas)


def _label(label: int, score: float | None, names: Sequence[str] | None, *, again: bool) -> str:
    """What is written beside an instance: its class, and its score if it has one."""
    known = names is not None and 0 <= label < len(names)
    text = str(names[label]) if known and names is not None else str(label)
    return text if score is None else f"{'again: ' if again else ''}{text} {score:.2f}"


def _copied(image: Any) -> Picture:
    """A copy of an image in the layout that OpenCV needs; ValueError for what is no image."""
    picture = np.array(image, order="C")
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"image is {picture.dtype} {picture.shape}, not uint8 [H, W, 3]")
    if not picture.size:
        raise ValueError(f"image is {picture.shape[0]} x {picture.shape[1]} pixels")
    return picture


def _checked(
    boxes: Any, labels: Any, scores: Any, masks: Any, size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Boxes [N, 4] and labels [N] as arrays; ValueError where the arguments do not match."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"boxes are {list(boxes.shape)}, not [N, 4]")
    boxes = boxes.reshape(-1, 4)
    labels = np.asarray(labels, np.int64).reshape(-1)
    for name, values in (("labels", labels), ("scores", scores), ("masks", masks)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{len(boxes)} boxes, but {len(values)} {name}")
    if not np.isfinite(boxes).all():
        raise ValueError("a box is not finite")
    for mask in () if masks is None else masks:
        shape = tuple(mask.get("size", ())) if isinstance(mask, dict) else np.shape(mask)
        if shape != size:
            raise ValueError(f"a mask of {shape} does not fit an image of {size}")
    return boxes, labels


def _tint(
    picture: Picture, x: int, y: int, inside: NDArray[np.uint8], colour: Colour, alpha: float
) -> None:
    """Tint the pixels of a part of a mask, in ``picture`` itself.

    Only these are read: most objects are much smaller than the picture.
    """
    height, width = inside.shape
    part = picture[y : y + height, x : x + width]
    for rows in bands(height, width, _BAND):
        band, there = part[rows], inside[rows, :, None] > 0
        tint = band + alpha * (np.array(colour) - band.astype(np.float32))
        np.copyto(band, tint.round().astype(np.uint8), where=there)


def _window(mask: Any) -> tuple[int, int, NDArray[np.uint8]]:
    """The left and top of a mask's box, and the mask [h, w] of 0 and 1 inside the box."""
    if isinstance(mask, dict):
        return rle.decode_window(cast(RLE, mask))
    dense = (np.asarray(mask) > 0.5).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(dense)
    return x, y, dense[y : y + h, x : x + w]
