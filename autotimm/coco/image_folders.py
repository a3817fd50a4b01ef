"""Where the images of an annotation file are: folders by their names, and by the files in them.

Invariant: where two folders hold files of all these names, and neither is called as the split is,
neither is taken. Folders of masks, recognised by their names, are passed over: their files have the
names of the images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from autotimm.coco.checks import is_text
from autotimm.coco.peek import peek
from autotimm.coco.split_names import same_split, short_name, split_word, split_words, stem_of
from autotimm.images.file_tree import holds_masks
from autotimm.images.names import ImageFolder
from autotimm.structures import InputError

IMAGES = ("images", "data", "img", "imgs", "image", "JPEGImages")
"""What tools call the folder of all images."""


def image_folder(
    file: Path, base: Path, default: Path, alone: bool, beside: Sequence[Path] = ()
) -> Path:
    """Returns the folder in which the images of an annotation file are.

    Args:
        file: the annotation file.
        base: folder of the data set, or of its split.
        default: what to return if they are nowhere.
        alone: whether all images in ``base`` belong to this file; without that, its names are not
            looked for in folders of other splits, which may have images of the same names.
        beside: folders to look into first.

    Raises:
        InputError: two folders may be meant, or one cannot be listed.
    """
    names = peek(file).names if file.is_file() else ()
    stem = stem_of(file).removeprefix("instances_")
    usual = [*beside, *_usual_folders(stem, base)]
    likely = [place for place in _folders_of_split(stem, base) if place not in usual]
    own = [*usual, *likely, *(base / name for name in IMAGES)]
    shared = [file.parent, base, file.parent.parent] if base != file.parent else [base]
    places = [place for place in dict.fromkeys([*own, *shared]) if place.is_dir()]
    exact = {place: sum(_is_file_in(place, name) for name in names) for place in places}
    if any(exact.values()):
        first, *others = (place for place in places if exact[place] == max(exact.values()))
        rivals = likely if _is_called(first, stem) else [*likely, *(base / n for n in IMAGES)]
        for other in others:
            if first in likely and other in rivals and not first.samefile(other):
                raise _ambiguous(file, first, other)
        return first
    mended = {}
    for place in places:
        if alone or place in own:
            listing = ImageFolder(place)
            mended[place] = sum(_finds(listing, name) for name in names)
    return max(mended, key=mended.__getitem__) if any(mended.values()) else default


def _usual_folders(stem: str, base: Path) -> Iterator[Path]:
    """Yields the folders that tools put the images of a file into, likeliest first."""
    sliced = re.sub("[-_.]?(coco|annotations?)$", "", stem) + "_images"
    for name in (stem, short_name(stem), *split_words(stem), sliced):
        for part in ("", "images", "data"):
            yield base / part / name
        yield base / name / "images"


def _folders_of_split(stem: str, base: Path) -> list[Path]:
    """Returns folders anywhere whose names contain the split of a file: LVIS' ``train2017``,
    Cityscapes' ``leftImg8bit/train``, ``Set-train/images``; those of masks only if all are."""
    word = split_word(stem)
    if word is None:
        return []
    around = dict.fromkeys([base, base / "images", base / "data", *subfolders(base)])
    found = [one for folder in around for one in subfolders(folder) if same_split(word, [one.name])]
    plain = [one for one in found if not any(map(holds_masks, one.relative_to(base).parts))]
    return [place for one in plain or found for place in (one, one / "images")]


def _is_called(folder: Path, stem: str) -> bool:
    """Tells whether a folder has the name of a file's split, with digits behind it or none: of
    ``val`` that is ``val2017``, and not ``val_small``, which may be another split."""
    word = split_word(stem)
    return word is not None and word in map(str.lower, map(short_name, folder.parts[-2:]))


def _ambiguous(file: Path, one: Path, other: Path) -> InputError:
    return InputError(
        f"{file}: {one} and {other} both have files of its images' names; name the folder that "
        "holds the images, by autotimm shard --annotations FILE --images FOLDER --splits NAME"
    )


def _is_file_in(folder: Path, name: str) -> bool:
    inside = bool(name) and not name.startswith("/") and ".." not in name and "\0" not in name
    return inside and is_text(name) and os.path.isfile(folder / name)  # noqa: PTH113 (no errors)


def _finds(listing: ImageFolder, name: str) -> bool:
    try:
        listing.find(name)
    except ValueError:  # UnicodeEncodeError is one
        return False
    return True


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, sorted; none where there is no such folder.

    Nothing is asked of each file: a folder of images may have a million.

    Raises:
        InputError: it cannot be listed.
    """
    return [folder / name for name in _listed(folder, _is_open_folder)]


def names_in(folder: Path) -> list[str]:
    """Returns the names in a folder, sorted; none where there is no such folder.

    Raises:
        InputError: it cannot be listed.
    """
    return _listed(folder, lambda _: True)


def _listed(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if wanted(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None


def _is_open_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a link to itself, or into a folder that is closed to us
        return False
