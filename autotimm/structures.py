"""What the parts of autotimm hand to each other: the sample record, the batch, the detections.

Shape letters, used by every file of the package:

    B    images in a batch          M  instance slots an image, padded
    H W  the canvas, in pixels      N  instances or detections, unpadded
    C    channels                   K  classes
    L    locations of all levels    R  RoIs an image
    S    side of a mask target or of the mask head's output

Boxes are ``x1, y1, x2, y2`` in pixels unless a name says ``xywh``. Labels are 0-based and
contiguous inside the package; a dataset's own category ids live in ``coco.py`` and ``evaluation/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

MASK_CROP = 112
"""Side of the square into which a ground-truth mask, cut out by its own box, goes for training.

Four samples a side of each cell of the default 28 x 28 mask target, two of a 56 x 56 one, whatever
the size of the object.
"""


class InputError(ValueError):
    """Something that a user gave cannot be used.

    The message is one line: what, in which file or flag, and the way out. Command lines print it
    without a traceback and exit with 2.
    """


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What becomes of an image before a model sees it; weights are trained with one, and want it.

    Attributes:
        mean: of R, G and B, where 1 is white; taken off.
        std: divided by, likewise.
        interpolation: "bilinear" or "bicubic", of images that keep most of their size; those that
            shrink a lot are averaged over areas either way.
        image_size: height and width of the canvas of the training; None before one.
        resize: how images were fitted to it, "letterbox" or "stretch".
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's, as the std
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    image_size: tuple[int, int] | None = None
    resize: str = "letterbox"

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour, 0 to 255, of what an image leaves free on the canvas: the mean."""
        red, green, blue = (round(255 * min(max(part, 0.0), 1.0)) for part in self.mean)
        return red, green, blue


@dataclass(frozen=True, slots=True)
class World:
    """Which of the processes of a job this is.

    Attributes:
        rank: this process, 0 to ``size - 1``.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.size}")


class RLE(TypedDict):
    """A mask in pycocotools' compressed run-length encoding, counts as text as in COCO's JSON."""

    size: list[int]  # [height, width]
    counts: str


class Annotation(TypedDict):
    """One instance, in the pixels of the original image."""

    id: int
    category_id: int  # the dataset's own
    bbox: list[float]  # x, y, w, h
    area: float
    iscrowd: int
    segmentation: RLE
    polygons: NotRequired[list[list[float]]]  # as the source had them, where it had polygons


class Record(TypedDict):
    """What is known of one image: a shard's ``<key>.json``, and the same from a COCO folder."""

    image_id: int
    file_name: str
    width: int
    height: int
    annotations: list[Annotation]


class Target(TypedDict):
    """Ground truth of one image for evaluation: original pixels, crowd included."""

    boxes: Tensor  # [N, 4] float32
    labels: Tensor  # [N] int64
    iscrowd: Tensor  # [N] int64, 0 or 1
    area: Tensor  # [N] float32
    rles: list[RLE]


class Batch(TypedDict):
    """What the data loader yields and the model takes. ``target`` is there in evaluation only.

    In evaluation, where nothing is cropped or flipped, canvas = original * scale + offset.
    """

    image: Tensor  # [B, 3, H, W] uint8 from the worker, float32 normalised once on the device
    image_id: Tensor  # [B] int64
    file_name: list[str]
    original_size: Tensor  # [B, 2] int64, height and width
    scale: Tensor  # [B, 2] float32, of x and of y
    offset: Tensor  # [B, 2] float32, of x and of y
    padding: Tensor  # [B] bool: a repeat that only evens out the ranks, not to be evaluated
    boxes: Tensor  # [B, M, 4] float32, canvas pixels; zeros in an empty slot; no crowd
    labels: Tensor  # [B, M] int64; -1 in an empty slot
    masks: NotRequired[
        Tensor
    ]  # [B, M, MASK_CROP, MASK_CROP] uint8, 0 or 1: the mask inside its own box
    target: NotRequired[list[Target]]  # evaluation only


class Detections(TypedDict):
    """What was found in one image, best first."""

    boxes: Tensor  # [N, 4] float32
    labels: Tensor  # [N] int64
    scores: Tensor  # [N] float32
    masks: NotRequired[Any]  # [N, H, W] uint8 of 0 and 1 from predict()
    rles: NotRequired[list[RLE]]  # the same masks, small: what evaluation passes around
