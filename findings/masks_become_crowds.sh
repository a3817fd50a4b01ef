#!/usr/bin/env bash
# COCO exporters mark masks as crowds, which nobody learns
#
# Guess:    an exported instance has "iscrowd": 0, however its mask is written.
# Seen:     supervision writes iscrowd 1 for a mask of two parts or with a hole. datumaro writes
#           iscrowd 1 for every Mask without the attribute is_crowd, and in
#           segmentation_mode="mask" for all, those with is_crowd=False and polygons too.
# Hurts:    COCO trainers leave crowds out, and evaluators neither reward nor punish them: occluded
#           and ring-shaped objects, or the whole set, are never learnt. Training goes on without a
#           word.
# Versions: supervision 0.31.2, datumaro 1.13.12
# Source:   supervision/dataset/formats/coco.py, detections_to_coco_annotations (its docstring says so);
#           datumaro/plugins/data_formats/coco/exporter.py, _InstancesExporter
#           https://github.com/roboflow/supervision/pull/1163
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 opencv-python==4.14.0.94 opencv-python-headless==4.14.0.94 supervision==0.31.2 datumaro==1.13.12

cat > recorded <<'END'
supervision 0.31.2, square, two parts, ring: [0, 1, 1]
datumaro 1.13.12, 'guess': Mask, Polygon, Mask with is_crowd=False: [1, 0, 0]
datumaro 1.13.12, 'mask': Mask, Polygon, Mask with is_crowd=False: [1, 1, 1]
END

venv/bin/python - <<'END' | tee seen
import importlib.metadata
import json
import logging
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

import datumaro
import supervision
from datumaro.components.annotation import Mask, Polygon
from PIL import Image

masks = {"square": np.zeros((80, 100), bool), "two parts": np.zeros((80, 100), bool),
         "ring": np.zeros((80, 100), bool)}
masks["square"][10:30, 10:30] = True
masks["two parts"][10:30, 40:50] = masks["two parts"][10:30, 60:70] = True
masks["ring"][40:70, 10:40] = True
masks["ring"][50:60, 20:30] = False
Image.new("RGB", (100, 80)).save("a.png")


def crowds(file: Path) -> str:
    annotations = json.loads(file.read_text())["annotations"]
    return str([one["iscrowd"] for one in sorted(annotations, key=lambda one: one["id"])])


stack = np.stack(list(masks.values()))
found = supervision.Detections(
    xyxy=supervision.mask_to_xyxy(stack).astype(float), mask=stack, class_id=np.zeros(3, int))
supervision.DetectionDataset(["cup"], ["a.png"], {"a.png": found}).as_coco(
    annotations_path="supervision.json")
print(f"supervision {importlib.metadata.version('supervision')}, {', '.join(masks)}:",
      crowds(Path("supervision.json")))

square = [10.0, 10, 30, 10, 30, 30, 10, 30]
item = datumaro.DatasetItem(
    "a", subset="train", media=datumaro.Image.from_file(path="a.png"),
    annotations=[Mask(masks["square"], label=0), Polygon(square, label=0),
                 Mask(masks["square"], label=0, attributes={"is_crowd": False})])
dataset = datumaro.Dataset.from_iterable([item], categories=["cup"])
for mode in ("guess", "mask"):
    dataset.export(mode, "coco_instances", save_media=True, segmentation_mode=mode)
    print(f"datumaro {importlib.metadata.version('datumaro')}, {mode!r}: Mask, Polygon, "
          f"Mask with is_crowd=False:", crowds(Path(mode, "annotations/instances_train.json")))
END

diff recorded seen && echo "as recorded"
