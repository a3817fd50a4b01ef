"""``launch/sweep.py``: seeds and searches, with fits that write what a run writes, and one real."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotimm.data.synthetic import make_dataset

SCRIPT = Path(__file__).parents[1] / "launch/sweep.py"
optuna = pytest.importorskip("optuna")
FLAGS = ["--config", "a.yaml", "--data", "d"]


@pytest.fixture
def sweep() -> Any:
    spec = importlib.util.spec_from_file_location("sweep", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch, sweep: Any) -> Callable[..., list[dict[str, str]]]:
    """Has ``fit`` give a value of its flags; returns the flags of each fit so far."""
    seen: list[dict[str, str]] = []

    def install(
        value: Callable[[dict[str, str]], float | int],
        metric: str = "val/mask_mAP",
        mode: str | None = "max",
    ) -> list[dict[str, str]]:
        def run(words: list[str], check: bool) -> SimpleNamespace:
            assert words[:4] == [sys.executable, "-m", "autotimm", "fit"]
            given = dict(zip(words[4::2], words[5::2], strict=True))
            seen.append(given)
            got = value(given)
            if isinstance(got, int):
                return SimpleNamespace(returncode=got)
            folder = Path(given["--trainer.default_root_dir"], "last")
            folder.mkdir(parents=True)
            best = {"metric": metric, "value": got} | ({"mode": mode} if mode else {})
            record = {"status": "finished", "best": best}
            (folder / "run.json").write_text(json.dumps(record))
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(sweep.subprocess, "run", run)
        return seen

    return install


def call(sweep: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, words), *FLAGS])
    sweep.main()


def test_seeds_differ_and_their_values_are_summed_up(
    sweep, fits, monkeypatch, tmp_path, capsys
) -> None:
    values = [0.25, 0.5, 0.3]
    seen = fits(lambda given: values[int(given["--data.seed"])])
    call(sweep, monkeypatch, "--seeds", 3, "--out", tmp_path)
    assert [given["--seed_everything"] for given in seen] == ["0", "1", "2"]
    assert all(given["--config"] == "a.yaml" and given["--data"] == "d" for given in seen)
    told = capsys.readouterr().out
    assert "seed 1: 0.5000" in told
    assert f"mean {statistics.mean(values):.4f}" in told
    assert f"standard deviation {statistics.stdev(values):.4f}" in told


def test_a_finished_seed_is_not_trained_again(sweep, fits, monkeypatch, tmp_path) -> None:
    seen = fits(lambda _: 0.5)
    call(sweep, monkeypatch, "--seeds", 2, "--out", tmp_path)
    call(sweep, monkeypatch, "--seeds", 3, "--out", tmp_path)
    assert [given["--data.seed"] for given in seen] == ["0", "1", "2"]


@pytest.mark.parametrize("code", [2, 85])
def test_what_could_not_begin_and_what_was_stopped_ends_all(
    sweep, fits, monkeypatch, tmp_path, code
) -> None:
    seen = fits(lambda _: code)
    for kind in (["--seeds", 2], ["--trials", 2, "--search", "model.lr", "1e-4", "1e-2"]):
        with pytest.raises(SystemExit) as ended:
            call(sweep, monkeypatch, *kind, "--out", tmp_path / str(kind[0]))
        assert ended.value.code == code
    assert len(seen) == 2


def test_a_search_goes_on_and_finds_what_is_best(
    sweep, fits, monkeypatch, tmp_path, capsys
) -> None:
    """A value that is highest at a rate of 1e-3; two trials fail, and one is stopped."""
    codes = {2: 1, 4: 1, 5: 85}

    def value(given: dict[str, str]) -> float | int:
        if code := codes.pop(len(seen) - 1, 0):
            return code
        rate = float(given["--model.lr"])
        return 1 / (1 + abs(rate - 1e-3) * 1e3)

    seen = fits(value)
    words = ["--trials", 20, "--search", "model.lr", "1e-5", "1e-1", "--out", tmp_path]
    with pytest.raises(SystemExit):
        call(sweep, monkeypatch, *words)
    assert len(seen) == 6
    call(sweep, monkeypatch, *words)
    assert len(seen) == 21, "20 trials, one of them a second time"
    assert seen[6]["--model.lr"] == seen[5]["--model.lr"]
    rates = [float(given["--model.lr"]) for given in seen]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates) and len(set(rates)) > 10
    trained = [rate for n, rate in enumerate(rates) if n not in (2, 4, 5)]
    best = min(trained, key=lambda rate: abs(rate - 1e-3))
    [told] = re.findall(r"best: trial \d+, [\d.]+: --model.lr (\S+)", capsys.readouterr().out)
    assert float(told) == pytest.approx(best)


@pytest.mark.parametrize(
    "words",
    [
        ["--trials", "2"],
        ["--seeds", "2", "--search", "model.lr", "1", "2"],
        ["--seeds", "0"],
        ["--trials", "2", "--search", "model.lr", "0", "1"],
        ["--trials", "2", "--search", "model.lr", "2", "1"],
        ["--trials", "2", "--search", "model.lr", "a", "b"],
    ],
)
def test_what_makes_no_sense_is_refused(sweep, monkeypatch, tmp_path, capsys, words) -> None:
    with pytest.raises(SystemExit) as ended:
        call(sweep, monkeypatch, *words, "--out", tmp_path)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "mode"), [("val/error", "min"), ("val/loss", "min"), ("val/loss", None)]
)
def test_a_search_takes_the_lowest_of_what_is_best_there(
    sweep, fits, monkeypatch, tmp_path, capsys, metric, mode
) -> None:
    """A value that is lowest at a rate of 1e-3, and far above it where the search may go."""
    fits(lambda given: abs(float(given["--model.lr"]) - 1e-3) * 1e3, metric, mode)
    words = ["--trials", 12, "--search", "model.lr", "1e-5", "1e-1", "--out", tmp_path]
    call(sweep, monkeypatch, *words)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/last/run.json")]
    lowest = min(record["best"]["value"] for record in records)
    assert f", {lowest:.4f}: --model.lr " in capsys.readouterr().out


@pytest.mark.slow
def test_real_fits_are_searched(tmp_path: Path) -> None:
    make_dataset(tmp_path / "coco", train=4, val=2, size=96)
    words = ["--trials", "2", "--search", "model.lr", "1e-4", "1e-2", "--out", "found"]
    words += ["--config", str(SCRIPT.with_name("small_cpu.yaml")), "--data", "coco"]
    words += ["--epochs", "1", "--image-size", "96", "--model.backbone", "resnet10t"]
    words += ["--model.fpn_channels", "32", "--model.mask_rois", "4", "--data.num_workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^best: trial [01], \d\.\d{4}: --model.lr \S+$", done.stdout, re.MULTILINE)
    study = optuna.load_study(study_name="autotimm", storage=f"sqlite:///{tmp_path}/found/study.db")
    for number, trial in enumerate(study.trials):
        record = json.loads((tmp_path / f"found/trial_{number}/last/run.json").read_text())
        assert trial.value == record["best"]["value"]
        assert record["best"]["metric"] == "val/mask_mAP" and record["best"]["mode"] == "max"
        rate = record["settings"]["model"]["lr"]
        assert rate == pytest.approx(trial.params["model.lr"], rel=1e-3)
