"""Data sets of formats other than COCO's: recognised, with the program that converts each.

The commands were run with Datumaro 1.13.12, labelme2coco 0.2.6 and supervision 0.31.2. Datumaro
writes masks that it does not turn into polygons as crowds, which no class is learnt from.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from autotimm.coco.peek import CONTENTS, Kind, peek

_FILES = 20  # of each kind are looked at
_HEAD = 4096  # bytes of each
_YOLO_NAMES = re.compile(rb"^(nc|names)\s*:", re.MULTILINE)
_YOLO = re.compile(rb"\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*(\n|$)")


def recognise(root: Path) -> str | None:
    """Says of which other format a folder is, and what converts it; None if that is not seen."""
    files: dict[str, list[Path]] = {".yaml": [], ".yml": [], ".txt": [], ".xml": [], ".json": []}
    for path in root.rglob("*"):
        there = files.get(path.suffix.lower())
        if there is not None and len(there) < _FILES and path.is_file():
            there.append(path)
    return next(_formats(root, files), None)


def _formats(root: Path, files: dict[str, list[Path]]) -> Iterator[str]:
    where = shlex.quote(str(root))
    kinds = {peek(path).kind: path for path in reversed(files[".json"])}
    if "panoptic" in kinds:
        convert = _datumaro("coco_panoptic", _around_annotations(kinds["panoptic"]))
        yield f"holds COCO's panoptic files, not its instances; {convert}"
    if "labelme" in kinds:
        yield (
            f"holds labelme's files; pip install labelme2coco && labelme2coco {where} "
            f"--export_dir {where} makes COCO's of them"
        )
    if "datumaro" in kinds:
        convert = _datumaro("datumaro", _around_annotations(kinds["datumaro"]))
        yield f"holds Datumaro's own files; {convert}"
    if "label studio" in kinds:
        yield "holds Label Studio's own JSON; export it from there as COCO with images"
    further: tuple[Kind, ...] = ("via", "supervisely", "cityscapes", "detectron2", "createml")
    for kind in further:
        if kind in kinds:
            text, _, way = CONTENTS[kind].partition(": ")
            yield f"holds {text}; {way or 'there is no mask to train on'}"
    heads = {path: _head(path) for path in files[".xml"]}
    cvat = [path for path, head in heads.items() if re.search(rb"<annotations>", head)]
    if cvat:
        convert = _datumaro("cvat", cvat[0].parent)
        yield f"holds CVAT's XML; export COCO 1.0 from CVAT, or {convert}"
    if any(re.search(rb"<annotation\b", head) for head in heads.values()):
        masks = next(root.rglob("SegmentationObject"), None)
        if masks is None:
            yield (
                "holds Pascal VOC's XML without SegmentationObject/, so boxes without masks: there "
                "is no mask to train on"
            )
        else:
            yield f"holds Pascal VOC's files; {_datumaro('voc', masks.parent)}"
    labels = {path: _head(path) for path in files[".txt"]}
    labels = {path: head for path, head in labels.items() if _YOLO.match(head)}
    settings = [
        path for path in (*files[".yaml"], *files[".yml"]) if _YOLO_NAMES.search(_head(path))
    ]
    if labels or settings:
        yield _yolo(root, labels, settings)


def _yolo(root: Path, labels: dict[Path, bytes], settings: list[Path]) -> str:
    texts = [head.rpartition(b"\n")[0] if len(head) == _HEAD else head for head in labels.values()]
    lines = [line.split() for text in texts for line in text.splitlines() if line.strip()]
    if lines and all(len(line) == 5 for line in lines):
        return "holds YOLO's files of boxes without masks: there is no mask to train on"
    folder = next(iter(labels)).parent if labels else root / "labels" / "train"
    images = Path(*("images" if part == "labels" else part for part in folder.parts))
    file = settings[0] if settings else root / "data.yaml"
    given = ", ".join(repr(str(path)) for path in (images, folder, file))
    return (
        "holds YOLO's files; pip install supervision, and in Python, for each split: "
        f"import supervision; supervision.DetectionDataset.from_yolo({given})"
        ".as_coco('coco/train', 'coco/train/_annotations.coco.json')"
    )


def _around_annotations(file: Path) -> Path:
    """The folder of a data set that has its files in ``annotations/``."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _datumaro(name: str, folder: Path) -> str:
    where = shlex.quote(str(folder))
    return (
        f"pip install 'datumaro[cli]' && datum convert -if {name} -i {where} -f coco_instances -o "
        "coco -- --save-media --segmentation-mode polygons makes a COCO folder of them"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
