#!/usr/bin/env bash
# Trainer(precision="bf16-true") rounds the boxes of the targets to 8 pixels
#
# Guess:    the precision is that of weights and activations; what the dataset returns reaches the
#           step as it is, but for the device.
# Seen:     every float tensor of a batch, also in dicts and lists, becomes bfloat16 (float16 with
#           16-true), whose 8 significant bits round coordinates from 512 on to 4 pixels, from 1,024
#           on to 8. The mixed precisions leave batches alone.
# Hurts:    detectors learn from shifted boxes, and the metrics of validation compare with the same
#           shifted truth, so that nothing shows it; float timestamps, areas and image ids are
#           rounded, too.
# Versions: lightning 2.6.6, torch 2.14.1
# Source:   lightning/pytorch/plugins/precision/half.py, HalfPrecision.convert_input;
#           https://github.com/Lightning-AI/pytorch-lightning
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    lightning==2.6.6 torch==2.14.1 numpy==2.4.6

cat > recorded <<'END'
lightning 2.6.6
dataset: [[437.0, 629.5, 1003.0, 1279.0]]
32-true: [[437.0, 629.5, 1003.0, 1279.0]]
bf16-mixed: [[437.0, 629.5, 1003.0, 1279.0]]
16-true: [[437.0, 629.5, 1003.0, 1279.0]]
bf16-true: [[436.0, 628.0, 1004.0, 1280.0]]
END

venv/bin/python -W ignore - <<'END' | tee seen
import logging

import lightning.pytorch as pl
import torch

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
print("lightning", pl.__version__)


class Shown(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, _):
        self.seen = batch["targets"][0]["boxes"]
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


boxes = torch.tensor([[437.0, 629.5, 1003.0, 1279.0]])
print("dataset:", boxes.tolist())
for precision in ("32-true", "bf16-mixed", "16-true", "bf16-true"):
    model = Shown()
    trainer = pl.Trainer(
        precision=precision, accelerator="cpu", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    samples = [{"targets": [{"boxes": boxes}]}]
    trainer.fit(model, torch.utils.data.DataLoader(samples, batch_size=None))
    print(f"{precision}: {model.seen.float().tolist()}")
END

diff recorded seen && echo "as recorded"
