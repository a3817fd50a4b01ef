"""Tiles of large images, and how detections of one object in several tiles are joined.

Pure functions. Where two tiles overlap, both detect an object that crosses the border between them.
Two detections of a class are pieces of one object if they cover the same pixels in the part that
their tiles share, and unless one of them ends inside its tile although the other goes on beyond
that tile. So an object larger than a tile is joined from its pieces, an object that lies in the
overlap as a whole appears once, and a detection that covers two objects by mistake does not join
them. Pairs with the highest scores are joined first, and an object takes one piece from each tile.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Window = tuple[int, int, int, int]
"""y1, x1, y2, x2 in pixels of the whole image."""
Box = tuple[float, float, float, float]
_NEAR = 1 / 16  # of a tile's side: a box that ends this close to a border may be cut by it


@dataclass(slots=True)
class Piece:
    """A detection in one tile: a whole object or a piece of one.

    Attributes:
        tile: the tile.
        label: the class.
        score: of the detection.
        box: x1, y1, x2, y2 in pixels of the whole image, as the model predicted it.
        top, left: of ``inside``, in pixels of the whole image.
        width: of ``inside``, in pixels.
        height: likewise.
        packed: ``inside`` as bits, deflated: a large image has tens of thousands of pieces, which
            would fill the memory otherwise.
    """

    tile: Window
    label: int
    score: float
    box: Box
    top: int
    left: int
    width: int
    height: int
    packed: bytes

    @property
    def inside(self) -> np.ndarray:
        """The object's pixels, [h, width] bool; the whole box from a model without masks."""
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.height, -1)
        return np.unpackbits(bits, axis=1, count=self.width).view(np.bool_)


def piece_of(
    tile: Window,
    label: int,
    score: float,
    top: int,
    left: int,
    inside: np.ndarray,
    box: Box | None = None,
) -> Piece:
    """A :class:`Piece` with these pixels.

    Args:
        tile, label, score, top, left: as in :class:`Piece`.
        inside: [h, w], bool or numbers of which 0 is outside.
        box: as in :class:`Piece`; by default the one around ``inside``.
    """
    height, width = inside.shape
    box = box or (left, top, left + width, top + height)
    packed = zlib.compress(np.packbits(inside, axis=1).tobytes(), 1)
    return Piece(tile, label, score, box, top, left, width, height, packed)


def tile_windows(height: int, width: int, side: int, overlap: float) -> list[Window]:
    """The tiles that cover an image, row by row, all of one size and evenly spaced.

    Args:
        height, width: of the image, in pixels.
        side: of a tile, in pixels; where the image is shorter, a tile is as long as the image.
        overlap: least share of ``side`` that neighbours have in common, from 0 to below 1.
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
    """Joins pieces into objects, best first; each has the best score and all pixels of its pieces.

    Args:
        pieces: of all tiles.
        least: IoU, within the overlap of their tiles, from which on two pieces are one object.
    """
    parent = list(range(len(pieces)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    tiles = [{piece.tile} for piece in pieces]
    for i, j in _candidates(pieces):
        a, b = root(i), root(j)
        if a == b or tiles[a] & tiles[b]:
            continue
        if _same(pieces[i], pieces[j], least):
            parent[b] = a
            tiles[a] |= tiles[b]
    groups: dict[int, list[Piece]] = {}
    for i, piece in enumerate(pieces):
        groups.setdefault(root(i), []).append(piece)
    return sorted(map(_union, groups.values()), key=lambda piece: -piece.score)


def _candidates(pieces: list[Piece]) -> Iterator[list[int]]:
    """Yields index pairs of pieces that may be of one object, those of the highest scores first.

    They are of one class and different tiles, their boxes overlap, and neither ends inside its tile
    while the other goes on beyond that tile. All pairs of a tile's pieces and its neighbours' may
    be such, so that they stay arrays.
    """
    extents = np.array([(p.top, p.left, p.top + p.height, p.left + p.width) for p in pieces])
    boxes, tiles = (np.array([getattr(p, a) for p in pieces]) for a in ("box", "tile"))
    labels, whole = np.array([p.label for p in pieces]), np.array(_end_inside(pieces))
    found: list[np.ndarray] = []
    for label in dict.fromkeys(labels.tolist()):
        own = np.flatnonzero(labels == label)
        for k, i in enumerate(own):
            others = own[k + 1 :]
            first = np.maximum(extents[i, :2], extents[others, :2])
            last = np.minimum(extents[i, 2:], extents[others, 2:])
            others = others[(first < last).all(axis=1)]
            others = others[(tiles[others] != tiles[i]).any(axis=1)]
            goes_on = whole[i] & _leaves(boxes[others], tiles[i])
            goes_on |= whole[others] & _leaves(boxes[i], tiles[others])
            others = others[~goes_on]
            found.append(np.stack([np.full_like(others, i), others], axis=1))
    if not found:
        return
    pairs, scores = np.concatenate(found), np.array([piece.score for piece in pieces])
    order = np.argsort(-scores[pairs].min(axis=1), kind="stable")
    for some in range(0, len(order), 4096):  # lists take ten times the memory of arrays
        yield from pairs[order[some : some + 4096]].tolist()


def _same(a: Piece, b: Piece, least: float) -> bool:
    """Whether two pieces have an IoU of at least ``least`` in the part that their tiles share."""
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


def _end_inside(pieces: list[Piece]) -> list[bool]:
    """Whether each piece ends inside its tile: at no border that has a tile behind it."""
    if not pieces:
        return []
    tops, lefts, bottoms, rights = zip(*(piece.tile for piece in pieces), strict=True)
    y1, x1, y2, x2 = min(tops), min(lefts), max(bottoms), max(rights)

    def ends_inside(piece: Piece) -> bool:
        top, left, bottom, right = piece.tile
        down, across = _margin(piece.tile)
        near = (
            top > y1 and piece.box[1] < top + down,
            left > x1 and piece.box[0] < left + across,
            bottom < y2 and piece.box[3] > bottom - down,
            right < x2 and piece.box[2] > right - across,
        )
        return not any(near)

    return [ends_inside(piece) for piece in pieces]


def _leaves(boxes: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """Whether pieces of other tiles go on beyond these tiles: [n] bool.

    Args:
        boxes: of the pieces, [n, 4] or [4] x1, y1, x2, y2.
        tiles: [n, 4] or [4] y1, x1, y2, x2.
    """
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    top, left, bottom, right = np.moveaxis(tiles, -1, 0)
    down, across = _NEAR * (bottom - top), _NEAR * (right - left)
    beyond = (y1 < top - down) | (x1 < left - across)
    return beyond | (y2 > bottom + down) | (x2 > right + across)


def _margin(tile: Window) -> tuple[float, float]:
    """How close to a horizontal and to a vertical border of the tile a cut object may end."""
    return _NEAR * (tile[2] - tile[0]), _NEAR * (tile[3] - tile[1])


def _within(piece: Piece, window: Window) -> np.ndarray:
    """The piece's pixels in a window of the whole image, bool of the window's size."""
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
    """One piece with the pixels of all, and the tile, class and score of the best."""
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
    for piece in group:  # each at its place: an object may span as many tiles as the image has
        top, left = piece.top - window[0], piece.left - window[1]
        inside[top : top + piece.height, left : left + piece.width] |= piece.inside
    x1, y1, x2, y2 = zip(*(piece.box for piece in group), strict=True)
    box = (min(x1), min(y1), max(x2), max(y2))
    return piece_of(best.tile, best.label, best.score, window[0], window[1], inside, box)
