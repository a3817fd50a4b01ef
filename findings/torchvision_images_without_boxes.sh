#!/usr/bin/env bash
# wrap_dataset_for_transforms_v2: an image without objects has no boxes at all
#
# Guess:    an image without annotations has boxes [0, 4], masks [0, H, W] and labels [0]:
#           torchvision's own detectors and transforms take these.
# Seen:     its target has the image_id alone, also where target_keys asks for boxes, masks and
#           labels. RandomIoUCrop refuses such a sample, a collate function or a model ends with a
#           KeyError in the first batch that has one.
# Hurts:    sets with images without objects, which teach a detector what is none: the run ends after
#           minutes, at a place of the seed's choosing.
# Versions: torchvision 0.29.1, torch 2.14.1, pycocotools 2.0.11
# Source:   torchvision/tv_tensors/_dataset_wrapper.py, coco_dectection_wrapper_factory;
#           https://github.com/pytorch/vision/blob/main/torchvision/tv_tensors/_dataset_wrapper.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1 pycocotools==2.0.11

cat > recorded <<'END'
torchvision 0.29.1
one object: ['boxes', 'labels', 'masks']
no object: ['image_id']
RandomIoUCrop of it: RandomIoUCrop() requires input sample to contain tensor or PIL images and bounding boxes
END

venv/bin/python -W ignore - <<'END' | tee seen
import contextlib
import io
import json

import torchvision
from PIL import Image
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

print("torchvision", torchvision.__version__.split("+")[0])
for name in ("one", "none"):
    Image.new("RGB", (30, 20)).save(f"{name}.png")
with open("coco.json", "w") as file:
    json.dump({
        "images": [{"id": 1, "file_name": "one.png", "width": 30, "height": 20},
                   {"id": 2, "file_name": "none.png", "width": 30, "height": 20}],
        "categories": [{"id": 1, "name": "leaf"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10],
                         "area": 100, "iscrowd": 0,
                         "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}]}, file)
with contextlib.redirect_stdout(io.StringIO()):
    images = CocoDetection(".", "coco.json")
images = wrap_dataset_for_transforms_v2(images, target_keys=("boxes", "masks", "labels"))
for index, what in enumerate(("one object", "no object")):
    print(f"{what}: {sorted(images[index][1])}")
try:
    v2.RandomIoUCrop()(*images[1])
except TypeError as error:
    print("RandomIoUCrop of it:", str(error).split(".")[0])
END

diff recorded seen && echo "as recorded"
