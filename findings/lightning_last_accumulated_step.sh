#!/usr/bin/env bash
# accumulate_grad_batches: the last step of an epoch has a part of the gradient
#
# Guess:    the gradient of an optimizer step is the mean over the batches that it accumulates, also
#           if the epoch ends before there are as many as asked for.
# Seen:     each batch's loss is divided by accumulate_grad_batches, also those of the last, shorter
#           step: 6 batches by fours make one step with the mean gradient and one with half of it.
# Hurts:    with SGD one step of each epoch is too short, by a factor that depends on the size of the
#           set; gradient clipping and norms in the log see a sudden small step. A set of fewer
#           batches than asked for learns at a fraction of its rate.
# Versions: lightning 2.6.6, torch 2.14.1
# Source:   lightning/pytorch/loops/optimization/automatic.py (normalize) and
#           loops/training_epoch_loop.py; https://github.com/Lightning-AI/pytorch-lightning
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
8 batches: gradients of the steps [1.0, 1.0]
6 batches: gradients of the steps [1.0, 0.5]
1 batches: gradients of the steps [0.25]
END

venv/bin/python -W ignore - <<'END' | tee seen
import logging

import lightning.pytorch as pl
import torch

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
print("lightning", pl.__version__)


class Constant(pl.LightningModule):
    """Each batch has the gradient 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.gradients = []

    def training_step(self, batch, _):
        return self.weight.sum()

    def on_before_optimizer_step(self, _):
        self.gradients.append(float(self.weight.grad))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


for batches in (8, 6, 1):
    model = Constant()
    trainer = pl.Trainer(
        accumulate_grad_batches=4, accelerator="cpu", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(model, torch.utils.data.DataLoader(torch.zeros(batches)))
    print(f"{batches} batches: gradients of the steps {model.gradients}")
END

diff recorded seen && echo "as recorded"
