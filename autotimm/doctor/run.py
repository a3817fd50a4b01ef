"""Checks of the data and of a config against data and machine; they train and download nothing."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from autotimm.coco.checks import Problems
from autotimm.coco.index import GROUP
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.doctor.images import ImageSample, look
from autotimm.doctor.machine import Finding, Level, read_speed
from autotimm.files.retry import Retry
from autotimm.images.decode import DataError
from autotimm.setup import resources
from autotimm.strategies import choice
from autotimm.streaming.layout import DataFolder, detect_layout
from autotimm.streaming.store import FolderSource, Source, open_source, split_names
from autotimm.structures import InputError

_DATA = "give --data a COCO folder, a folder of shards, or its URL"
_FILES = 500  # of a folder, read at most
_RETRY = Retry(minutes=0.25)  # a diagnosis does not wait for the end of an outage
_ANNOTATED = 2_000  # images of a split, evenly spread, whose annotations are looked through
_OPENED = 200  # of the images of a split, evenly spread


def data(location: str) -> list[Finding]:
    """Whether the data can be reached, and whether manifest, splits and a sample can be used."""
    begun = time.perf_counter()
    try:
        where = detect_layout(location)
        splits = split_names(where, _RETRY)
    except (InputError, OSError) as error:
        return [Finding("fail", "data", str(error), _DATA)]
    took = time.perf_counter() - begun
    text = f"{where.location}: splits {', '.join(splits)}, in {took:.2f} s"
    sources: dict[str, Source] = {}
    found = [Finding("ok", "data", text), *(_split(where, split, sources) for split in splits)]
    found += _shared(sources)
    if (folder := where.folder) is not None:
        files = (p for p in folder.rglob("*") if p.suffix.lower() in (".tar", ".jpg", ".png"))
        found.append(read_speed(folder, islice(files, _FILES)))
    return found


def _shared(sources: Mapping[str, Source]) -> list[Finding]:
    """The images that splits of a COCO folder share; shards say of themselves what they share."""
    lines = []
    for number, (name, source) in enumerate(sources.items()):
        for earlier, other in [*sources.items()][:number]:
            if isinstance(source, FolderSource) and isinstance(other, FolderSource):
                lines += [f"{name}: {line}" for line in source.shared(other, earlier).lines()]
    if not lines:
        return []
    remedy = "give each image to one split: a model is measured on what it has learnt by heart"
    return [Finding("warn", "shared images", "; ".join(lines), remedy)]


def _split(where: DataFolder, split: str, sources: dict[str, Source]) -> Finding:
    """What there is to say of a split, which is put into ``sources`` once it is open."""
    name, of_coco = f"split {split}", where.layout == "coco"
    looked = ImageSample()
    try:
        source = sources[split] = open_source(where, split, retry=_RETRY)
        if where.folder is not None:  # remote: it would download whole shards
            looked = look(source, _OPENED, whole=not of_coco)
        lost = source.lost_instances()
        problems = Problems()
        problems.update(source.problems)
        if not lost:
            problems.update_missing(source.odd_annotations(_ANNOTATED))
        problems.update_missing(looked.problems)
        depths = looked.depths.pixel_range() if of_coco else source.pixel_range()
    except (InputError, OSError, DataError) as error:
        remedy = "autotimm shard --verify lists all damage"
        if of_coco:
            remedy = "autotimm shard --dry-run checks all of a COCO folder"
        return Finding("fail", name, str(error), remedy)
    images = int(source.shard_sizes.sum())
    text = f"{images:,} images, {len(source.categories)} categories"
    if lost:
        return Finding("fail", name, f"{text}; {lost}", source.remedy)
    if 0 < looked.images == looked.lost:
        why = "; ".join(looked.problems.lines())
        text = f"{text}; none of {looked.images:,} that were opened can be used: {why}"
        return Finding("fail", name, text, source.remedy)
    if not images or not source.has_instances():
        remedy = source.remark or "there is nothing to train on"
        return Finding("fail", name, f"{text}, no instances", remedy)
    odd = [*problems.lines(), *([source.remark] if source.remark else [])]
    deep = looked.depths.lines(depths)
    if (looked.problems.counts or deep) and looked.images < images:
        text = f"{text}; {looked.images:,} images were opened"
    wrong = bool(source.remark or problems.counts.keys() - {GROUP})
    level: Level = "warn" if wrong or looked.depths.stretched() in deep else "ok"
    return Finding(level, name, "; ".join([text, *odd, *deep]), source.remedy if wrong else "")


def config(data: Mapping[str, Any], trainer: Mapping[str, Any]) -> list[Finding]:
    """Whether a run with these settings would start on this machine.

    Args:
        data: arguments of InstanceSegmentationDataModule.
        trainer: arguments of AutoTrainer.
    """
    module, opened = _module(data)
    processes, devices = _processes(trainer)
    found = [opened, devices, *_methods(trainer, processes)]
    if module is None:
        return found
    nodes = int(trainer.get("num_nodes") or 1)
    images = int(module.source(module.train_split).shard_sizes.sum())
    step = module.batch_size * processes * nodes
    text = f"{module.batch_size} x {processes * nodes} = {step} images, of {images:,}"
    if step > images:
        remedy = "lower data.batch_size: each step shows some images more than once"
        found.append(Finding("warn", "batch", text, remedy))
    else:
        found.append(Finding("ok", "batch", text))
    if (repeats := module.repeats()) is not None:
        found.append(Finding("ok", "epoch", repeats.summary()))
    workers, ahead = module.num_workers, module.prefetch_factor
    height, width = module.image_size
    batch_bytes = module.batch_size * 3 * height * width
    found += [
        _tried(
            "memory of workers",
            lambda: resources.check_shared_memory(batch_bytes, workers, ahead, processes),
        ),
        _tried("files of workers", lambda: resources.check_open_files(workers, ahead)),
    ]
    usable = len(os.sched_getaffinity(0))
    text = f"{processes} x {workers} workers on {usable} CPUs"
    if processes * workers > usable:
        found.append(Finding("warn", "workers", text, "lower data.num_workers"))
    else:
        found.append(Finding("ok", "workers", text))
    return found


def _module(data: Mapping[str, Any]) -> tuple[InstanceSegmentationDataModule | None, Finding]:
    """The data module with its splits open; None if it cannot be made."""
    try:
        module = InstanceSegmentationDataModule(**{**data, "retry_minutes": _RETRY.minutes})
        splits = module.check("fit")
    except (InputError, OSError) as error:
        return None, Finding("fail", "config and data", str(error), "see data in the config")
    height, width = module.image_size
    text = f"{', '.join(splits)}: {module.num_classes} classes at {height} x {width} pixels"
    return module, Finding("ok", "config and data", text)


def _processes(trainer: Mapping[str, Any]) -> tuple[int, Finding]:
    """The number of ranks on this machine, and whether it has the devices for them."""
    there = torch.cuda.device_count()
    kind, strategy = str(trainer.get("accelerator", "auto")), str(trainer.get("strategy", "auto"))
    if kind not in (known := choice.accelerators()):
        text = f"accelerator {kind!r} is unknown"
        return 1, Finding("fail", "devices", text, f"take one of {', '.join(known)}")
    on_gpu = kind in ("gpu", "cuda") or (kind == "auto" and there > 0)
    wanted = _count(trainer.get("devices", "auto"), there if on_gpu else 1)
    processes = f"{'GPU' if on_gpu else 'CPU'} process{'' if wanted == 1 else 'es'}"
    text = f"{wanted} {processes}, strategy {strategy}"
    if on_gpu and (wanted > there or not there):
        remedy = "lower trainer.devices, or use a machine that has them"
        return max(wanted, 1), Finding("fail", "devices", f"{text}, but {there} GPUs", remedy)
    return wanted, Finding("ok", "devices", text)


def _count(devices: Any, there: int) -> int:
    """How many devices Lightning's ``devices`` means: a number, a list, "0,1", "auto", -1."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    if text in ("auto", "-1"):
        return max(there, 1)
    return int(text) if text.isdigit() else len([one for one in text.split(",") if one.strip()])


def _methods(trainer: Mapping[str, Any], processes: int) -> list[Finding]:
    """Whether strategy and precision exist and can be used, by AutoTrainer's own checks."""
    given, kind = trainer.get("strategy", "auto"), str(trainer.get("accelerator", "auto"))
    alone = processes * int(trainer.get("num_nodes") or 1) == 1
    name = trainer.get("precision")
    on_gpu = torch.cuda.is_available() and kind != "cpu"
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")

    def strategy() -> Any:
        return choice.strategy(given, kind, alone, timedelta(minutes=1))

    def precision() -> None:
        choice.precision(name, kind, given, [])
        resources.check_precision(str(name or ""), device)

    return [
        _tried("strategy", strategy, str(given)),
        _tried("precision", precision, f"{name or 'by default'} on {device}"),
    ]


def _tried(name: str, check: Callable[[], Any], text: str = "enough") -> Finding:
    """Runs a check; its InputError, ``problem: remedy``, makes the finding a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit shows them itself
            check()
    except InputError as error:
        problem, _, remedy = str(error).rpartition(": ")
        return Finding("fail", name, problem, remedy)
    return Finding("ok", name, text)


def out_folder(trainer: Mapping[str, Any]) -> Path:
    """Where a run with these settings writes."""
    return Path(trainer.get("default_root_dir") or "runs")
