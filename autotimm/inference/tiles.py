"""Large images in pieces: where the tiles lie, and one object out of what several tiles saw of it.

Pure functions. An object that crosses a border is seen by both tiles, where they overlap: two
detections of a class are the same object if, within what their tiles share, they cover the same
pixels. So an object larger than a tile comes together from its pieces, and one that lies in the
overlap as a whole appears once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Window = tuple[int, int, int, int]
"""y1, x1, y2, x2 in pixels of the whole image."""


@dataclass(slots=True)
class Piece:
    """What one tile saw of an object.

    Attributes:
        tile: the tile.
        label: its class.
        score: of the detection.
        top, left: where ``inside`` lies in the whole image.
        width: of ``inside``.
        bits: [h, ceil(width / 8)] uint8: a large image has tens of thousands of pieces, which as
            bool would fill the memory.
    """

    tile: Window
    label: int
    score: float
    top: int
    left: int
    width: int
    bits: np.ndarray

    @property
    def height(self) -> int:
        """Of ``inside``."""
        return len(self.bits)

    @property
    def inside(self) -> np.ndarray:
        """[h, width] bool, its pixels; all of a box' where there are no masks."""
        return np.unpackbits(self.bits, axis=1, count=self.width).view(np.bool_)


def piece_of(
    tile: Window, label: int, score: float, top: int, left: int, inside: np.ndarray
) -> Piece:
    """A :class:`Piece` by its pixels, [h, w] of what counts as false or true."""
    bits = np.packbits(inside, axis=1)
    return Piece(tile, label, score, top, left, inside.shape[1], bits)


def tile_windows(height: int, width: int, side: int, overlap: float) -> list[Window]:
    """Tiles that cover an image, row by row, all of one size, spread evenly.

    Args:
        height, width: of the image, in pixels.
        side: of a tile; an image no larger is one tile.
        overlap: least share of a side that neighbours have in common, 0 to below 1.
    """

    def starts(length: int) -> list[int]:
        if length <= side:
            return [0]
        step = max(int(side * (1 - overlap)), 1)
        count = -(-(length - side) // step) + 1
        return [round(k * (length - side) / (count - 1)) for k in range(count)]

    return [
        (y, x, min(y + side, height), min(x + side, width))
        for y in starts(height)
        for x in starts(width)
    ]


def joined(pieces: list[Piece], least: float = 0.5) -> list[Piece]:
    """The objects, best first; each has the best score and all pixels of its pieces.

    Args:
        pieces: of all tiles.
        least: IoU of two pieces within the overlap of their tiles from which on they are the same.
    """
    parent = list(range(len(pieces)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    boxes = np.array([(p.top, p.left, p.top + p.height, p.left + p.width) for p in pieces]).reshape(
        -1, 4
    )
    for i, j in _touching(pieces, boxes):
        if root(i) != root(j) and _same(pieces[i], pieces[j], least):
            parent[root(j)] = root(i)
    groups: dict[int, list[Piece]] = {}
    for i, piece in enumerate(pieces):
        groups.setdefault(root(i), []).append(piece)
    return sorted(map(_union, groups.values()), key=lambda piece: -piece.score)


def _touching(pieces: list[Piece], boxes: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of one class, of different tiles, whose boxes meet."""
    pairs: list[tuple[int, int]] = []
    by_label: dict[int, list[int]] = {}
    for i, piece in enumerate(pieces):
        by_label.setdefault(piece.label, []).append(i)
    for own in by_label.values():
        for k, i in enumerate(own):
            others = np.array(own[k + 1 :], np.int64)
            first = np.maximum(boxes[i, :2], boxes[others, :2])
            last = np.minimum(boxes[i, 2:], boxes[others, 2:])
            meet = others[(first < last).all(axis=1)].tolist()
            pairs += [(i, j) for j in meet if pieces[i].tile != pieces[j].tile]
    return pairs


def _same(a: Piece, b: Piece, least: float) -> bool:
    shared = (
        max(a.tile[0], b.tile[0]),
        max(a.tile[1], b.tile[1]),
        min(a.tile[2], b.tile[2]),
        min(a.tile[3], b.tile[3]),
    )
    if shared[0] >= shared[2] or shared[1] >= shared[3]:
        return False
    first, second = _within(a, shared), _within(b, shared)
    both = np.count_nonzero(first & second)
    either = np.count_nonzero(first | second)
    return bool(both > 0 and both >= least * either)


def _within(piece: Piece, window: Window) -> np.ndarray:
    """The piece's pixels in a window of the whole image."""
    y1, x1, y2, x2 = window
    out = np.zeros((y2 - y1, x2 - x1), np.bool_)
    height, width = piece.height, piece.width
    top, left = max(piece.top, y1), max(piece.left, x1)
    bottom, right = min(piece.top + height, y2), min(piece.left + width, x2)
    if top < bottom and left < right:
        out[top - y1 : bottom - y1, left - x1 : right - x1] = piece.inside[
            top - piece.top : bottom - piece.top, left - piece.left : right - piece.left
        ]
    return out


def _union(group: list[Piece]) -> Piece:
    best = max(group, key=lambda piece: piece.score)
    if len(group) == 1:
        return best
    window = (
        min(p.top for p in group),
        min(p.left for p in group),
        max(p.top + p.height for p in group),
        max(p.left + p.width for p in group),
    )
    inside = np.zeros((window[2] - window[0], window[3] - window[1]), np.bool_)
    for piece in group:
        inside |= _within(piece, window)
    return piece_of(best.tile, best.label, best.score, window[0], window[1], inside)
