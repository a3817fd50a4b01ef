#!/usr/bin/env bash
# ultralytics' convert_coco gives classes of one's own the numbers of COCO's 80
#
# Guess:    convert_coco numbers the categories of the file from 0 in their order, or by id - 1.
# Seen:     by default (cls91to80=True) ids are taken for those of COCO's own 91 categories: 13
#           becomes 11, 14 becomes 12, and 12, which COCO left free, ends with a TypeError. Ids up to
#           11 hide it, as they are only lowered by one. With cls91to80=False it is id - 1. Names are
#           not written.
# Hurts:    a set with more than 11 classes trains under wrong names, shifted by one or more from the
#           13th class on, and merged with nothing that shows it but a look at the pictures.
# Versions: ultralytics 8.4.190
# Source:   ultralytics/data/converter.py, convert_coco and coco91_to_coco80_class;
#           https://github.com/ultralytics/ultralytics
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    ultralytics==8.4.190 faster-coco-eval==1.8.0

cat > recorded <<'END'
ultralytics 8.4.190
ids [1, 2, 11]: by default [0, 1, 10], cls91to80=False [0, 1, 10]
ids [11, 13, 14, 27]: by default [10, 11, 12, 24], cls91to80=False [10, 12, 13, 26]
ids [11, 12]: by default TypeError, cls91to80=False [10, 11]
END

venv/bin/python -W ignore - <<'END' | tee seen
import contextlib
import io
import json
import logging
import os
from pathlib import Path

os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_CONFIG_DIR"] = os.getcwd()
logging.disable(logging.WARNING)
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    import ultralytics
    from ultralytics.data.converter import convert_coco

print("ultralytics", ultralytics.__version__)


def classes(ids, **options):
    folder = Path("-".join(map(str, [*ids, *options])))
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps({
        "images": [{"id": 1, "width": 100, "height": 100, "file_name": "a.jpg"}],
        "categories": [{"id": n, "name": f"class {n}"} for n in ids],
        "annotations": [{"id": n, "image_id": 1, "category_id": n, "iscrowd": 0, "area": 25,
                         "bbox": [n, n, 5, 5]} for n in ids]}))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            convert_coco(str(folder), str(folder / "out"), **options)
    except TypeError as error:
        return type(error).__name__
    lines = next((folder / "out").rglob("a.txt")).read_text().splitlines()
    return [int(line.split()[0]) for line in lines]


for ids in ([1, 2, 11], [11, 13, 14, 27], [11, 12]):
    print(f"ids {ids}: by default {classes(ids)}, cls91to80=False {classes(ids, cls91to80=False)}")
END

diff recorded seen && echo "as recorded"
