#!/usr/bin/env bash
# A crowd, or an RLE in pycocotools' form, ends DETR's image processor where masks are asked for
#
# Guess:    DetrImageProcessor takes COCO's annotations, whose crowds it leaves out, and masks as
#           polygons or RLE.
# Seen:     crowds leave boxes and labels, but not the masks, and as masks of boxes that are kept are
#           then chosen by a list of the wrong length: IndexError. Compressed RLE, which pycocotools,
#           SAM and CVAT write, is a ValueError; uncompressed RLE works. Without masks crowds are left
#           out as they should be.
# Hurts:    COCO's own sets have crowds; a training that ran on a small set of polygons ends at the
#           first image with one.
# Versions: transformers 5.24.0, torch 2.14.1
# Source:   transformers/models/detr/image_processing_detr.py, prepare_coco_detection_annotation;
#           https://github.com/huggingface/transformers
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    transformers==5.24.0 torch==2.14.1 torchvision==0.29.1 pycocotools==2.0.11 pillow==13.0.0

cat > recorded <<'END'
transformers 5.24.0
masks False, a polygon: 1 box
masks False, uncompressed RLE: 1 box
masks False, compressed RLE: 1 box
masks False, a polygon and a crowd: 1 box
masks True, a polygon: 1 box, 1 mask of 100 pixels
masks True, uncompressed RLE: 1 box, 1 mask of 100 pixels
masks True, compressed RLE: ValueError
masks True, a polygon and a crowd: IndexError
END

venv/bin/python -W ignore - <<'END' | tee seen
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import numpy as np
import transformers
from pycocotools import mask
from transformers import DetrImageProcessor

print("transformers", transformers.__version__)
processor = DetrImageProcessor(
    format="coco_detection", do_resize=False, do_rescale=False, do_normalize=False, do_pad=False)
image = np.zeros((40, 60, 3), np.uint8)
same = {"category_id": 3, "area": 100, "iscrowd": 0, "bbox": [10, 10, 10, 10]}
polygon = [[10, 10, 20, 10, 20, 20, 10, 20]]
counts = [10 * 40 + 10, 10] + [30, 10] * 9
plain = {"size": [40, 60], "counts": [*counts, 2400 - sum(counts)]}
packed = mask.frPyObjects(plain, 40, 60)
packed["counts"] = packed["counts"].decode()
crowd = {**same, "iscrowd": 1, "segmentation": plain}
objects = {
    "a polygon": [{**same, "segmentation": polygon}],
    "uncompressed RLE": [{**same, "segmentation": plain}],
    "compressed RLE": [{**same, "segmentation": packed}],
    "a polygon and a crowd": [{**same, "segmentation": polygon}, crowd],
}
for masks in (False, True):
    for name, annotations in objects.items():
        try:
            labels = processor(
                images=image, annotations={"image_id": 7, "annotations": annotations},
                return_segmentation_masks=masks, return_tensors="pt")["labels"][0]
            seen = f"{len(labels['boxes'])} box"
            if masks:
                seen += f", {len(labels['masks'])} mask of {int(labels['masks'].sum())} pixels"
        except (IndexError, ValueError) as error:
            seen = type(error).__name__
        print(f"masks {masks}, {name}: {seen}")
END

diff recorded seen && echo "as recorded"
