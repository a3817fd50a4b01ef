"""launch/train.py with its flags, in one process and in two, on painted and on real data."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from ranks import on_ranks
from servers import serve

from autotimm import AutoTrainer, InstanceSegmentor
from autotimm.cli import lightning_cli
from autotimm.cli import train as cli
from autotimm.data.synthetic import make_dataset
from autotimm.evaluation import coco_eval
from autotimm.sharding.cli import shard

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "launch" / "train.py"
SMALL = ROOT / "launch" / "small_cpu.yaml"
TINY_MODEL = (
    "--model.init_args.backbone=test_resnet",
    "--model.init_args.fpn_channels=16",
    "--model.init_args.head_convs=1",
    "--model.init_args.mask_size=12",
    "--model.init_args.mask_rois=8",
    "--data.image_size=96",
    "--data.num_workers=0",
    "--trainer.log_every_n_steps=1",
    "--trainer.check_val_every_n_epoch=1",
)


def run(*command: object, processes: int = 1, check: bool = True) -> subprocess.CompletedProcess:
    words = [TRAIN, *command]
    done = forked.run_ranks(*words, ranks=processes) if processes > 1 else forked.run(*words)
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return done


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    make_dataset(folder / "coco", train=13, val=5, size=96, seed=1)
    command = [Path(sys.executable).parent / "autotimm-shard", folder / "coco", folder / "shards"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_train_test_predict_and_resume_on_two_processes(painted: Path, tmp_path: Path) -> None:
    shards = f"--data.data_dir={painted / 'shards'}"
    common = ("--config", SMALL, shards, *TINY_MODEL)
    root = f"--trainer.default_root_dir={tmp_path}"
    at_once = "--model.init_args.warmup_steps=0"
    run("fit", *common, root, at_once, "--trainer.max_epochs=3", processes=2)
    first = tmp_path / "version_0"
    losses = column(first / "metrics.csv", "train/loss")
    assert len(losses) == 3 * 4  # 13 images, two ranks of two images, the last batch wraps
    assert all(loss < 100 for loss in losses)  # NaN and infinity are not
    assert len(column(first / "metrics.csv", "val/mask_mAP")) == 3
    assert {p.name for p in (first / "pictures").iterdir()} == {
        f"val-step{4 * epoch}.png" for epoch in range(1, 4)
    }
    checkpoint = first / "checkpoints" / "last.ckpt"

    # What two processes find is what the loaded model finds in one process.
    used = ("--config", first / "config.yaml", "--ckpt_path", checkpoint)
    low = "--model.init_args.score_thresh=0.001"
    run("test", *used, low, processes=2)
    # A flag wins over what the checkpoint was trained with.
    assert "score_thresh: 0.001" in (tmp_path / "version_1" / "hparams.yaml").read_text()
    results = json.loads((tmp_path / "version_1" / "test-results.json").read_text())
    truth = painted / "coco" / "annotations" / "instances_val2017.json"
    ids = {image["id"] for image in json.loads(truth.read_text())["images"]}
    assert {r["image_id"] for r in results} <= ids
    for kind in ("bbox", "segm"):
        stats = coco_eval.evaluate(truth, results, kind)
        name = "mask_mAP" if kind == "segm" else "box_mAP"
        (logged,) = column(tmp_path / "version_1" / "metrics.csv", f"test/{name}")
        assert stats["AP"] == pytest.approx(logged, abs=1e-6)
    run("predict", *used, low)
    predicted = json.loads((tmp_path / "version_2" / "predict-results.json").read_text())

    def key(result):
        return result["image_id"], -result["score"], result["bbox"]

    assert [key(r)[0] for r in sorted(predicted, key=key)] == [
        key(r)[0] for r in sorted(results, key=key)
    ]
    model = InstanceSegmentor.load_from_checkpoint(checkpoint)
    assert [c["id"] for c in model.categories] == sorted({c["id"] for c in model.categories})

    # Training goes on where it stopped, also with a network that is compiled, as is the default.
    compiled = "--model.compile_model=true", '--model.compile_kwargs={"backend": "eager"}'
    more = "--trainer.max_epochs=4", f"--ckpt_path={checkpoint}", *compiled
    run("fit", *common, root, *more, processes=2)
    resumed = tmp_path / "version_3"
    assert json.loads((resumed / "run.json").read_text())["first_step"]["seconds"] > 0
    assert set(column(resumed / "metrics.csv", "epoch")) == {3.0}
    state = torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 16


@pytest.mark.slow
def test_a_coco_folder_trains_like_its_shards(painted: Path, tmp_path: Path) -> None:
    losses = []
    for kind in ("coco", "shards"):
        run(
            *("fit", "--config", SMALL, f"--data.data_dir={painted / kind}", *TINY_MODEL),
            *("--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path / kind}"),
            *("--trainer.limit_val_batches=0", "--trainer.precision=32-true"),
        )
        losses.append(column(tmp_path / kind / "version_0" / "metrics.csv", "train/loss"))
    assert len(losses[0]) == 7
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_a_seed_reproduces_a_run(painted: Path, tmp_path: Path) -> None:
    """On two ranks with workers, all logged numbers except times are equal, bit for bit."""

    def numbers(name: str, *flags: str) -> list[dict[str, str]]:
        run(
            *("fit", "--config", SMALL, f"--data.data_dir={painted / 'shards'}", *TINY_MODEL),
            *("--data.num_workers=1", "--trainer.max_epochs=2", "--trainer.limit_val_batches=0"),
            *(f"--trainer.default_root_dir={tmp_path / name}", *flags),
            processes=2,
        )
        with (tmp_path / name / "version_0" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        clock = ("train/images_per_second", "train/data_wait")
        return [{k: v for k, v in row.items() if v and k not in clock} for row in rows]

    first = numbers("a", "--seed_everything=5", "--data.seed=7")
    assert sum("train/loss" in row for row in first) == 8
    assert numbers("b", "--seed_everything=5", "--data.seed=7") == first
    other = numbers("c", "--seed_everything=5", "--data.seed=8", "--trainer.max_steps=1")
    assert other[0] != first[0]
    record = json.loads((tmp_path / "a" / "version_0" / "run.json").read_text())
    assert (record["status"], record["step"], record["machine"]["processes"]) == ("finished", 8, 2)
    kept = {p.name.partition(".")[0] for p in (tmp_path / "a" / "version_0").iterdir()}
    assert kept >= {"config", "hparams", "metrics", "run", "checkpoints", "events"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epochs"),
    # Two dozen steps: the loss of a single one depends more on its images than on the training.
    [
        ("fruits_nuts", 6),
        ("microscopy_flakes", 4),
        pytest.param("balloon", 24, marks=pytest.mark.release),
        pytest.param("coco_mini", 1, marks=pytest.mark.release),
    ],
)
def test_real_data_train(name: str, epochs: int, shared_data: Path, tmp_path: Path) -> None:
    shard(shared_data / name, tmp_path / "shards")
    run(
        *("fit", "--config", SMALL, f"--data.data_dir={tmp_path / 'shards'}", *TINY_MODEL),
        *("--data.image_size=160", "--model.init_args.warmup_steps=0"),
        *(f"--trainer.max_epochs={epochs}", f"--trainer.check_val_every_n_epoch={epochs}"),
        *(f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=2"),
        processes=2,
    )
    losses = column(tmp_path / "version_0" / "metrics.csv", "train/loss")
    assert len(losses) >= 20
    assert all(loss < 100 for loss in losses)  # NaN and infinity are not
    assert sum(losses[-8:]) < sum(losses[:8])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["coco_r50_1x", "coco_r50_adamw"])
def test_a_recipe_trains(recipe: str, painted: Path, tmp_path: Path) -> None:
    config = ROOT / "launch" / f"{recipe}.yaml"
    run(
        *("fit", "--config", config, f"--data.data_dir={painted / 'shards'}", *TINY_MODEL),
        *("--model.init_args.pretrained=false", "--model.init_args.compile_model=false"),
        *("--model.init_args.warmup_steps=1", "--trainer.precision=bf16-mixed"),
        *("--data.batch_size=2", "--trainer.max_steps=4", "--trainer.limit_val_batches=1"),
        *(f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"),
    )
    losses = column(tmp_path / "version_0" / "metrics.csv", "train/loss")
    assert len(losses) == 4
    assert all(loss < 100 for loss in losses)


def test_what_is_predicted_does_not_fill_the_memory(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer does not keep the detections, because they are written as they come."""
    given: list[Any] = []
    monkeypatch.setattr(
        AutoTrainer,
        "predict",
        lambda _, *__, return_predictions=None, **___: given.append(return_predictions),
    )
    data = f"--data.data_dir={painted / 'shards'}"
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["train.py"])
        lightning_cli.run(["predict", f"--config={SMALL}", data, *TINY_MODEL, "--ckpt_path=a.ckpt"])
    assert given == [False]


@pytest.mark.slow
def test_detector_without_masks(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [
        *("--model=ObjectDetector", "--model.backbone=resnet10t"),
        *("--model.fpn_channels=32", "--model.compile_model=false"),
        *(f"--data.data_dir={painted / 'shards'}", "--data.image_size=96", "--data.masks=false"),
        *("--data.num_workers=0", "--trainer.accelerator=cpu"),
        f"--trainer.default_root_dir={tmp_path}",
    ]
    run("fit", *flags, "--model.pretrained=false", "--trainer.max_epochs=1")
    checkpoint = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    assert not any("mask" in key for key in state["state_dict"])
    # Without a network connection: nothing may be downloaded that the checkpoint holds.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    run("predict", *flags, f"--ckpt_path={checkpoint}")
    assert (tmp_path / "version_1" / "predict-results.json").is_file()


@pytest.mark.slow
def test_a_run_that_a_signal_to_all_its_processes_stops_goes_on(
    painted: Path, tmp_path: Path
) -> None:
    flags = [*TINY_MODEL, "--trainer.limit_val_batches=0", "--data.num_workers=2"]
    flags += [f"--data.data_dir={painted / 'shards'}", f"--trainer.default_root_dir={tmp_path}"]
    process = forked.start(
        *(TRAIN, "fit", "--config", SMALL, *flags, "--trainer.max_epochs=100000")
    )
    for line in process.lines():
        if line.startswith("epoch 2 "):
            os.killpg(process.pid, signal.SIGINT)
            break
    done = process.wait()
    output = done.stdout + done.stderr
    assert done.returncode == 85, output
    assert "Traceback" not in output
    lines = output.splitlines()
    (at,) = (k for k, line in enumerate(lines) if line.startswith("stopped by SIGINT at step "))
    step = int(lines[at].split()[5].rstrip(":"))
    assert step >= 14 and lines[at].endswith(f"checkpoints/step_{step}.ckpt")
    assert lines[at + 1] == "go on with:"
    saved = lines[at].partition("saved ")[2]
    assert lines[at + 2].startswith("  autotimm fit ") and lines[at + 2].endswith(saved)
    done = run(
        "fit", "--config", SMALL, *flags, f"--trainer.max_steps={step + 2}", "--ckpt_path=last"
    )
    assert f"step_{step}.ckpt" in done.stderr
    assert len(column(tmp_path / "version_1" / "metrics.csv", "train/loss")) == 2


def test_no_secret_of_a_url_is_written(
    painted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The secret of the data's URL is in no file of the run and not on the screen."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    root = tmp_path / "runs"
    with serve(painted / "shards") as server:
        given = server.url.replace("//", "//user:SECRET@") + "?sig=SECRET"
        cli.train(
            [
                *("fit", f"--config={SMALL}", *TINY_MODEL, "--trainer.max_steps=1"),
                *(f"--data.data_dir={given}", f"--data.cache_dir={tmp_path / 'cache'}"),
                *(f"--trainer.default_root_dir={root}", "--trainer.limit_val_batches=0"),
                "--model.init_args.warmup_steps=0",
            ]
        )
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {"config.yaml", "run.json", "hparams.yaml", "step_1.ckpt"} <= {p.name for p in files}
    assert [path for path in files if b"SECRET" in path.read_bytes()] == []
    assert f"data_dir: {server.url}\n" in (root / "version_0" / "config.yaml").read_text()
    assert "SECRET" not in "".join(capfd.readouterr())


def test_help_says_whole_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("COLUMNS", "1000")
    for words in (["--help"], ["fit", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            cli.train(words)
    listed, flags = capsys.readouterr().out.split("Available subcommands:")[1].split("usage:")
    commands = [line.split(maxsplit=1) for line in listed.splitlines() if len(line.split()) > 1]
    assert [name for name, _ in commands[:6]] == [
        *("fit", "validate", "test", "predict", "find_lr", "find_batch_size")
    ]
    assert all(text.endswith(".") for _, text in commands[:6])
    assert "epochs between saves of the state of the training" in flags


@pytest.mark.slow
def test_print_config_shows_every_setting() -> None:
    printed = run("fit", "--config", SMALL, "--print_config").stdout
    for line in ("backbone: resnet18", "mask_loss_weight: 1.0", "batch_size: 2", "max_epochs: 100"):
        assert line in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.data_dir=nowhere"], "nowhere"),
        (["--data.augmentation_preset=wild"], "'wild'.*light, default, strong"),
        (["--model.init_args.backbone=resnet5O"], "'resnet5O' is not a timm model"),
        (["--model.init_args.mask_size=27"], "mask_size=27 must be even"),
        (["--data.train_split=practice"], "practice"),
        (["--trainer.use_distributed_sampler=true"], "use_distributed_sampler"),
        (["--data.bathc_size=3"], r"--data.bathc_size(=3)? \(did you mean --data.batch_size\?\)"),
    ],
)
def test_bad_settings_end_in_one_clear_line(flags: list[str], message: str, painted: Path) -> None:
    import re

    done = run(
        *("fit", "--config", SMALL, f"--data.data_dir={painted / 'shards'}", *TINY_MODEL, *flags),
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "usage:" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last), last


@pytest.mark.slow
def test_a_killed_worker_ends_in_one_clear_line(painted: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal\n"
        "from autotimm.cli.train import train\n"
        "from autotimm.data.load import Load\n"
        "Load.__call__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train()\n"
    )
    given = f"--data.data_dir={painted / 'shards'}", f"--trainer.default_root_dir={tmp_path}"
    # Without fork, because the signal of the worker's end interrupts any code, even at the exit.
    words = [sys.executable, script, "fit", "--config", SMALL, *TINY_MODEL, *given]
    done = subprocess.run(
        [*map(str, words), "--data.num_workers=1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "error: a data worker was killed (out of memory?): lower data.num_workers, "
        "data.prefetch_factor or data.batch_size"
    )


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_all_ranks_in_one_clear_line(
    painted: Path, tmp_path: Path
) -> None:
    code = (
        "import os\n"
        "from autotimm import InstanceSegmentor\n"
        "from autotimm.cli.train import train\n"
        "step = InstanceSegmentor.training_step\n"
        "def lost(self, batch, batch_idx):\n"
        "    loss = step(self, batch, batch_idx)\n"
        "    bad = self.trainer.global_step == 5 and self.global_rank == 1\n"
        "    if bad:\n"
        "        print('spoilt:', *batch['file_name'], flush=True)\n"
        "    return loss * float('nan') if bad else loss\n"
        "InstanceSegmentor.training_step = lost\n"
        "train()\n"
    )
    given = f"--data.data_dir={painted / 'shards'}", f"--trainer.default_root_dir={tmp_path}"
    done = on_ranks(code, tmp_path, "fit", "--config", SMALL, *TINY_MODEL, *given)
    assert done.returncode != 0
    (spoilt,) = (line for line in done.stdout.splitlines() if line.startswith("spoilt: "))
    images = ", ".join(spoilt.split()[1:])
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    (line,) = errors  # for both ranks
    assert f"nan at step 6 on rank 1 (images {images}): " in line
    assert (
        'Traceback (most recent call last):\n  File "' + str(tmp_path / "each_rank.py")
        not in done.stderr
    )
    # The previous epoch's checkpoint exists and is whole.
    state = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert all(weight.isfinite().all() for weight in state["state_dict"].values())


@pytest.mark.slow
def test_what_watches_a_run_does_not_end_it(painted: Path, tmp_path: Path) -> None:
    """On two ranks, a logger, a metric, the pictures and run.json fail all the time."""
    code = (
        "import os\n"
        "from lightning.pytorch.loggers import TensorBoardLogger\n"
        "from autotimm import visualize\n"
        "from autotimm.cli.train import train\n"
        "from autotimm.evaluation import by_hotcoco\n"
        "from autotimm.training import run_record\n"
        "def fail(*_, **__):\n"
        "    raise OSError('as it happens')\n"
        "TensorBoardLogger.log_metrics = fail\n"
        "visualize.draw_instances = fail\n"
        "run_record.write_record = fail\n"
        "values = by_hotcoco.values\n"
        "def broken(images, kinds, *rest):\n"
        "    segm = 'segm' in kinds and os.environ['RANK'] == '0'\n"
        "    return fail() if segm else values(images, kinds, *rest)\n"
        "by_hotcoco.values = broken\n"
        "train()\n"
    )
    given = f"--data.data_dir={painted / 'shards'}", f"--trainer.default_root_dir={tmp_path}"
    flags = (*TINY_MODEL, *given, "--trainer.max_epochs=3")
    done = on_ranks(code, tmp_path, "fit", "--config", SMALL, *flags)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = tmp_path / "version_0" / "metrics.csv"
    assert len(column(rows, "train/loss")) == 12
    assert len(column(rows, "val/box_mAP")) == 3
    assert column(rows, "val/mask_mAP") == pytest.approx([float("nan")] * 3, nan_ok=True)
    for message in (
        "TensorBoard fails, and the run goes on without it",
        "val/mask_mAP fails, and is NaN: OSError: as it happens",
        "cannot be drawn, and the run goes on",
        "run.json cannot be written, and the run goes on",
    ):
        assert done.stderr.count(message) == 1, done.stderr[-4000:]


def test_a_worker_may_be_killed_during_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal of its end may interrupt any code."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(lightning_cli, "TrainCLI", fail)
    message = "DataLoader worker (pid 7) is killed by signal: Killed. "
    with pytest.raises(SystemExit, match="2"):
        cli.train([])
    assert capsys.readouterr().err.startswith("error: a data worker was killed (out of memory?)")
    message = "of another kind"
    with pytest.raises(RuntimeError, match=message):
        cli.train([])


def test_errors_of_lightning_become_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        Trainer(barebones=True, enable_progress_bar=True)

    def fail(*_: object, **__: object) -> None:
        int("of our own")

    monkeypatch.setattr(lightning_cli, "TrainCLI", refuse)
    with pytest.raises(SystemExit, match="2"):
        cli.train([])
    assert capsys.readouterr().err.startswith("error: `Trainer(barebones=True, enable_progress")
    monkeypatch.setattr(lightning_cli, "TrainCLI", fail)
    with pytest.raises(ValueError, match="of our own"):
        cli.train([])


def test_early_stopping_that_nobody_could_check_before_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A callback of the user's may log the monitored value, so only the first epoch tells."""

    def stop(*_: object, **__: object) -> None:
        EarlyStopping("val/foo")._validate_condition_metric({"val/mask_mAP": 1})

    monkeypatch.setattr(lightning_cli, "TrainCLI", stop)
    with pytest.raises(SystemExit, match="2"):
        cli.train([])
    said = capsys.readouterr().err
    assert said.startswith("error: Early stopping conditioned on metric `val/foo`")
    assert said.count("\n") == 1


def test_a_number_of_devices_that_torchrun_did_not_start_is_refused(painted: Path) -> None:
    done = run(
        *("fit", "--config", SMALL, f"--data.data_dir={painted / 'shards'}"),
        "--trainer.devices=3",
        processes=2,
        check=False,
    )
    assert done.returncode != 0
    assert "devices=3, but torchrun has started 2 processes" in done.stderr
