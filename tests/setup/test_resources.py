"""Missing resources of a machine are reported before a run begins, with the way out."""

from __future__ import annotations

import resource
import shutil
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from line import Line, loader, quiet

from autotimm import InputError, openmp
from autotimm.setup import resources

Usage = namedtuple("Usage", "total used free")


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    resources.check_open_files(0, 2)
    assert not raised
    resources.check_open_files(8, 2)
    assert raised == [(256 + 80, 1000)]
    many = r"1256 open files with 100 data workers.*limit is 1000 .*lower data\.num_workers"
    with pytest.raises(InputError, match=many):
        resources.check_open_files(100, 2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(InputError, match=r"256 open files with 0 data.*limit is 64 .*raised$"):
        resources.check_open_files(0, 2)


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 << 20, 0, 64 << 20))
    resources.check_shared_memory(20 << 20, 0, 2, 8)
    resources.check_shared_memory(20 << 20, 1, 2, 1)
    with pytest.raises(InputError, match=r"2 x 1 data workers need 126 MB.*67.1 MB free.*shm-size"):
        resources.check_shared_memory(20 << 20, 1, 2, 2)


def test_bfloat16_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    resources.check_precision("bf16-mixed", torch.device("cpu"))
    resources.check_precision("16-mixed", gpu)
    with pytest.raises(InputError, match=r"bf16-mixed needs.*8\.0.*Tesla V100 has 7\.0.*16-mixed"):
        resources.check_precision("bf16-mixed", gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    resources.check_precision("bf16-mixed", gpu)


@pytest.mark.parametrize(("avx512", "warns"), [(False, True), (True, False)])
def test_a_cpu_without_bfloat16_is_told(
    avx512: bool, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = {"architecture": "x86_64", "avx512_f": avx512}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        resources.check_precision("bf16-mixed", torch.device("cpu"))
        resources.check_precision("32-true", torch.device("cpu"))
    assert [("--trainer.precision 32-true" in str(one.message)) for one in told] == [True] * warns


def test_the_batch_of_deepspeed_is_that_of_the_other_settings() -> None:
    resources.check_batch({}, 4, 2, 8)
    fits = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4}
    resources.check_batch({**fits, "gradient_accumulation_steps": "auto"}, 4, 2, 8)
    for wrong, message in (
        ({"train_batch_size": 32}, "train_batch_size=32, but data.batch_size=4 x 2 .* 8 .* 64"),
        ({"train_micro_batch_size_per_gpu": 8}, "=8, but data.batch_size=4 makes 4"),
        ({"gradient_accumulation_steps": 1}, "=1, but trainer.accumulate_grad_batches=2"),
    ):
        with pytest.raises(InputError, match=message):
            resources.check_batch({**fits, **wrong}, 4, 2, 8)


def test_a_probe_is_there_for_a_while_and_makes_no_folder(tmp_path: Path) -> None:
    with resources.probe(str(tmp_path / "runs" / "a"), 1000) as probe:
        assert [tmp_path / probe] == list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    with resources.probe("s3://b/runs", 1) as remote:
        assert remote == ""


def test_every_folder_for_checkpoints_is_probed(tmp_path: Path) -> None:
    """The run's folder, and those of callbacks with a folder."""
    own, other = str(tmp_path / "runs"), str(tmp_path / "other")

    def folders(*callbacks: ModelCheckpoint, **options: Any) -> list[str]:
        trainer = quiet(tmp_path / "runs", callbacks=[*callbacks], **options)
        trainer.state.fn = TrainerFn.FITTING
        return resources.checkpoint_folders(trainer)

    assert folders() == [own]
    assert folders(ModelCheckpoint(other), ModelCheckpoint(monitor="a")) == [own, other]
    assert folders(fast_dev_run=True) == []
    (tmp_path / "other").touch()
    trainer = quiet(tmp_path / "runs", callbacks=[ModelCheckpoint(other + "/a")], max_steps=1)
    with pytest.raises(InputError, match=f"{other}/a: checkpoints cannot be written"):
        trainer.fit(Line(), loader())


def test_a_folder_that_cannot_hold_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "runs", Path("/proc/runs")):
        with (
            pytest.raises(InputError, match=f"{folder}: checkpoints cannot be written.*root_dir"),
            resources.probe(str(folder), 1000),
        ):
            pass
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 0, 999_000))
    with (
        pytest.raises(InputError, match="takes 1 MB or more, but there is room for 999 kB"),
        resources.probe(str(tmp_path), 1_000_000),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("late", "load", "threads", "device", "warned"),
    [
        (True, 99.0, 2, "cpu", True),
        (True, 0.1, 2, "cpu", False),
        (False, 99.0, 2, "cpu", False),
        (True, 99.0, 1, "cpu", False),
        (True, 99.0, 2, "cuda", False),
    ],
)
def test_threads_that_do_not_give_way(
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
    load: float,
    threads: int,
    device: str,
    warned: bool,
) -> None:
    monkeypatch.setattr(openmp, "_late", late)
    monkeypatch.setattr(resources.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        resources.check_threads(torch.device(device))
    assert [str(one.message)[:14] for one in told] == ["other programs"] * warned
