#!/usr/bin/env bash
# Polygons in a NumPy array become boxes
#
# Guess:    pycocotools.mask.frPyObjects takes polygons as a list of lists or as an array, and the
#           mask is the same.
# Seen:     any array is read as boxes, four numbers each. The eight numbers of a square make two
#           boxes, which reach out of it. Nothing is said. hotcoco reads the array as a polygon;
#           faster-coco-eval does as pycocotools. A list that holds an array is a polygon for all.
# Hurts:    who keeps polygons of one length in an array (fixed numbers of points, as from StarDist
#           or a mask head that predicts outlines) trains and evaluates on rectangles.
# Versions: pycocotools 2.0.11, hotcoco 1.3.0, faster-coco-eval 1.8.0, numpy 2.4.6
# Source:   pycocotools/_mask.pyx, frPyObjects: "if type(pyobj) == np.ndarray" comes first
#           https://github.com/cocodataset/cocoapi/blob/8c9bcc3cf640524c4c20a9c40e89cb6a2f2fa0e9/PythonAPI/pycocotools/_mask.pyx
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 pycocotools==2.0.11 hotcoco==1.3.0 faster-coco-eval==1.8.0

cat > recorded <<'END'
pycocotools 2.0.11: list 100, list of an array 100, array 200
hotcoco 1.3.0: list 100, list of an array 100, array 100
faster-coco-eval 1.8.0: list 100, list of an array 100, array 200
END

venv/bin/python - <<'END' | tee seen
import importlib.metadata

import faster_coco_eval.core.mask
import hotcoco.mask
import numpy as np
import pycocotools.mask

square = [10.0, 10, 20, 10, 20, 20, 10, 20]  # 100 pixels
for name, masks in (
    ("pycocotools", pycocotools.mask),
    ("hotcoco", hotcoco.mask),
    ("faster-coco-eval", faster_coco_eval.core.mask),
):
    def area(polygons) -> int:
        return int(masks.area(masks.merge(masks.frPyObjects(polygons, 100, 100))))

    print(f"{name} {importlib.metadata.version(name)}: list {area([square])}, "
          f"list of an array {area([np.array(square)])}, array {area(np.array([square]))}")
END

diff recorded seen && echo "as recorded"
