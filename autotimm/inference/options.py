"""The options of prediction, checked."""

from __future__ import annotations

from dataclasses import dataclass

from autotimm.augmentation.transforms import RESIZES
from autotimm.data import options as checks
from autotimm.images.depth import checked_range
from autotimm.structures import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of prediction.

    Attributes:
        batch_size: canvases per forward pass.
        image_size: height and width of the canvas in pixels, or one side for both; None for that of
            the model's training.
        resize: how an image is fitted to the canvas, "letterbox" or "stretch"; None for that of the
            model's training.
        tile: side, in image pixels, of the tiles into which larger images are cut; None does not
            cut them.
        overlap: least share of a tile's side that it has in common with its neighbours. Without
            overlap (0), an object that a tile's border cuts stays in two pieces.
        flip: also run the model on the mirror image of each canvas. Of two detections of a class
            that overlap by more than the model's ``nms_thresh``, the better one is kept.
        half: 16-bit arithmetic: float16 on a GPU, bfloat16 on a CPU.
        min_score: least score of a detection; None keeps all that pass the model's
            ``score_thresh``, a limit on the class probability alone, without centerness.
        pixel_range: values that become black and white in images of more than 8 bits a channel
            whose files do not declare their bits; None for those of the model's training, and for
            each image's own where that had no such images.

    Raises:
        InputError: a value cannot be used.
    """

    batch_size: int = 4
    image_size: int | tuple[int, int] | None = None
    resize: str | None = None
    tile: int | None = None
    overlap: float = 0.2
    flip: bool = False
    half: bool = False
    min_score: float | None = None
    pixel_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        checks.whole("batch_size", self.batch_size, 1, 4096)
        if self.image_size is not None:
            checks.canvas(self.image_size)
        if self.resize is not None:
            checks.one_of("resize", self.resize, RESIZES)
        if self.tile is not None:
            checks.whole("tile", self.tile, 32, 2**16)
        if self.min_score is not None:
            checks.share("min_score", self.min_score)
        if self.pixel_range is not None:
            checked_range("pixel_range", self.pixel_range)
        if checks.share("overlap", self.overlap) > 0.9:
            raise InputError(f"overlap={self.overlap} must be 0 to 0.9, a share of a tile's side")
