#!/usr/bin/env bash
# AP of up to 300 detections an image: -1 from pycocotools
#
# Guess:    with params.maxDets = [1, 10, 300] the first line of the summary is the AP of up to 300
#           detections, as AP50 and AP75 in the lines below it are.
# Seen:     pycocotools looks for the limit 100 by its value in this one line and says -1, "there are
#           no objects". hotcoco and faster-coco-eval say 1.0 for the same perfect results.
# Hurts:    sets with over 100 objects an image (cells, crowds, aerial photos): the main figure is
#           missing or, where -1 is averaged or compared for the best checkpoint, wrong.
# Versions: pycocotools 2.0.11, hotcoco 1.3.0, faster-coco-eval 1.8.0
# Source:   pycocotools/cocoeval.py, COCOeval.summarize: _summarize(1) takes maxDets=100
#           https://github.com/cocodataset/cocoapi/blob/8c9bcc3cf640524c4c20a9c40e89cb6a2f2fa0e9/PythonAPI/pycocotools/cocoeval.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 pycocotools==2.0.11 hotcoco==1.3.0 faster-coco-eval==1.8.0

cat > recorded <<'END'
pycocotools 2.0.11: AP -1.0, AP50 1.0, AP75 1.0
hotcoco 1.3.0: AP 1.0, AP50 1.0, AP75 1.0
faster-coco-eval 1.8.0: AP 1.0, AP50 1.0, AP75 1.0
END

venv/bin/python - <<'END' | tee seen
import contextlib
import importlib.metadata
import io

import faster_coco_eval
import hotcoco
import pycocotools.coco
import pycocotools.cocoeval

EVALUATORS = {
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
}
boxes = [[10 * (n % 20), 10 * (n // 20), 8, 8] for n in range(200)]
for name, (load, evaluate) in EVALUATORS.items():
    with contextlib.redirect_stdout(io.StringIO()):
        coco = load()
        coco.dataset = {
            "info": {},
            "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 64, "bbox": box}
                for n, box in enumerate(boxes, 1)
            ],
        }
        coco.createIndex()
        found = coco.loadRes([{"image_id": 1, "category_id": 1, "score": 1 - n / 1000, "bbox": box}
                              for n, box in enumerate(boxes)])
        run = evaluate(coco, found, "bbox")
        run.params.maxDets = [1, 10, 300]
        run.evaluate()
        run.accumulate()
        run.summarize()
    print(f"{name} {importlib.metadata.version(name)}: "
          f"AP {run.stats[0]:.1f}, AP50 {run.stats[1]:.1f}, AP75 {run.stats[2]:.1f}")
END

diff recorded seen && echo "as recorded"
