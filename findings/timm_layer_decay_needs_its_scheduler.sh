#!/usr/bin/env bash
# layer_decay of timm's optimizers does nothing under PyTorch's or Lightning's schedules
#
# Guess:    create_optimizer_v2(model, lr=..., layer_decay=0.65) gives each layer its own learning
#           rate.
# Seen:     all groups have the same lr; the factor stands in the group's lr_scale, which timm's
#           schedulers alone apply. With a scheduler of torch.optim (as in Lightning), or with none,
#           each layer trains at the full rate.
# Hurts:    fine-tuning of a ViT with the recipe of its paper moves the first layers 270 times faster
#           than meant, in silence; the result is a little worse, and nobody looks for it there.
# Versions: timm 1.0.31, torch 2.14.1
# Source:   timm/optim/_optim_factory.py and timm/scheduler/scheduler.py, update_groups;
#           https://github.com/huggingface/pytorch-image-models
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    timm==1.0.31 torch==2.14.1 torchvision==0.29.1

cat > recorded <<'END'
timm 1.0.31
no schedule: 1 learning rates, largest / smallest 1
torch.optim.lr_scheduler.CosineAnnealingLR: 1 learning rates, largest / smallest 1
timm.scheduler.CosineLRScheduler: 14 learning rates, largest / smallest 270
END

venv/bin/python -W ignore - <<'END' | tee seen
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

print("timm", timm.__version__)
model = timm.create_model("vit_tiny_patch16_224", pretrained=False)


def rates(schedule):
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.65)
    schedule(optimizer)
    values = [group["lr"] for group in optimizer.param_groups]
    return f"{len(set(values))} learning rates, largest / smallest {max(values) / min(values):.0f}"


def of_torch(optimizer):
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    optimizer.step()
    schedule.step()


print("no schedule:", rates(lambda optimizer: None))
print("torch.optim.lr_scheduler.CosineAnnealingLR:", rates(of_torch))
print("timm.scheduler.CosineLRScheduler:",
      rates(lambda optimizer: CosineLRScheduler(optimizer, 100).step(1)))
END

diff recorded seen && echo "as recorded"
