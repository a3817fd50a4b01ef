#!/usr/bin/env bash
# Tiles by sahi: an RLE becomes its box, filled, and a crowd becomes an object
#
# Guess:    slice_coco cuts masks with the tiles. If it cannot read RLE, as its warning says
#           ("is skipped"), the object is left out or has no mask.
# Seen:     an RLE (and an object that has a box alone) gets the part of its bounding box in the tile
#           as its polygon, area included: a triangle of 820 pixels is a square of 1600.
#           "iscrowd": 1 is written as 0. Image and annotation ids are new, category ids are kept.
# Hurts:    tiles are how large pictures are trained on, and SAM, CVAT and supervision write RLE: the
#           mask head learns rectangles, and crowds are learnt as objects.
# Versions: sahi 0.12.8
# Source:   sahi/utils/coco.py, CocoAnnotation.from_coco_annotation_dict and get_sliced_coco_annotation
#           https://github.com/obss/sahi/issues/173
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check sahi==0.12.8 numpy==2.4.6

cat > recorded <<'END'
sahi 0.12.8
triangle of 820 pixels
area 1600, iscrowd 0, 1 polygon, corners [(10, 10), (10, 50), (50, 10), (50, 50)]
area 100, iscrowd 0, 1 polygon, corners [(60, 60), (60, 70), (70, 60), (70, 70)]
END

venv/bin/python - <<'END' | tee seen
import contextlib
import importlib.metadata
import io
import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image
from sahi.slicing import slice_coco

logging.disable(logging.WARNING)
columns = [min(50 - x, 40) for x in range(10, 50)]  # pixels of a triangle in each column
counts, zeros = [], 10 * 100 + 10
for pixels in columns:
    counts += [zeros, pixels]
    zeros = 100 - pixels
counts.append(100 * 100 - sum(counts))
Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save("a.png")
both = {"image_id": 5, "category_id": 3}
Path("coco.json").write_text(json.dumps({
    "images": [{"id": 5, "file_name": "a.png", "width": 100, "height": 100}],
    "categories": [{"id": 3, "name": "leaf", "supercategory": "plant"}],
    "annotations": [
        {"id": 1, **both, "iscrowd": 0, "area": sum(columns), "bbox": [10, 10, 40, 40],
         "segmentation": {"size": [100, 100], "counts": counts}},
        {"id": 2, **both, "iscrowd": 1, "area": 100, "bbox": [60, 60, 10, 10],
         "segmentation": [[60, 60, 70, 60, 70, 70, 60, 70]]},
    ]}))
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    sliced, _ = slice_coco("coco.json", ".", output_coco_annotation_file_name="out",
                           output_dir="out", slice_height=100, slice_width=100)
print("sahi", importlib.metadata.version("sahi"))
print("triangle of", sum(columns), "pixels")
for one in sliced["annotations"]:
    print(f"area {one['area']}, iscrowd {one['iscrowd']}, {len(one['segmentation'])} polygon, "
          f"corners {sorted(zip(*[iter(one['segmentation'][0])] * 2, strict=True))}")
END

diff recorded seen && echo "as recorded"
