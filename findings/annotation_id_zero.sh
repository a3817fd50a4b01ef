#!/usr/bin/env bash
# An annotation with id 0 is never found, except by hotcoco
#
# Guess:    ids are names: any whole number does, and evaluators that offer themselves in
#           pycocotools' place give its numbers.
# Seen:     pycocotools and faster-coco-eval note the id of the matched object and read 0 as "none".
#           A perfect result for the object with id 0 counts as a false alarm (and faster-coco-eval
#           warns): AP 0.252 for two objects. hotcoco says 1.0.
# Hurts:    Label Studio and globox number from 0. On small sets a tenth of the AP goes, and two
#           evaluators that should agree do not.
# Versions: pycocotools 2.0.11, hotcoco 1.3.0, faster-coco-eval 1.8.0
# Source:   https://github.com/MiXaiLL76/faster_coco_eval/issues/77
#           https://github.com/cocodataset/cocoapi/issues/507
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 pycocotools==2.0.11 hotcoco==1.3.0 faster-coco-eval==1.8.0

cat > recorded <<'END'
pycocotools 2.0.11: ids from 1 AP 1.000, ids from 0 AP 0.252
hotcoco 1.3.0: ids from 1 AP 1.000, ids from 0 AP 1.000
faster-coco-eval 1.8.0: ids from 1 AP 1.000, ids from 0 AP 0.252
END

venv/bin/python - <<'END' | tee seen
import contextlib
import importlib.metadata
import io
import warnings

import faster_coco_eval
import hotcoco
import pycocotools.coco
import pycocotools.cocoeval

warnings.simplefilter("ignore")
EVALUATORS = {
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
}


def score(load, evaluate, first: int) -> float:
    boxes = [[10, 10, 40, 40], [110, 10, 40, 40]]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = load()
        coco.dataset = {
            "info": {},
            "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}],
            "categories": [{"id": 1, "name": "cup"}],
            "annotations": [
                {"id": first + n, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 1600,
                 "bbox": box} for n, box in enumerate(boxes)
            ],
        }
        coco.createIndex()
        found = coco.loadRes([{"image_id": 1, "category_id": 1, "score": 0.9 - n / 10, "bbox": box}
                              for n, box in enumerate(boxes)])
        run = evaluate(coco, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[0]


for name, pair in EVALUATORS.items():
    print(f"{name} {importlib.metadata.version(name)}: "
          f"ids from 1 AP {score(*pair, 1):.3f}, ids from 0 AP {score(*pair, 0):.3f}")
END

diff recorded seen && echo "as recorded"
