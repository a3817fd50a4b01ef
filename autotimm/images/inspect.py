"""Image files, undecoded: which format and size, is it whole.

Sizes are width, height in pixels.
"""

from __future__ import annotations

from autotimm.images import jpeg
from autotimm.images.orientation import orientation, turned
from autotimm.images.quiet import quiet


def inspect(data: bytes | memoryview) -> tuple[str, tuple[int, int]]:
    """Finds the format and the stored size of an image, and that it is whole.

    A JPEG with its end-of-image marker and a PNG with its IEND are taken for whole; anything else
    is decoded to decide.

    Returns:
        The extension that belongs to the format, and (width, height) as stored, before any turn.

    Raises:
        ValueError: it is no image that can be read; the message is a short reason.
    """
    size = jpeg.whole_size(data)
    if size is not None:
        return "jpg", size
    from autotimm.images.opening import inspect_opened  # PIL: a data set of JPEGs needs none

    with quiet:
        return inspect_opened(data)


def shown_size(data: bytes | memoryview) -> tuple[int, int]:
    """Returns (width, height) as viewers show an image, upright.

    Raises:
        ValueError, OSError: it is no image that can be read.
    """
    from autotimm.images.opening import open_image  # as above

    with quiet, open_image(data) as image:
        return turned(image.size, orientation(data))
