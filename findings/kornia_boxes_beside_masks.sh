#!/usr/bin/env bash
# kornia moves boxes and masks of one object differently
#
# Guess:    boxes (bbox_xyxy) and masks given to one AugmentationSequential stay around the same
#           pixels.
# Seen:     a flip mirrors boxes at width - 1 and masks at width: the box is one pixel off. A resize
#           maps the corners of boxes by (new - 1) / (old - 1), with the mask by new / old. A crop
#           leaves boxes outside of the picture as they are, negative ones, too.
# Hurts:    a pixel is much for a small object: an 8-pixel box has IoU 0.78 with its own mask after a
#           flip, and the mask crop of each object is shifted against its image half of the time.
# Versions: kornia 0.9.0, torch 2.14.1
# Source:   kornia/geometry/boxes.py and kornia/augmentation/_2d/geometric/horizontal_flip.py
#           (transform matrix); https://github.com/kornia/kornia
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    kornia==0.9.0 torch==2.14.1

cat > recorded <<'END'
kornia 0.9.0
flip: box [21.0, 4.0, 29.0, 12.0], mask within [22, 4, 30, 12]
resize to 64: box [4.06, 8.13, 20.32, 24.39], mask within [4, 8, 20, 24]
crop of the middle 16: box [-6.0, -4.0, 2.0, 4.0], mask within [0, 0, 2, 4]
END

venv/bin/python -W ignore - <<'END' | tee seen
import kornia
import kornia.augmentation as K
import torch

print("kornia", kornia.__version__)
image = torch.zeros(1, 3, 32, 32)
mask = torch.zeros(1, 1, 32, 32)
mask[..., 4:12, 2:10] = 1
boxes = torch.tensor([[[2.0, 4, 10, 12]]])
for name, step in (("flip", K.RandomHorizontalFlip(p=1)), ("resize to 64", K.Resize((64, 64))),
                   ("crop of the middle 16", K.CenterCrop((16, 16)))):
    both = K.AugmentationSequential(step, data_keys=["input", "bbox_xyxy", "mask"])
    _, moved, pixels = both(image, boxes, mask)
    y, x = pixels[0, 0].nonzero().unbind(1)
    around = [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]
    print(f"{name}: box {[round(v, 2) for v in moved[0, 0].tolist()]}, mask within {around}")
END

diff recorded seen && echo "as recorded"
