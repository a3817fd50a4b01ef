#!/usr/bin/env bash
# SanitizeBoundingBoxes shortens boxes, labels and masks, not iscrowd and area beside them
#
# Guess:    a degenerate box leaves the target as a whole: what has an entry for each box loses the
#           same entry.
# Seen:     boxes, masks and labels lose it; other tensors with an entry for each box, such as iscrowd
#           and area of COCO, keep their length, so by index each object behind the removed one has
#           the flag of the object before it.
# Hurts:    crowds are learnt as objects and objects as crowds after a crop removed a box; code that
#           reads by index sees no error, as the tensors are longer than needed.
# Versions: torchvision 0.29.1, torch 2.14.1
# Source:   torchvision/transforms/v2/_misc.py, SanitizeBoundingBoxes; labels_getter takes a function
#           of all; https://github.com/pytorch/vision/blob/main/torchvision/transforms/v2/_misc.py
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
boxes 2
labels 2
masks 2
iscrowd 3
area 3
the object of label 6 is a crowd; by index the flags are {5: 0, 6: 0}
END

venv/bin/python -W ignore - <<'END' | tee seen
import torch
import torchvision
from torchvision import tv_tensors
from torchvision.transforms import v2

print("torchvision", torchvision.__version__.split("+")[0])
boxes = tv_tensors.BoundingBoxes(
    [[1, 1, 1, 5], [3, 3, 9, 9], [10, 2, 18, 9]], format="XYXY", canvas_size=(20, 20))
target = {"boxes": boxes, "labels": torch.tensor([4, 5, 6]),
          "masks": tv_tensors.Mask(torch.zeros(3, 20, 20)),
          "iscrowd": torch.tensor([0, 0, 1]), "area": torch.tensor([0.0, 36.0, 56.0])}
_, kept = v2.SanitizeBoundingBoxes()(torch.zeros(3, 20, 20), target)
for name, value in kept.items():
    print(name, len(value))
flags = dict(zip(kept["labels"].tolist(), kept["iscrowd"].tolist(), strict=False))
print("the object of label 6 is a crowd; by index the flags are", flags)
END

diff recorded seen && echo "as recorded"
