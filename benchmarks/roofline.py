"""How fast a training step could be at most, on cards that need not be there.

    python benchmarks/roofline.py --out benchmarks/results/roofline.md

The step of our network with masks runs on fake tensors (``roofline_step.py``), and every op is
recorded (``roofline_trace.py``) with its FLOP and bytes (``roofline_ops.py``). From these follows
the least time on a card (``roofline_model.py``), with each op alone ("eager") and after a simple
fusion ("fused"). ``--kernels`` counts what Inductor makes of the network
(``roofline_kernels.py``). All times and images/s are predicted; a real step is slower.

Only torch, torchvision and timm are needed.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import markdown, progress
from roofline_model import (
    CARDS,
    MEMORY_REACHED,
    PRODUCTS_REACHED,
    Card,
    Cost,
    by,
    cost,
    fused,
)
from roofline_ops import Op
from roofline_step import DTYPES, trace
from roofline_trace import Trace
from step_models import Ours

_DEAREST = 15


def speeds(traces: Sequence[Trace], detail: Trace, launch: float) -> str:
    """Images a second by card and batch, fused and eager; of ``detail`` what bounds a card."""
    rows = []
    plans = [(one, fused(one)) for one in traces]
    for card in CARDS.values():
        cells, bound = [], ""
        for one, plan in plans:
            costs = [cost(ops, card, launch) for ops in (plan, one.ops)]
            rates = [one.images / found.seconds for found in costs]
            fits = one.peak < card.memory
            cells.append("{:,.0f} ({:,.0f})".format(*rates) if fits else "does not fit")
            if one is detail:
                shares = [found.bound_by_memory / found.seconds for found in costs]
                bound = "{:.0%} ({:.0%})".format(*shares)
        published = (f"{card.half / 1e12:.0f}", f"{card.bandwidth / 1e12:.2f}")
        rows.append((card.name, *published, f"{card.memory / 1e9:.0f}", *cells, bound))
    memory = [f"{one.peak / 1e9:.1f}" for one in traces]
    rows.append(("peak memory of the step, GB", "", "", "", *memory, ""))
    heads = [f"{one.images} images" for one in traces]
    waits = f"of {detail.images} images bound by memory"
    return markdown(("card", "TFLOP/s", "TB/s", "GB", *heads, waits), rows)


def totals(one: Trace, plan: Sequence[Op], card: Card, launch: float) -> str:
    """The whole step, eager and fused."""
    rows = []
    for name, ops in (("eager", one.ops), ("fused", plan)):
        found = cost(ops, card, launch)
        reached = found.flops / found.seconds / card.half
        rows.append(
            (
                *(name, f"{found.kernels:,}", f"{found.flops / one.images / 1e9:.0f}"),
                *(f"{found.bytes / one.images / 1e9:.2f}", f"{found.seconds * 1e3:.2f}"),
                f"{found.bound_by_memory / found.seconds:.0%}",
                *(f"{one.images / found.seconds:.0f}", f"{reached:.0%}"),
            )
        )
    heads = ("step", "ops", "GFLOP/image", "GB/image", "ms", "of it bound by memory", "images/s")
    return markdown((*heads, "of published TFLOP/s"), rows)


def shares(one: Trace, plan: Sequence[Op], card: Card, launch: float, key: str) -> str:
    """The step by part or kind (``key``), the dearest first."""
    alone = {name: cost(ops, card, launch) for name, ops in by(one.ops, _get(key)).items()}
    joined = {name: cost(ops, card, launch) for name, ops in by(plan, _get(key)).items()}
    whole = sum(found.seconds for found in joined.values())
    nothing = Cost(0.0, 0, 0, 0, 0.0)
    rows = []
    for name in sorted(alone, key=lambda name: -joined.get(name, nothing).seconds):
        eager, fast = alone[name], joined.get(name, nothing)
        rows.append(
            (
                *(name, f"{eager.flops / one.images / 1e9:.1f}"),
                *(f"{found.bytes / one.images / 1e6:.0f}" for found in (eager, fast)),
                *(f"{eager.kernels:,}", f"{fast.kernels:,}"),
                *(f"{found.seconds * 1e3:.2f}" for found in (eager, fast)),
                f"{fast.seconds / whole:.0%}",
            )
        )
    heads = ("GFLOP/image", "MB/image eager", "fused", "ops eager", "fused", "ms eager", "fused")
    return markdown((key, *heads, "share"), rows)


def _get(key: str):  # type: ignore[no-untyped-def]
    return lambda op: str(getattr(op, key))


def dearest(plan: Sequence[Op], images: int, card: Card, launch: float) -> str:
    """The kernels that take longest, those of the same name, part and phase together."""
    rows = []
    groups = by(plan, lambda op: " | ".join((op.name, op.part, op.phase)))
    found = {name: cost(ops, card, launch) for name, ops in groups.items()}
    for name, one in sorted(found.items(), key=lambda item: -item[1].seconds)[:_DEAREST]:
        ops, part, phase = name.split(" | ")
        ops = ops if len(ops) < 60 else f"{ops[:57]}..."
        bound = "memory" if one.bound_by_memory > one.seconds / 2 else "products"
        each = (f"{one.flops / images / 1e9:.1f}", f"{one.bytes / images / 1e6:.0f}")
        rows.append(
            (f"`{ops}`", part, phase, one.kernels, *each, f"{one.seconds * 1e3:.2f}", bound)
        )
    heads = ("kernel", "part", "phase", "number", "GFLOP/image", "MB/image", "ms", "bound by")
    return markdown(heads, rows)


def inductor(one: Trace, plan: Sequence[Op], options: argparse.Namespace) -> str:
    """Inductor's own count beside ours, without the update of the weights."""
    from roofline_kernels import generated  # here, because Inductor takes seconds to import

    network = Ours(options.backbone, True, options.norm)
    made = generated(network, options.size, one.images, options.precision)
    parts = [[op for op in ops if op.phase != "update"] for ops in (one.ops, plan)]
    rows = [
        (name, f"{len(ops):,}", "", f"{sum(op.bytes for op in ops) / one.images / 1e9:.2f}")
        for name, ops in zip(("eager", "fused"), parts, strict=True)
    ]
    rows.append(
        ("Inductor", f"{made.nodes:,}", f"{made.kernels:,}", f"{made.bytes / one.images / 1e9:.2f}")
    )
    return markdown(("forward and backward", "ops", "kernels it wrote", "GB/image"), rows)


def report(options: argparse.Namespace) -> str:
    """The whole page."""
    traces, network = [], Ours(options.backbone, True, options.norm)
    for images in options.batches:
        progress(f"tracing {images} images")
        traces.append(trace(network, options.size, images, options.precision))
    progress("")
    one = traces[min(1, len(traces) - 1)]
    card, plan, launch = CARDS[options.card], fused(one), options.launch * 1e-6
    if options.ops:
        write_ops(options.ops, one.ops, card)
    what = f"{options.backbone} ({options.norm} norms) with masks, {options.size} px"
    sections = [
        f"# Roofline\n\n{what}, {options.precision}, torch {torch.__version__.partition('+')[0]}. "
        "All times and images/s are **predicted** from the ops of a step; nothing ran on a card.\n",
        f"Rates used: {PRODUCTS_REACHED:.0%} of the published TFLOP/s and {MEMORY_REACHED:.0%} of "
        "the published TB/s, as a product and a copy reached on an H200. "
        f"An op takes {options.launch:g} µs at the least.\n",
        f"## Images a second at most: fused (eager)\n\n{speeds(traces, one, launch)}",
        *(f"- {one.name}: {one.source}" for one in CARDS.values()),
        f"\n## A step of {one.images} images on {card.name}\n",
        totals(one, plan, card, launch),
        shares(one, plan, card, launch, "part"),
        shares(one, plan, card, launch, "kind"),
        dearest(plan, one.images, card, launch),
    ]
    if options.kernels:
        progress("Inductor plans")
        sections.append(f"## What Inductor makes of it\n\n{inductor(one, plan, options)}")
        progress("")
    return "\n".join(sections)


def write_ops(path: Path, ops: Sequence[Op], card: Card) -> None:
    """Writes a line for each op in the order of the step."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("op", "kind", "part", "phase", "flops", "read", "written", "us"))
        for op in ops:
            moved = (sum(one.bytes for one in side) for side in (op.reads, op.writes))
            seconds = cost([op], card).seconds
            table.writerow(
                (op.name, op.kind, op.part, op.phase, op.flops, *moved, f"{seconds * 1e6:.3f}")
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backbone", default="resnet50", help="of timm")
    add("--size", type=int, default=640, help="side of the canvas, a multiple of 32")
    add("--batch", default="8,16,32,64", help="images a step; the second is the one in detail")
    add("--norm", default="batch", choices=("batch", "frozen"), help="how batch norms train")
    add("--precision", default="16-mixed", choices=list(DTYPES), help="of the step")
    add("--card", default="H200", choices=list(CARDS), help="of the step in detail")
    add("--launch", type=float, default=0.0, help="microseconds that an op takes at the least")
    add("--kernels", action="store_true", help="also have Inductor plan the step (minutes)")
    add("--ops", type=Path, help="a CSV file to write: FLOP, bytes and time of every op")
    add("--out", type=Path, help="a Markdown file to write")
    add("--quick", action="store_true", help="a tiny network: does it run at all?")
    options = parser.parse_args()
    if options.quick:
        options.backbone, options.size, options.batch = "resnet18", 64, "1,2"
    if options.size % 32 or options.size <= 0:
        sys.exit(f"--size: {options.size} is no multiple of 32")
    try:
        options.batches = [int(images) for images in options.batch.split(",")]
    except ValueError:
        sys.exit(f"--batch: {options.batch!r} is no list of numbers, such as 8,16")
    if min(options.batches) < 1:
        sys.exit(f"--batch: {options.batch!r} has a batch without images")
    return options


def main() -> None:
    """Prints the page, and writes it to ``--out``."""
    options = _options()
    said = report(options)
    print(said)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(said)


if __name__ == "__main__":
    main()
