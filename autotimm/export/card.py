"""The model card of a published model: its use, classes, training, results and licences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm

from autotimm.images.depths import shown
from autotimm.structures import UPPER_BITS, PixelRange
from autotimm.tasks.detector import ObjectDetector
from autotimm.tasks.settings import DetectorSettings

MADE_BY = "trained with autotimm."
_SETTINGS = ("optimizer", "lr", "weight_decay", "scheduler", "warmup_steps", "frozen_stages")


def card(
    file: str,
    model: ObjectDetector,
    run: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    *,
    pretrained: bool | str = False,
    steps: int | None = None,
) -> str:
    """The card as Markdown. It states what is not known instead of guessing.

    Args:
        file: name of the published file.
        model: of the checkpoint.
        run: ``run.json`` of the training; may be empty or lack keys.
        metrics: ``metrics.json`` of ``autotimm evaluate``.
        pretrained: the weights with which the training started: True for timm's, False for random
            ones, or the name of a file.
        steps: optimizer steps of the training.
    """
    settings = model.settings
    kind = "boxes and masks" if model.with_masks else "boxes"
    lines = [
        f"# {type(model).__name__}, {settings.backbone}",
        "",
        f"Finds {kind} of {settings.num_classes} classes. FCOS on a feature pyramid"
        f"{', with a Mask R-CNN mask head' if model.with_masks else ''}; {MADE_BY}",
        "",
        "## Use",
        "",
        "    import autotimm",
        f'    model = autotimm.load("{file}")',
        '    found = autotimm.predict(model, ["photo.jpg"])',
        "",
        "## Images",
        "",
        *_images(model),
        "",
        "## Classes",
        "",
        *_classes(model),
        "",
        "## Training",
        "",
        *_training(settings, run, steps),
        "",
        "## Results",
        "",
        *_results(run, metrics),
        "",
        "## Licence",
        "",
        *_licence(settings.backbone, pretrained),
        "",
    ]
    return "\n".join(lines)


def _images(model: ObjectDetector) -> list[str]:
    images = model.preprocessing
    size = "not known" if images.image_size is None else "{} x {}".format(*images.image_size)
    return [
        f"- RGB, {images.resize} to {size} pixels (height x width), {images.interpolation}",
        f"- mean {_numbers(images.mean)}, std {_numbers(images.std)} (where 1 is white)",
        f"- images of more than 8 bits a channel: {_deep(images.pixel_range)}",
    ]


def _deep(pixel_range: PixelRange) -> str:
    if isinstance(pixel_range, tuple):
        return f"values from {shown(pixel_range)} become 0 to 255, where the file declares no bits"
    if pixel_range == UPPER_BITS:
        return "the upper 8 of 16 bits are kept"
    return "there were none in the training, or they declared their bits"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _classes(model: ObjectDetector) -> list[str]:
    if model.categories is None:
        return ["Not known: the model was not trained on data."]
    rows = zip(model.categories, model.class_names, strict=True)
    return [
        "| label | category id | name |",
        "|---|---|---|",
        *(f"| {k} | {one['id']} | {_cell(name)} |" for k, (one, name) in enumerate(rows)),
    ]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _training(settings: DetectorSettings, run: Mapping[str, Any], steps: int | None) -> list[str]:
    recorded = run.get("settings")
    data = recorded.get("data") or {} if isinstance(recorded, dict) else {}
    where = data.get("data_dir") or "not known"
    used = [f"{name} {getattr(settings, name)}" for name in _SETTINGS]
    lines = [f"- data: {where}", f"- {', '.join(used)}"]
    if steps is not None:
        lines.append(f"- {steps:,} optimizer steps")
    versions = run.get("versions")
    if isinstance(versions, dict):
        shown = [f"{k} {versions[k]}" for k in ("autotimm", "torch", "timm") if k in versions]
        lines.append(f"- {', '.join(shown)}")
    return lines


def _results(run: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> list[str]:
    if metrics is not None:
        names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
        rows = [
            f"| {kind} | {' | '.join(_percent(metrics[kind].get(name)) for name in names)} |"
            for kind in measured(metrics)
        ]
        if rows:
            return [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", *rows]
    logged = run.get("metrics") if isinstance(run.get("metrics"), dict) else {}
    assert isinstance(logged, dict)
    found = {k: v for k, v in logged.items() if k.startswith(("val/", "test/")) and v is not None}
    if not found:
        return ["Not measured: `autotimm evaluate` measures it."]
    return ["The last values of the training:", "", *(f"- {k}: {v:.4g}" for k, v in found.items())]


def measured(metrics: Mapping[str, Any]) -> list[str]:
    """Those of "box" and "mask" for which a ``metrics.json`` has figures."""
    return [kind for kind in ("box", "mask") if isinstance(metrics.get(kind), dict)]


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, int | float) and value >= 0 else "-"


def _licence(backbone: str, pretrained: bool | str) -> list[str]:
    if pretrained is False:
        return [
            "Trained from random weights: only the licences of the training data and of the "
            "publisher of this model apply."
        ]
    if isinstance(pretrained, str):
        return [
            f"The backbone started with weights from a file ({_cell(pretrained)}): see its licence."
        ]
    config = timm.models.get_pretrained_cfg(backbone)
    licence = getattr(config, "license", None)
    source = getattr(config, "hf_hub_id", None) or "timm"
    return [
        f"The backbone started with timm's weights {source}, whose licence is "
        f"{licence or 'not stated by timm: look it up there'}. The data's licence applies, too."
    ]
