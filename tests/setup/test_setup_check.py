"""The check before the first batch: processes that differ, and the comparison of their reports."""

from __future__ import annotations

import inspect
import json
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from batches import small
from ranks import on_ranks
from slurm_cluster import ROOT, Environment, command, wait
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from autotimm import AutoTrainer, InputError, InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
from autotimm.setup import report as setup_report
from autotimm.setup.check import compare_reports, report_error
from autotimm.setup.report import Report, check_shared_folders
from autotimm.strategies.choice import DDP
from autotimm.strategies.fsdp import FSDP
from autotimm.strategies.zero import ZeRO

SMALL = ROOT / "launch" / "small_cpu.yaml"
RANKS = """
import contextlib, io, json, os, platform, sys
from pathlib import Path
from unittest import mock

rank = int(os.environ["RANK"])
platform.node = lambda: "ab"[rank]
from autotimm import InstanceSegmentor, InputError
from autotimm.cli import train as cli
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.setup import report as setup_report

folder, common = Path(sys.argv[1]), sys.argv[2:]
results = {}


def run(name, *flags, patch=None):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), patch or contextlib.nullcontext():
        try:
            cli.train([*common, *flags])
            code = 0
        except SystemExit as stop:
            code = stop.code
        except ZeroDivisionError:
            code = "traceback"
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    results[name] = [code, lines]


def on_second(target, attribute, value):
    return mock.patch.object(target, attribute, value) if rank else None


def fail(*_):
    raise ZeroDivisionError("of a bug")


packages = setup_report.packages() | {"torch": "1.0"}
own = str(folder / "ab"[rank])
run("no data", f"--data.data_dir={folder / ('a', 'nowhere')[rank]}")
run("other data", f"--data.data_dir={own}")
run("other torch", patch=on_second(setup_report, "packages", lambda: packages))
run("other batch", f"--data.batch_size={2 + rank}")
run("other model", f"--model.init_args.head_convs={1 + rank}")
run("wrong everywhere", "--model.init_args.backbone=resnet5O")
# On one node the first process alone would refuse the words, before the processes meet.
two_nodes = mock.patch.dict(os.environ, GROUP_WORLD_SIZE="2")
run("no such flag", "--data.bathc_size=3", patch=two_nodes)
run("no folder", "--trainer.default_root_dir=/proc/runs")
run("a bug", patch=on_second(InstanceSegmentationDataModule, "check", fail))
run("right", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
(folder / f"results-{rank}.json").write_text(json.dumps(results))


def stop(self, batch, batch_idx):
    raise InputError("a trouble of its own")


if rank:
    InstanceSegmentor.training_step = stop
cli.train([*common])
"""


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    for seed, name in enumerate("ab"):
        make_dataset(folder / name, train=5, val=2, size=64, seed=seed)
    return folder


@pytest.mark.slow
def test_ranks_that_differ_end_together_with_one_line(coco: Path, tmp_path: Path) -> None:
    flags = [
        *("fit", "--config", str(SMALL), f"--data.data_dir={coco / 'a'}"),
        *("--model.init_args.backbone=test_resnet", "--model.init_args.fpn_channels=16"),
        *("--model.init_args.head_convs=1", "--data.image_size=64", "--data.num_workers=0"),
        *(f"--trainer.default_root_dir={tmp_path / 'runs'}", "--trainer.max_epochs=1"),
    ]
    done = on_ranks(RANKS, tmp_path, coco, *flags)
    files = [coco / f"results-{rank}.json" for rank in range(2)]
    assert all(path.is_file() for path in files), done.stderr[-4000:]
    first, second = (json.loads(path.read_text()) for path in files)
    patterns = {
        "no data": r"rank 1 on b: data_dir: .*nowhere: no such folder",
        "other data": r"the data of split 'train' differs: \w+ on rank 0 on a, \w+ on rank 1 on b: "
        r"give every node the same shards",
        "other torch": r"torch differs: [\d.+\w]+ on rank 0 on a, 1\.0 on rank 1 on b: install",
        "other batch": r"data.batch_size differs: 2 on rank 0 on a, 3 on rank 1 on b",
        "other model": r"model.head_convs differs: 1 on rank 0 on a, 2 on rank 1 on b",
        "wrong everywhere": r"backbone='resnet5O' is not a timm model",
        "no such flag": r"unrecognized arguments: --data.bathc_size=3 ",
        "no folder": r"rank 0 on a: /proc/runs: checkpoints cannot be written there",
        "a bug": r"rank 1 on b: ZeroDivisionError: of a bug",
    }
    for name, pattern in patterns.items():
        code, lines = first[name]
        assert code == 2, (name, first[name])
        assert len(lines) == 1, (name, lines)
        assert re.search(f"^error: {pattern}", lines[0]), (name, lines)
        assert second[name] == ["traceback" if name == "a bug" else 2, []], name
    assert first["right"] == second["right"] == [0, []]
    assert (tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    # An error of one rank after the check is reported by that rank, and torchrun ends the other.
    assert done.returncode != 0
    assert "error: rank 1 on b: a trouble of its own" in done.stderr


@pytest.mark.release
def test_a_job_whose_second_task_differs_fails_with_one_line(
    cluster: Environment, coco: Path, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'[ "${{SLURM_PROCID:-0}}" = 0 ] || set -- "$@" --data.data_dir={coco / "b"}\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    log = tmp_path / "log"
    job = command(
        *("sbatch", "--parsable", "--nodes=2", f"--output={log}", ROOT / "slurm" / "train.sh"),
        *("--config", SMALL, f"--data.data_dir={coco / 'a'}", "--data.image_size=64"),
        *("--model.init_args.backbone=test_resnet", f"--trainer.default_root_dir={tmp_path / 'r'}"),
        env=cluster | {"AUTOTIMM_PYTHON": str(python)},
    )
    wait(cluster, job)
    output = log.read_text()
    assert output.count("error: the data of split 'train' differs: ") == 1, output
    assert "Traceback" not in output
    assert command("squeue", "-h", "-o", "%T", "-t", "all", "-j", job, env=cluster) == "FAILED"
    assert not (tmp_path / "r").exists()


def test_torchrun_ends_its_report_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read by torch's own classes, from the file that torchrun names."""
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    report_error(InputError("x"), "no such file:\n https://me:hunter2xyz@host/a.yaml")
    told = capsys.readouterr().err.strip()
    failure = ProcessFailure(0, 1, 2, str(path))
    lines = str(ChildFailedError("autotimm", {0: failure})).splitlines()
    assert lines[-2].startswith("  traceback : error: no such file: https://")
    assert lines[-2].endswith("host/a.yaml") and told.startswith("error: no such file: ")
    assert "hunter2xyz" not in path.read_text()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    report_error(InputError("x"), "twice")
    assert capsys.readouterr().err == "error: twice\n"


def reports(**changes: dict[int, Any]) -> list[Report | None]:
    """The reports of four ranks on two nodes; ``changes`` has differences by attribute and rank."""
    made: list[Any] = [
        Report(host="ab"[rank // 2], same={"packages": {"torch": "2"}}) for rank in range(4)
    ]
    for name, values in changes.items():
        for rank, value in values.items():
            made[rank][name] = value
    return made


def test_the_arguments_of_the_data_are_compared() -> None:
    """Every argument of the data module except those in which ranks may differ."""
    own = {"data_dir", "num_workers", "persistent_workers", "pin_memory", "prefetch_factor"}
    own |= {"cache_dir", "cache_limit", "retry_minutes", "whole_shards"}
    own |= {"num_classes"}  # compared as a setting of the model
    own |= {"custom_train_transforms", "self"}  # an object, whose text may differ
    kept_as = {
        "aspect_buckets": "canvases",
        "multi_scale": "scales",
        "augmentation_preset": "augmentation",
        **dict.fromkeys(("mean", "std", "interpolation", "pixel_range"), "preprocessing"),
    }
    given = inspect.signature(InstanceSegmentationDataModule.__init__).parameters
    expected = {kept_as.get(name, name) for name in given.keys() - own}
    assert expected <= set(setup_report._DATA)


def test_reports_that_agree_are_right() -> None:
    assert compare_reports(reports()) == {"problems": [], "warnings": [], "probes": []}


def test_a_problem_is_reported_with_its_ranks_and_before_differences() -> None:
    verdict = compare_reports(
        reports(problem={1: "x", 3: "x"}, same={0: {"packages": {"torch": "3"}}})
    )
    assert verdict["problems"] == ["ranks 1, 3 on a, b: x"]
    assert compare_reports(reports(problem=dict.fromkeys(range(4), "x")))["problems"] == ["x"]


def test_differences_are_reported_with_values_and_ranks() -> None:
    (line,) = compare_reports(reports(same={3: {"packages": {"torch": "3"}}}))["problems"]
    assert line.startswith("torch differs: 2 on ranks 0-2 on a, b, 3 on rank 3 on b: install")
    (line,) = compare_reports(reports(same={0: {"packages": {"torch": "2"}, "data": {"d": "1"}}}))[
        "problems"
    ]
    assert line.startswith("d differs: 1 on rank 0 on a, none on ranks 1-3 on a, b: give")


def test_ranks_that_did_not_come_are_named_unless_others_have_failed() -> None:
    late: list[Any] = [*reports()[:2], None, None]
    (line,) = compare_reports(late)["problems"]
    assert line.startswith("ranks 2-3 on an unknown node did not come within 0:30:00")
    late[1]["problem"] = "x"
    assert compare_reports(late)["problems"] == ["rank 1 on a: x"]


def test_gpus_are_one_each_and_better_all_of_a_kind() -> None:
    ids = {rank: f"{rank % 2} of {'ab'[rank // 2]}" for rank in range(4)}
    assert compare_reports(reports(gpu=ids))["problems"] == []
    (line,) = compare_reports(reports(gpu=ids | {3: ids[2]}))["problems"]
    assert line.startswith("ranks 2-3 on b have the same GPU")
    kinds = {0: "H200", 1: "H200", 2: "A100", 3: "A100"}
    (line,) = compare_reports(reports(gpu_name=kinds))["warnings"]
    assert line.endswith("H200 on ranks 0-1 on a, A100 on ranks 2-3 on b")


def test_the_probe_is_looked_for_where_there_are_several_nodes(tmp_path: Path) -> None:
    assert compare_reports(reports(probes={0: ["/runs/p"]}))["probes"] == ["/runs/p"]
    one = [
        report for report in reports(probes={0: ["/runs/p"]}) if report and report["host"] == "a"
    ]
    assert compare_reports(one)["probes"] == []
    (tmp_path / "p").touch()
    for cls, kind in ((ZeRO, "problem"), (FSDP, "warning"), (DDP, "warning")):
        strategy: Any = cls.__new__(cls)
        trainer: Any = SimpleNamespace(strategy=strategy)
        assert set(check_shared_folders(trainer, [str(tmp_path / "p")])) == {"host"}
        report = check_shared_folders(trainer, [str(tmp_path / "p"), str(tmp_path / "q")])
        assert set(report) == {"host", kind}
    unseen = [*reports()[:3], {"host": "b", "warning": "not there"}]
    assert compare_reports(unseen)["warnings"] == ["rank 3 on b: not there"]


def test_a_run_on_one_process_is_checked_too(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = InstanceSegmentationDataModule(str(coco / "a"), image_size=64, num_workers=0)
    trainer = AutoTrainer(accelerator="cpu", default_root_dir=tmp_path / "file", max_epochs=1)
    with pytest.raises(InputError, match=r"checkpoints cannot be written there.*default_root_dir"):
        trainer.fit(small(num_classes=data.num_classes), datamodule=data)


def test_a_batch_of_more_images_than_the_split_is_warned_of(coco: Path, tmp_path: Path) -> None:
    """The split has five images."""
    for size, count in ((5, 0), (6, 1)):
        trainer = AutoTrainer(
            accelerator="cpu", max_steps=1, default_root_dir=tmp_path, limit_val_batches=0
        )
        data = InstanceSegmentationDataModule(
            coco / "a", image_size=64, batch_size=size, num_workers=0
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(small(num_classes=data.num_classes), datamodule=data)
        texts = [str(one.message) for one in caught]
        message = " images, and split 'train' has 5: each step shows some of them more than"
        assert sum(message in text for text in texts) == count


def test_the_workers_of_all_ranks_share_a_nodes_memory(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        setup_report.resources, "check_shared_memory", lambda *given: seen.append(given)
    )
    run = AutoTrainer(
        accelerator="cpu", strategy="ddp", devices=2, default_root_dir=tmp_path, logger=False
    )
    run.datamodule = InstanceSegmentationDataModule(
        coco / "a", image_size=(64, 96), batch_size=2, num_workers=3, prefetch_factor=4
    )
    setup_report.data(run, None)
    assert seen == [(2 * 3 * 64 * 96, 3, 4, 2)]


def test_images_that_are_out_of_reach_are_found_before_the_first_batch(
    coco: Path, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "c", train=5, val=2, size=64, seed=0)
    data = InstanceSegmentationDataModule(str(tmp_path / "c"), image_size=64, num_workers=0)
    data.check("fit")  # opens them
    for image in (tmp_path / "c" / "train2017").iterdir():
        image.unlink()
    trainer = AutoTrainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=1)
    with pytest.raises(InputError, match="no image of the first batch can be read"):
        trainer.fit(small(num_classes=data.num_classes), datamodule=data)
    assert not (tmp_path / "version_0").exists()


def test_the_checkpoint_to_go_on_from_has_to_be_here(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    with pytest.raises(InputError, match=r"last\.ckpt is not here"):
        setup_report.checkpoint(file)
    file.write_bytes(b"1234")
    assert list(setup_report.checkpoint(file).values()) == ["4"]
    assert setup_report.checkpoint("https://a.b/c.ckpt") == setup_report.checkpoint(None) == {}


def test_long_values_are_compared_by_a_digest() -> None:
    short, long = setup_report.shortened("x" * 60), setup_report.shortened("x" * 61)
    assert short == "x" * 60
    assert len(long) < 70
    assert long != setup_report.shortened("x" * 60 + "y")
