#!/usr/bin/env bash
# After a crop, albumentations' boxes and masks no longer pair up
#
# Guess:    boxes, labels and masks of one call go together: what is filtered from one list is
#           filtered from the others.
# Seen:     an object outside of the crop leaves "bboxes" and the label fields; its mask, now empty,
#           stays in "masks". One below min_visibility keeps a mask with pixels. zip(boxes, masks)
#           gives a box the mask of another object.
#           Whole numbers as labels come back as floats.
# Hurts:    a mask head learns every object's neighbour as soon as one instance was cropped away.
# Versions: albumentations 2.0.8
# Source:   albumentations/core/bbox_utils.py, filter_bboxes;
#           https://albumentations.ai/docs/examples/example-instance-binding/ (its successor, which has
#           another licence, says that masks were left behind and has an option against it)
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 albumentations==2.0.8

cat > recorded <<'END'
albumentations 2.0.8
min_visibility 0: boxes of [100.0, 1600.0] labels [1.0, 2.0] masks of [100, 1600, 0] float
min_visibility 0.5: boxes of [1600.0] labels [2.0] masks of [100, 1600, 0] float
END

venv/bin/python - <<'END' | tee seen
import importlib.metadata
import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A
import numpy as np

boxes = np.array([[0, 0, 20, 20], [30, 30, 40, 40], [80, 80, 10, 10]], float)
masks = np.zeros((3, 100, 100), np.uint8)
for mask, (x, y, w, h) in zip(masks, boxes.astype(int), strict=True):
    mask[y : y + h, x : x + w] = 1
print("albumentations", importlib.metadata.version("albumentations"))
for visible in (0, 0.5):
    crop = A.Compose(
        [A.Crop(10, 10, 75, 75)],
        A.BboxParams("coco", label_fields=["labels"], min_visibility=visible))
    out = crop(image=np.zeros((100, 100, 3), np.uint8), masks=masks, bboxes=boxes, labels=[1, 2, 3])
    print(f"min_visibility {visible}: boxes of", [float(w * h) for _, _, w, h in
          np.round(out["bboxes"], 3)], "labels", [float(label) for label in out["labels"]],
          "masks of", [int(mask.sum()) for mask in out["masks"]], type(out["labels"][0]).__name__)
END

diff recorded seen && echo "as recorded"
