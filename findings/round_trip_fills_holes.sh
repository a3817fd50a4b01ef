#!/usr/bin/env bash
# COCO in, COCO out: holes are filled, thin objects lose their masks, ids are new
#
# Guess:    a tool that reads a COCO file and writes it again leaves masks and category ids alone.
# Seen:     supervision and datumaro turn an RLE of a ring (iscrowd 0) into polygons: 841 pixels,
#           solid, in place of 800. supervision writes the hole as one more polygon, which
#           pycocotools adds. Both lose a row and a column of every RLE; of a line one pixel thick
#           they write no mask at all. Both number the categories anew (3, 7 to 1, 2).
#           "area" is 800 still with supervision, 841 with datumaro.
# Hurts:    merging, splitting or filtering a set through these tools changes the truth; results of
#           the old ids no longer fit the file.
# Versions: supervision 0.31.2, datumaro 1.13.12, pycocotools 2.0.11
# Source:   supervision/dataset/formats/coco.py, detections_to_coco_annotations;
#           datumaro/plugins/data_formats/coco/exporter.py, find_instance_parts
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 opencv-python==4.14.0.94 opencv-python-headless==4.14.0.94 supervision==0.31.2 datumaro==1.13.12 pycocotools==2.0.11

cat > recorded <<'END'
source: category 3 800 (area 800), category 7 30 (area 30)
supervision 0.31.2: category 1 841 (area 800), category 2 no mask (area 30)
datumaro 1.13.12: category 1 841 (area 841), category 2 no mask (area 30)
END

venv/bin/python - <<'END' | tee seen
import importlib.metadata
import json
import logging
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

import datumaro
import numpy as np
import pycocotools.mask as masks
import supervision
from PIL import Image

SIZE = (80, 100)
ring, line = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
ring[40:70, 10:40], line[5, 50:80] = 1, 1
ring[50:60, 20:30] = 0
folder = Path("coco/images/train")
folder.mkdir(parents=True)
Path("coco/annotations").mkdir()
Image.new("RGB", (100, 80)).save(folder / "a.png")
annotations = []
for n, (category, mask) in enumerate(((3, ring), (7, line)), 1):
    rle = masks.encode(np.asfortranarray(mask))
    annotations.append({
        "id": n, "image_id": 1, "category_id": category, "iscrowd": 0,
        "bbox": masks.toBbox(rle).tolist(), "area": int(mask.sum()),
        "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()}})
file = Path("coco/annotations/instances_train.json")
file.write_text(json.dumps({
    "info": {}, "licenses": [], "annotations": annotations,
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
    "categories": [{"id": 3, "name": "ring"}, {"id": 7, "name": "line"}]}))


def describe(path: str) -> str:
    told = []
    for one in sorted(json.loads(Path(path).read_text())["annotations"], key=lambda x: x["id"]):
        shape = one["segmentation"]
        if isinstance(shape, list) and shape:
            shape = masks.merge(masks.frPyObjects(shape, *SIZE))
        pixels = masks.area(shape) if shape else "no mask"
        told.append(f"category {one['category_id']} {pixels} (area {one['area']:g})")
    return ", ".join(told)


print("source:", describe(file))
supervision.DetectionDataset.from_coco(str(folder), str(file)).as_coco(annotations_path="s.json")
print(f"supervision {importlib.metadata.version('supervision')}:", describe("s.json"))
datumaro.Dataset.import_from("coco", "coco_instances").export("d", "coco_instances")
print(f"datumaro {importlib.metadata.version('datumaro')}:",
      describe("d/annotations/instances_train.json"))
END

diff recorded seen && echo "as recorded"
