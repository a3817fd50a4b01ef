"""What checksums cost a save and a load of a checkpoint, and how much damage they find.

    python benchmarks/checkpoints.py [--out benchmarks/results/checkpoints.md]

A model with AdamW's state and an average of the weights is saved and loaded with the checks and
without, in turns, in CPU seconds of this process: wall time depends on what else the machine does.
"With" is what a trainer and ``autotimm.load`` call; "without" is the same with the checksum and the
trial of the structure taken out. Where other work makes two runs differ by more than a checksum
costs, the last column still tells: within a run every second piece is hashed as well as written (or
read), and the difference of the medians is multiplied by the number of pieces.

Then bits are flipped and ends cut off; a flip counts as found if reading raises an error, and as
harmless if the content is bitwise the same.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import xxhash

from autotimm import InputError, InstanceSegmentor, load
from autotimm.checkpoints.storage import PlainCheckpointIO
from autotimm.files import checksums
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.tasks.weights import write_weights

LARGE = ("save", "load (.ckpt)")
"""The actions whose checksum is taken piece by piece."""
XXH3 = xxhash.xxh3_64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a small model, few repeats")
    parser.add_argument("--out", type=Path, help="a file to write the tables to")
    options = parser.parse_args()
    if options.quick:
        options.backbone, options.repeats, options.flips, options.cuts = "resnet10t", 2, 20, 5
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        text = report(options, Path(folder))
    print(text)
    if options.out:
        options.out.write_text(text)


def report(options: argparse.Namespace, folder: Path) -> str:
    content, path = checkpoint(options.backbone), folder / "step_1.ckpt"
    files = PlainCheckpointIO()
    files.save_checkpoint(content, path)
    published = folder / "model.safetensors"
    write_weights(content, content["state_dict"], published)
    actions: dict[str, Callable[[], object]] = {
        "save": lambda: files.save_checkpoint(content, path),
        "load (.ckpt)": lambda: load(path),
        "load (.safetensors)": lambda: load(published),
    }
    lines = [
        "# Checkpoints",
        "",
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{options.backbone}, {path.stat().st_size / 1e6:.0f} MB with AdamW's state and an average",
        "",
        "| CPU seconds | with | without | cost | hashing, by alternate pieces |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, action in actions.items():
        files.save_checkpoint(content, path)  # the last of the turns had no checksum
        with_checks, without = in_turns(action, options.repeats)
        files.save_checkpoint(content, path)
        cost = statistics.median(a / b for a, b in zip(with_checks, without, strict=True)) - 1
        middle = f"{statistics.median(with_checks):.3f} | {statistics.median(without):.3f}"
        added = hashing(action, path, options.repeats, name) if name in LARGE else None
        share = "" if added is None else f"{added:.3f}, {added / statistics.median(without):+.1%}"
        lines.append(f"| {name} | {middle} | {cost:+.1%} | {share} |")
    lines += [
        "",
        "| damage | tried | found | harmless | missed |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    small = {**checkpoint("resnet10t"), "ema": None, "optimizer_states": []}
    small["state_dict"] = {
        name: tensor for name, tensor in small["state_dict"].items() if tensor.numel() < 5000
    }
    files.save_checkpoint(small, path)
    write_weights(small, small["state_dict"], published)
    old = folder / "old.ckpt"
    torch.save(small, old)
    for name, file in (("ours", path), (".safetensors", published), ("torch's, CRCs", old)):
        for kind, count in (("flipped bits", options.flips), ("cuts", options.cuts)):
            found, harmless, missed = damaged(file, kind, count)
            lines.append(f"| {kind}, {name} | {count} | {found} | {harmless} | {missed} |")
    return "\n".join(lines) + "\n"


def checkpoint(backbone: str) -> dict[str, Any]:
    """What a trainer saves of a model after a step of AdamW."""
    model = InstanceSegmentor(backbone, 3, pretrained=False, compile_model=False)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    content: dict[str, Any] = {
        "pytorch-lightning_version": "2.6.4",
        "epoch": 0,
        "global_step": 1,
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "loops": {},
        "optimizer_states": [optimizer.state_dict()],
        "ema": {"decay": 0.9, "state_dict": {n: t.clone() for n, t in model.state_dict().items()}},
        "autotimm": {"random": [{"python": [3, list(range(625)), None]}] * 8},
    }
    model.on_save_checkpoint(content)
    return content


def in_turns(action: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """CPU seconds with the checks and without, the order of each pair alternating."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for i in range(repeats):
        for checks in (i % 2 == 0, i % 2 == 1):
            with unchecked(not checks):
                begin = time.process_time()
                action()
                seconds[checks].append(time.process_time() - begin)
    return seconds[True], seconds[False]


def unchecked(off: bool) -> contextlib.ExitStack:
    """The same code without its checksums, if ``off``."""
    patches = contextlib.ExitStack()
    if off:
        for name, instead in (
            ("autotimm.tasks.archive.is_sealed", lambda _: False),
            ("autotimm.tasks.archive.check", lambda _: True),
            ("autotimm.tasks.weights.check", lambda _: True),
            ("autotimm.checkpoints.storage.write_archive", torch.save),
        ):
            patches.enter_context(mock.patch(name, instead))
    return patches


class Pieces:
    """Stands for a checksum: hashes every second piece, and takes the CPU time of each."""

    def __init__(self, reads: bool, taken: tuple[list[int], list[int]]) -> None:
        self.reads, self.taken = reads, taken
        self.number, self.since, self.hashed = 0, 0, False

    def update(self, data: bytes) -> None:
        begin, hashed = time.thread_time_ns(), self.number % 2 == 0
        if hashed:
            XXH3(data)
        # A piece is read and then hashed, but hashed and then written.
        now, of = (time.thread_time_ns(), hashed) if self.reads else (begin, self.hashed)
        if len(data) == checksums._CHUNK:
            if self.since:
                self.taken[of].append(now - self.since)
            self.number, self.since, self.hashed = self.number + 1, now, hashed
        else:
            self.since = 0  # something else than pieces lies between

    def hexdigest(self) -> str:
        return checksums.UNSEALED


def hashing(action: Callable[[], object], path: Path, repeats: int, name: str) -> float:
    """CPU seconds that hashing adds to a save or a load of the file at ``path``."""
    taken: tuple[list[int], list[int]] = ([], [])
    whole = path.read_bytes()
    with (
        mock.patch("autotimm.files.checksums._compare", lambda *_: None),
        mock.patch("xxhash.xxh3_64", lambda: Pieces(name != "save", taken)),
    ):
        for _ in range(repeats):
            action()
    path.write_bytes(whole)
    without, added = statistics.median(taken[0]), statistics.median(taken[1])
    return (added - without) / 1e9 * len(whole) / checksums._CHUNK


def damaged(path: Path, kind: str, count: int) -> tuple[int, int, int]:
    """How many damages of a file are found, harmless and missed."""
    whole, chance = path.read_bytes(), random.Random(0)  # noqa: S311
    truth, found, harmless = flat(read_checkpoint(path)), 0, 0
    for _ in range(count):
        at = chance.randrange(len(whole))
        bit = bytes([whole[at] ^ 1 << chance.randrange(8)])
        path.write_bytes(whole[:at] + (bit + whole[at + 1 :] if kind == "flipped bits" else b""))
        try:
            content = flat(read_checkpoint(path))
        except InputError as error:
            found += str(path) in str(error)
        else:
            harmless += content == truth
    path.write_bytes(whole)
    return found, harmless, count - found - harmless


def flat(content: Any) -> Any:
    """The content as plain values that are equal only if all bytes are."""
    if isinstance(content, dict):
        return sorted((str(key), flat(one)) for key, one in content.items())
    if isinstance(content, list | tuple):
        return [flat(one) for one in content]
    if isinstance(content, torch.Tensor):
        return str((content.dtype, content.shape, content.numpy().tobytes()))
    return repr(content)


if __name__ == "__main__":
    main()
