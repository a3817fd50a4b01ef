"""torchmetrics is imported without matplotlib and scipy, and plots all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autotimm
from autotimm.torchmetrics_import import _StandIn

SCIPY = "import scipy.signal\nif not hasattr(scipy.signal, 'hamming'): scipy.signal.hamming = 1\n"
PLOTS = """\
import matplotlib
import matplotlib.axes
import matplotlib.pyplot as plt
KINDS = tuple[plt.Figure, matplotlib.axes.Axes, matplotlib.colors.Colormap]
@plt.style.context("a style")
def plot(): return plt.subplots(), matplotlib.axes.Axes
"""
FAKES = {
    "scipy/__init__.py": "",
    "scipy/signal.py": "",
    "matplotlib/__init__.py": "from matplotlib import colors",
    "matplotlib/colors.py": "Colormap = 'true map'",
    "matplotlib/axes.py": "Axes = 'true axes'",
    "matplotlib/pyplot.py": """\
import contextlib
from types import SimpleNamespace
Figure, styles = 'true figure', []
@contextlib.contextmanager
def context(style): styles.append(style); yield
style = SimpleNamespace(context=context)
def subplots(): return 'true subplots', *styles
""",
}


def python(folder: Path, torchmetrics: str, code: str) -> str:
    """What ``code`` prints beside packages that are named like the true ones."""
    for name, text in {**FAKES, "torchmetrics/__init__.py": torchmetrics}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}\n"
    code += "print(*sorted({'scipy', 'matplotlib', 'scipy.signal'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("torchmetrics", "code", "said"),
    [
        (SCIPY + PLOTS, "import autotimm, torchmetrics", ""),
        (
            SCIPY + PLOTS,
            "import autotimm, torchmetrics; print(torchmetrics.plot())",
            "(('true subplots', 'a style'), 'true axes')\nmatplotlib",
        ),
        # It is asked for more than torchmetrics asks today, in several ways.
        (
            PLOTS + "print(plt.subplots())",
            "import autotimm, torchmetrics",
            "('true subplots',)\nma",
        ),
        ("from matplotlib import colors", "import autotimm, torchmetrics", "matplotlib"),
        ("import matplotlib.colors", "import autotimm, torchmetrics", "matplotlib"),
        (SCIPY, "import autotimm, torchmetrics, scipy.signal", "scipy scipy.signal"),
        # Nothing is put in the place of what is there already.
        (SCIPY + PLOTS, "import matplotlib, autotimm, torchmetrics", "matplotlib"),
        (PLOTS, "import torchmetrics, autotimm", "matplotlib"),
    ],
)
def test_what_is_imported_with_torchmetrics(
    tmp_path: Path, torchmetrics: str, code: str, said: str
) -> None:
    found = python(tmp_path, torchmetrics, code)
    assert found.startswith(said) and (said or not found)


def test_an_error_in_torchmetrics_leaves_no_stand_in(tmp_path: Path) -> None:
    code = "import autotimm\ntry: import torchmetrics\nexcept ValueError: print('told')"
    assert python(tmp_path, SCIPY + "raise ValueError", code) == "told"


def test_a_true_metric_plots() -> None:
    from torchmetrics.classification import BinaryAccuracy
    from torchmetrics.utilities import plot

    assert isinstance(plot.plt, _StandIn)
    metric = BinaryAccuracy()
    metric.update(torch.ones(3), torch.ones(3))
    figure, _ = metric.plot()
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)


@pytest.mark.slow
def test_a_fit_starts_without_what_its_first_step_does_not_need(tmp_path: Path) -> None:
    code = f"""\
import sys
def check(*more):
    heavy = ("aiohttp", "albumentations", "matplotlib", "pycocotools", "s3fs", "scipy")
    found = [name for name in (*heavy, *more) if name in sys.modules]
    assert not found, found
    print("checked")
from autotimm import AutoTrainer, InstanceSegmentationDataModule, InstanceSegmentor
check("botocore", "tensorboard", "autotimm.evaluation.by_hotcoco")
def step(*_, **__):
    check()
    raise SystemExit(7)
InstanceSegmentor.training_step = step
from autotimm.cli.train import train
train(["fit", "--config", "launch/small_cpu.yaml", "--data.data_dir", "shards/sample",
       "--data.image_size", "128", "--data.num_workers", "0",
       "--trainer.default_root_dir", {str(tmp_path)!r}])
"""
    root = Path(autotimm.__file__).parents[1]
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert done.stdout.count("checked") == 2
