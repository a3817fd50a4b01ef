"""One run writes at a time, or several parts of one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from shard_runs import (
    FORK,
    PAIRS,
    WORK,
    big_source,
    files_of,
    shard,
    started,
)

from autotimm.sharding import cli
from autotimm.sharding.destinations import locks

pytestmark = pytest.mark.usefixtures("own_threads", "one_worker")


def test_one_run_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.2)
    coco, out = big_source(tmp_path / "coco"), tmp_path / "out"
    with started(coco, out, "--samples-per-shard", 5, "--workers", 1) as process:
        process.send_signal(signal.SIGSTOP)  # keeps the lock meanwhile
        for flags in ([], ["--overwrite"], ["--part", "1/2"]):
            assert shard(coco, out, "--samples-per-shard", 5, *flags) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and "another autotimm-shard is writing there" in err


@pytest.mark.parametrize("order", ["123", "312", "13", ""])
def test_parts_in_any_order_make_one_run(
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    order: str,
) -> None:
    out, flags = tmp_path / "out", PAIRS
    for which in order:
        capsys.readouterr()
        assert shard(tmp_path / "coco", out, *flags, "--part", f"{which}/3") == 0
        assert f"part {which} of 3 is done" in capsys.readouterr().out
        assert not (out / "manifest.json").exists()
    assert shard(tmp_path / "coco", out, *flags, "--json") == 0
    missing = {"123": 0, "312": 0, "13": 2, "": 5}[order]
    assert json.loads(capsys.readouterr().out)["written_shards"] == missing
    assert files_of(out) == undisturbed
    assert shard(tmp_path / "coco", out, *flags, "--part", "1/3") == 0  # there is nothing to do
    assert files_of(out) == undisturbed and not (out / WORK).exists()


def test_parts_at_once_make_one_run(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    coco, out = tmp_path / "coco", tmp_path / "out"

    def part(which: int) -> None:
        cli.main([str(a) for a in (coco, out, *PAIRS, "--workers", 1, "--part", f"{which}/4")])

    worker_pool = [FORK.Process(target=part, args=(which,)) for which in range(1, 5)]
    for process in worker_pool:
        process.start()
    for process in worker_pool:
        process.join()
    assert [process.exitcode for process in worker_pool] == [0] * 4
    assert len(list((out / WORK).glob("*-0*.json"))) == 5
    assert shard(coco, out, *PAIRS) == 0
    assert files_of(out) == undisturbed


def test_the_same_part_twice_or_another_number_of_parts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.2)
    coco, out = big_source(tmp_path / "coco"), tmp_path / "out"
    flags = ["--samples-per-shard", 5, "--workers", 1]
    with started(coco, out, *flags, "--part", "1/2") as process:
        process.send_signal(signal.SIGSTOP)
        for changed, message in (
            ([*flags, "--part", "1/2"], "another process is writing part 1/2"),
            ([*flags, "--part", "1/3"], "is being written in 2 parts, not in 3"),
            (flags, "another autotimm-shard is writing there"),
            (["--limit", 9, "--part", "2/2"], "holds an unfinished run that cannot go on"),
            (["--limit", 9, "--part", "2/2", "--overwrite"], "other parts are being written"),
        ):
            assert shard(coco, out, *changed) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and message in err, err
        assert shard(coco, out, *flags, "--part", "2/2", "--limit", 400) == 2
