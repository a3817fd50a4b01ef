#!/usr/bin/env bash
# batched_nms keeps doubles of small objects where many classes meet large images
#
# Guess:    batched_nms is NMS of each class by itself, as its documentation says.
# Seen:     up to 1,000 boxes on a CPU (25,000 on a GPU) it moves each class away by label * (largest
#           coordinate + 1), in the precision of the boxes. In float32 with LVIS' 1,203 classes and an
#           image of 4,000 pixels the boxes are rounded to half a pixel, with larger labels, such as
#           ids of categories, to 16 and more pixels: doubles stay. 80 classes and 1,333 pixels are
#           exact enough.
# Hurts:    AP of small objects and counts, for LVIS-like sets, for tiles joined on large pictures,
#           and for whoever gives category ids as labels.
# Versions: torchvision 0.29.1, torch 2.14.1
# Source:   torchvision/ops/boxes.py, _batched_nms_coordinate_trick;
#           https://github.com/pytorch/vision/blob/main/torchvision/ops/boxes.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1

cat > recorded <<'END'
torchvision 0.29.1
640 pixels, 80 classes: 244 boxes class by class, 244 batched
1333 pixels, 80 classes: 235 boxes class by class, 235 batched
4000 pixels, 1203 classes: 242 boxes class by class, 242 batched
4000 pixels, 10000000 classes: 244 boxes class by class, 400 batched
END

venv/bin/python -W ignore - <<'END' | tee seen
import torch
import torchvision
from torchvision.ops import batched_nms, nms

print("torchvision", torchvision.__version__.split("+")[0])
generator = torch.Generator().manual_seed(0)
for side, classes in ((640, 80), (1333, 80), (4000, 1203), (4000, 10_000_000)):
    corner = torch.rand(200, 2, generator=generator) * (side - 30)
    boxes = torch.cat([corner, corner + 4 + 20 * torch.rand(200, 2, generator=generator)], 1)
    boxes = torch.cat([boxes, boxes + 3 * torch.rand(200, 4, generator=generator)])
    labels = torch.randint(classes // 2, classes, (200,), generator=generator).repeat(2)
    scores = torch.rand(400, generator=generator)
    apart = 0
    for label in labels.unique():
        members = labels == label
        apart += len(nms(boxes[members], scores[members], 0.5))
    together = len(batched_nms(boxes, scores, labels, 0.5))
    print(f"{side} pixels, {classes} classes: {apart} boxes class by class, {together} batched")
END

diff recorded seen && echo "as recorded"
