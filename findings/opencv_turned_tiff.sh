#!/usr/bin/env bash
# cv2.imread reads no TIFF that is to be turned, cv2.imdecode reads it
#
# Guess:    imread(file) is imdecode of its bytes: a TIFF with orientation 6 comes back turned (as
#           JPEG does) or as it lies, and Pillow gives the same size.
# Seen:     orientations 1 to 4 are read; for 5 to 8 imread returns None and logs an internal error,
#           with IMREAD_UNCHANGED and IMREAD_IGNORE_ORIENTATION too. imdecode of the same bytes gives
#           the turned picture, of the size that Pillow gives. OpenCV 4.12 did the same.
# Hurts:    scanners and microscopes turn TIFFs by this tag. A loader with imread fails in the middle
#           of an epoch, or skips them, where one with imdecode does not.
# Versions: opencv-python-headless 5.0.0.93
# Source:   modules/imgcodecs/src/loadsave.cpp, imread_: 'original_ptr == real_mat.data'
#           https://github.com/opencv/opencv/blob/5.x/modules/imgcodecs/src/loadsave.cpp
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 opencv-python-headless==5.0.0.93 pillow==13.0.0

cat > recorded <<'END'
OpenCV 5.0.0
orientation 1: imread (40, 60), ignoring it (40, 60), imdecode (40, 60), Pillow (40, 60)
orientation 3: imread (40, 60), ignoring it (40, 60), imdecode (40, 60), Pillow (40, 60)
orientation 5: imread None, ignoring it None, imdecode (60, 40), Pillow (60, 40)
orientation 6: imread None, ignoring it None, imdecode (60, 40), Pillow (60, 40)
orientation 8: imread None, ignoring it None, imdecode (60, 40), Pillow (60, 40)
END

venv/bin/python - <<'END' | tee seen
import os

os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
import cv2
import numpy as np
from PIL import Image


def size(picture: np.ndarray | None) -> object:
    return None if picture is None else picture.shape[:2]


print("OpenCV", cv2.__version__)
for orientation in (1, 3, 5, 6, 8):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40), "red").save("a.tif", exif=exif)
    with Image.open("a.tif") as picture:
        shown = np.asarray(picture).shape[:2]
    print(f"orientation {orientation}: imread {size(cv2.imread('a.tif'))}, ignoring it "
          f"{size(cv2.imread('a.tif', cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION))}, imdecode "
          f"{size(cv2.imdecode(np.fromfile('a.tif', np.uint8), cv2.IMREAD_COLOR))}, Pillow {shown}")
END

diff recorded seen && echo "as recorded"
