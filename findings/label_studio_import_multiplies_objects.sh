#!/usr/bin/env bash
# COCO into Label Studio and back: one object of two parts becomes three
#
# Guess:    the converter's import of a COCO file and its export give the same objects.
# Seen:     the import makes a rectangle of each box, and besides it one polygon of each part of the
#           mask, with nothing that ties them together. The export writes an annotation for each:
#           of one cup behind a pole, three, one of them without a mask. The ids begin at 0, the
#           category is 0 in place of 3.
# Hurts:    who corrects a COCO set in Label Studio gets every object at least twice; detectors learn
#           to find doubles, and the truths that nobody can match halve the recall.
# Versions: label-studio-sdk 2.1.2
# Source:   label_studio_sdk/converter/imports/coco.py, convert_coco_to_ls: "bbox" and "segmentation"
#           are converted one after the other
#           https://github.com/HumanSignal/label-studio-sdk/pull/495
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check label-studio-sdk==2.1.2

cat > recorded <<'END'
label-studio-sdk 2.1.2
id 0, category 0, bbox [30.0, 0.0, 40.0, 10.0], 0 polygons
id 1, category 0, bbox [30.0, 0.0, 10.0, 10.0], 1 polygons
id 2, category 0, bbox [60.0, 0.0, 10.0, 10.0], 1 polygons
END

venv/bin/python - <<'END' | tee seen
import contextlib
import importlib.metadata
import io
import json
import logging
from pathlib import Path

from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.imports.coco import convert_coco_to_ls
from PIL import Image

logging.disable(logging.WARNING)
Path("images").mkdir()
Image.new("RGB", (100, 80)).save("images/a.jpg")
parts = [[30, 0, 40, 0, 40, 10, 30, 10], [60, 0, 70, 0, 70, 10, 60, 10]]
Path("coco.json").write_text(json.dumps({
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
    "categories": [{"id": 3, "name": "cup"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 200,
                     "bbox": [30, 0, 40, 10], "segmentation": parts}]}))
with contextlib.redirect_stdout(io.StringIO()):
    convert_coco_to_ls("coco.json", "tasks.json", image_root_url=str(Path("images").resolve()))
tasks = json.loads(Path("tasks.json").read_text())
for n, task in enumerate(tasks, 1):  # what the server adds
    task["id"] = n
    task["annotations"][0].update(id=n, completed_by=1, was_cancelled=False)
Path("tasks.json").write_text(json.dumps(tasks))
converter = Converter(
    config=Path("tasks.label_config.xml").read_text(), project_dir=".", upload_dir=".",
    download_resources=False)
converter.convert_to_coco("tasks.json", "out", is_dir=False)

print("label-studio-sdk", importlib.metadata.version("label-studio-sdk"))
for one in json.loads(Path("out/result.json").read_text())["annotations"]:
    print(f"id {one['id']}, category {one['category_id']}, bbox {one['bbox']}, "
          f"{len(one['segmentation'])} polygons")
END

diff recorded seen && echo "as recorded"
