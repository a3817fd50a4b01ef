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
from autotimm.visualize.labels import font_of, write_label

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
    alpha: float = 0.4,
    draw_boxes: bool = True,
    draw_labels: bool = True,
) -> Picture:
    """Draw N instances over an image, the large ones first, so that the small ones stay visible.

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes: [N, 4] x1, y1, x2, y2 in pixels.
        labels: [N] 0-based class indices.
        scores: [N] 0 to 1, written after the names if given.
        masks: N RLEs of the image's size, or [N, H, W] with values above 0.5 inside.
        class_names: the name of each label; labels are written as numbers without it.
        alpha: the opacity of the colour over the pixels of a mask, 0 to 1.
        draw_boxes: whether to draw the boxes.
        draw_labels: whether to write names and scores.

    Returns:
        A new picture, [H, W, 3] uint8.

    Raises:
        ValueError: the shapes do not match, or a box is not finite.
    """
    picture = np.array(image, order="C")  # a copy in the layout that OpenCV needs
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"image is {picture.dtype} {picture.shape}, not uint8 [H, W, 3]")
    height, width = picture.shape[:2]
    if not height or not width:
        raise ValueError(f"image is {height} x {width} pixels")
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
    boxes = boxes.clip(-1e6, 1e6)
    line = max(1, round(min(height, width) / 400))
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    order = np.argsort(-sides.prod(axis=1), kind="stable")
    for i in order:
        colour = class_colour(int(labels[i]))
        if masks is not None:
            _blend(picture, masks[i], colour, alpha, line)
    for i in order:
        if draw_boxes:
            x1, y1, x2, y2 = boxes[i].round().astype(int).tolist()
            end = (max(x2 - 1, x1), max(y2 - 1, y1))
            cv2.rectangle(picture, (x1, y1), end, class_colour(int(labels[i])), line)
    if not draw_labels or not len(boxes):
        return picture
    canvas = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(canvas), font_of(max(9, min(28, round(min(height, width) / 32))))
    plates = np.zeros((len(order), 4), np.int64)  # the rectangles that labels cover
    for n, i in enumerate(order):
        label = int(labels[i])
        known = class_names is not None and 0 <= label < len(class_names)
        text = str(class_names[label]) if known and class_names is not None else str(label)
        if scores is not None:
            text += f" {float(scores[i]):.2f}"
        colour = class_colour(label)
        plates[n] = write_label(pen, text, boxes[i].tolist(), plates[:n], colour, font)
    return array_of(canvas)


def _blend(picture: Picture, mask: Any, colour: Colour, alpha: float, line: int) -> None:
    """Tint the pixels of a mask and draw its outline, in ``picture`` itself.

    Only the pixels inside the mask's box are read: most objects are much smaller than the picture.
    """
    x, y, inside = _window(mask, *picture.shape[:2])
    if not inside.size:
        return
    height, width = inside.shape
    part = picture[y : y + height, x : x + width]
    for rows in bands(height, width, _BAND):
        band, there = part[rows], inside[rows, :, None] > 0
        tint = band + alpha * (np.array(colour) - band.astype(np.float32))
        np.copyto(band, tint.round().astype(np.uint8), where=there)

    lighter = tuple(round(value + 0.4 * (255 - value)) for value in colour)
    contours, _ = cv2.findContours(inside.copy(), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, lighter, line, cv2.LINE_AA, offset=(x, y))


def _window(mask: Any, height: int, width: int) -> tuple[int, int, NDArray[np.uint8]]:
    """The left and top of a mask's box, and the mask [h, w] of 0 and 1 inside the box."""
    shape = tuple(mask.get("size", ())) if isinstance(mask, dict) else np.shape(mask)
    if shape != (height, width):
        raise ValueError(f"a mask of {shape} does not fit an image of {(height, width)}")
    if isinstance(mask, dict):
        return rle.decode_window(cast(RLE, mask))
    dense = (np.asarray(mask) > 0.5).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(dense)
    return x, y, dense[y : y + h, x : x + w]
