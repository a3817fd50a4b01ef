"""Whether an image file can be used with its annotations, asked where data are first looked at."""

from __future__ import annotations

from collections.abc import Callable

from autotimm.images import inspect as images
from autotimm.images import jpeg
from autotimm.images.decode import deep_pixels
from autotimm.images.depths import Depths
from autotimm.images.orientation import orientation
from autotimm.images.turns import in_turn

PAGES = "picture has several pages or frames (the first one taken)"
AS_STORED = (
    "picture's orientation does not show in its width and height (taken as stored; one that was "
    "annotated upright has to be stored upright)"
)


def usable(
    data: bytes | memoryview,
    declared: tuple[int, int],
    name: str,
    depths: Depths,
    odd: Callable[[str], object],
) -> str:
    """Checks an image file against its record.

    Args:
        data: of the file.
        declared: width and height in pixels, as the record has them.
        name: of the file.
        depths: counts the image if it has more than 8 bits a channel.
        odd: called with the kind of what is odd, but can be used.

    Returns:
        The extension that belongs to the file's format.

    Raises:
        ValueError: it cannot be used; the message is a short reason.
    """
    if jpeg.whole_size(data) == declared and orientation(data) == 1:
        return "jpg"  # nearly all are, with nothing that could be odd
    with in_turn(declared[0] * declared[1]):
        extension, size = images.inspect(data)
    if size != declared and images.shown_size(data) != declared:
        swapped = ", but swapped" if size == declared[::-1] else ""
        raise ValueError(f"width and height are {'' if swapped else 'not '}the picture's{swapped}")
    if extension in ("tif", "gif", "webp", "png"):
        from autotimm.images.opening import has_pages  # PIL: a data set of JPEGs needs none

        if has_pages(data):
            odd(PAGES)
    which = orientation(data) if size == declared else 1
    if which != 1 and (which < 5 or size[0] == size[1]):
        odd(AS_STORED)
    with in_turn(size[0] * size[1]):
        deep = deep_pixels(data)
        if deep is not None:
            depths.add(deep, name)
        del deep
    return extension
