"""Pictures of instances: masks, boxes and labels drawn over images, and grids of pictures.

Users call :func:`draw`, which takes nearly anything. All other code calls :func:`draw_instances`.
Both leave their arguments unchanged. The package needs NumPy, OpenCV and Pillow, but not torch.
"""

from autotimm.visualize.colours import Colour, class_colour
from autotimm.visualize.grids import grid, save_png
from autotimm.visualize.instances import Picture, draw_instances
from autotimm.visualize.notebook import draw

__all__ = ["Colour", "Picture", "class_colour", "draw", "draw_instances", "grid", "save_png"]
