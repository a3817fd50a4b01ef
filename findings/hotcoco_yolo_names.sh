#!/usr/bin/env bash
# YOLO by hotcoco: masks are not written, file names come back without their ending
#
# Guess:    to_yolo writes the polygons of a set that has them (YOLO's segmentation format is a line
#           of points), and from_yolo with images_dir names the files that it has opened.
# Seen:     to_yolo writes boxes alone and counts nothing as lost. from_yolo reads width and height
#           from images_dir/a.jpg and gives the image the name "a".
# Hurts:    a COCO file made so names no file that exists; a set that went through it has no masks.
# Versions: hotcoco 1.3.0
# Source:   https://derekallman.github.io/hotcoco/ (convert: to_yolo, from_yolo)
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 hotcoco==1.3.0 pillow==13.0.0

cat > recorded <<'END'
hotcoco 1.3.0
to_yolo: {'images': 1, 'annotations': 1, 'skipped_crowd': 0, 'skipped_no_bbox': 0}
a.txt: 0 0.200000 0.375000 0.200000 0.250000
image: {'file_name': 'a', 'width': 100, 'height': 80}
masks: 0
END

venv/bin/python - <<'END' | tee seen
from pathlib import Path

import hotcoco
from PIL import Image

Path("images").mkdir()
Image.new("RGB", (100, 80)).save("images/a.jpg")
coco = hotcoco.COCO({
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
    "categories": [{"id": 1, "name": "leaf"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 200,
                     "bbox": [10, 20, 20, 20], "segmentation": [[10, 20, 30, 20, 10, 40]]}],
})
print("hotcoco", hotcoco.__version__)
print("to_yolo:", coco.to_yolo("yolo"))
print("a.txt:", Path("yolo/a.txt").read_text().strip())
back = hotcoco.COCO.from_yolo("yolo", "images").dataset
print("image:", {key: back["images"][0][key] for key in ("file_name", "width", "height")})
print("masks:", sum("segmentation" in one for one in back["annotations"]))
END

diff recorded seen && echo "as recorded"
