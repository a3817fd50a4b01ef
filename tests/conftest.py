"""Fixtures that several test files use."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

# Before torch: threads that wait for each other cost several times as much once another process
# runs, and two processes of one thread test more in a minute than one of two.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
import shard_runs
from coco_folder import mixed
from servers import Server, serve
from slurm_cluster import CLUSTER, ROOT, Environment, command, wait

from autotimm.data.synthetic import make_dataset
from autotimm.sharding.cli import shard

SHARED_DATA = Path(
    os.environ.get("AUTOTIMM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)
SAMPLE = Path(__file__).parents[1] / "shards" / "sample"


# A shell's background job ignores Ctrl-C, and nohup's ignores SIGHUP: so would every process that a
# test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


DEAREST = (
    "test_compile",
    "test_strategies",
    "test_overfit",
    "test_export",
    "test_train",
    "test_readme",
    "test_preemption",
    "test_parent",
    "test_slurm_train",
    "test_evaluate",
    "test_backbone",
    "test_no_secret_leaves",
)
"""Files that take longest come first: the other cores would wait for one that began last."""


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One more than there are cores: at nearly all times one test waits for a server, a signal, the
    end of a pause or another test's cluster. More than eight need memory rather than cores."""
    return min((yield) + 1, 8)


def slow_alone(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "slow and not release"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``make test-slow`` does not import the many files without a slow test in each process."""
    if not slow_alone(config) or not collection_path.match("test_*.py"):
        return None
    return True if "mark.slow" not in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {file: i for i, file in enumerate(DEAREST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return
    import torch  # here: tests of files and shards alone need none of it

    (needed,) = marker.args or (1,)
    if torch.cuda.device_count() < needed:
        pytest.skip("needs a GPU" if needed == 1 else f"needs {needed} GPUs")


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays: each garbage collection would look at all of
    it again, at a tenth of what the tests cost."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real COCO data beside the checkout; skips where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real COCO data (set AUTOTIMM_SHARED_DATA to its folder)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def mixed_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a small folder of images of several shapes; not to be changed."""
    folder = tmp_path_factory.mktemp("mixed")
    shard(mixed(folder / "coco"), folder / "shards", samples_per_shard=4)
    return folder / "shards"


@pytest.fixture(scope="session")
def range_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a few samples each, of a size that is worth a request; not to be changed."""
    from range_reads import IMAGES, SHARD  # which needs torch

    folder = tmp_path_factory.mktemp("ranges")
    make_dataset(folder / "coco", train=IMAGES, val=3, size=200)
    shard(folder / "coco", folder / "shards", samples_per_shard=SHARD)
    return folder / "shards"


@pytest.fixture
def range_server(range_shards: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that sends ranges of a copy of ``range_shards``."""
    with serve(shutil.copytree(range_shards, tmp_path / "copy")) as server:
        server.ranges = True
        yield server


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The eight images of the sample's training split; not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(SAMPLE / "train-000000.tar") as tar:
        for member in tar.getmembers():
            if not member.name.endswith(".json"):
                content = tar.extractfile(member)
                assert content is not None
                (folder / member.name).write_bytes(content.read())
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentor after some steps on the bundled sample, which finds much, rightly and wrongly;
    not to be changed."""
    from autotimm import InstanceSegmentor

    options = {"lr": 2e-3, "score_thresh": 0.02, "mask_rois": 8}
    return trained_once(tmp_path_factory, "trained", InstanceSegmentor, 20, **options)


@pytest.fixture(scope="session")
def boxes_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ObjectDetector after one step on the bundled sample; not to be changed."""
    from autotimm import ObjectDetector

    return trained_once(tmp_path_factory, "boxes", ObjectDetector, 1, score_thresh=0.001)


def trained_once(
    factory: pytest.TempPathFactory, name: str, kind: type, steps: int, **options: float
) -> Path:
    """As :func:`trained`, by the first of the test processes that asks for it."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all of them
    (folder / name).mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name / "model.ckpt").exists():
            trained(kind, folder / name, steps, **options)
    return folder / name / "model.ckpt"


def trained(kind: type, folder: Path, steps: int, **options: float) -> Path:
    """The checkpoint of a small model after so many steps on the bundled sample."""
    import torch

    from autotimm import AutoTrainer, InstanceSegmentationDataModule

    torch.manual_seed(0)
    data = InstanceSegmentationDataModule(
        SAMPLE, image_size=128, batch_size=4, num_workers=0, augmentation_preset="light"
    )
    small = {"pretrained": False, "fpn_channels": 32, "head_convs": 1, "compile_model": False}
    model = kind("resnet10t", data.num_classes, **small, **options)
    trainer = AutoTrainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        save_every_n_epochs=0,
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The environment for SLURM's commands against two nodes on this machine, which can have one
    such cluster at a time: other test processes wait for it."""
    if not CLUSTER.exists():
        pytest.skip("needs a script that starts a cluster (set AUTOTIMM_SLURM_LOCALHOST)")
    if os.geteuid() or not shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin"):
        pytest.skip("needs SLURM (slurm-wlm), and to be root to start it")
    folder = tmp_path_factory.mktemp("slurm")
    with Path(tempfile.gettempdir(), "autotimm-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield from _started(folder)


def _started(folder: Path) -> Iterator[Environment]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "AUTOTIMM_PYTHON": sys.executable}
    subprocess.run(
        [CLUSTER, "start", folder], env=env, check=True, timeout=120, stdout=subprocess.DEVNULL
    )
    env |= {"SLURM_CONF": str(folder / "slurm.conf")}
    try:
        yield env
    finally:  # of a test that failed: jobs would live on
        command("scancel", "--me", env=env)
        wait(env)
        subprocess.run([CLUSTER, "stop", folder], check=True)


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    """The shards of ``tmp_path / "coco"`` that one uninterrupted run writes, two samples each."""
    coco, out = shard_runs.source(tmp_path / "coco"), tmp_path / "truth"
    assert shard_runs.shard(coco, out, *shard_runs.PAIRS, "--workers", 1) == 0
    return shard_runs.files_of(out)


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """``autotimm-shard`` without ``--workers`` works in this process. A fork of this one, which has
    imported torch, costs more than to write a few small shards."""
    monkeypatch.setattr("autotimm.sharding.run._MOST_WORKERS", 1)
    monkeypatch.setattr("autotimm.sharding.cli.usable_cpus", lambda: 1)


@pytest.fixture
def own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the threads that other tests left behind (fsspec's, a DataLoader's).

    Beside a thread workers are spawned rather than forked, and what a test defines for them inside
    itself cannot be sent to those.
    """
    others = {*threading.enumerate()} - {threading.current_thread()}
    every = threading.enumerate
    monkeypatch.setattr(threading, "enumerate", lambda: [t for t in every() if t not in others])
    monkeypatch.setattr(threading, "active_count", lambda: len(threading.enumerate()))


@pytest.fixture(autouse=True)
def _no_seed_left() -> Iterator[None]:
    """Lightning leaves a seed in the environment, from which the ranks that a later test starts
    would all draw alike."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
