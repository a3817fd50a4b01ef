"""A file that a killed start has left is named, by the start that waits and by doctor."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from autotimm.doctor import machine
from autotimm.strategies import build_locks


def test_a_start_tells_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_locks, "SECONDS", 0.1)
    monkeypatch.setattr(FileBaton, "wait", FileBaton.wait)
    build_locks.report_waiting()
    build_locks.report_waiting()  # twice is once
    lock = tmp_path / "lock"
    lock.touch()
    threading.Timer(0.5, lock.unlink).start()
    FileBaton(str(lock), 0.01).wait()
    assert not lock.exists()
    assert capsys.readouterr().err.count(f"waiting for {lock}: another process compiles") == 1
    FileBaton(str(lock), 0.01).wait()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("waits", [True, False])
def test_doctor_names_what_was_left(
    waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "py311_cpu" / "ops" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    if waits:
        monkeypatch.setattr(cpp_extension, "FileBaton", FileBaton, raising=False)
    else:
        monkeypatch.delattr(cpp_extension, "FileBaton", raising=False)

    def named() -> list[str]:
        return [one.remedy for one in machine.limits() if one.name == "compiled extensions"]

    assert named() == [], "somebody may be compiling"
    os.utime(lock, (0, 0))
    assert named() == ([f"rm {lock}"] if waits else [])
