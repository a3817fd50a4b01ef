#!/usr/bin/env bash
# Polygons by kwcoco: no COCO reader takes them, and the way back has two areas
#
# Guess:    kwcoco, "an extension of COCO", writes a polygon that it is given as COCO's list of
#           numbers; conform(legacy=True) leaves an RLE, which COCO has, as it is.
# Seen:     the default file has [{"exterior": [[x, y], ...], "interiors": [...]}] and neither area
#           nor iscrowd. pycocotools says "input type is not supported", hotcoco does not load the
#           file. conform(legacy=True) makes a polygon of the RLE too, without its hole (a warning
#           says so): of a ring of 800 pixels the mask has 841, and "area" is 722.
# Hurts:    a set that was filtered or merged by kwcoco cannot be trained on elsewhere, or its rings
#           are solid; the AP by size goes by an area that is not the mask's.
# Versions: kwcoco 0.9.1, kwimage 0.12.0, pycocotools 2.0.11, hotcoco 1.3.0
# Source:   https://kwcoco.readthedocs.io (kwcoco.coco_schema: MULTIPOLYGON_SEGMENTATION);
#           kwcoco/coco_dataset.py, conform
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93 kwcoco==0.9.1 kwimage==0.12.0 pycocotools==2.0.11 hotcoco==1.3.0

cat > recorded <<'END'
kwcoco 0.9.1 RLE and polygon of 800 pixels
default: [['exterior', 'interiors']]
  pycocotools, annotation 1: 800; area None, iscrowd None
  pycocotools, annotation 2: input type is not supported.; area None, iscrowd None
  hotcoco: ValueError
legacy:
  pycocotools, annotation 1: 841; area 722.0, iscrowd False
  pycocotools, annotation 2: 841; area 722.0, iscrowd False
  hotcoco: loaded
END

venv/bin/python - <<'END' | tee seen
import contextlib
import importlib.metadata
import io
import json
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import hotcoco
import kwcoco
import kwimage
import numpy as np
from pycocotools.coco import COCO

ring = np.zeros((80, 100), np.uint8)
ring[40:70, 10:40] = 1
ring[50:60, 20:30] = 0
dataset = kwcoco.CocoDataset()
category = dataset.add_category("cup")
image = dataset.add_image(file_name="a.jpg", width=100, height=80)
mask = kwimage.Mask(ring, "c_mask")
for shape in (mask, mask.to_multi_polygon()):
    dataset.add_annotation(
        image_id=image, category_id=category, segmentation=shape, bbox=[10, 40, 30, 30])


def read(file: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(file)
    for one in coco.anns.values():
        try:
            pixels = int(coco.annToMask(one).sum())
        except Exception as error:  # pycocotools has no class of its own
            pixels = error
        print(f"  pycocotools, annotation {one['id']}: {pixels}; area {one.get('area')}, "
              f"iscrowd {one.get('iscrowd')}")
    try:
        hotcoco.COCO(file)
        print("  hotcoco: loaded")
    except Exception as error:
        print("  hotcoco:", type(error).__name__)


print("kwcoco", importlib.metadata.version("kwcoco"), "RLE and polygon of", ring.sum(), "pixels")
Path("default.json").write_text(dataset.dumps())
polygon = json.loads(Path("default.json").read_text())["annotations"][1]["segmentation"]
print("default:", [sorted(part) for part in polygon])
read("default.json")
dataset.conform(legacy=True)
Path("legacy.json").write_text(dataset.dumps())
print("legacy:")
read("legacy.json")
END

diff recorded seen && echo "as recorded"
