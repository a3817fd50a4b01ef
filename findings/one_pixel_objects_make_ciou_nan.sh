#!/usr/bin/env bash
# masks_to_boxes and complete_box_iou_loss: an object of one pixel makes the loss NaN
#
# Guess:    boxes from masks_to_boxes span their mask, and complete_box_iou_loss has an eps against
#           division by zero.
# Seen:     masks_to_boxes gives the last pixel, not the edge behind it: every box is one pixel short,
#           and that of an object of one pixel has no width and no height. The aspect term of the loss
#           divides one by the other without eps: loss and gradients are NaN. The generalized and the
#           distance loss of the same boxes are finite.
# Hurts:    a run that trained for hours ends in NaN at the first batch with such an object (masks
#           made smaller by a resize have some), or a gradient scaler skips steps in silence.
# Versions: torchvision 0.29.1, torch 2.14.1
# Source:   torchvision/ops/boxes.py, masks_to_boxes; torchvision/ops/ciou_loss.py;
#           https://github.com/pytorch/vision/blob/main/torchvision/ops/ciou_loss.py
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
an object of 6 x 9 pixels: box [3.0, 4.0, 11.0, 9.0]
  generalized_box_iou_loss finite: True, gradient finite: True
  distance_box_iou_loss finite: True, gradient finite: True
  complete_box_iou_loss finite: True, gradient finite: True
an object of one pixel: box [3.0, 5.0, 3.0, 5.0]
  generalized_box_iou_loss finite: True, gradient finite: True
  distance_box_iou_loss finite: True, gradient finite: True
  complete_box_iou_loss finite: False, gradient finite: False
END

venv/bin/python -W ignore - <<'END' | tee seen
import torch
import torchvision
from torchvision import ops

print("torchvision", torchvision.__version__.split("+")[0])
masks = torch.zeros(2, 20, 20)
masks[0, 4:10, 3:12] = 1
masks[1, 5, 3] = 1
for what, box in zip(("6 x 9 pixels", "one pixel"), ops.masks_to_boxes(masks), strict=True):
    print(f"an object of {what}: box {box.tolist()}")
    for loss in (ops.generalized_box_iou_loss, ops.distance_box_iou_loss,
                 ops.complete_box_iou_loss):
        found = torch.tensor([[2.0, 3, 13, 11]], requires_grad=True)
        value = loss(found, box[None], reduction="sum")
        value.backward()
        print(f"  {loss.__name__} finite: {bool(value.isfinite())}, "
              f"gradient finite: {bool(found.grad.isfinite().all())}")
END

diff recorded seen && echo "as recorded"
