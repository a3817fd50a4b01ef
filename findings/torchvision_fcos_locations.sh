#!/usr/bin/env bash
# torchvision's FCOS spaces the locations of its coarse maps by the image's size, not by 64 and 128
#
# Guess:    a location of pyramid level P6 or P7 stands for every 64th or 128th pixel, as FCOS' paper,
#           detectron2 and mmdetection have it, whatever the image's size.
# Seen:     the spacing is the image's side divided by the map's side, rounded down. An image of
#           800 x 800 has 61 and 114 pixels, so the last location of P7 lies 84 pixels from where its
#           features were computed; with 640 x 640 it is 64 and 128. P3 to P5 are always 8, 16 and 32.
# Hurts:    whoever takes torchvision's weights into another FCOS, or exports the heads without its
#           anchors: large objects are found at another place and size, small ones rightly, and a test
#           on 640 pixels shows nothing.
# Versions: torchvision 0.29.1, torch 2.14.1
# Source:   torchvision/models/detection/anchor_utils.py, AnchorGenerator.forward(): strides are
#           image_size // grid_size; P6 and P7 are convolutions of stride 2, which round up;
#           https://github.com/pytorch/vision/blob/main/torchvision/models/detection/anchor_utils.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1

cat > recorded <<'END'
torchvision 0.29.1
640 x 640: spacing 8, 16, 32, 64, 128; the last location of P7 is off by 0 pixels
800 x 800: spacing 8, 16, 32, 61, 114; the last location of P7 is off by 84 pixels
1024 x 1024: spacing 8, 16, 32, 64, 128; the last location of P7 is off by 0 pixels
1088 x 1088: spacing 8, 16, 32, 64, 120; the last location of P7 is off by 64 pixels
END

venv/bin/python - <<'END' | tee seen
import torch
import torchvision
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

print("torchvision", torchvision.__version__.split("+")[0])
model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2).eval()
for side in (640, 800, 1024, 1088):
    image = torch.zeros(1, 3, side, side)
    with torch.no_grad():
        maps = list(model.backbone(image).values())
    boxes = model.anchor_generator(ImageList(image, [(side, side)]), maps)[0]
    spacings = []
    for level in torch.split(boxes, [one.shape[-2] * one.shape[-1] for one in maps]):
        centers = (level[:, 0] + level[:, 2]) / 2
        spacings.append(int(centers[1] - centers[0]))
    off = (maps[-1].shape[-1] - 1) * (128 - spacings[-1])
    print(
        f"{side} x {side}: spacing {', '.join(map(str, spacings))}; "
        f"the last location of P7 is off by {off} pixels"
    )
END

diff recorded seen && echo "as recorded"
