#!/usr/bin/env bash
# globox's COCO evaluation counts crowd regions as objects
#
# Guess:    globox's COCOEvaluator, "COCO metrics", gives pycocotools' box AP for a COCO file.
# Seen:     its reader does not look at iscrowd. One object, perfectly found, and a detection inside a
#           crowd region: AP 1.0 by pycocotools, 0.252 by globox. save_coco writes the region back as
#           an object ("iscrowd": 0, no mask, ids from 0).
# Hurts:    COCO's own val2017 has 446 crowd regions. The figure is too low, and a set that was
#           converted by it trains on them as single objects.
# Versions: globox 2.9.0, pycocotools 2.0.11
# Source:   globox/annotationset.py, AnnotationSet.from_coco (no mention of iscrowd) and save_coco
#           https://github.com/laclouis5/globox
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check globox==2.9.0 pycocotools==2.0.11 numpy==2.4.6

cat > recorded <<'END'
pycocotools 2.0.11: AP 1.000
globox 2.9.0: AP 0.252
saved: [(0, [0.0, 0.0, 20.0, 20.0], 0), (1, [50.0, 50.0, 40.0, 40.0], 0)]
END

venv/bin/python - <<'END' | tee seen
import contextlib
import copy
import importlib.metadata
import io
import json
from pathlib import Path

from globox import AnnotationSet, COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

truth = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 400, "bbox": [0, 0, 20, 20]},
        {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 1, "area": 1600,
         "bbox": [50, 50, 40, 40]},
    ],
}
found = [
    {"image_id": 1, "category_id": 1, "bbox": [50, 50, 10, 10], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "score": 0.5},
]
Path("truth.json").write_text(json.dumps(truth))
Path("found.json").write_text(json.dumps(found))
with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO("truth.json")
    run = COCOeval(coco, coco.loadRes(copy.deepcopy(found)), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
print(f"pycocotools {importlib.metadata.version('pycocotools')}: AP {run.stats[0]:.3f}")
truths = AnnotationSet.from_coco("truth.json")
results = truths.from_coco_results(
    "found.json", id_to_label={1: "person"}, id_to_imageid={1: "a.jpg"})
ap = COCOEvaluator(ground_truths=truths, predictions=results).ap()
print(f"globox {importlib.metadata.version('globox')}: AP {ap:.3f}")
truths.save_coco("saved.json", auto_ids=True)
print("saved:", [(one["id"], one["bbox"], one["iscrowd"])
                 for one in json.loads(Path("saved.json").read_text())["annotations"]])
END

diff recorded seen && echo "as recorded"
