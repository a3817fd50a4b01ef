"""A training step and an inference of ours beside torchvision's Mask R-CNN and FCOS.

    python benchmarks/train_step.py --out benchmarks/results

On a GPU that is ResNet-50 at 640 and 800 pixels, 16 images and as many as fit, 16-mixed and
bf16-mixed, with a profile of our step; elsewhere ResNet-18 at 256 pixels, 2 images. Each size and
precision can be asked for by itself. Every contestant has the same synthetic batches, which lie on
the device already, the same canvas (torchvision's own resizing is switched off), precision and
optimizer, is a process of its own, and takes its turn in every round, so that what else the machine
does meets all of them. Medians of the rounds count.

``compiled`` models go through torch.compile as a whole. Of torchvision's, ``parts compiled`` are
the backbone and the convolutional heads alone: the rest breaks the graph, and recompiles as the
number of instances varies. ``buckets`` has three canvases, that of ``--size`` and two narrower
ones, in the proportions that COCO's photos ask for; otherwise the same photos lie on the square.

Only torch, torchvision and timm are needed.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import machine, markdown, progress

_REFERENCE = "Mask R-CNN"
_CONTESTANTS = {  # name: model, how it is compiled, whether canvases vary
    "ours compiled": ("ours", "whole", False),
    "ours compiled, buckets": ("ours", "whole", True),
    "ours": ("ours", None, False),
    _REFERENCE: ("maskrcnn", None, False),
    "Mask R-CNN parts compiled": ("maskrcnn", "parts", False),
    "Mask R-CNN compiled": ("maskrcnn", "whole", False),
    "ours without masks compiled": ("ours boxes", "whole", False),
    "ours without masks": ("ours boxes", None, False),
    "FCOS": ("fcos", None, False),
    "FCOS parts compiled": ("fcos", "parts", False),
    "FCOS compiled": ("fcos", "whole", False),
}
_NARROW = 0.8  # of a side: the data module's aspect_buckets=True
_SHARES = {"wide": 7, "square": 1, "tall": 2}  # of COCO's photos that suit each, about
_HEADINGS = (
    *("model", "batch", "images/s", f"x {_REFERENCE}", "peak GB", "first step s", "inference/s"),
    *("found", "GFLOP/image", "of peak", "graphs", "breaks"),
)


@dataclass(slots=True)
class Entry:
    """A contestant's process, and what it told."""

    name: str
    process: subprocess.Popen[str]
    answers: queue.Queue[str]
    patience: float
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    detect: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, *order: object) -> dict[str, Any] | None:
        """Has it do something; None where it failed, now or before."""
        if self.error:
            return None
        assert self.process.stdin is not None
        try:
            print(json.dumps(order), file=self.process.stdin, flush=True)
            answer = json.loads(self.answers.get(timeout=self.patience))
        except queue.Empty:
            answer = {"error": f"no answer to {order[0]!r} within {self.patience:.0f} s"}
        except BrokenPipeError:
            answer = {"error": "it ended"}
        if "error" in answer:
            self.error = str(answer["error"])
            self.end()
            return None
        return answer

    def end(self) -> None:
        """Ends its process."""
        self.process.kill()
        self.process.wait()


def start(name: str, settings: dict[str, Any], patience: float) -> Entry:
    """Starts a contestant's process, which does nothing yet."""
    script = Path(__file__).with_name("step_worker.py")
    process = subprocess.Popen(
        [sys.executable, str(script), json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    answers: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("@"):
                answers.put(line[1:])
        answers.put(json.dumps({"error": "it ended"}))

    threading.Thread(target=listen, daemon=True).start()
    return Entry(name, process, answers, patience)


def canvases(size: int, buckets: bool) -> list[list[int]]:
    """Heights and widths that the batches have in turn."""
    if not buckets:
        return [[size, size]]
    narrow = round(size * _NARROW / 32) * 32
    shapes = {"wide": [narrow, size], "square": [size, size], "tall": [size, narrow]}
    return [shapes[kind] for kind, share in _SHARES.items() for _ in range(share)]


def compare(options: argparse.Namespace, size: int, precision: str, batch: int) -> list[Entry]:
    """All contestants at one size, precision and batch, round after round."""
    entries = []
    for name in options.only:
        model, how, buckets = _CONTESTANTS[name]
        settings = {
            "name": model,
            "how": how,
            "mode": options.mode,
            "backbone": options.backbone,
            "device": options.device,
            "precision": precision,
            "batch": batch,
            "canvases": canvases(size, buckets),
        }
        progress(f"{name} starts")
        entry = start(name, settings, options.patience)
        entry.facts |= entry.ask("prepare") or {}
        entries.append(entry)
        if not batch:  # as many images as fit leave no room for others
            _rounds(options, [entry])
            _finish(options, entry)
    if batch:
        _rounds(options, entries)
        for entry in entries:
            _finish(options, entry)
    progress("")
    return entries


def _rounds(options: argparse.Namespace, entries: Sequence[Entry]) -> None:
    for number in range(options.rounds):
        for entry in entries:
            progress(f"round {number + 1} of {options.rounds}: {entry.name}")
            for order in ("train", "detect"):
                told = entry.ask(order, options.steps)
                if told is not None:
                    getattr(entry, order).append(told)
                if number == 0 and order == "train":
                    entry.facts |= entry.ask("report") or {}


def _finish(options: argparse.Namespace, entry: Entry) -> None:
    entry.facts["matmul"] = (entry.ask("matmul") or {}).get("peak")
    if options.profile and entry.name in ("ours compiled", "ours"):
        entry.facts["profile"] = entry.ask("profile", 3)
    entry.end()


def rate(runs: Sequence[dict[str, Any]]) -> float:
    """Images a second, the median of the rounds."""
    return statistics.median(run["images"] / run["seconds"] for run in runs)


def row(entry: Entry, reference: float | None) -> list[str]:
    """A contestant's line of the table."""
    if entry.error or not entry.train:
        return [entry.name, "failed", *[""] * (len(_HEADINGS) - 2)]
    facts, speed = entry.facts, rate(entry.train)
    every = [run["images"] / run["seconds"] for run in entry.train]
    used = facts["flops"] * speed / facts["matmul"] if facts["matmul"] else float("nan")
    return [
        entry.name,
        f"{facts['batch']}",
        f"{speed:.3g} ({min(every):.3g} to {max(every):.3g})",
        f"{speed / reference:.2f}" if reference else "",
        f"{facts['peak'] / 1e9:.2f}" if facts["peak"] else "",
        f"{facts['first']:.1f}",
        f"{rate(entry.detect):.3g}" if entry.detect else "",
        f"{entry.detect[-1]['found']:.0f}" if entry.detect else "",
        f"{facts['flops'] / 1e9:.0f}",
        f"{used:.0%}",
        f"{facts['graphs']}" if facts["graphs"] else "",
        f"{facts['breaks']}" if facts["graphs"] else "",
    ]


def tell(title: str, entries: Sequence[Entry]) -> str:
    """A section of Markdown: the table, what failed or broke, the profile."""
    speeds = {e.name: rate(e.train) for e in entries if e.train and not e.error}
    reference = speeds.get(_REFERENCE)
    lines = [f"## {title}\n", markdown(_HEADINGS, [row(e, reference) for e in entries])]
    for entry in entries:
        if entry.error:
            lines.append(f"- {entry.name} failed: {entry.error}")
        if not all(run["finite"] for run in entry.train):
            lines.append(f"- {entry.name}: its loss was not finite")
        if entry.facts.get("why"):
            lines.append(f"- {entry.name} broke its graph: {'; '.join(entry.facts['why'])}")
    for entry in entries:
        traced = entry.facts.get("profile")
        if traced:
            total = sum(ms for _, ms in traced["kinds"])
            lines.append(
                f"\nA step of **{entry.name}**: {total:.1f} ms in kernels, the host waited for the "
                f"device {traced['waits']:.1f} times.\n"
            )
            parts = [(k, f"{ms:.2f}", f"{ms / total:.0%}") for k, ms in traced["kinds"]]
            lines.append(markdown(("part", "ms", "share"), parts))
            lines.append(
                markdown(("kernel", "ms"), [(f"`{k}`", f"{ms:.2f}") for k, ms in traced["kernels"]])
            )
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda" if gpu else "cpu", help="cuda or cpu (cuda where there is one)")
    add("--backbone", default="resnet50" if gpu else "resnet18", help="a ResNet")
    add("--size", default="640,800" if gpu else "256", help="sides of the canvas, multiples of 32")
    add("--batch", default="16,largest" if gpu else "2", help="images a step, or 'largest'")
    add("--precision", default="16-mixed,bf16-mixed" if gpu else "32", help="or 32")
    add("--only", default=",".join(_CONTESTANTS).replace(", ", " "), help="some of the contestants")
    add("--steps", type=int, default=20 if gpu else 2, help="a round and contestant")
    add("--rounds", type=int, default=5 if gpu else 3, help="over all contestants")
    add("--mode", help="of torch.compile, reduce-overhead for example")
    add("--patience", type=float, default=600, help="seconds after which a contestant is given up")
    add("--profile", action="store_true", default=gpu, help="say what our step's time goes to")
    add("--out", type=Path, help="folder for <machine>.md; sections are added to it")
    add("--quick", action="store_true", help="a tiny round, on the CPU: does it run at all?")
    options = parser.parse_args()
    known = {name.replace(", ", " "): name for name in _CONTESTANTS}
    options.only = [_choice("--only", name, known) for name in options.only.split(",")]
    if options.quick:
        options.device, options.backbone, options.size = "cpu", "resnet18", "64"
        options.batch, options.precision, options.steps, options.rounds = "2", "32", 1, 1
    return options


def _choice(flag: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        sys.exit(f"{flag}: {name!r} is none of {', '.join(known)}")
    return known[name]


def _machine(device: str) -> str:
    if device == "cpu":
        return machine([], sys.executable)
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"{torch.cuda.get_device_name()}, {machine([], sys.executable)}, {versions}"


def main() -> None:
    """Prints a section for each size, precision and batch, and adds it to the file."""
    options = _options()
    about = _machine(options.device)
    path = None
    if options.out:
        name = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"
        path = options.out / f"{'-'.join(name.lower().split())}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(f"# Training steps and inference\n\n{about}\n\n")
    precisions = {name: name for name in ("32", "16-mixed", "bf16-mixed")}
    for size in map(int, options.size.split(",")):
        for precision in options.precision.split(","):
            for batch in options.batch.split(","):
                entries = compare(
                    options,
                    size,
                    _choice("--precision", precision, precisions),
                    0 if batch == "largest" else int(batch),
                )
                said = tell(f"{options.backbone}, {size} px, {precision}, batch {batch}", entries)
                print(said, flush=True)
                if path is not None:
                    with path.open("a") as file:
                        file.write(said + "\n")


if __name__ == "__main__":
    main()
