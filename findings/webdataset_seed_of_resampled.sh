#!/usr/bin/env bash
# WebDataset(resampled=True, seed=7) draws other shards in each run
#
# Guess:    seed= makes runs draw the same shards, as it does without resampled.
# Seen:     with resampled=True the seed of the list of shards is mixed with the process id, the time
#           and random bytes; seed= of WebDataset has no effect on it. ResampledShards(...,
#           deterministic=True) in a pipeline of one's own is the same in each run. Without resampled
#           the same seed gives the same order.
# Hurts:    a run cannot be repeated, an error not be found again, and two runs of an ablation see
#           other data, although all seeds were set.
# Versions: webdataset 1.0.2, torch 2.14.1
# Source:   webdataset/shardlists.py, ResampledShards.__iter__; webdataset/compat.py, WebDataset;
#           https://github.com/webdataset/webdataset/blob/main/src/webdataset/shardlists.py
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    webdataset==1.0.2 torch==2.14.1 numpy==2.4.6

cat > recorded <<'END'
webdataset 1.0.2
resampled, the same twice: False
not resampled, the same twice: True
ResampledShards(deterministic=True), the same twice: True
END

venv/bin/python -W ignore - <<'END' | tee seen
import itertools

import torch
import webdataset as wds

torch.manual_seed(0)
print("webdataset", wds.__version__)
for number in range(40):
    with wds.TarWriter(f"{number:02d}.tar") as shard:
        shard.write({"__key__": str(number), "cls": number})
shards = [f"{number:02d}.tar" for number in range(40)]


def drawn(**options):
    return [s["__key__"] for s in itertools.islice(wds.WebDataset(shards, seed=7, **options), 20)]


def pipeline():
    source = wds.ResampledShards(shards, seed=7, deterministic=True)
    parts = wds.DataPipeline(source, wds.tarfile_to_samples())
    return [sample["__key__"] for sample in itertools.islice(parts, 20)]


print("resampled, the same twice:", drawn(resampled=True, shardshuffle=False)
      == drawn(resampled=True, shardshuffle=False))
print("not resampled, the same twice:", drawn(shardshuffle=40) == drawn(shardshuffle=40))
print("ResampledShards(deterministic=True), the same twice:", pipeline() == pipeline())
END

diff recorded seen && echo "as recorded"
