"""Grids of pictures, and PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from autotimm.files.atomic import whole_file
from autotimm.files.shortage import reason
from autotimm.structures import InputError
from autotimm.visualize.instances import Picture
from autotimm.visualize.labels import font_of
from autotimm.visualize.scaling import resized


def grid(
    pairs: Sequence[tuple[Any, Any]],
    titles: tuple[str, str] = ("prediction", "ground truth"),
    *,
    columns: int = 1,
    max_width: int = 1600,
    gap: int = 12,
) -> Picture:
    """Arrange pairs of pictures side by side on a white sheet, with titles at the top.

    Args:
        pairs: (left, right), each [H, W, 3] uint8. They may differ in size: all are scaled to the
            same width and keep their aspect ratio.
        titles: of the left and the right pictures; two empty strings leave the line out.
        columns: the number of pairs in a row.
        max_width: the largest width of the result, in pixels. It limits the width of the pictures,
            which is that of the widest one otherwise.
        gap: pixels between the pictures of a pair; twice as many between pairs.

    Returns:
        [H, W, 3] uint8.

    Raises:
        ValueError: there are no pairs, or ``max_width`` has no room for the columns.
    """
    if not pairs or columns < 1:
        raise ValueError("a grid needs at least one pair and one column")
    columns = min(columns, len(pairs))
    gaps = gap * (2 + columns + 2 * (columns - 1))  # around, inside pairs, between pairs
    widest = max(np.shape(one)[1] for pair in pairs for one in pair)
    cell = min(widest, (max_width - gaps) // (2 * columns))
    if cell < 1:
        raise ValueError(f"{columns} columns do not fit into {max_width} pixels")
    font = font_of(max(9, min(28, cell // 14)))
    title_height = round(1.7 * font.size) if any(titles) else 0

    lines = []
    for start in range(0, len(pairs), columns):
        row = pairs[start : start + columns]
        line = [[resized(one, cell / np.shape(one)[1]) for one in pair] for pair in row]
        lines.append((line, max(one.shape[0] for pair in line for one in pair)))
    height = title_height + gap + sum(tallest + gap for _, tallest in lines)
    sheet = np.full((height, 2 * columns * cell + gaps, 3), 255, np.uint8)
    lefts = [gap + k // 2 * (2 * cell + 3 * gap) + k % 2 * (cell + gap) for k in range(2 * columns)]
    top = title_height + gap
    for line, tallest in lines:
        for left, one in zip(lefts, [one for pair in line for one in pair], strict=False):
            sheet[top : top + one.shape[0], left : left + cell] = one
        top += tallest + gap
    if not title_height:
        return sheet
    canvas = Image.fromarray(sheet)
    pen = ImageDraw.Draw(canvas)
    for k, left in enumerate(lefts):
        middle = (left + cell / 2, gap / 2 + title_height / 2)
        pen.text(middle, titles[k % 2], fill=(40, 40, 40), font=font, anchor="mm")
    return np.array(canvas)


def save_png(path: str | Path, image: Any) -> None:
    """Write a picture [H, W, 3] uint8 as a PNG file, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    try:
        with whole_file(path) as file:
            Image.fromarray(np.asarray(image)).save(file, format="PNG")
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
