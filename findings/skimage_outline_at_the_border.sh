#!/usr/bin/env bash
# An outline by scikit-image of an object that touches the border
#
# Guess:    skimage.measure.find_contours gives closed outlines; as COCO polygons they fill to the
#           mask, to about a pixel's width.
# Seen:     where the object touches the border of the image the outline is open, and stays away from
#           the border. pycocotools joins its ends by a straight line: half of a square in a corner,
#           nothing of a band from edge to edge, and an arch is filled up (2499 pixels of 1300).
#           In the middle of the image all but one pixel is right.
# Hurts:    truncated objects are in every photo and in every tile of a large one; scripts that make
#           COCO polygons this way lose or swap their masks there, and nowhere else.
# Versions: scikit-image 0.26.0, pycocotools 2.0.11
# Source:   https://scikit-image.org/docs/0.26.x/api/skimage.measure.html (find_contours: contours
#           that touch the border are open)
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 scikit-image==0.26.0 pycocotools==2.0.11

cat > recorded <<'END'
scikit-image 0.26.0
pycocotools 2.0.11
square in the middle: mask 100, pycocotools 99
square in the corner: mask 100, pycocotools 54
band from edge to edge: mask 4000, pycocotools 0
arch at the edge: mask 1300, pycocotools 2499
END

venv/bin/python - <<'END' | tee seen
import importlib.metadata

import numpy as np
import pycocotools.mask as masks
from skimage.measure import find_contours

for name in ("scikit-image", "pycocotools"):
    print(name, importlib.metadata.version(name))
objects = {
    "square in the middle": [np.s_[40:50, 40:50]],
    "square in the corner": [np.s_[0:10, 0:10]],
    "band from edge to edge": [np.s_[30:70, 0:100]],
    "arch at the edge": [np.s_[0:40, 20:30], np.s_[0:40, 60:70], np.s_[40:50, 20:70]],
}
for name, parts in objects.items():
    mask = np.zeros((100, 100))
    for part in parts:
        mask[part] = 1
    polygons = [outline[:, ::-1].ravel().tolist() for outline in find_contours(mask, 0.5)]
    area = masks.area(masks.merge(masks.frPyObjects(polygons, 100, 100)))
    print(f"{name}: mask {int(mask.sum())}, pycocotools {area}")
END

diff recorded seen && echo "as recorded"
