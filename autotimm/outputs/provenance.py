"""The origin of a run as plain values: command line, versions, environment, git state, settings.

Invariants: no function raises or takes more than seconds; only listed environment variables are
recorded, so that no key or password gets into a file; no value holds a secret of a URL.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

import autotimm
from autotimm.data.settings import DataSettings
from autotimm.plain import plain
from autotimm.redaction import redacted

_PACKAGES = (
    *("torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "albumentations"),
    *("opencv-python-headless", "simplejpeg", "deepspeed", "webdataset"),
)
_ENVIRONMENT = (
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF"),
    *("PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
    *("KMP_BLOCKTIME", "PYTHONHASHSEED", "HF_HUB_OFFLINE"),
    *("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "DS_ACCELERATOR"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCH_DISTRIBUTED_DEBUG"),
    *("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION"),
    *("SLURM_JOB_NODELIST", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_RESTART_COUNT"),
    *("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
)
_GIT_SECONDS = 20  # git needs long for a large checkout on a slow network disk


def command_line() -> list[str]:
    """The command line of this process, as words."""
    return redacted(list(sys.orig_argv))


def versions() -> dict[str, str]:
    """The versions of Python, this package, its dependencies and CUDA."""
    installed = {"python": platform.python_version(), "autotimm": autotimm.__version__}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an optional dependency
    if torch.version.cuda:
        installed["cuda"] = torch.version.cuda
    return installed


def environment() -> dict[str, str]:
    """The environment variables that are set and influence a run."""
    names = [name for name in os.environ if name in _ENVIRONMENT or name.startswith("NCCL_")]
    return redacted({name: os.environ[name] for name in sorted(names)})


def machine(trainer: Trainer) -> dict[str, Any]:
    """The host and device of this rank, and the numbers of processes and nodes."""
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "processes": trainer.world_size,
        "nodes": trainer.num_nodes,
    }


def git_states() -> list[dict[str, Any]]:
    """The git checkouts that contain the script and this package, at most two.

    Each has ``folder``, ``commit``, and ``dirty``, whether files differ from the commit.
    """
    script = Path(sys.argv[0] or ".").resolve().parent
    states = [_git_state(folder) for folder in (script, Path(autotimm.__file__).parent)]
    return list({state["folder"]: state for state in states if state}.values())


def _git_state(folder: Path) -> dict[str, Any] | None:
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str:
        # So that a repository's settings cannot make git start programs.
        options = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder))
        done = subprocess.run(  # noqa: S603
            [git, *options, *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.strip()

    try:
        top, commit = ask("rev-parse", "--show-toplevel", "HEAD").splitlines()
        dirty = bool(ask("status", "--porcelain", "--untracked-files=no"))
        return {"folder": top, "commit": commit, "dirty": dirty}
    except (OSError, ValueError, subprocess.SubprocessError):
        return None  # not a checkout, or git cannot read it


def settings(trainer: Trainer, model: LightningModule) -> dict[str, Any]:
    """The arguments of model, data and trainer that are plain values."""
    trained = {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
    }
    data = _arguments(getattr(trainer, "datamodule", None))
    parts = {"model": dict(model.hparams), "data": data, "trainer": trained}
    known: dict[str, Any] = {}
    for part, values in parts.items():
        named = {str(k): asdict(v) if _is_instance(v) else v for k, v in values.items()}
        known[part] = {k: _recorded(plain(v)) for k, v in named.items() if _is_plain(v)}
    return known


def location(datamodule: Any) -> str | None:
    """The folder or URL of the data of a data module of ours; None for any other."""
    settings: Any = getattr(datamodule, "settings", None)
    return settings.location.given if isinstance(settings, DataSettings) else None


def fingerprint(datamodule: Any) -> str | None:
    """A hash of the samples that a data module of ours trains on; None for any other."""
    settings: Any = getattr(datamodule, "settings", None)
    if not isinstance(settings, DataSettings):
        return None
    found: str = datamodule.source(settings.train_split).fingerprint
    return found


def _arguments(datamodule: Any) -> dict[str, Any]:
    """The settings of our data module, or the public attributes of any other."""
    if datamodule is None:
        return {}
    own = {k: v for k, v in vars(datamodule).items() if k[0] != "_"}
    if isinstance(chosen := own.get("settings"), DataSettings):
        del own["settings"]
        names = [one.name for one in fields(chosen) if one.name != "location"]
        own |= {"data_dir": chosen.location.given} | {k: getattr(chosen, k) for k in names}
    return own


def _is_instance(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if value is None or isinstance(value, bool | int | float | str | Path | Enum):
        return True
    return getattr(value, "ndim", None) == 0  # a NumPy scalar or a tensor, but no large array


def _recorded(value: Any) -> Any:
    """A plain value as JSON has it, with URLs without their secrets."""
    if isinstance(value, list | tuple):
        return [_recorded(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _recorded(one) for key, one in value.items()}
    return redacted(value) if isinstance(value, str) else value
