"""One contestant of ``train_step.py`` in a process of its own, which works when it is told to.

It reads a line of JSON, does what it says, and answers with a line that begins with ``@``. So the
contestants take turns in one run, while each has its memory, and its failures, to itself.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from step_models import Truth, batch, compile_contestant, contestant
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"32": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
_BATCHES = 6  # different ones, taken in turn
_DETECTIONS = 30  # an image, in inference: about what a trained model finds in a photo
_LARGEST = 1024  # images a step that are tried at most


class Worker:
    """A contestant that trains and detects.

    Args:
        settings: ``name``, ``backbone``, ``how`` (of compilation, or None), ``mode``, ``device``,
            ``precision``, ``batch`` (0 for the largest that fits) and ``canvases``, one of which
            each batch in turn has.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.device = torch.device(settings["device"])
        self.dtype = DTYPES[settings["precision"]]
        self.on_gpu = self.device.type == "cuda"
        canvases = settings["canvases"]
        self.one = contestant(settings["name"], settings["backbone"], max(map(max, canvases)))
        self.model = self.one.model.to(self.device).train()
        # A learning rate at which weights hardly move: every round has the same work.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-7, fused=True)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.dtype == torch.float16, init_scale=1024.0
        )
        self.images = settings["batch"] or self._largest_batch()
        self.inputs = self._inputs(self.images)
        self.turn = 0

    def _inputs(self, images: int) -> list[Any]:
        sizes = self.settings["canvases"]
        found = []
        for i in range(max(_BATCHES, len(sizes))):
            height, width = sizes[i % len(sizes)]
            truth: Truth = batch(images, height, width, seed=i)
            found.append(self.one.inputs(truth, self.device))
        return found

    def _largest_batch(self) -> int:
        """Doubled from 16 until it no longer fits, and half as much again where that does."""
        images = 16
        if not self._fits(images):
            raise RuntimeError(f"{images} images do not fit")
        while images < _LARGEST and self._fits(images * 2):
            images *= 2
        half = images * 3 // 2
        return half if images < _LARGEST and self._fits(half) else images

    def _fits(self, images: int) -> bool:
        try:
            self.inputs, self.turn = self._inputs(images)[:1], 0
            self._step()
        except torch.OutOfMemoryError:
            return False
        finally:
            self.inputs = []
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()
        return True

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def _step(self) -> Tensor:
        with self._autocast():
            loss = self.one.loss(self.inputs[self.turn % len(self.inputs)])
        self.turn += 1
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach()

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def prepare(self) -> dict[str, Any]:
        """Counts the work, finds a threshold for inference, compiles, and takes the first step."""
        flops = self._flops()
        self._calibrate()
        self.model.train()
        self._reset_peak()
        start = time.perf_counter()
        if self.settings["how"]:
            compile_contestant(self.one, self.settings["how"], self.settings["mode"])
        self._each_canvas()
        self._wait()
        return {"first": time.perf_counter() - start, "flops": flops, "batch": self.images}

    def _each_canvas(self) -> None:
        self.turn = 0
        for _ in self.settings["canvases"]:
            self._step()

    def _flops(self) -> float:
        """Of a training step an image: matrix products and convolutions, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self._each_canvas()
        return counter.get_total_flops() / self.images / len(self.settings["canvases"])

    @torch.no_grad()
    def _calibrate(self) -> None:
        """A threshold at which about as much is found as in photos: with random weights it is all
        or nothing otherwise."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0  # the statistics of one batch, so that activations are sane
        with self._autocast():
            self.one.loss(self.inputs[0])
        for norm in norms:
            norm.momentum = 0.1
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low * high) ** 0.5 if low else high / 2
            found = self._found(middle)
            low, high = (middle, high) if found > _DETECTIONS else (low, middle)
            if _DETECTIONS * 0.7 <= found <= _DETECTIONS * 1.4:
                break

    def _found(self, threshold: float) -> float:
        """Detections an image above a threshold."""
        self.one.threshold(threshold)
        self.model.eval()
        with self._autocast():
            counts = self.one.detect(self.inputs[0])
        return sum(counts) / len(counts)

    def train(self, steps: int) -> dict[str, Any]:
        """Seconds of so many steps, after one that is not timed."""
        self.model.train()
        self._step()
        self._wait()
        start = time.perf_counter()
        losses = [self._step() for _ in range(steps)]
        self._wait()
        seconds = time.perf_counter() - start
        finite = bool(torch.stack(losses).isfinite().all())
        return {"seconds": seconds, "images": steps * self.images, "finite": finite}

    @torch.no_grad()
    def detect(self, steps: int) -> dict[str, Any]:
        """As :meth:`train`, for inference."""
        self.model.eval()
        counts: list[int] = []
        with self._autocast():
            self.one.detect(self.inputs[0])
            self._wait()
            start = time.perf_counter()
            for i in range(steps):
                counts += self.one.detect(self.inputs[i % len(self.inputs)])
            self._wait()
        seconds, found = time.perf_counter() - start, sum(counts) / len(counts)
        return {"seconds": seconds, "images": steps * self.images, "found": found}

    def report(self) -> dict[str, Any]:
        """Peak memory in bytes, and what became of the compilation."""
        breaks = Counter(counters["graph_break"])
        return {
            "peak": self._peak(),
            "graphs": counters["stats"]["unique_graphs"],
            "breaks": sum(breaks.values()),
            "why": [" ".join(reason.split())[:150] for reason, _ in breaks.most_common(3)],
        }

    def _reset_peak(self) -> None:
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak of resident memory

    def _peak(self) -> int | None:
        """Less the batches that lie there in advance, but for one."""
        if self.on_gpu:
            tensors = [t for t in torch.utils._pytree.tree_leaves(self.inputs) if t.is_cuda]
            waiting = sum(t.numel() * t.element_size() for t in tensors)
            return torch.cuda.max_memory_allocated() - waiting * (_BATCHES - 1) // _BATCHES
        status = Path("/proc/self/status")
        if not status.exists():
            return None
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024

    def matmul(self) -> dict[str, Any]:
        """FLOP/s of a large matrix product in this precision: what the machine can reach."""
        side = 8192 if self.on_gpu else 1024
        a = torch.randn(side, side, device=self.device, dtype=self.dtype or torch.float32)
        best = float("inf")
        for _ in range(10):
            self._wait()
            start = time.perf_counter()
            for _ in range(10):
                a @ a
            self._wait()
            best = min(best, (time.perf_counter() - start) / 10)
        return {"peak": 2 * side**3 / best}

    def profile(self, steps: int) -> dict[str, Any]:
        """Milliseconds a step of each kind of kernel, and how often the host waited."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.on_gpu
        self.train(1)
        with profile(activities=activities) as trace:
            for _ in range(steps):
                self._step()
            self._wait()
        spent: dict[str, float] = defaultdict(float)
        kernels: dict[str, float] = defaultdict(float)
        waits = 0
        wanted = DeviceType.CUDA if self.on_gpu else DeviceType.CPU
        for event in trace.key_averages():
            waits += event.count * ("Synchronize" in event.key)
            # What launched a kernel, and what it was launched for, are told its time once more.
            if event.device_type == wanted and not event.is_user_annotation:
                own = event.self_device_time_total if self.on_gpu else event.self_cpu_time_total
                spent[kind(event.key)] += own / 1000 / steps
                kernels[event.key[:90]] += own / 1000 / steps
        return {
            "kinds": sorted(spent.items(), key=lambda item: -item[1]),
            "kernels": sorted(kernels.items(), key=lambda item: -item[1])[:12],
            "waits": (waits - self.on_gpu) / steps,  # one at the end is ours
        }


_KINDS = {  # the first that suits
    "fused by the compiler": ("triton_", "cpp_fused"),
    "RoIAlign": ("roi_align", "roialign"),
    "optimizer": ("multi_tensor", "fused_adam", "foreach", "amp_"),
    "norms": ("bn_fw", "bn_bw", "batch_norm", "batchnorm", "group_norm", "groupnorm"),
    "copies": ("memcpy", "memset", "copy_", "nchwtonhwc", "nhwctonchw"),
    "convolutions": ("conv", "fprop", "dgrad", "wgrad", "implicit", "cudnn"),
    "matrix products": ("gemm", "bmm", "::mm", "nvjet", "cublas", "cutlass", "xmma"),
    "sorting and choosing": ("topk", "sort", "gather", "scatter", "index", "radix", "nms"),
}


def kind(kernel: str) -> str:
    """What a kernel does, by its name."""
    name = kernel.lower()
    for label, words in _KINDS.items():
        if any(word in name for word in words):
            return label
    return "element by element, rest"


def main(settings: dict[str, Any]) -> None:
    """Serves until its input ends."""

    def answer(content: dict[str, Any]) -> None:
        print("@" + json.dumps(content), flush=True)

    worker: Worker | None = None
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        try:
            if worker is None:
                worker = Worker(settings)
            answer(getattr(worker, order)(*arguments))
        # Whatever a contestant dies of belongs into the table.
        except Exception as error:
            words = " ".join(str(error).split())
            answer({"error": f"{type(error).__name__}: {words[:300]}"})
        if worker is not None and worker.on_gpu:
            torch.cuda.empty_cache()  # the others want it


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
