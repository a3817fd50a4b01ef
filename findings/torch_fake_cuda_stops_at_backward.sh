#!/usr/bin/env bash
# A fake GPU runs a forward pass, but no backward pass and no autocast
#
# Guess:    under FakeTensorMode a machine without a GPU traces a training step for "cuda" as it does
#           for "cpu": shapes, types and memory are those of the GPU, and nothing is computed.
# Seen:     the forward pass is there. backward() ends with a RuntimeError about the primary context
#           of device 0, and autocast("cuda") turns itself off with a warning, so the products of a
#           16-bit step are float32 and take twice the bytes. On fake "cpu" and "meta" tensors
#           backward() works, and autocast("cpu") makes 16 bits.
# Hurts:    an estimate of a step's memory or traffic for a GPU, made on a laptop or in CI, has half
#           of the step, and that in the wrong precision.
# Versions: torch 2.14.1
# Source:   torch/autograd/graph.py, _engine_run_backward; torch/amp/autocast_mode.py,
#           autocast.__init__; seen by running it
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1

cat > recorded <<'END'
torch 2.14.1
cpu: forward on cpu, backward done, a product under autocast is torch.bfloat16
meta: forward on meta, backward done
cuda: forward on cuda, backward RuntimeError, a product under autocast is torch.float32
END

CUDA_VISIBLE_DEVICES="" venv/bin/python -W ignore - <<'END' | tee seen
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

print("torch", torch.__version__.partition("+")[0])
for device, half in (("cpu", torch.bfloat16), ("meta", None), ("cuda", torch.float16)):
    with FakeTensorMode(), torch.device(device):
        layer = torch.nn.Conv2d(3, 8, 3)
        loss = layer(torch.randn(2, 3, 16, 16)).sum()
        try:
            loss.backward()
            backward = "done"
        except RuntimeError as error:
            backward = type(error).__name__
        line = f"{device}: forward on {loss.device.type}, backward {backward}"
        if half is not None:
            with torch.autocast(device, half):
                product = torch.ones(4, 4) @ torch.ones(4, 4)
            line += f", a product under autocast is {product.dtype}"
        print(line)
END

diff recorded seen && echo "as recorded"
