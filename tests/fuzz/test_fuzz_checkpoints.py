"""Checkpoints: torch's files, safetensors of ours, the list of a folder's files."""

from __future__ import annotations

import functools
import io
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from documents import damaged, mutated, texts
from hypothesis import strategies as st
from properties import fuzzed, outcome
from samples import folder

from autotimm.checkpoints import resume
from autotimm.checkpoints.storage import COMPLETE
from autotimm.files.checksums import KEY, UNSEALED, sealed
from autotimm.structures import InputError
from autotimm.tasks import checkpoint
from autotimm.tasks.archive import write_archive
from autotimm.tasks.weights import write_weights

WEIGHT = torch.arange(6, dtype=torch.float32).reshape(2, 3)
CONTENT: dict[str, Any] = {
    "epoch": 1,
    "global_step": 20,
    "hyper_parameters": {"backbone": "resnet10t", "num_classes": 2, "lr": 0.001},
    "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "star"}],
    "preprocessing": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bilinear",
        "image_size": [64, 64],
        "resize": "letterbox",
        "pixel_range": [0.0, 255.0],
    },
    "state_dict": {"weight": 0.0, "bias": 1.0},
    "ema": {"decay": 0.9, "state_dict": {"weight": 0.0}},
    "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
    "loops": {},
}


def with_tensors(content: Any) -> Any:
    """The content with a tensor for each number of its state_dict."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        state = content["state_dict"]
        content["state_dict"] = {
            key: WEIGHT if isinstance(value, float) else value for key, value in state.items()
        }
    return content


def saved(content: Any, how: str) -> bytes:
    """The bytes of a checkpoint of this content."""
    buffer = io.BytesIO()
    if how == "sealed":
        try:
            write_archive(with_tensors(content), buffer)
        except InputError:  # what could not be read again is not written
            return b""
    else:
        torch.save(with_tensors(content), buffer, _use_new_zipfile_serialization=how == "zip")
    return buffer.getvalue()


def use(content: dict[str, Any]) -> None:
    """Everything that is read out of a checkpoint before there is a model."""
    for part in (
        checkpoint.weights_of,
        checkpoint.preprocessing_of,
        checkpoint.categories_of,
        checkpoint.check_resumable,
    ):
        outcome(lambda part=part: part(content))


def read(path: Path) -> Any:
    with warnings.catch_warnings():  # that it has no checksum
        warnings.simplefilter("ignore")
        return checkpoint.read_checkpoint(path)


@fuzzed(
    damaged(st.builds(saved, mutated(st.just(CONTENT)), st.sampled_from(("sealed", "zip", "old")))),
    examples=30,
)
def test_checkpoint(data: bytes) -> None:
    path = folder("checkpoint") / "a.ckpt"
    path.write_bytes(data)
    found = outcome(lambda: read(path), naming=str(path))
    if found is not None:
        use(found)


@functools.cache
def safetensors() -> bytes:
    path = folder("safetensors") / "sound.safetensors"
    write_weights(CONTENT, {"weight": WEIGHT, "bias": WEIGHT[0].clone()}, path)
    return path.read_bytes()


@st.composite
def weights(draw: st.DrawFn) -> bytes:
    """A safetensors file with a header of its own, sealed or not."""
    data = safetensors()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"][KEY] = UNSEALED
    settings = draw(mutated(st.just({key: CONTENT[key] for key in ("categories", "epoch")})))
    header["__metadata__"]["autotimm"] = json.dumps(settings)
    text = draw(texts(mutated(st.just(header), 2), plain=True))
    made = struct.pack("<Q", draw(st.sampled_from((len(text),) * 4 + (2**63, 0)))) + text
    made += data[8 + length :]
    return sealed(made) if f'"{KEY}":"{UNSEALED}'.encode() in made else made


@fuzzed(weights() | damaged(weights(), often=True), examples=40)
def test_safetensors(data: bytes) -> None:
    path = folder("safetensors") / "a.safetensors"
    path.write_bytes(data)
    found = outcome(lambda: read(path), naming=str(path))
    if found is not None:
        use(found)


LISTED = {"step": 4, "epoch": 1, "files": {"a.bin": 5}, "checksums": {"a.bin": "0" * 16}}


@fuzzed(texts(mutated(st.just(LISTED)), plain=True), examples=60)
def test_complete(data: bytes) -> None:
    """A folder with a damaged list is left aside, never an error."""
    path = folder("complete") / "step_4.ckpt"
    path.mkdir(exist_ok=True)
    (path / "a.bin").write_bytes(b"12345")
    (path / COMPLETE).write_bytes(data)
    told = outcome(lambda: resume.damage_of(path))
    assert told is None or told.isprintable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert resume.newest(path.parent) in (None, path.resolve())
