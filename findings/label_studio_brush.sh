#!/usr/bin/env bash
# Brush masks of Label Studio: left out of one COCO export, cut in pieces by the other
#
# Guess:    COCO has masks, so an object that is painted with the brush is one annotation with its
#           mask as RLE.
# Seen:     the export "COCO" leaves it out (a line in the log: "Unknown label type or labels are
#           empty"); an image with brush masks alone stays, as an image without objects. The export
#           "BRUSH_TO_COCO" makes an annotation of each piece, fills the holes, and lacks a row and a
#           column of each: two objects become three of 81, 81 and 841 pixels for 200 and 800.
# Hurts:    the first trains the objects as background, the second halves of objects.
# Versions: label-studio-sdk 2.1.2
# Source:   label_studio_sdk/converter/converter.py, convert_to_coco (no "brushlabels" among its keys);
#           label_studio_sdk/converter/exports/brush_to_coco.py, generate_contour_from_rle
#           https://github.com/HumanSignal/label-studio-converter/issues/72
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check label-studio-sdk==2.1.2 pycocotools==2.0.11

cat > recorded <<'END'
label-studio-sdk 2.1.2
painted: [200, 800]
COCO: 1 image, objects of [] pixels
BRUSH_TO_COCO: 1 image, objects of [81, 81, 841] pixels
END

venv/bin/python - <<'END' | tee seen
import importlib.metadata
import json
import logging
from pathlib import Path

import numpy as np
import pycocotools.mask as masks
from label_studio_sdk.converter import Converter, brush
from PIL import Image

logging.disable(logging.WARNING)
H, W = 80, 100
Image.new("RGB", (W, H)).save("a.jpg")
two_parts, ring = np.zeros((H, W), np.uint8), np.zeros((H, W), np.uint8)
two_parts[10:20, 10:20] = two_parts[10:20, 40:50] = 255
ring[40:70, 10:40] = 255
ring[50:60, 20:30] = 0
painted = [
    {"id": name, "type": "brushlabels", "from_name": "b", "to_name": "image", "image_rotation": 0,
     "original_width": W, "original_height": H,
     "value": {"format": "rle", "rle": brush.mask2rle(mask), "brushlabels": ["cup"]}}
    for name, mask in (("two parts", two_parts), ("ring", ring))
]
Path("tasks.json").write_text(json.dumps([
    {"id": 1, "data": {"image": str(Path("a.jpg").resolve())},
     "annotations": [{"id": 1, "completed_by": 1, "was_cancelled": False, "result": painted}]}]))
config = ('<View><Image name="image" value="$image"/><BrushLabels name="b" toName="image">'
          '<Label value="cup"/></BrushLabels></View>')
print("label-studio-sdk", importlib.metadata.version("label-studio-sdk"))
print("painted:", [int((mask > 0).sum()) for mask in (two_parts, ring)])
for form, file in (("COCO", "result.json"), ("BRUSH_TO_COCO", "result_coco.json")):
    converter = Converter(config=config, project_dir=".", upload_dir=".", download_resources=False)
    converter.convert("tasks.json", form, form, is_dir=False)
    written = json.loads(Path(form, file).read_text())
    areas = [int(masks.area(masks.merge(masks.frPyObjects(one["segmentation"], H, W))))
             for one in written["annotations"]]
    print(f"{form}: {len(written['images'])} image, objects of {areas} pixels")
END

diff recorded seen && echo "as recorded"
