#!/usr/bin/env bash
# Pillow opens signed bytes, 32-bit values and 16-bit planes of a TIFF as other values
#
# Guess:    Pillow gives the values that the file has, or raises UnidentifiedImageError as for float16
#           and 64 bits.
# Seen:     bytes with a sign open as grey without one (-1 is 255), unsigned 32 bits as signed ones (2
#           ** 31 is -2147483648). RGB of 16 bits in planes, as microscopes and tifffile's
#           planarconfig='separate' write it, opens as 8-bit RGB of the low and high bytes by turns:
#           noise of the right size. The same pixels interleaved, or with 8 bits, are right.
# Hurts:    a network trains on noise of the right shape, or on images whose dark parts are white;
#           nothing is printed.
# Versions: pillow 13.0.0, tifffile 2026.3.3, numpy 2.4.6
# Source:   src/PIL/TiffImagePlugin.py, OPEN_INFO and the decoding of planes;
#           https://github.com/python-pillow/Pillow
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6

cat > recorded <<'END'
Pillow 13.0.0
int8: mode L, [-128, -1, 0, 127] is [128, 255, 0, 127]
uint32: mode I, [0, 2147483648, 4294967295] is [0, -2147483648, -1]
16 bits, interleaved: mode RGB, 100% of the pixels have the value's high byte
16 bits, in planes: mode RGB, 2% of the pixels have the value's high byte
8 bits, in planes: mode RGB, 100% of the pixels have the value's high byte
END

venv/bin/python -W ignore - <<'END' | tee seen
import numpy as np
import PIL
import tifffile
from PIL import Image

print("Pillow", PIL.__version__)


def opened(name, values, **options):
    tifffile.imwrite("a.tif", values, **options)
    with Image.open("a.tif") as image:
        return f"{name}: mode {image.mode}", np.asarray(image)


for name, values in (("int8", np.array([[-128, -1, 0, 127]], np.int8)),
                     ("uint32", np.array([[0, 2**31, 2**32 - 1]], np.uint32))):
    words, pixels = opened(name, values)
    print(f"{words}, {values[0].tolist()} is {pixels[0].tolist()}")
planes = (np.arange(3 * 4 * 5).reshape(3, 4, 5) * 1000).astype(np.uint16)
interleaved = np.ascontiguousarray(planes.transpose(1, 2, 0))
for name, values, planar in (("16 bits, interleaved", interleaved, "contig"),
                             ("16 bits, in planes", planes, "separate"),
                             ("8 bits, in planes", (planes >> 8).astype(np.uint8), "separate")):
    words, pixels = opened(name, values, photometric="rgb", planarconfig=planar)
    share = (pixels == interleaved >> 8).mean()
    print(f"{words}, {share:.0%} of the pixels have the value's high byte")
END

diff recorded seen && echo "as recorded"
