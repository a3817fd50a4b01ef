#!/usr/bin/env bash
# Pillow reads a turned grey TIFF rightly from bytes, and sheared from a path
#
# Guess:    Image.open(path) and Image.open(BytesIO(the same bytes)) give the same pixels.
# Seen:     of an uncompressed grey TIFF, 8 or 16 bits, with orientation 6 or 8, the bytes give the
#           upright picture; the path gives rows cut at the wrong width, in the size as stored, without
#           an error or a warning. Orientation 3, and RGB, are the same both ways.
# Hurts:    microscopes and scanners write such files; a data set that opens images by path (as
#           torchvision's CocoDetection does) trains on noise under masks that are right.
# Versions: pillow 13.0.0; 11.3.0 and 12.1.0 did the same
# Source:   PIL/ImageFile.py, load(): a file with a name and an uncompressed tile is mapped into memory
#           in rows of self.size, which TiffImagePlugin has turned already;
#           https://github.com/python-pillow/Pillow/blob/main/src/PIL/ImageFile.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.4.6 pillow==13.0.0

cat > recorded <<'END'
Pillow 13.0.0
8 bits, orientation 3: by path upright; from bytes upright
8 bits, orientation 6: by path neither stored nor upright, (40, 60); from bytes upright
8 bits, orientation 8: by path neither stored nor upright, (40, 60); from bytes upright
16 bits, orientation 3: by path upright; from bytes upright
16 bits, orientation 6: by path neither stored nor upright, (40, 60); from bytes upright
16 bits, orientation 8: by path neither stored nor upright, (40, 60); from bytes upright
RGB, orientation 3: by path upright; from bytes upright
RGB, orientation 6: by path upright; from bytes upright
RGB, orientation 8: by path upright; from bytes upright
END

venv/bin/python - <<'END' | tee seen
import io
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
grey = np.arange(40 * 60).reshape(40, 60)
pictures = {
    "8 bits": (grey % 251).astype(np.uint8),
    "16 bits": grey.astype(np.uint16),
    "RGB": np.repeat((grey % 251).astype(np.uint8)[..., None], 3, axis=2),
}
turns = {3: 2, 6: -1, 8: 1}  # quarters against the clock
for name, stored in pictures.items():
    for orientation, quarters in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save("a.tif", exif=exif)
        upright = np.rot90(stored, quarters)
        results = []
        for source in ("a.tif", io.BytesIO(Path("a.tif").read_bytes())):
            with Image.open(source) as picture:
                found = np.asarray(picture)
            if np.array_equal(found, upright):
                results.append("upright")
            else:
                where = "as stored" if np.array_equal(found, stored) else "neither stored nor upright"
                results.append(f"{where}, {found.shape[:2]}")
        print(f"{name}, orientation {orientation}: by path {results[0]}; from bytes {results[1]}")
END

diff recorded seen && echo "as recorded"
