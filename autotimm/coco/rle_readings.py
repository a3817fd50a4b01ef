"""The RLE of a mask, however a tool wrote its size and its counts.

Invariant: COCO's own form is tried first; another is read where it can mean one mask only, or where
the bbox tells which, and that is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from autotimm.coco import boxes, masks
from autotimm.coco.jsontext import NotJSONError, parse
from autotimm.structures import RLE

_PRINTED = r"""b(['"])((?:[0-\[\]-o]|\\\\)+)\1"""
"""What Python prints of the bytes of compressed counts: a backslash is doubled."""
_SEPARATE = r"(?a)\s*\d+(?:(?:\s*,\s*|\s+)\d+)+\s*"
"""Numbers with commas or blanks between them, which are no characters of compressed counts."""
_ROWS = "RLE counts run row by row (read, as the bbox tells)"

Odd = Callable[[str], object]


def read_rle(
    rle: dict[str, Any], height: int, width: int, bbox: Any, odd: Odd
) -> tuple[RLE, list[float] | None]:
    """Reads an RLE that may have been written in an odd way.

    Args:
        rle: as the COCO file has it.
        height: of the image, in pixels.
        width: of the image, in pixels.
        bbox: as the COCO file has it; decides between two readings.
        odd: called with the kind of each problem that was mended.

    Returns:
        The mask, and its box x1, y1, x2, y2 in pixels where that had to be found.

    Raises:
        ValueError: it cannot be used; the message is a short reason.
    """
    kinds: list[str] = []
    box: list[float] | None = None
    try:
        found = masks.to_rle(rle, height, width)
    except ValueError as error:
        size = _size(rle.get("size"), height, width, kinds)
        counts = _counts(rle.get("counts"), kinds)
        if not kinds and size == [height, width]:
            raise error
        if size == [height, width]:
            found = masks.to_rle({"size": size, "counts": counts}, height, width)
        elif size == [width, height]:
            found = _turned(counts, height, width, bbox)
            kinds.append("RLE of size width, height (the reading taken that fits the bbox)")
        else:
            raise error
    else:
        box = masks.box(found)
        by_rows = _by_rows(rle["counts"], box, height, width, bbox)
        if by_rows is not None:
            kinds.append(_ROWS)
            found, box = by_rows, None
    for kind in kinds:
        odd(kind)
    return found, box


def _size(size: Any, height: int, width: int, kinds: list[str]) -> Any:
    if size is None:
        kinds.append("RLE without a size (the image's taken)")
        return [height, width]
    if isinstance(size, list) and any(isinstance(side, str) for side in size):
        sides = [number(side) for side in size]
        if None not in sides:
            kinds.append("RLE whose size is in quotes (read)")
            return sides
    return size


def _counts(counts: Any, kinds: list[str]) -> Any:
    """Returns counts as COCO has them, where they can mean one thing only."""
    if isinstance(counts, str):
        # Neither quote, nor bracket with a comma behind it, is a character of compressed counts.
        if printed := re.fullmatch(_PRINTED, counts):
            kinds.append("RLE counts are Python's text of bytes (read)")
            return printed[2].replace("\\\\", "\\")
        if counts.startswith("[") and counts.endswith("]") and "," in counts:
            try:
                found = parse(counts.encode("utf-8", "surrogatepass"))
            except NotJSONError:
                return counts
            kinds.append("RLE counts are a list in quotes (read)")
            return _counts(found, [])
        if re.fullmatch(_SEPARATE, counts):
            kinds.append("RLE counts are a list in quotes (read)")
            return [int(count) for count in re.findall(r"\d+", counts)]
        return counts
    if isinstance(counts, list) and any(type(count) is not int for count in counts):
        numbers = [number(count) for count in counts]
        if all(number is not None and float(number).is_integer() for number in numbers):
            kinds.append("RLE counts are floats or text (read)")
            return [int(number) for number in numbers if number is not None]
    return counts


def _turned(counts: Any, height: int, width: int, bbox: Any) -> RLE:
    """Reads an RLE whose size is [width, height]: only its size is swapped, or the whole mask.

    Raises:
        ValueError: the bbox does not tell which.
    """
    reason = "RLE of another size than the image"
    straight = masks.to_rle({"size": [height, width], "counts": counts}, height, width)
    turned = masks.to_rle({"size": [width, height], "counts": counts}, width, height)
    x1, y1, x2, y2 = masks.box(turned)
    try:
        x, y, w, h = (float(side) for side in bbox)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(reason) from None
    given = (x, y, x + w, y + h)
    fits = [boxes.is_close(given, box) for box in (masks.box(straight), (y1, x1, y2, x2))]
    if fits == [True, False]:
        return straight
    if fits == [False, True]:
        return masks.encode(masks.decode(turned).T)
    raise ValueError(reason)


def _by_rows(counts: Any, box: Sequence[float], height: int, width: int, bbox: Any) -> RLE | None:
    """Reads counts row by row, as NumPy's own order of pixels makes them, where only so they fit
    the bbox; None where they do not. COCO's run column by column.

    Args:
        counts: as the COCO file has them.
        box: of the mask that they are by COCO's order, x1, y1, x2, y2 in pixels.
        height: of the image, in pixels.
        width: of the image, in pixels.
        bbox: as the COCO file has it.
    """
    if type(bbox) is not list or len(bbox) != 4:
        return None
    sides = [side for side in map(boxes.number, bbox) if side is not None]
    if len(sides) < 4 or boxes.agrees(sides, box):
        return None
    turned = masks.to_rle({"size": [width, height], "counts": counts}, width, height)
    x1, y1, x2, y2 = masks.box(turned)
    x, y, w, h = sides
    if not boxes.is_close((x, y, x + w, y + h), (y1, x1, y2, x2)):
        return None
    return masks.encode(masks.decode(turned).T)


def number(value: Any) -> float | None:
    """Reads a coordinate or count, also one in quotes; None if it is none."""
    if type(value) is float or (type(value) is int and value.bit_length() < 1024):
        return value  # others are no float
    return float(value) if isinstance(value, str) and re.fullmatch(boxes.NUMBER, value) else None
