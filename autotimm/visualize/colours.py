"""The colour of each class, the same in every picture."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]  # red, green, blue; 0 to 255


def class_colour(label: int) -> Colour:
    """A vivid RGB colour for a class that differs from those of the other classes.

    Steps of the golden ratio around the colour wheel spread any number of hues evenly. Two hues are
    closest if their labels differ by 13, 21, 34, 55 or 89. Shades repeat every six labels, and none
    of these numbers is a multiple of six, so such labels differ in shade.
    """
    hue = (0.58 + label * 0.61803398875) % 1
    shades = ((0.85, 1.0), (0.55, 1.0), (0.95, 0.75), (0.7, 0.85), (0.4, 0.9), (0.8, 0.6))
    saturation, value = shades[label % 6]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
