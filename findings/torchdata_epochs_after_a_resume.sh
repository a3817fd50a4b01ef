#!/usr/bin/env bash
# StatefulDataLoader without workers: the epochs after a resumed one have another order
#
# Guess:    load_state_dict restores the loader: the rest of the epoch and all later epochs are those
#           of the run that nobody stopped.
# Seen:     with num_workers=0 the rest of the epoch is right, and every later epoch is shuffled
#           otherwise than in the undisturbed run, also after a state that was saved between two
#           epochs. With one or two workers all epochs agree. The generator has a seed in each case.
# Hurts:    a resumed run is not the run that was planned, and a test that looks at the rest of the
#           epoch, or uses workers, does not see it.
# Versions: torchdata 0.11.0, torch 2.14.1
# Source:   torchdata/stateful_dataloader/stateful_dataloader.py,
#           _StatefulSingleProcessDataLoaderIter, and sampler.py; https://github.com/meta-pytorch/data
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    torchdata==0.11.0 torch==2.14.1 numpy==2.4.6

cat > recorded <<'END'
torchdata 0.11.0
0 workers: rest of the epoch as planned True, later epochs False False
1 workers: rest of the epoch as planned True, later epochs True True
2 workers: rest of the epoch as planned True, later epochs True True
END

venv/bin/python -W ignore - <<'END' | tee seen
import importlib.metadata

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

print("torchdata", importlib.metadata.version("torchdata"))


def new(workers):
    return StatefulDataLoader(list(range(100)), batch_size=10, shuffle=True, num_workers=workers,
                              generator=torch.Generator().manual_seed(0))


def epoch(batches):
    return [batch.tolist() for batch in batches]


for workers in (0, 1, 2):
    loader = new(workers)
    undisturbed = [epoch(loader) for _ in range(3)]
    stopped = new(workers)
    batches = iter(stopped)
    for _ in range(4):
        next(batches)
    resumed = new(workers)
    resumed.load_state_dict(stopped.state_dict())
    seen = [epoch(resumed) for _ in range(3)]
    print(f"{workers} workers: rest of the epoch as planned {seen[0] == undisturbed[0][4:]}, "
          f"later epochs {seen[1] == undisturbed[1]} {seen[2] == undisturbed[2]}")
END

diff recorded seen && echo "as recorded"
