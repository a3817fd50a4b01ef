"""docs/quickstart.ipynb runs from its first to its last cell, on fewer images and epochs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
NotebookClient = pytest.importorskip("nbclient").NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs/quickstart.ipynb"
CHEAPER = {"IMAGES = 160": "IMAGES = 4", "EPOCHS = 8": "EPOCHS = 4", "--samples 3": "--samples 1"}
"""Four epochs: the metrics are measured after every fourth."""


def test_the_file_has_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_it_runs_and_shows_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for dear, cheap in CHEAPER.items():
        cells = [cell for cell in notebook.cells if dear in cell.source]
        assert len(cells) == 1, dear
        cells[0].source = cells[0].source.replace(dear, cheap)
    # A kernel has the environment of its notebook server, in which the venv is active.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # raises CellExecutionError where a cell fails

    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    text = "".join(one.text for one in outputs if one.output_type == "stream")
    assert "wrote shards/manifest.json" in text
    assert "mask AP: 0." in text
    shown = [one for one in outputs if "image/png" in one.get("data", {})]
    assert len(shown) == 5, "the preview and four photos"
    assert (tmp_path / "preview.png").is_file()
    assert (tmp_path / "runs/last/checkpoints/best.ckpt").is_file()
