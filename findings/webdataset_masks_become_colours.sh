#!/usr/bin/env bash
# webdataset's decode makes colours of a mask's class numbers, and white of 16 bits
#
# Guess:    decode() gives the pixels that are in a PNG: class numbers of a palette mask (VOC,
#           Cityscapes tools), 16-bit values of a microscope or of instance ids.
# Seen:     each image is converted to RGB or grey first: numbers of a palette are replaced by its
#           colours, or by their brightness with "l8", and 16 bits are cut off at 255. "pil" converts,
#           too.
# Hurts:    instance masks of more than 255 objects lose those above, palette masks train on
#           brightnesses as class numbers, 12-bit images are nearly white: without a warning.
# Versions: webdataset 1.0.2, pillow 13.0.0
# Source:   webdataset/autodecode.py, ImageHandler; https://github.com/webdataset/webdataset
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    webdataset==1.0.2 pillow==13.0.0 numpy==2.4.6 torch==2.14.1

cat > recorded <<'END'
webdataset 1.0.2
stored: classes 0 1 2, instances 0 255 300
l8 classes.png (1, 3) [0, 38, 75]
l8 instances.png (1, 3) [0, 255, 255]
rgb8 classes.png (1, 3, 3) [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
rgb8 instances.png (1, 3, 3) [[0, 0, 0], [255, 255, 255], [255, 255, 255]]
pil classes.png (1, 3, 3) [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
pil instances.png (1, 3, 3) [[0, 0, 0], [255, 255, 255], [255, 255, 255]]
END

venv/bin/python -W ignore - <<'END' | tee seen
import io

import numpy as np
import webdataset as wds
from PIL import Image

print("webdataset", wds.__version__)
palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
values = np.array([[0, 255, 300]], np.uint16)


def png(image):
    memory = io.BytesIO()
    image.save(memory, "PNG")
    return memory.getvalue()


with wds.TarWriter("a.tar") as shard:
    shard.write({"__key__": "a", "classes.png": png(palette),
                 "instances.png": png(Image.fromarray(values))})
print("stored: classes 0 1 2, instances 0 255 300")
for kind in ("l8", "rgb8", "pil"):
    sample = next(iter(wds.WebDataset("a.tar", shardshuffle=False).decode(kind)))
    for name in ("classes.png", "instances.png"):
        pixels = np.asarray(sample[name])
        print(kind, name, pixels.shape, pixels[0].tolist())
END

diff recorded seen && echo "as recorded"
