"""The benchmarks run, on a few images; what they measure is nobody's business here."""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from autotimm import InputError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def bench(script: str, *options: object, quick: bool = True) -> str:
    done = forked.run(BENCHMARKS / script, *(["--quick"] if quick else []), *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(out: str) -> dict[str, list[str]]:
    """The tables' rows by their first cells."""
    tables = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in tables}


def test_every_script_is_run_here_or_by_another() -> None:
    scripts = {path.name: path.read_text() for path in BENCHMARKS.glob("*.py")}
    texts = {**scripts, "this": Path(__file__).read_text()}
    scripts = {name for name, text in scripts.items() if 'if __name__ == "__main__":' in text}
    for script in scripts - {"suite_costs.py"}:  # which runs the tests
        assert any(f'"{script}"' in text for name, text in texts.items() if name != script), script


def test_every_script_imports_what_there_is() -> None:
    """A name that has gone is noticed at once, though most scripts run before a release alone."""
    code = "import runpy, sys\nfor script in sys.argv[1:]: runpy.run_path(script)"
    env = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    done = forked.run("-c", code, *sorted(BENCHMARKS.glob("*.py")), env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.release
def test_faults() -> None:
    """A few of them, so that the campaign can be trusted to find what does not survive."""
    table = rows(bench("faults.py"))
    assert len(table) == 2 + 5
    for fault, (tried, survived, *found) in list(table.items())[2:]:
        assert tried == survived != "0", (fault, found)


@pytest.mark.release
@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_remote() -> None:
    table = rows(bench("remote.py"))
    assert 0.9 < float(table["autotimm, ranges"][2]) <= 1.02
    assert float(table["curl"][2]) > 0.9


@pytest.mark.release
def test_start() -> None:
    assert float(rows(bench("start.py"))["fit up to its first step"][0]) > 0


@pytest.mark.release
def test_threads() -> None:
    table = rows(bench("threads.py"))
    assert all(0 < float(cells[-1]) <= 1 for cells in list(table.values())[2:])


@pytest.mark.release
def test_order() -> None:
    assert "neighbours of 118287 samples" in bench("order.py")


@pytest.mark.release
def test_fuzz() -> None:
    pytest.importorskip("hypothesis")
    examples, _, found = rows(bench("fuzz.py", "--only", "test_amounts"))["values"][1:]
    assert int(examples.replace(",", "")) > 0
    assert found == "0"


@pytest.mark.release
def test_large_images() -> None:
    told = rows(bench("large_images.py"))
    assert {"predict", "evaluate", "fit", "shard", "preview"} <= set(told)


@pytest.mark.release
def test_coco_load() -> None:
    out = bench("coco_load.py", "--images", 20, "--instances", 100, "--repeats", 1, quick=False)
    assert "20 images, 100 instances" in out


@pytest.mark.release
def test_fruits_nuts(shared_data: Path) -> None:
    words = ("--data", shared_data / "fruits_nuts", "--images-seen", 16, "--processes", 1)
    assert "16 training images seen" in bench("fruits_nuts.py", *words, quick=False)


@pytest.mark.release
def test_shards() -> None:
    told = rows(bench("shards.py", "--peers", "webdataset"))
    assert all(
        float(cells[0].replace(",", "")) > 0 for name, cells in told.items() if "tar cf" in name
    )
    assert {"autotimm alone", "autotimm-shard command", "webdataset ShardWriter"} <= set(told)
    assert sum(name.startswith("**") for name in told) == 3


@pytest.mark.release
def test_stream(tmp_path: Path) -> None:
    told = rows(
        bench("stream.py", "--peers", "webdataset", "--only", "raw,decode", "--work", tmp_path)
    )
    assert {"files", "webdataset", "autotimm", "COCO folder, cv2"} <= set(told)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_stream_without_peers() -> None:
    told = rows(bench("stream.py", "--peers", "none", "--only", "start,order,damage"))
    assert told["autotimm"] == ["**3**", "**3**", "**3**"]


@pytest.mark.release
def test_train_step(tmp_path: Path) -> None:
    """Also what becomes of a contestant that fails, and the file."""
    names = "ours without masks,FCOS,FCOS parts compiled"
    out = bench("train_step.py", "--only", names, "--mode", "fastest", "--out", tmp_path)
    told = rows(out)
    for name in ("ours without masks", "FCOS"):
        batch, speed, _, memory, first, inference, found, flops = told[name][:8]
        assert batch == "2"
        assert min(float(v.split()[0]) for v in (speed, memory, first, inference, flops)) > 0
        assert 0 < float(found) < 100
    assert told["FCOS parts compiled"][0] == "failed"
    assert "- FCOS parts compiled failed: RuntimeError: Unrecognized mode=fastest" in out
    assert out in (tmp_path / "cpu.md").read_text()


@pytest.mark.release
def test_roofline(tmp_path: Path) -> None:
    out = bench("roofline.py", "--kernels", "--ops", tmp_path / "ops.csv", "--out", tmp_path / "a")
    told = rows(out)
    ours, fused = (float(told[name][3]) for name in ("eager", "Inductor"))
    assert 0.3 * ours < fused < ours
    assert all(float(told[card][3].split()[0].replace(",", "")) > 0 for card in ("A100", "H200"))
    assert out.strip() == (tmp_path / "a").read_text().strip()
    with (tmp_path / "ops.csv").open(newline="") as file:
        ops = list(csv.DictReader(file))
    gflops = sum(int(op["flops"]) for op in ops) / 2 / 1e9  # of two images
    assert gflops == pytest.approx(float(told["products"][0]), abs=0.1)


def gpu(out: Path, *options: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    words = ["bash", str(BENCHMARKS / "gpu.sh"), "--rehearse", *options]
    env = {**os.environ, "OUT": str(out), "AUTOTIMM_PYTHON": python}
    env.pop("AUTOTIMM_SHARED_DATA", None)
    return subprocess.run(words, env=env, check=False, capture_output=True, text=True)


def test_a_part_of_gpu_that_fails_does_not_end_it(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no torch here >&2\nexit 1\n")
    broken.chmod(0o755)
    done = gpu(tmp_path / "out", python=str(broken))
    assert done.returncode == 1
    assert "failed: machine tests step-640 step-800 half;" in done.stderr
    assert (tmp_path / "out/summary.md").read_text().count("    no torch here") == 5
    done = gpu(tmp_path / "other", "--only", "machine,halves")
    assert done.returncode == 2
    assert "there is no part halves" in done.stderr
    assert not (tmp_path / "other/summary.md").exists()


@pytest.mark.release
def test_gpu(tmp_path: Path) -> None:
    done = gpu(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = rows((tmp_path / "summary.md").read_text())
    assert {"ours", "FCOS", "convolutions", "painted"} <= set(told)


@pytest.mark.release
def test_scale() -> None:
    told = rows(bench("scale.py", "--ranks", "2"))
    check, _, _, sent, *_, gathered = (float(cell) for cell in told["2"][:-1])
    assert (sent, min(check, gathered) > 0) == (4, True)  # two ranks send 4 MB of 4
    step, work = (float(told[name][0]) for name in ("a step", "forward, backward, optimizer"))
    assert 0 < work < step
    assert {"CheckLoss", "Preemption", "Lightning's loop"} <= set(told)
    assert [told[ranks][4] for ranks in ("8", "64")] == ["118 of 118"] * 2
    assert float(told["AdamW"][0]) == pytest.approx(1.5 * float(told["SGD with momentum"][0]), 0.01)


@pytest.mark.release
def test_checkpoints(tmp_path: Path) -> None:
    out = bench("checkpoints.py", "--out", tmp_path / "checkpoints.md")
    told = rows(out)
    assert all(float(told[name][1]) > 0 for name in ("save", "load (.ckpt)"))
    assert {cells[-1].strip(" |") for name, cells in told.items() if name.startswith("cuts")} == {
        "0"
    }
    assert out.strip() in (tmp_path / "checkpoints.md").read_text()


@pytest.mark.release
def test_equal_budget() -> None:
    names = (
        "autotimm,autotimm box_quality=iou mask_loss=bce+dice,torchvision,"
        "torchvision v2 heads with our recipe"
    )
    told = rows(bench("equal_budget.py", "--only", names))
    for name in names.split(","):
        assert all(-1 <= float(cell.split()[0]) <= 1 for cell in told[name][:4])
        assert float(told[name][4].split()[0]) > 0


def test_contestants_of_equal_budget_have_settings_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    contestants = importlib.import_module("contestants")
    contestants.check("torchvision v2 heads")
    contestants.check("autotimm mask_loss=bce+dice lr=0.01")
    for name, message in {
        "torchvison": "'torchvison' is none of autotimm, torchvision,",
        "torchvision lr=1": "'torchvision lr=1' is none of",
        "autotimm maskloss=bce": "'maskloss' is no setting of InstanceSegmentor",
    }.items():
        with pytest.raises(InputError, match=message):
            contestants.check(name)


@pytest.mark.release
def test_evaluate_masks(tmp_path: Path) -> None:
    out = bench("evaluate_masks.py", "--out", tmp_path, "--side", 128)
    told = rows(out)
    names = ("MetricConfig", "MetricConfig, fast", "pycocotools", "autotimm evaluate")
    assert {told[name][-1] for name in names} == {told["pycocotools"][-1]}
    # Its thresholds are float32.
    assert float(told["torchmetrics"][-1]) == pytest.approx(float(told[names[0]][-1]), abs=0.02)
    assert all(float(cell) >= 0 for name in names for cell in told[name][:5])
    assert 0 < float(told["pycocotools"][-1]) < 1
    assert out.strip() in (tmp_path / "evaluation.md").read_text()


@pytest.mark.release
def test_validation() -> None:
    own = BENCHMARKS.parent
    table = rows(bench("validation.py", own, own, "--detections", 8, "--side", 96))
    assert table["mask AP"][0] == table["mask AP"][1]
    assert 0 < float(table["mask AP"][0]) < 1
    assert float(table["CPU s, all ranks"][0]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--peers", "tar"), "'tar' is none of"),
        (("--only", "raw,write"), "'write' is none of"),
        (("--peers", "none", "--data", "nowhere"), "--data: nowhere"),
    ],
)
def test_wrong_options_are_refused_in_a_line(options: tuple[str, str], message: str) -> None:
    words = [sys.executable, BENCHMARKS / "stream.py", *options]
    done = subprocess.run(list(map(str, words)), check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
