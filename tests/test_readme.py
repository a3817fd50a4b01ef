"""The commands and Python blocks of the README and of docs/, run as written but for their cost."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from PIL import Image
from servers import serve

from autotimm.cli import main
from autotimm.data.synthetic import make_dataset

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
ORDER = ["README.md", "docs/preparing-data.md", "docs/training.md"]
"""What these make, the other pages use."""

FIT = (
    "--model.init_args.fpn_channels=32 --model.init_args.head_convs=1 --model.init_args.mask_rois=4"
    " --data.image_size=96 --data.num_workers=0 --trainer.precision=32-true --trainer.max_epochs=1"
    " --trainer.check_val_every_n_epoch=1"
)
CHEAP = {
    "fit": FIT,
    "predict": "--image-size 96",
    "preview": "--samples 1 --image-size 96",
}
"""Flags that are appended to a command, by its verb; for the least cost."""

CHEAPER = {
    'backbone="resnet50",': (
        'backbone="resnet10t", pretrained=False, compile_model=False, fpn_channels=32, mask_rois=4,'
    ),
    "image_size=640": "image_size=96, num_workers=0",
    "max_epochs=12": "max_epochs=1, accelerator='cpu', limit_val_batches=1",
}
"""What is put in the place of what costs much in a Python block."""


def commands(page: str) -> list[str]:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^ {4}(\S.*)$", text, flags=re.MULTILINE)
    known = ("autotimm ", "torchrun ", "python ")  # sbatch needs a cluster, make installs
    return [line for line in lines if line.startswith(known)]


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run(command: str, launchers: set[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Runs a command; returns its verb where it is one of ours.

    ``autotimm`` runs in this process, for torch is imported already. What launches it (torchrun
    with its flags) runs as written the first time; these ``launchers`` are noted, and another
    command of theirs runs on forked ranks.
    """
    words = shlex.split(command)
    at = words.index("autotimm") if "autotimm" in words else len(words)
    launcher, [verb, *_] = shlex.join(words[:at]), [*words[at + 1 :], None]
    words += shlex.split(CHEAP.get(verb or "", ""))
    told = "code"
    if not launcher:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main.main()
        code: Any = ended.value.code
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        if launcher in launchers:
            ranks = int(words[words.index("--nproc-per-node") + 1])
            done = forked.run_ranks("-m", *words[at:], ranks=ranks, env=environment)
        else:
            done = subprocess.run(
                words, env=environment, capture_output=True, text=True, check=False
            )
        launchers.add(launcher)
        code, told = done.returncode, done.stderr[-3000:]
    assert not code, f"{command}\n{told}"
    return verb


def make_clip(path: str) -> None:
    """A video of four frames."""
    av = pytest.importorskip("av")
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for shade in (0, 80, 160, 240):
            pixels = np.full((96, 128, 3), shade, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # so short a fit is warned of, in many ways
def test_commands_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset("coco", train=8, val=4, size=96)
    shutil.copytree(ROOT / "shards/sample", "shards/sample")
    shutil.copytree(ROOT / "docs", "docs")
    Path("launch").symlink_to(ROOT / "launch")
    Path("photos").mkdir()
    Image.new("RGB", (200, 150), (90, 120, 40)).save("photos/photo.jpg")
    make_clip("clip.mp4")
    ran, launchers = set(), set[str]()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for page in [*ORDER, *(page for page in PAGES if page not in ORDER)]:
        with serve(tmp_path / "shards") as server:
            server.ranges = True
            written = [line.replace("https://host/shards", server.url) for line in commands(page)]
            ran |= {run(command, launchers, monkeypatch) for command in written}
        names: dict[str, Any] = {"__name__": "__main__"}  # what timm registers has a module
        for block in blocks(page):
            for dear, cheap in CHEAPER.items():
                block = block.replace(dear, cheap)
            exec(compile(block, page, "exec"), names)  # noqa: S102
    assert ran >= {"shard", "preview", "fit", "evaluate", "predict", "export"}

    assert Image.open("found.png").size == (200, 150)
    assert Path("found/results.json").is_file()
    for name in (
        "results.json",
        "metrics.json",
        "precision_recall.png",
        "worst.png",
        "report.html",
    ):
        assert Path("evaluation", name).is_file()
    assert "| mask |" in Path("model.md").read_text()
    assert Path("theirs/metrics.json").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_that_is_named_is_one(page: str) -> None:
    text = (ROOT / page).read_text()
    told = set(re.findall(r"(?:^ {4}|-m |`)autotimm ([a-z_]+)", text, flags=re.MULTILINE))
    assert told <= set(main.verb_lines())


def test_every_config_named_is_there_and_every_config_is_named() -> None:
    texts = "".join((ROOT / page).read_text() for page in PAGES)
    named = set(re.findall(r"launch/(\w+\.yaml)", texts))
    assert named == {path.name for path in (ROOT / "launch").glob("*.yaml")}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        found = (ROOT / page).parent / target
        assert target.startswith("https://") or found.exists(), target
