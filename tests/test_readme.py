"""The README's commands and Python blocks, run as written but for their cost."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from autotimm.data.synthetic import make_dataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CHEAP = {
    "fit": "--model.init_args.backbone=resnet10t --model.init_args.fpn_channels=32"
    " --model.init_args.head_convs=1 --data.image_size=96 --trainer.max_epochs=1"
    " --data.num_workers=0 --trainer.check_val_every_n_epoch=1",
    "test": "",
    "predict": "",
}


def commands() -> list[str]:
    lines = re.findall(r"^ {4}(\S.*)$", README, flags=re.MULTILINE)
    known = ("autotimm-shard ", "torchrun ", "python launch/")  # sbatch needs a cluster
    return [line for line in lines if line.startswith(known)]


@pytest.mark.slow
def test_commands_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset("coco", train=8, val=4, size=96)
    Path("launch").symlink_to(ROOT / "launch")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    ran = set()
    for command in commands():
        verb = next((verb for verb in CHEAP if f"train.py {verb}" in command), "shard")
        words = shlex.split(f"{command} {CHEAP.get(verb, '')}")
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        ran.add(verb)
    assert ran == {"shard", "fit", "test", "predict"}

    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    cheaper = {
        'backbone="resnet50",': 'backbone="resnet10t", pretrained=False, compile_model=False,',
        "image_size=640": "image_size=96, num_workers=0",
        "max_epochs=12": "max_epochs=1, accelerator='cpu'",
    }
    first = blocks[0]
    for dear, cheap in cheaper.items():
        assert dear in first
        first = first.replace(dear, cheap)
    exec(first, {})  # noqa: S102
    Image.new("RGB", (200, 150)).save("photo.jpg")
    names: dict = {}
    exec(blocks[1], names)  # noqa: S102
    assert set(names["found"]) == {"boxes", "labels", "scores", "masks"}
    assert Image.open("found.png").size == (200, 150)


def test_every_config_named_is_there_and_every_config_is_named() -> None:
    named = set(re.findall(r"launch/(\w+\.yaml)", README))
    assert named == {path.name for path in (ROOT / "launch").glob("*.yaml")}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
