#!/usr/bin/env bash
# An object that has a box alone, in mask AP: errors or three scores
#
# Guess:    a mask evaluator leaves an object without a mask out, or counts it as missed, and all do
#           the same. Label Studio and others write "segmentation": [] for rectangles.
# Seen:     for two objects, the second a box alone, found by a mask that fills the box:
#           pycocotools raises KeyError or IndexError; faster-coco-eval raises where the key is
#           absent and counts a miss where it is []; hotcoco, which says that it gives what
#           pycocotools gives, takes the box for the mask (AP 1.0) or counts a miss (0.505).
# Hurts:    one and the same annotation file gives no score, 0.505 or 1.0.
# Versions: pycocotools 2.0.11, hotcoco 1.3.0, faster-coco-eval 1.8.0
# Source:   pycocotools/coco.py, COCO.annToRLE
#           https://github.com/cocodataset/cocoapi/blob/8c9bcc3cf640524c4c20a9c40e89cb6a2f2fa0e9/PythonAPI/pycocotools/coco.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 pycocotools==2.0.11 hotcoco==1.3.0 faster-coco-eval==1.8.0

cat > recorded <<'END'
pycocotools 2.0.11: without the key KeyError, with [] IndexError
hotcoco 1.3.0: without the key AP 1.000, with [] AP 0.505
faster-coco-eval 1.8.0: without the key KeyError, with [] AP 0.505
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


def score(load, evaluate, second: dict) -> str:
    squares = [[x, 10, x + 40, 10, x + 40, 50, x, 50] for x in (10, 110)]
    both = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1600}
    truth = {
        "info": {},
        "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": 1, **both, "bbox": [10, 10, 40, 40], "segmentation": [squares[0]]},
            {"id": 2, **both, "bbox": [110, 10, 40, 40], **second},
        ],
    }
    found = []
    for n, square in enumerate(squares):
        rle = masks.merge(masks.frPyObjects([square], 100, 200))
        found.append({"image_id": 1, "category_id": 1, "score": 0.9 - n / 10,
                      "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}})
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = load()
            coco.dataset = copy.deepcopy(truth)
            coco.createIndex()
            run = evaluate(coco, coco.loadRes(found), "segm")
            run.evaluate()
            run.accumulate()
            run.summarize()
    except (KeyError, IndexError) as error:
        return type(error).__name__
    return f"AP {run.stats[0]:.3f}"


for name, pair in EVALUATORS.items():
    print(f"{name} {importlib.metadata.version(name)}: without the key {score(*pair, {})}, "
          f"with [] {score(*pair, {'segmentation': []})}")
END

diff recorded seen && echo "as recorded"
