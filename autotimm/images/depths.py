"""What the images of more than 8 bits of a data set have in common: their range, and its words."""

from __future__ import annotations

from dataclasses import dataclass, field

from autotimm.images.depth import Deep, range_of
from autotimm.structures import PixelRange


@dataclass(slots=True)
class Depths:
    """The images of more than 8 bits of a data set, or of a part of it, and their extremes.

    Attributes:
        declared: images whose file declares its bits.
        others: images whose file does not; ``low`` and ``high`` are theirs.
        floats: whether any of these has floats.
        example: the name of the first image.
        near_low, near_high: as ``low`` and ``high``, without the values in ``apart``.
        apart: values far from all others in their image, and how many images have them.
    """

    declared: int = 0
    others: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    floats: bool = False
    example: str = ""
    near_low: float = float("inf")
    near_high: float = float("-inf")
    apart: dict[str, int] = field(default_factory=dict)

    def add(self, image: Deep, name: str) -> None:
        """Counts an image.

        Raises:
            DataError: none of its values is a number.
        """
        low, high = image.extremes()
        found = Depths(1, example=name)
        if image.white is None:
            near = image.apart(low, high)
            apart = {
                f"{end:g}": 1 for end, inner in zip((low, high), near, strict=True) if end != inner
            }
            found = Depths(0, 1, low, high, image.values.dtype.kind == "f", name, *near, apart)
        self.update(found)

    def update(self, other: Depths) -> None:
        """Adds what another part of the data set has. The order matters for the example alone."""
        self.declared += other.declared
        self.others += other.others
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.floats = self.floats or other.floats
        self.example = self.example or other.example
        self.near_low = min(self.near_low, other.near_low)
        self.near_high = max(self.near_high, other.near_high)
        for value, count in other.apart.items():
            self.apart[value] = self.apart.get(value, 0) + count

    def pixel_range(self) -> tuple[float, float] | None:
        """The range of the images that declare none; None if there are no such images."""
        return range_of(self.low, self.high, self.floats) if self.others else None

    def stretched(self) -> str:
        """A remark on outliers that make the range wider; empty if none does."""
        if not self.apart or (self.low, self.high) == (self.near_low, self.near_high):
            return ""
        near = range_of(self.near_low, self.near_high, self.floats)
        if near == self.pixel_range():
            return ""
        values = ", ".join(f"{value} ({count:,} images)" for value, count in self.apart.items())
        return (
            f"pixels of a value far from all others, as of no data, stretch the range: {values}; "
            f"--pixel-range {near[0]:g},{near[1]:g} (pixel_range) leaves them out"
        )

    def lines(self, pixel_range: PixelRange) -> list[str]:
        """What becomes of these images; nothing where there are none.

        Args:
            pixel_range: what becomes black and white in those that declare nothing.
        """
        found = []
        if self.declared:
            found.append(
                f"images of more than 8 bits a channel: {self.declared:,} declare how many; these "
                "become 0 to 255"
            )
        if self.others:
            found.append(
                f"images of more than 8 bits a channel: {self.others:,} (such as {self.example}) "
                f"with values from {self.low:g} to {self.high:g}; {shown(pixel_range)} become 0 to "
                "255 (--pixel-range LOW,HIGH sets other values)"
            )
            if self.stretched() and pixel_range == self.pixel_range():
                found.append(self.stretched())
        return found


def shown(pixel_range: PixelRange) -> str:
    """A range in a few words."""
    if pixel_range is None:
        return "each image's own"
    if isinstance(pixel_range, str):
        return pixel_range
    return "{:g} to {:g}".format(*pixel_range)
