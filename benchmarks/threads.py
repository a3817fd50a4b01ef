"""Training on a CPU by the number of threads and by how they wait, alone and beside other work.

    python benchmarks/threads.py [--rounds N] [--size PIXELS] [--seconds N]

The model is that of launch/small_cpu.yaml, the data are shards/sample. One process trains with
threads that wait awake, as they do without autotimm, and another with threads that sleep
(``autotimm/openmp.py``). They take turns, with each number of threads, so that what else the
machine does meets all of them alike. "busy" is beside one process a core that only counts.
The tables have medians of images per second, and of the ratios within a round to the best of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import autotimm  # before torch, which the worker imports

ROOT = Path(__file__).parents[1]
POLICIES = {"awake": {"GOMP_SPINCOUNT": "300000"}, "asleep": {}}
"""How threads wait: as libgomp does of itself, and as autotimm sets it."""
_BATCHES = 4  # different ones, taken in turn


class Worker:
    """The model and a few batches. Each step trains on the next one."""

    def __init__(self, size: int) -> None:
        import torch

        torch.manual_seed(0)
        data = autotimm.InstanceSegmentationDataModule(
            ROOT / "shards/sample", image_size=size, batch_size=2, num_workers=0
        )
        data.setup("fit")
        self.model = autotimm.InstanceSegmentor(
            "resnet18",
            data.num_classes,
            pretrained=False,
            fpn_channels=96,
            mask_rois=32,
            compile_model=False,
        )
        loader = iter(data.train_dataloader())
        self.batches = [data.on_after_batch_transfer(next(loader), 0) for _ in range(_BATCHES)]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.turn = 0

    def speed(self, threads: int, seconds: float) -> float:
        """Images per second, in steps of so many threads that take so many seconds or more."""
        import torch

        torch.set_num_threads(threads)
        self._step()  # makes or ends threads
        images, start = 0, time.perf_counter()
        while True:
            images += self._step()
            if (spent := time.perf_counter() - start) >= seconds:
                return images / spent

    def _step(self) -> int:
        batch = self.batches[self.turn % _BATCHES]
        self.turn += 1
        self.optimizer.zero_grad()
        sum(self.model.losses(batch).values()).backward()  # type: ignore[union-attr]
        self.optimizer.step()
        return len(batch["image"])


class Process:
    """A worker in a process of its own, which answers a line of JSON by another."""

    def __init__(self, environment: dict[str, str], size: int) -> None:
        others = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
        inherited = {name: value for name, value in os.environ.items() if name not in others}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", "--size", str(size)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=inherited | environment | {"PYTHONPATH": str(ROOT)},
        )

    def speed(self, threads: int, seconds: float) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([threads, seconds]) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes compute in the meantime."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: 1"]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn, or one step")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--only", choices=POLICIES, help="leave out the other policy")
    parser.add_argument("--quick", action="store_true", help="once, to see that it runs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker = Worker(options.size)
        for line in sys.stdin:
            print(worker.speed(*json.loads(line)), flush=True)
        return
    rounds, seconds = (1, 0.0) if options.quick else (options.rounds, options.seconds)
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        chosen = [options.only] if options.only else list(POLICIES)
        workers = {name: Process(POLICIES[name], options.size) for name in chosen}
        for one in workers.values():
            stack.callback(one.close)
        for beside in (0, cores):
            with busy(beside):
                table(workers, sorted({1, cores}), rounds, seconds, beside)


def table(
    workers: dict[str, Process], threads: list[int], rounds: int, seconds: float, beside: int
) -> None:
    """Measures, and prints a table."""
    contestants = [(name, count) for name in workers for count in threads]
    speeds = {one: [] for one in contestants}
    for _ in range(rounds):
        for name, count in contestants:
            speeds[name, count].append(workers[name].speed(count, seconds))
    best = [max(round_) for round_ in zip(*speeds.values(), strict=True)]
    print(f"\n{beside} processes beside it; load at the end {os.getloadavg()[0]:.1f}\n")
    print("| threads | wait | images/s | least | most | of the best |")
    print("|---|---|---:|---:|---:|---:|")
    for (name, count), found in speeds.items():
        share = statistics.median(one / most for one, most in zip(found, best, strict=True))
        spread = f"{min(found):.2f} | {max(found):.2f}"
        print(f"| {count} | {name} | {statistics.median(found):.2f} | {spread} | {share:.2f} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
