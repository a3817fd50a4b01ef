#!/usr/bin/env bash
# An outline by OpenCV, read by pycocotools, lacks a row and a column
#
# Guess:    cv2.findContours of a mask, written as a COCO polygon, gives the mask back.
# Seen:     OpenCV's points are pixels, and cv2.fillPoly draws them with their edge. pycocotools
#           takes them for corners of pixels: the right column and the bottom row are gone. A square
#           of 8 pixels keeps 49 of 64, one of 2 keeps 1 of 4, a line or a pixel nothing.
# Hurts:    most mask-to-COCO scripts and exporters go this way. Small objects lose a quarter of
#           their mask or all of it; IoU with a perfect mask of 8 x 8 pixels is 0.77.
# Versions: opencv-python-headless 5.0.0.93, pycocotools 2.0.11
# Source:   https://docs.opencv.org/4.x/d3/dc0/group__imgproc__shape.html (findContours)
#           https://github.com/cocodataset/cocoapi/blob/8c9bcc3cf640524c4c20a9c40e89cb6a2f2fa0e9/common/maskApi.c (rleFrPoly)
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93 pycocotools==2.0.11

cat > recorded <<'END'
opencv-python-headless 5.0.0.93
pycocotools 2.0.11
32 x 32: mask 1024, OpenCV's filled outline 1024, pycocotools' 961
8 x 8: mask 64, OpenCV's filled outline 64, pycocotools' 49
2 x 2: mask 4, OpenCV's filled outline 4, pycocotools' 1
10 x 1: mask 10, OpenCV's filled outline 10, pycocotools' 0
END

venv/bin/python - <<'END' | tee seen
import importlib.metadata

import cv2
import numpy as np
import pycocotools.mask as masks

for name in ("opencv-python-headless", "pycocotools"):
    print(name, importlib.metadata.version(name))
for wide, high in ((32, 32), (8, 8), (2, 2), (10, 1)):
    mask = np.zeros((100, 100), np.uint8)
    mask[10 : 10 + high, 10 : 10 + wide] = 1
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [outline.ravel().tolist() for outline in outlines]
    coco = masks.area(masks.merge(masks.frPyObjects(polygons, 100, 100)))
    filled = cv2.fillPoly(np.zeros_like(mask), outlines, 1).sum()
    print(f"{wide} x {high}: mask {mask.sum()}, OpenCV's filled outline {filled}, pycocotools' {coco}")
END

diff recorded seen && echo "as recorded"
