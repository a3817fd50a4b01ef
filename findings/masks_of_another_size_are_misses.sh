#!/usr/bin/env bash
# Masks of another size than the truth's are AP 0, without a word
#
# Guess:    an RLE says its size; results whose size is not that of the image are refused.
# Seen:     pycocotools' IoU of masks of different sizes is -1, so COCOeval counts each as found
#           wrongly: AP 0.0 for exact masks saved at the network's size, at half the size or turned.
#           faster-coco-eval and hotcoco give the same.
# Hurts:    predictions written before they were scaled back, pictures turned by EXIF, tiles: the
#           training is searched for the fault of the file.
# Versions: pycocotools 2.0.11, faster-coco-eval 1.8.0, hotcoco 1.3.0
# Source:   common/maskApi.c, rleIou();
#           https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    pycocotools==2.0.11 faster-coco-eval==1.8.0 hotcoco==1.3.0 numpy==2.4.6

cat > recorded <<'END'
IoU of a mask with itself at half the size: [[-1.0]]
pycocotools 2.0.11: AP of the truth itself 1.0, at half the size 0.0, turned 0.0
faster-coco-eval 1.8.0: AP of the truth itself 1.0, at half the size 0.0, turned 0.0
hotcoco 1.3.0: AP of the truth itself 1.0, at half the size 0.0, turned 0.0
END

venv/bin/python -W ignore - <<'END' | tee seen
import contextlib
import copy
import importlib.metadata
import io
import json

import faster_coco_eval
import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from pycocotools import mask

square = np.zeros((40, 60), np.uint8)
square[10:30, 10:30] = 1


def rle(pixels):
    packed = mask.encode(np.asfortranarray(pixels))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


truth = {"images": [{"id": 1, "width": 60, "height": 40, "file_name": "a.png"}],
         "categories": [{"id": 1, "name": "leaf"}],
         "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 400,
                          "bbox": [10, 10, 20, 20], "segmentation": rle(square)}]}
with open("truth.json", "w") as file:
    json.dump(truth, file)
readers = {
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
}
print("IoU of a mask with itself at half the size:",
      mask.iou([rle(square)], [rle(square[::2, ::2])], [0]).tolist())
for name, (coco, evaluation) in readers.items():
    values = []
    for pixels in (square, square[::2, ::2], square.T):
        results = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": rle(pixels)}]
        with contextlib.redirect_stdout(io.StringIO()):
            truths = coco("truth.json")
            run = evaluation(truths, truths.loadRes(copy.deepcopy(results)), "segm")
            run.evaluate()
            run.accumulate()
            run.summarize()
        values.append(float(run.stats[0]))
    print(f"{name} {importlib.metadata.version(name)}: AP of the truth itself "
          f"{values[0]:.1f}, at half the size {values[1]:.1f}, turned {values[2]:.1f}")
END

diff recorded seen && echo "as recorded"
