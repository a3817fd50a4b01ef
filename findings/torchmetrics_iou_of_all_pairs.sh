#!/usr/bin/env bash
# torchmetrics' IntersectionOverUnion of a perfect detector of ten objects is 0.1
#
# Guess:    the metric is the mean IoU of detections and the objects that they found; perfect boxes
#           have 1.0.
# Seen:     it is the mean over all pairs of a detection and a truth of one label in an image: n
#           perfect boxes that do not overlap have 1/n; the generalized and complete ones go below 0.
#           One object an image, as in most examples, hides it.
# Hurts:    curves of IoU in a training's log fall with the number of objects an image has, not with
#           the quality of boxes; a detector that finds one of ten objects has the same 0.1.
# Versions: torchmetrics 1.8.2, torch 2.14.1
# Source:   torchmetrics/detection/iou.py, IntersectionOverUnion.update and compute;
#           https://github.com/Lightning-AI/torchmetrics/blob/master/src/torchmetrics/detection/iou.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 torchvision==0.29.1 torchmetrics==1.8.2 pycocotools==2.0.11

cat > recorded <<'END'
torchmetrics 1.8.2
1 objects, all found exactly: iou 1.00, giou 1.00
2 objects, all found exactly: iou 0.50, giou 0.33
10 objects, all found exactly: iou 0.10, giou -0.50
10 objects, one of them found: iou 0.10
END

venv/bin/python -W ignore - <<'END' | tee seen
import torch
import torchmetrics
from torchmetrics.detection import GeneralizedIntersectionOverUnion, IntersectionOverUnion

print("torchmetrics", torchmetrics.__version__)


def value(kind, found, truth):
    metric = kind()
    labels = torch.zeros(len(found), dtype=torch.int64)
    metric.update([{"boxes": found, "scores": torch.ones(len(found)), "labels": labels}],
                  [{"boxes": truth, "labels": torch.zeros(len(truth), dtype=torch.int64)}])
    return ", ".join(f"{name} {float(result):.2f}" for name, result in metric.compute().items())


for count in (1, 2, 10):
    left = 20.0 * torch.arange(count)
    truth = torch.stack([left, left * 0, left + 10, left * 0 + 10], 1)
    print(f"{count} objects, all found exactly: {value(IntersectionOverUnion, truth, truth)}, "
          f"{value(GeneralizedIntersectionOverUnion, truth, truth)}")
print(f"10 objects, one of them found: {value(IntersectionOverUnion, truth[:1], truth)}")
END

diff recorded seen && echo "as recorded"
