#!/usr/bin/env bash
# COCO to CVAT and back by hotcoco: parts become objects, crowds become objects
#
# Guess:    CVAT's XML has a group_id for parts and <mask> for RLE, so an object of two parts and a
#           crowd come back as they were.
# Seen:     each part becomes a polygon of its own, without a group; the crowd becomes a plain box.
#           One object and one crowd come back as three objects, iscrowd 0, the last without a mask.
#           The counts that to_cvat returns name neither.
# Hurts:    occluded objects are learnt as two, and a region of uncounted objects as one.
# Versions: hotcoco 1.3.0
# Source:   https://derekallman.github.io/hotcoco/ (convert: to_cvat, from_cvat);
#           https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/ (group_id, mask)
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 hotcoco==1.3.0

cat > recorded <<'END'
hotcoco 1.3.0
to_cvat: {'images': 1, 'boxes': 1, 'polygons': 2, 'skipped_no_geometry': 0, 'skipped_degenerate': 0}
bbox [30.0, 0.0, 10.0, 10.0], iscrowd 0, 1 polygons
bbox [60.0, 0.0, 10.0, 10.0], iscrowd 0, 1 polygons
bbox [50.0, 50.0, 40.0, 40.0], iscrowd 0, 0 polygons
END

venv/bin/python - <<'END' | tee seen
import hotcoco

boxes = [[30, 0, 10, 10], [60, 0, 10, 10]]
parts = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes]
crowd = {"size": [100, 100], "counts": [5050, *[40, 60] * 39, 40, 1010]}
coco = hotcoco.COCO({
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
    "categories": [{"id": 3, "name": "cup"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 200,
         "bbox": [30, 0, 40, 10], "segmentation": parts},
        {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": 1, "area": 1600,
         "bbox": [50, 50, 40, 40], "segmentation": crowd},
    ],
})
print("hotcoco", hotcoco.__version__)
print("to_cvat:", coco.to_cvat("cvat.xml"))
for one in hotcoco.COCO.from_cvat("cvat.xml").dataset["annotations"]:
    print(f"bbox {one['bbox']}, iscrowd {one['iscrowd']}, "
          f"{len(one.get('segmentation') or [])} polygons")
END

diff recorded seen && echo "as recorded"
