#!/usr/bin/env bash
# labelme2coco: a group becomes several objects, a rectangle has no mask
#
# Guess:    shapes that share a group_id in labelme are one object, as labelme's own example of an
#           exporter has it; a rectangle is a mask of four corners; the images have the names that
#           labelme wrote (imagePath).
# Seen:     group_id is not read: a cup behind a pole is two cups. A rectangle gets "segmentation":
#           []. file_name is the path that convert was given, with the image's name behind it (a full
#           path where that was one). Categories begin at 0.
#           The shape "mask", which labelme writes for SAM, is refused (NotImplementedError).
# Hurts:    the parts are learnt as objects, the rectangles not at all, and the file
#           names no image once it lies elsewhere.
# Versions: labelme2coco 0.2.6
# Source:   labelme2coco/labelme2coco.py, get_coco_from_labelme_folder;
#           https://github.com/wkentaro/labelme/blob/main/examples/instance_segmentation/labelme2coco.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check labelme2coco==0.2.6 numpy==2.4.6

cat > recorded <<'END'
labelme2coco 0.2.6
file_name labelled/a.png
category 0, bbox [10.0, 10.0, 10.0, 10.0], 1 polygons
category 0, bbox [30.0, 10.0, 10.0, 10.0], 1 polygons
category 0, bbox [10.0, 50.0, 20.0, 20.0], 0 polygons
END

venv/bin/python - <<'END' | tee seen
import contextlib
import importlib.metadata
import io
import json
import logging
from pathlib import Path

import labelme2coco
import numpy as np
from PIL import Image

logging.disable(logging.WARNING)
Path("labelled").mkdir()
Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save("labelled/a.png")


def shape(kind: str, points: list, group: int | None = None) -> dict:
    return {"label": "cup", "points": points, "group_id": group, "shape_type": kind, "flags": {}}


def square(x: int, y: int) -> list:
    return [[x, y], [x + 10, y], [x + 10, y + 10], [x, y + 10]]


Path("labelled/a.json").write_text(json.dumps({
    "version": "5.5.0", "flags": {}, "imagePath": "a.png", "imageData": None,
    "imageHeight": 80, "imageWidth": 100,
    "shapes": [shape("polygon", square(10, 10), 1), shape("polygon", square(30, 10), 1),
               shape("rectangle", [[10, 50], [30, 70]])]}))
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    labelme2coco.convert("labelled", "out")
written = json.loads(Path("out/dataset.json").read_text())
print("labelme2coco", importlib.metadata.version("labelme2coco"))
print("file_name", written["images"][0]["file_name"])
for one in written["annotations"]:
    print(f"category {one['category_id']}, bbox {one['bbox']}, {len(one['segmentation'])} polygons")
END

diff recorded seen && echo "as recorded"
