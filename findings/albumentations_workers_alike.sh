#!/usr/bin/env bash
# All workers of a DataLoader draw the same augmentations, in each epoch again
#
# Guess:    Compose without a seed is random: each worker process of a DataLoader draws numbers of its
#           own, and other ones in each epoch.
# Seen:     the generator is made with the Compose, before the workers are forked, and no worker seeds
#           it: four workers brighten four images by the same amount, and as new workers are forked
#           for each epoch, the next epoch repeats the last one. With persistent_workers the epochs
#           differ, the workers do not. Without workers all differ.
# Hurts:    a network sees a quarter of the augmentations that it should with four workers, and the
#           same ones for each place in the epoch: it learns them by heart, in silence. 2.0.8 is the
#           last release under the MIT licence, so it stays in use.
# Versions: albumentations 2.0.8, torch 2.14.1
# Source:   albumentations/core/composition.py, Compose.__init__ (random_generator) and
#           set_random_state; https://github.com/albumentations-team/albumentations (archived)
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    albumentations==2.0.8 opencv-python-headless==5.0.0.93 torch==2.14.1

cat > recorded <<'END'
albumentations 2.0.8
0 workers, persistent False: four images in a row alike False, second epoch like the first False
4 workers, persistent False: four images in a row alike True, second epoch like the first True
4 workers, persistent True: four images in a row alike True, second epoch like the first False
END

venv/bin/python -W ignore - <<'END' | tee seen
import albumentations as A
import numpy as np
import torch

print("albumentations", A.__version__)


class Photos(torch.utils.data.Dataset):
    def __init__(self):
        self.transform = A.Compose([A.RandomBrightnessContrast(p=1)])

    def __len__(self):
        return 16

    def __getitem__(self, index):
        grey = np.full((4, 4, 3), 100, np.uint8)
        return int(self.transform(image=grey)["image"][0, 0, 0])


for workers, persistent in ((0, False), (4, False), (4, True)):
    loader = torch.utils.data.DataLoader(
        Photos(), num_workers=workers, persistent_workers=persistent,
        multiprocessing_context="fork" if workers else None)
    first, second = ([int(batch) for batch in loader] for _ in range(2))
    alike = all(len(set(first[i:i + 4])) == 1 for i in range(0, 16, 4))
    print(f"{workers} workers, persistent {persistent}: four images in a row alike {alike}, "
          f"second epoch like the first {first == second}")
END

diff recorded seen && echo "as recorded"
