"""Data sets as annotation tools lay them out: which annotation files there are, and which images
belong to each.

Names decide where they can; among files that no name distinguishes, their first and last bytes
decide (``peek``).
Where two readings are left, neither is taken: the refusal names both and the way out.

Layouts, the first that fits being taken:

1. ``annotations/instances_<split>.json``: COCO, CVAT, Datumaro.
2. ``<split>/`` with an annotation file of its own: Roboflow, FiftyOne with splits.
3. ``annotations/<split>.json``, or ``<split>.json`` beside the images or their folder; one file of
   any name is the split ``train``: Label Studio, FiftyOne, labelme2coco, SAHI and others.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from autotimm.coco.checks import is_text
from autotimm.coco.image_folders import IMAGES, image_folder, names_in, subfolders
from autotimm.coco.peek import peek
from autotimm.coco.split_names import short_name, split_names, split_word, stem_of
from autotimm.structures import InputError

__all__ = ["Split", "find_splits"]

ROBOFLOW = "_annotations.coco.json"

_GENERIC = {
    *(ROBOFLOW, "labels.json", "result.json", "instances_default.json", "instances.json"),
    *("annotations.json", "coco.json", "coco_annotations.json", "annotations_coco.json"),
    "dataset.json",
}
"""What tools call the annotation file of a folder."""
# How COCO's files of other tasks begin.
_OTHERS = ("person_keypoints_", "captions_", "panoptic_", "stuff_", "image_info_")
_NO_SPLITS = {
    "annotations",
    "labels",
    *map(str.lower, IMAGES),
}  # folders of these names are parts of a layout
_MOST = 20  # files of a folder that are looked into, the largest first


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a data set, such as ``train``.

    Attributes:
        name: of the split.
        annotation_file: in COCO's format.
        image_folder: of its images; may be missing.
        further: annotation files that are joined to it, each with its image folder.
    """

    name: str
    annotation_file: Path
    image_folder: Path
    further: tuple[tuple[Path, Path], ...] = ()

    @property
    def sources(self) -> list[tuple[Path, Path]]:
        """All annotation files with their image folders."""
        return [(self.annotation_file, self.image_folder), *self.further]


def find_splits(root: Path) -> dict[str, Split]:
    """Finds the splits of a folder, by name.

    ``annotations/instances_train2017.json`` makes the split ``train`` (trailing digits go, unless
    two splits would then share a name); its images are looked for in ``train2017/``,
    ``images/train2017/``, ``train/``, ``images/train/`` and ``images/``, and if none of these is
    there wherever the first images are found. The module tells the other layouts.

    Raises:
        InputError: there is no such folder, or no annotation file in it, or several that no name
            tells apart, or it is of another format.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    splits = _coco(root) or _folders(root) or _files(root)
    if not splits:
        raise InputError(_refusal(root))
    return splits


def _coco(root: Path) -> dict[str, Split]:
    """COCO's own layout; ``instances_default.json`` alone, as CVAT writes it, is ``train``."""
    for folder in (_annotations(root), root):
        files = [f for f in _jsons(folder) if f.name.startswith("instances_")]
        if files:
            break
    else:
        return {}
    names = split_names([stem_of(file) for file in files])
    if names in (["default"], ["annotations"]):  # of CVAT, and of Datumaro from CVAT's XML
        names = ["train"]
    splits = {}
    for file, name in zip(files, names, strict=True):
        long = stem_of(file).removeprefix("instances_")
        short = short_name(long)
        places = [long, f"images/{long}", short, f"images/{short}", "images"]
        folders = [root / place for place in places if root / place != folder]
        there = next((path for path in folders if path.is_dir()), None)
        alone = len(files) == 1
        splits[name] = Split(name, file, there or image_folder(file, root, root / long, alone))
    return splits


def _folders(root: Path) -> dict[str, Split]:
    """A folder a split, each with its own annotation file."""
    inside = [folder for folder in subfolders(root) if folder.name.lower() not in _NO_SPLITS]
    named = [folder for folder in inside if split_word(folder.name)]
    splits = {}
    for folder in named or inside:
        if named:
            file = _one_of(folder) or _one_of(folder / "annotations")
        else:
            files = _instances(folder)
            file = files[0] if len(files) == 1 else None  # several: a data set of its own
        if file is not None:
            beside = [root / "images" / folder.name, root / "data" / folder.name]
            images = image_folder(file, folder, folder, alone=True, beside=beside)
            splits[folder.name] = Split(folder.name, file, images)
    if not named and len(splits) == 1:
        return {}  # a data set inside of the folder, not a split of it
    short = {name: short_name(name) for name in splits}
    if len(set(short.values())) == len(splits):
        splits = {short[n]: replace(s, name=short[n]) for n, s in splits.items()}
    return splits


def _files(root: Path) -> dict[str, Split]:
    """The annotation files of all splits in one folder."""
    for folder in (_annotations(root), root, root / "labels", *(root / i for i in IMAGES)):
        files = _instances(folder)
        if files:
            break
    else:
        return {}
    words = {file: split_word(stem_of(file)) for file in files}
    if len(files) == 1:
        name = words[files[0]] or "train"
        return {name: Split(name, files[0], image_folder(files[0], root, root, alone=True))}
    splits: dict[str, Split] = {}
    for file, word in words.items():
        if word is None or word in splits:
            other = next(f for f in files if f != file and (word is None or words[f] == word))
            raise _ambiguous(other, file)
        splits[word] = Split(word, file, image_folder(file, root, root / word, alone=False))
    return splits


def _annotations(root: Path) -> Path:
    """The folder of that name, also as ``Annotations``, which some systems take for the same."""
    folder = root / "annotations"
    if folder.is_dir():
        return folder
    return next((one for one in subfolders(root) if one.name.lower() == folder.name), folder)


def _one_of(folder: Path) -> Path | None:
    """Returns the annotation file of a split's folder; InputError if several could be it."""
    files = _instances(folder)
    usual = [file for file in files if file.name in _GENERIC]
    chosen = usual if len(usual) == 1 else files
    if len(chosen) > 1:
        raise _ambiguous(*chosen[:2])
    return chosen[0] if chosen else None


def _ambiguous(one: Path, other: Path) -> InputError:
    return InputError(
        f"{one} and {other.name}: either could hold the annotations; name the one that does, or "
        "both, by autotimm shard --annotations FILE --images FOLDER --splits NAME"
    )


def _instances(folder: Path) -> list[Path]:
    """Returns the files of a folder that look like COCO's files of instances."""
    files = [f for f in _jsons(folder) if f.is_file() and not f.name.startswith(_OTHERS)]
    if ROBOFLOW in (file.name for file in files):
        return [folder / ROBOFLOW]
    largest = sorted(files, key=lambda file: -file.stat().st_size)[:_MOST]
    likely = [file for file in files if file in largest or file.name in _GENERIC]
    return [file for file in likely if peek(file).kind == "instances"]


def _jsons(folder: Path) -> list[Path]:
    """Returns the JSON files of a folder, sorted; InputError for one whose name is no text."""
    files = []
    for name in names_in(folder):
        if name.lower().endswith((".json", ".json.gz", ".json.zip")):
            if not is_text(name):
                raise InputError(
                    f"{folder / name}: its name is no text in the locale's encoding, "
                    f"{sys.getfilesystemencoding()}; rename it, or set PYTHONUTF8=1"
                )
            files.append(folder / name)
    return files


def _refusal(root: Path) -> str:
    from autotimm.coco import other_formats  # a COCO folder needs none

    other = other_formats.recognise(root)
    if other is not None:
        return f"{root}: {other}"
    inside = subfolders(root)
    for folder in chain(inside, *map(subfolders, inside)):
        if _coco(folder) or _folders(folder) or _files(folder):
            return f"{root}: no annotation file in it, but {folder} has some: give that folder"
    return (
        f"{root}: no annotations/instances_*.json in it, nor any other annotation file of COCO's "
        "format that belongs to all of it or to a folder train/, val/; a COCO folder holds "
        "annotations/instances_train.json and the images in train/, the same for val"
    )
