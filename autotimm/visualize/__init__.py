"""Pictures of instances: masks, boxes and labels drawn over images, and grids of pictures.

Users call :func:`draw`, which takes nearly anything. All other code calls :func:`draw_instances`.
Both leave their arguments unchanged. Small images are first made larger by :func:`enlarged` or
:func:`resized`, so that their labels can be read. The package needs NumPy, OpenCV and Pillow, but
not torch.
"""

from autotimm.visualize.colours import Colour, class_colour
from autotimm.visualize.grids import grid, save_png
from autotimm.visualize.instances import Picture, draw_instances
from autotimm.visualize.notebook import draw
from autotimm.visualize.scaling import SIDE, enlarged, resized

__all__ = [
    "SIDE",
    "Colour",
    "Picture",
    "class_colour",
    "draw",
    "draw_instances",
    "enlarged",
    "grid",
    "resized",
    "save_png",
]
