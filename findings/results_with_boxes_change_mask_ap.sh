#!/usr/bin/env bash
# A box beside the mask in a results file changes the mask AP by size
#
# Guess:    mask AP of small, medium and large objects goes by the area of the masks. A "bbox" that
#           a result has besides its "segmentation" is for the box AP.
# Seen:     if the first result has a "bbox", loadRes takes width times height of the boxes as the
#           area of every result. A false alarm whose mask is small and whose box is not then no
#           longer counts among the small ones: the same masks, AP 1.0 in place of 0.5.
#           Three evaluators agree on it.
# Hurts:    thin and slanted objects, whose box is much larger than they are. Two tools that find
#           the same masks differ in AP small because one of them writes boxes too.
# Versions: pycocotools 2.0.11, hotcoco 1.3.0, faster-coco-eval 1.8.0
# Source:   pycocotools/coco.py, COCO.loadRes: the branch for 'bbox' in anns[0] sets "area"
#           https://github.com/cocodataset/cocoapi/blob/8c9bcc3cf640524c4c20a9c40e89cb6a2f2fa0e9/PythonAPI/pycocotools/coco.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 pycocotools==2.0.11 hotcoco==1.3.0 faster-coco-eval==1.8.0

cat > recorded <<'END'
pycocotools 2.0.11, masks: AP 0.50, small 0.50
pycocotools 2.0.11, masks and boxes: AP 0.50, small 1.00
hotcoco 1.3.0, masks: AP 0.50, small 0.50
hotcoco 1.3.0, masks and boxes: AP 0.50, small 1.00
faster-coco-eval 1.8.0, masks: AP 0.50, small 0.50
faster-coco-eval 1.8.0, masks and boxes: AP 0.50, small 1.00
END

venv/bin/python - <<'END' | tee seen
import contextlib
import copy
import importlib.metadata
import io

import faster_coco_eval
import hotcoco
import pycocotools.coco
import pycocotools.cocoeval
import pycocotools.mask as masks

EVALUATORS = {
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
}


def triangle(x: int) -> dict:
    """Half of a square of 40 pixels: a mask of 780 (small is below 1024), a box of 1600."""
    rle = masks.merge(masks.frPyObjects([[x, 10, x + 40, 10, x, 50]], 100, 200))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


truth = {
    "info": {},
    "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}],
    "categories": [{"id": 1, "name": "leaf"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 780,
         "bbox": [10, 10, 40, 40], "segmentation": triangle(10)},
    ],
}
found = [
    {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": triangle(110)},  # a false alarm
    {"image_id": 1, "category_id": 1, "score": 0.8, "segmentation": triangle(10)},
]
with_boxes = [
    {**result, "bbox": [x, 10, 40, 40]} for result, x in zip(found, (110, 10), strict=True)
]
for name, (load, evaluate) in EVALUATORS.items():
    for kind, results in (("masks", found), ("masks and boxes", with_boxes)):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = load()
            coco.dataset = copy.deepcopy(truth)
            coco.createIndex()
            run = evaluate(coco, coco.loadRes(copy.deepcopy(results)), "segm")
            run.evaluate()
            run.accumulate()
            run.summarize()
        print(f"{name} {importlib.metadata.version(name)}, {kind}: "
              f"AP {run.stats[0]:.2f}, small {run.stats[3]:.2f}")
END

diff recorded seen && echo "as recorded"
