"""The data structures that the packages exchange: sample record, batch, detections.

Shape letters, used in every file:

    B    images in a batch          M  instance slots per image, padded
    H W  the canvas, in pixels      N  instances, detections or RoIs, unpadded
    C    channels                   K  classes
    L    locations of all levels
    S    side of a mask target or of the mask head's output

Boxes are ``x1, y1, x2, y2`` in pixels unless a name says ``xywh``. Labels are 0-based and
contiguous; only ``coco/`` and ``evaluation/`` use the category ids of a dataset.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired, TypedDict

from autotimm.redaction import redacted

if TYPE_CHECKING:
    from torch import Tensor

MASK_CROP = 112
"""Side of the square to which a ground-truth mask is cropped and resampled for training.

The crop covers the mask's box. A cell of the default 28 x 28 mask target has four samples per side,
and a cell of a 56 x 56 one has two, for an object of any size.
"""

UPPER_BITS: Final = "upper bits"
"""The pixel range of models and shards of older versions: 16-bit images keep their upper 8 bits,
unless the whole image fits into the lower 8."""

PixelRange = tuple[float, float] | Literal["upper bits"] | None
"""Which values of images of more than 8 bits a channel become black and white; None leaves that to
each image. ``images/depth.py`` has the rule."""


_LONGEST = 3000  # characters of a message; its beginning and its end are kept


class InputError(ValueError):
    """A user's input cannot be used.

    The message is one line: what is wrong, in which file or flag, and how to solve it. Commands
    print it without a traceback and exit with 2. It shows no secret of a URL.

    Names and values from files are part of it: line ends become spaces, what cannot be printed,
    such as a terminal's control characters, is escaped, and a very long line loses its middle.
    """

    def __str__(self) -> str:
        line = redacted(super().__str__())  # first, as a part of a secret is not recognised
        if not line.isprintable():
            line = "".join(one if one.isprintable() else _escaped(one) for one in line)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        return line


def _escaped(character: str) -> str:
    return " " if character.isspace() else ascii(character)[1:-1]


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong, self.maxother = 3, 80, 40, 80

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write more than some 4,000 digits.
        return super().repr_int(x, level) if x.bit_length() < 4096 else "a very long number"


def brief(value: object) -> str:
    """A value for a message: its ``repr``, shortened where it is long or nested deep."""
    return _BRIEF.repr(value)


_BRIEF = _Brief()


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The preprocessing of images that a model's weights were trained with and that they need.

    Attributes:
        mean: subtracted from R, G and B, which range from 0 to 1.
        std: the divisors of R, G and B after that.
        interpolation: "bilinear" or "bicubic", for images that keep most of their size. Images that
            shrink a lot are averaged over areas in either case.
        image_size: height and width of the canvas in training; None for an untrained model.
        resize: how images are fitted to the canvas, "letterbox" or "stretch".
        pixel_range: the values that become black and white in images of more than 8 bits a channel.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # both are ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    image_size: tuple[int, int] | None = None
    resize: str = "letterbox"
    pixel_range: PixelRange = None

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour of the empty part of the canvas: the mean, as values from 0 to 255."""
        red, green, blue = (round(255 * min(max(part, 0.0), 1.0)) for part in self.mean)
        return red, green, blue


@dataclass(frozen=True, slots=True)
class World:
    """The position of this process among the processes of a job.

    Attributes:
        rank: the number of this process, 0 to ``size - 1``.
        size: the number of processes.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.size}")


class RLE(TypedDict):
    """A mask in pycocotools' compressed run-length encoding, with ``counts`` as text as in JSON."""

    size: list[int]  # [height, width]
    counts: str


class Annotation(TypedDict):
    """One instance, in the pixels of the original image."""

    id: int
    category_id: int  # as in the dataset
    bbox: list[float]  # x, y, w, h
    area: float
    iscrowd: int
    segmentation: RLE
    polygons: NotRequired[list[list[float]]]  # as in the source, if it has polygons
    ignore: NotRequired[int]  # 1 if the source says so: not trained on, like a crowd region
    # The file's own, which evaluation takes, where they have no size and training the mask's:
    given_bbox: NotRequired[list[float]]
    given_area: NotRequired[float]


class Unmasked(TypedDict):
    """One instance without a mask that can be used: evaluation counts it, training does not."""

    id: int
    category_id: int  # the dataset's own
    bbox: list[float]  # x, y, w, h
    area: float
    iscrowd: int
    ignore: NotRequired[int]  # 1 where the file says so


class Record(TypedDict):
    """An image's metadata and annotations: a shard's ``<key>.json``, or read from a COCO folder."""

    image_id: int
    file_name: str
    width: int
    height: int
    annotations: list[Annotation]
    given_id: NotRequired[str | float]  # the source's own id, where image_id is a number in place
    unmasked: NotRequired[list[Unmasked]]  # where there are any
    # LVIS' lists of an image: categories that are not in it, and those of which some may be missed.
    neg_category_ids: NotRequired[list[int]]
    not_exhaustive_category_ids: NotRequired[list[int]]


def is_trained_on(annotation: Annotation) -> bool:
    """Returns whether a network learns an instance: it is neither a crowd nor to be ignored."""
    return not (annotation["iscrowd"] or annotation.get("ignore"))


class Target(TypedDict):
    """Ground truth of one image for evaluation, in original pixels, with crowd regions."""

    boxes: Tensor  # [N, 4] float64
    labels: Tensor  # [N] int64
    iscrowd: Tensor  # [N] int64, 0 or 1
    area: Tensor  # [N] float64
    rles: list[RLE]  # empty where the file has no mask


class Batch(TypedDict):
    """A batch that the data loader yields and the model consumes.

    In evaluation, where images are neither cropped nor flipped, canvas = original * scale + offset.
    """

    image: Tensor  # [B, 3, H, W] uint8 from the worker; normalised float32 on the device
    image_id: Tensor  # [B] int64
    file_name: list[str]
    given_id: NotRequired[list[str | float | None]]  # as of the records, where one has it
    original_size: Tensor  # [B, 2] int64, height and width
    scale: Tensor  # [B, 2] float32, of x and y
    offset: Tensor  # [B, 2] float32, of x and y
    padding: Tensor  # [B] bool: a repeated image that gives all ranks equally many; not evaluated
    boxes: Tensor  # [B, M, 4] float32, canvas pixels; zeros in an empty slot; no crowd regions
    labels: Tensor  # [B, M] int64; -1 in an empty slot
    masks: NotRequired[Tensor]  # [B, M, MASK_CROP, MASK_CROP] uint8, 0 or 1: crops to the boxes
    target: NotRequired[list[Target]]  # evaluation only


class Detections(TypedDict):
    """The instances that a model detects in one image, best first."""

    boxes: Tensor  # [N, 4] float32
    labels: Tensor  # [N] int64
    scores: Tensor  # [N] float32
    masks: NotRequired[Any]  # [N, H, W] uint8 of 0 and 1 from predict()
    rles: NotRequired[list[RLE]]  # the same masks, compressed, as evaluation uses them
