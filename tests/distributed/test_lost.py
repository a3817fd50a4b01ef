"""The ranks that are named as lost, and the remaining rank that reports them."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import on_ranks, on_torchrun
from torch.distributed import HashStore

from autotimm.distributed import lost_ranks
from autotimm.distributed.lost_ranks import is_of_another_rank, ranks_lost
from autotimm.distributed.rendezvous import Rendezvous
from autotimm.setup.check import compare_reports
from autotimm.setup.report import Report


class Gone(HashStore):
    """A store whose serving process has ended."""

    def set(self, *_: object) -> None:
        raise ConnectionError("Connection reset by peer")


HOSTS = ["a", "a", "b", "b", "c", "c"]


CLOSED = "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:5"


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (RuntimeError(CLOSED), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("the label server timed out"), False),
        (RuntimeError(f"of a user's own, after {CLOSED}"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (TimeoutError("timed out"), False),
    ],
)
def test_only_what_a_collective_raises_is_of_another_rank(error: Exception, counts: bool) -> None:
    assert is_of_another_rank(error) == counts


def test_if_the_first_rank_is_lost_every_rank_reports_it() -> None:
    for rank in range(1, 6):
        error = ranks_lost(Rendezvous(Gone(), rank, 6), HOSTS, RuntimeError(CLOSED))
        assert error is not None and error.reports
        assert str(error).startswith("rank 0 on a has ended")
        assert f"(rank {rank} on {HOSTS[rank]}: {CLOSED})" in str(error)


def test_nobody_waits_for_a_first_rank_with_an_error_of_its_own() -> None:
    store = HashStore()
    failed = Report(host="a", problem="no space left")
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(ranks_lost, Rendezvous(store, 1, 2), ["a", "b"], RuntimeError(CLOSED))
        verdict = Rendezvous(store, 0, 2).exchange(failed, compare_reports)
        error = other.result()
    assert verdict["problems"] == ["rank 0 on a: no space left"]
    assert error is not None and error.reports and str(error).startswith("rank 0 on a has ended")


def test_the_first_rank_names_those_that_do_not_come(monkeypatch) -> None:
    monkeypatch.setattr(lost_ranks, "PATIENCE", timedelta(seconds=0.1))
    store = HashStore()
    store.set("0/1", '"here"')
    error = ranks_lost(Rendezvous(store, 0, 3), HOSTS, RuntimeError("Timed out waiting 60000ms"))
    assert error is not None and error.reports
    assert str(error).startswith("rank 2 on b does not answer within the timeout")
    store.set("0/2", '"here"')
    assert ranks_lost(Rendezvous(store, 0, 3), HOSTS, RuntimeError("Timed out")) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "start", "line"),
    [
        (1, on_ranks, "rank 1 on an unknown node did not come within 0:00:03"),
        (0, on_ranks, f"rank 1 on {platform.node()}: rank 0 cannot be reached at 127.0.0.1:"),
        pytest.param(
            *(1, on_torchrun, "rank 1 on an unknown node did not come within 0:00:03"),
            marks=pytest.mark.release,
        ),
        (0, on_torchrun, f"rank 1 on {platform.node()}: rank 0 cannot be reached at "),
    ],
)
def test_a_rank_that_never_comes_is_named_after_the_timeout(
    missing: int, start, line: str, mixed_shards: Path, tmp_path: Path
) -> None:
    code = """
        import os, sys, time
        missing, shards, root = sys.argv[1:]
        if os.environ["RANK"] == missing:
            time.sleep(100_000)
        from autotimm.cli.train import train
        flags = {
            "data.data_dir": shards, "data.image_size": 64, "data.num_workers": 0,
            "model.init_args.backbone": "test_resnet", "model.init_args.pretrained": "false",
            "trainer.default_root_dir": root, "trainer.timeout_minutes": 0.05,
        }
        train(["fit", *(f"--{name}={value}" for name, value in flags.items())])
    """
    done = start(code, tmp_path, missing, mixed_shards, tmp_path / "runs")
    assert done.returncode == 1
    lines = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    assert line in lines[0] and "0:00:03" in lines[0]
    assert not list(tmp_path.glob("runs/*/run.json"))
