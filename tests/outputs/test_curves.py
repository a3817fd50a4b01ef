"""The curves of a run against what was logged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotimm.cli import plot
from autotimm.outputs import curves
from autotimm.outputs.curves import METRICS, PICTURE, Curves, SaveCurves, draw, read_curves
from autotimm.structures import InputError

HEAD = "epoch,step,train/loss,train/boxes_loss,train/lr,train/data_wait,val/box_mAP,val/mask_mAP_50"
ROWS = """
0,1,4.0,1.0,0.1,0.5,,
0,3,3.0,nan,0.2,,,
0,3,,,,,0.25,0.5
1,5,2.0,0.5,0.1,,,
1,7,,,,,0.5,-1
2,8,1.0,0.25,0.05,,,
"""


def written(folder: Path, text: str = HEAD + ROWS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / METRICS).write_text(text)
    return folder / METRICS


def test_figures_are_those_of_the_file_in_epochs(tmp_path: Path) -> None:
    found = read_curves(written(tmp_path))
    # Epochs of four steps; the third has one step so far, a quarter of an epoch.
    x, y = found.losses["loss"]
    assert x.tolist() == [0.5, 1.0, 1.5, 2.25] and y.tolist() == [4, 3, 2, 1]
    assert found.losses["boxes_loss"][1].tolist() == [1, 0.5, 0.25]  # without the NaN
    assert found.rates["lr"][1].tolist() == [0.1, 0.2, 0.1, 0.05]
    assert [part.tolist() for part in found.scores["box_mAP"]] == [[1, 2], [0.25, 0.5]]
    assert [part.tolist() for part in found.scores["mask_mAP_50"]] == [[1], [0.5]]  # -1: no truth
    assert set(found.losses) == {"loss", "boxes_loss"} and set(found.rates) == {"lr"}


def test_epochs_of_several_lengths(tmp_path: Path) -> None:
    rows = [(0, 9), (1, 14), (2, 16), (2, 19), (3, 20)]
    text = "epoch,step,train/loss\n" + "".join(f"{e},{s},1\n" for e, s in rows)
    x, _ = read_curves(written(tmp_path, text)).losses["loss"]
    assert x.tolist() == [1, 2, 2.4, 3, 3.2]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),  # as a spreadsheet saves it
        lambda text: text + "2,9,0.",  # while it is written
        lambda text: text + "epoch,step,train/loss\n,,\n",
    ],
)
def test_odd_files_give_what_is_in_them(change: Any, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(change(HEAD + ROWS).encode())
    assert read_curves(tmp_path / METRICS).losses["loss"][1].tolist()[:4] == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "holds no losses"),
        (b"epoch,step,train/loss\n", "holds no losses"),
        (b"a,b\n1,2\n", "holds no losses"),
        (b"\xff\xfe\x00\x01", "is no table of metrics"),
        (b"epoch,step,train/loss\n0,0,\x00\n", "holds no losses"),
    ],
)
def test_what_holds_no_curves_is_one_line(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / METRICS).write_bytes(content)
    args = plot.parser().parse_args([str(tmp_path), "--out", str(tmp_path / "plot.png")])
    with pytest.raises(InputError, match=f"{METRICS}.*{message}"):
        plot.run(args)
    assert not (tmp_path / "plot.png").exists()


def resumed(folder: Path, checkpoint: str | None, rows: str, **record: Any) -> Path:
    """A run of the columns epoch, step, loss and mask AP that went on from a checkpoint."""
    path = written(folder, f"epoch,step,train/loss,val/mask_mAP\n{rows}")
    (folder / "run.json").write_text(json.dumps({"from": checkpoint} | record))
    return path


def test_a_resumed_run_has_the_steps_of_those_before_it_once(tmp_path: Path) -> None:
    resumed(tmp_path / "version_0", None, "0,1,9,\n0,3,8,\n0,3,,0.1\n1,5,7,\n1,6,6,\n")
    # It repeats steps 4 to 6: the earlier run was killed after its last save.
    first = f"{tmp_path.name}/version_0/checkpoints/step_4.ckpt"  # as if the folder had moved
    resumed(tmp_path / "version_1", first, "0,3,,0.2\n1,5,5,\n1,7,4,\n2,9,3,\n")
    own = str(tmp_path / "version_2" / "checkpoints" / "step_11.ckpt")
    second = str(tmp_path / "version_1" / "checkpoints" / "last.ckpt")
    last = resumed(tmp_path / "version_2", own, "2,11,2,\n3,13,1,0.4\n", continues=second)
    found = read_curves(last)
    x, y = found.losses["loss"]
    assert x.tolist() == [0.5, 1, 1.5, 2, 2.5, 3, 3.5] and y.tolist() == [9, 8, 5, 4, 3, 2, 1]
    assert [part.tolist() for part in found.scores["mask_mAP"]] == [[1, 3.5], [0.2, 0.4]]
    # Of last.ckpt the step is not known: the second run goes as far as the third begins.
    assert found.resumed == {"version_0": 1, "version_1": 3 - 0.25} and found.missing is None
    alone = read_curves(last, [tmp_path / "version_0", tmp_path / "version_1"])
    assert alone.losses["loss"][1].tolist() == [2, 1] and not alone.resumed


@pytest.mark.parametrize(
    ("record", "missing"),
    [
        ({"from": "gone/version_9/checkpoints/step_4.ckpt"}, True),
        ({"from": "https://host/runs/a/checkpoints/step_4.ckpt"}, True),
        ({"from": "step_4.ckpt", "continues": None}, False),  # a test, or a new run
        ({"from": 7}, False),
        ([], False),
    ],
)
def test_an_earlier_run_that_is_not_there(record: Any, missing: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "a")
    (tmp_path / "a" / "run.json").write_text(json.dumps(record))
    found = read_curves(path)
    assert found.losses["loss"][1].tolist() == [4, 3, 2, 1] and not found.resumed
    assert found.missing == (record["from"] if missing else None)


def test_runs_that_went_on_from_each_other_end(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        checkpoint = tmp_path / other / "checkpoints" / "step_1.ckpt"
        path = resumed(tmp_path / name, str(checkpoint), "0,0,1,\n0,1,2,\n")
    assert read_curves(path).losses["loss"][1].tolist() == [1, 2]


def test_many_values_are_drawn_as_means_of_neighbours() -> None:
    values = np.random.default_rng(0).random(500)
    smooth = curves._smoothed(values)
    for at in (0, 7, 10, 250, 499):
        near = values[max(at - 10, 0) : at + 11]
        assert math.isclose(smooth[at], near.mean(), rel_tol=1e-9)
    few = values[:50]
    assert curves._smoothed(few) is few


def test_the_picture_shows_each_curve(tmp_path: Path) -> None:
    found = read_curves(written(tmp_path))
    whole = draw({"a": found})
    assert whole.dtype == np.uint8 and whole.shape == (480, 1600, 3)
    thirds = np.array_split(whole, 3, axis=1)
    for panel, part in enumerate(("losses", "scores", "rates")):
        less = draw({"a": Curves(**{p: getattr(found, p) for p in found.__slots__} | {part: {}})})
        changed = [
            (a != b).any() for a, b in zip(thirds, np.array_split(less, 3, axis=1), strict=True)
        ]
        assert changed[panel]
    assert (draw({"a": found, "$b$": found}) != whole).any()
    marked = draw({"a": replace(found, resumed={"version_0": 1.0})})
    for before, after in zip(thirds, np.array_split(marked, 3, axis=1), strict=True):
        columns = (before != after).any(axis=(0, 2))
        assert 0 < columns.sum() < 60  # a line and a word, in each panel


def test_a_fit_leaves_the_picture_or_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer: Any = SimpleNamespace(log_dir=str(tmp_path / "run"), is_global_zero=True, loggers=[])
    (tmp_path / "run").mkdir()
    SaveCurves().on_fit_end(trainer, None)  # type: ignore[arg-type]
    assert not (tmp_path / "run" / PICTURE).exists()  # without metrics.csv
    written(tmp_path / "run")
    SaveCurves().on_fit_end(trainer, None)  # type: ignore[arg-type]
    assert Image.open(tmp_path / "run" / PICTURE).size == (1600, 480)
    (tmp_path / "run" / METRICS).write_bytes(b"\xff")
    with pytest.warns(UserWarning, match=f"{PICTURE} cannot be written .*no table of metrics"):
        SaveCurves().on_fit_end(trainer, None)  # type: ignore[arg-type]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "a")
    other = written(tmp_path / "b", "epoch,step,train/loss\n0,0,1\n")
    out = tmp_path / "plot.png"
    args = plot.parser().parse_args([str(tmp_path / "a"), str(other), "--out", str(out)])
    assert plot.run(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{tmp_path / 'a'}: highest box_mAP 0.500 after epoch 2",
        f"{tmp_path / 'a'}: highest mask_mAP_50 0.500 after epoch 1",
        str(out),
    ]
    assert Image.open(out).size == (1600, 480)
    went_on = resumed(tmp_path / "c", str(tmp_path / "a" / "checkpoints" / "step_4.ckpt"), "1,7,1,")
    resumed(tmp_path / "d", "x/gone/checkpoints/step_4.ckpt", "1,7,1,")
    runs = [str(went_on), str(tmp_path / "d")]
    assert plot.run(plot.parser().parse_args([*runs, "--out", str(out)])) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{went_on}: goes on from a after epoch 1",
        f"{went_on}: highest box_mAP 0.250 after epoch 1",
        f"{went_on}: highest mask_mAP_50 0.500 after epoch 1",
        f"{tmp_path / 'd'}: goes on from x/gone/checkpoints/step_4.ckpt, beside which there is no "
        "metrics.csv",
        str(out),
    ]
    args = plot.parser().parse_args([str(tmp_path / "a"), "--out", str(tmp_path / "plot.jpg")])
    with pytest.raises(InputError, match=r"--out is .*must end in \.png"):
        plot.run(args)
