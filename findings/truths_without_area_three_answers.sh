#!/usr/bin/env bash
# A truth without "area": an error, a small object, or the area of its box
#
# Guess:    area follows from mask or box where an exporter leaves it out, or the file is refused.
# Seen:     pycocotools ends with KeyError, faster-coco-eval takes 0, so that all objects are small
#           and the AP of medium and large ones is -1; hotcoco takes it from the box. AP over all
#           sizes is equal.
# Hurts:    AP by size is what is read to find out why a detector is weak; the same files give other
#           answers in each tool.
# Versions: pycocotools 2.0.11, faster-coco-eval 1.8.0, hotcoco 1.3.0
# Source:   pycocotools/cocoeval.py, evaluateImg(); https://github.com/MiXaiLL76/faster_coco_eval
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    pycocotools==2.0.11 faster-coco-eval==1.8.0 hotcoco==1.3.0 numpy==2.4.6

cat > recorded <<'END'
squares of 20, 50 and 120 pixels, all found exactly
pycocotools 2.0.11: KeyError 'area'
faster-coco-eval 1.8.0: AP 1.0, small 1.0, medium -1.0, large -1.0
hotcoco 1.3.0: AP 1.0, small 1.0, medium 1.0, large 1.0
END

venv/bin/python -W ignore - <<'END' | tee seen
import contextlib
import importlib.metadata
import io
import json

import faster_coco_eval
import hotcoco
import pycocotools.coco
import pycocotools.cocoeval

sides = (20, 50, 120)
truth = {"images": [{"id": 1, "width": 300, "height": 300, "file_name": "a.png"}],
         "categories": [{"id": 1, "name": "leaf"}],
         "annotations": [{"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0,
                          "bbox": [100 * n - 95, 5, side, side]}
                         for n, side in enumerate(sides, start=1)]}
with open("truth.json", "w") as file:
    json.dump(truth, file)
readers = {
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
}
print("squares of 20, 50 and 120 pixels, all found exactly")
for name, (coco, evaluation) in readers.items():
    results = [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": one["bbox"]}
               for one in truth["annotations"]]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truths = coco("truth.json")
            run = evaluation(truths, truths.loadRes(results), "bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
        shown = "AP {:.1f}, small {:.1f}, medium {:.1f}, large {:.1f}".format(
            *(float(run.stats[n]) for n in (0, 3, 4, 5)))
    except KeyError as error:
        shown = f"KeyError {error}"
    print(f"{name} {importlib.metadata.version(name)}: {shown}")
END

diff recorded seen && echo "as recorded"
