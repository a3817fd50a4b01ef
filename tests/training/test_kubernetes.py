"""launch/kubernetes: manifests that Kubernetes takes; pods that are processes of this machine."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SAMPLE
from slurm_cluster import ROOT, until

from autotimm.cli.early_checks import check_words
from autotimm.data.synthetic import make_dataset
from autotimm.sharding.cli import shard

FOLDER = ROOT / "launch" / "kubernetes"
IN_IMAGE = "/opt/autotimm"
CHEAP = [
    *(f"--config={ROOT / 'launch/small_cpu.yaml'}", f"--data={SAMPLE}", "--image-size=64"),
    *("--model.backbone=test_resnet", "--model.fpn_channels=16", "--model.head_convs=1"),
    *("--trainer.limit_val_batches=0", "--data.num_workers=0", "--batch-size=1"),
]


def documents(name: str) -> Iterator[dict[str, Any]]:
    return yaml.safe_load_all((FOLDER / name).read_text())


def job(name: str) -> dict[str, Any]:
    [found] = [one for one in documents(name) if one["kind"] == "Job"]
    return found


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    [only] = manifest["spec"]["template"]["spec"]["containers"]
    return only


def train_job() -> tuple[dict[str, Any], dict[str, Any]]:
    """The trainer of trainjob.yaml, and the Job of its runtime."""
    runtime, train = documents("trainjob.yaml")
    [replicated] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    return train["spec"]["trainer"], replicated["template"]


# ------------------------------------------------------------------ manifests


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.yaml")))
def test_the_published_schemas_have_every_field(name: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    kinds = {
        "v1": "IoK8sApiCoreV1",
        "batch/v1": "IoK8sApiBatchV1",
        "trainer.kubeflow.org/v1alpha1": "TrainerV1alpha1",
    }
    for one in documents(name):
        read = getattr(models, kinds[one["apiVersion"]] + one["kind"]).from_dict(one)
        assert read.to_dict() == one  # it leaves out what it does not know


def test_both_ways_to_train_are_the_same() -> None:
    """But for the variables, which Kubeflow sets."""
    plain, (trainer, runtime) = job("job.yaml"), train_job()
    assert trainer["args"] == container(plain)["args"]
    assert trainer["resourcesPerNode"] == container(plain)["resources"]
    pods, theirs = (one["spec"]["template"]["spec"] for one in (plain, runtime))
    names = {"command", "envFrom", "image", "name", "volumeMounts", "workingDir"}
    assert {k: v for k, v in container(plain).items() if k in names} == container(runtime)
    del pods["containers"], theirs["containers"], pods["subdomain"]
    assert pods == theirs
    for name in ("backoffLimitPerIndex", "maxFailedIndexes", "podFailurePolicy"):
        assert plain["spec"][name] == runtime["spec"][name]
    assert trainer["numNodes"] == plain["spec"]["completions"]


def test_numbers_that_have_to_be_equal_are() -> None:
    spec, values = job("job.yaml")["spec"], variables("job.yaml", 0)
    assert int(values["PET_NNODES"]) == spec["completions"] == spec["parallelism"]
    limits = container(job("job.yaml"))["resources"]["limits"]
    assert values["PET_NPROC_PER_NODE"] == limits["nvidia.com/gpu"]
    spec, values = job("shard.yaml")["spec"], variables("shard.yaml", 0)
    assert int(values["PARTS"]) == spec["completions"] == spec["parallelism"]
    assert container(job("shard.yaml"))["args"] == container(job("shard-join.yaml"))["args"]


def test_the_pods_have_the_name_of_their_service() -> None:
    service, job_ = documents("job.yaml")
    name = job_["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    subdomain = job_["spec"]["template"]["spec"]["subdomain"]
    assert subdomain == service["metadata"]["name"]
    assert variables("job.yaml", 0)["PET_MASTER_ADDR"] == f"{name}-0.{subdomain}"


def test_the_flags_are_those_of_fit_and_the_files_are_in_the_image() -> None:
    words = [word.replace(IN_IMAGE, str(ROOT)) for word in container(job("job.yaml"))["args"]]
    settings = check_words(["fit", *words], "--help")
    assert settings is not None
    assert settings["ckpt_path"] == "last"
    _, script = container(job("job.yaml"))["command"]
    assert Path(script.replace(IN_IMAGE, str(ROOT))).is_file()
    assert "COPY launch launch" in (ROOT / "Dockerfile").read_text()


# ------------------------------------------------------------------ pods


def variables(name: str, index: int) -> dict[str, str]:
    """What a pod of an Indexed Job finds in its environment."""
    values = {"JOB_COMPLETION_INDEX": str(index)}
    for one in container(job(name))["env"]:
        path = one.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        if path is not None:
            assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        values[one["name"]] = str(index) if path else one["value"]
    return values


def start(name: str, index: int, folder: Path, *args: str, **own: str) -> subprocess.Popen[str]:
    """A pod's command as a process of this machine, with ``folder`` as its volume."""
    words = [one.replace(IN_IMAGE, str(ROOT)) for one in container(job(name))["command"]]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PET_")}
    path = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [*words, *args],
        env=clean | {"OMP_NUM_THREADS": "1"} | variables(name, index) | {"PATH": path} | own,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


RANK = "(trap '{}; exit' TERM; touch begun; for i in {{1..3000}}; do sleep 0.02; done) & wait"
"""A process that torchrun has started, and what it does on a signal; for a minute at most."""


@pytest.mark.parametrize(
    ("script", "stops", "code"),
    [
        ("exit 0", False, 0),
        ("exit 1", False, 1),
        ('echo 3 >"$AUTOTIMM_STOPPED"', False, 85),  # another pod was stopped
        ("touch begun; exec sleep 60", True, 85),  # before there is a process to signal
        (RANK.format('echo 3 >"$AUTOTIMM_STOPPED"'), True, 85),
        (RANK.format("touch saved"), True, 0),  # it was done, and the signal came too late
    ],
)
def test_the_code_says_whether_the_run_goes_on(
    tmp_path: Path, script: str, stops: bool, code: int
) -> None:
    (tmp_path / "torchrun").write_text(f'#!/usr/bin/env bash\necho "$@" >words\n{script}\n')
    (tmp_path / "torchrun").chmod(0o755)
    pod = start("job.yaml", 1, tmp_path, "--config", "a b.yaml")
    if stops:
        until((tmp_path / "begun").exists)
        pod.send_signal(signal.SIGTERM)
    said, _ = pod.communicate(timeout=60)
    assert pod.returncode == code, said
    words = "--rdzv-conf timeout=3600 -m autotimm fit --config a b.yaml\n"
    assert (tmp_path / "words").read_text() == words


def test_without_the_variables_it_says_what_is_missing(tmp_path: Path) -> None:
    words = ["bash", str(FOLDER / "train.sh"), "--config", "a.yaml"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PET_")}
    done = subprocess.run(words, env=clean, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"PET_NNODES: start this script by a manifest of launch/kubernetes/" in done.stderr


@pytest.mark.release
def test_an_evicted_pod_stops_all_and_another_number_of_pods_goes_on(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
    flags = [*CHEAP, "--epochs=400", "--ckpt_path=last"]
    pods = [start("job.yaml", i, tmp_path, *flags, **here) for i in range(2)]
    until(lambda: [*tmp_path.glob("runs/version_0/checkpoints/last.ckpt")])
    pods[1].send_signal(signal.SIGTERM)
    said = [pod.communicate(timeout=300)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [85, 85], said
    record = json.loads((tmp_path / "runs/version_0/run.json").read_text())
    assert record["machine"]["processes"] == 2
    assert record["status"] == "preempted"

    alone = start("job.yaml", 0, tmp_path, *flags, f"--epochs={record['epoch'] + 2}",
                  **here, PET_NNODES="1")  # fmt: skip
    text, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, text
    again = json.loads((tmp_path / "runs/version_1/run.json").read_text())
    assert (again["status"], again["machine"]["processes"]) == ("finished", 1)
    assert again["step"] > record["step"]


@pytest.mark.slow
def test_parts_and_their_join_are_what_one_machine_writes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "coco", train=6, val=2, size=64)
    options = ["--samples-per-shard=2", "--workers=1"]
    pods = [
        start("shard.yaml", i, tmp_path, "coco", "shards", *options, PARTS="2") for i in range(2)
    ]
    for pod in pods:
        said, _ = pod.communicate(timeout=300)
        assert pod.returncode == 0, said
    assert not (tmp_path / "shards" / "manifest.json").exists()
    words = container(job("shard-join.yaml"))["command"]
    command = [str(Path(sys.executable).parent / words[0]), *words[1:], "coco", "shards", *options]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    shard(tmp_path / "coco", tmp_path / "truth", samples_per_shard=2)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        for name in ("shards", "truth")
    ]
    assert files[0] == files[1]
    assert len([*itertools.chain(*files)]) > 6
