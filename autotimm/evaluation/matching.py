"""Which image of the ground truth a result is of.

A results file holds ids. Those of a data set's own fit; those that a program has numbered itself
(``autotimm predict`` does, from 1 in the order of the paths) fit only by chance, and would be
measured as an AP near 0. ``images.json`` beside the results says which file each id is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from autotimm.coco.categories import CategoryIds
from autotimm.coco.ids import Key, id_key, spelled
from autotimm.evaluation.ground_truth import GroundTruth, number_of
from autotimm.evaluation.read_files import read_json
from autotimm.format import fields
from autotimm.structures import InputError, brief

IMAGES = "images.json"
_CLASHES = (
    "image id is in several annotation files",
    "category has another id in another annotation file",
    "category id is of another class in another annotation file",
)
_WAY_OUT = (
    "write the ground truth's ids into the results, or put images.json beside them, which says "
    "what file each id is, as autotimm predict writes both"
)


def fitted(entries: list[Any], file: Path, truth: GroundTruth) -> tuple[list[Any], list[str]]:
    """The entries of a results file with the ids of the ground truth.

    Args:
        entries: of the file.
        file: where they come from; ``images.json`` beside it is used.
        truth: what is to be found.

    Returns:
        The entries, and a line on each thing that the user should know.

    Raises:
        InputError: ``images.json`` fits neither them nor the ground truth.
    """
    beside = file.parent / IMAGES
    if beside.is_file():
        return _by_file_name(entries, beside, truth)
    entries, lines = _of_named(entries, file, truth)
    kept, more = _without_left_out(entries, truth)
    return kept, [*lines, *more]


def refuse_clashing(file: Path, truth: GroundTruth) -> None:
    """Refuses results of joined annotation files whose ids clash, if nothing says what they mean.

    Args:
        file: of the results; ``images.json`` beside it says it.
        truth: of the joined files.

    Raises:
        InputError: nothing does.
    """
    kinds = [kind for kind in truth.problems.counts if kind.startswith(_CLASHES)]
    if kinds and not (file.parent / IMAGES).is_file():
        example = next(iter(truth.problems.examples[kinds[0]]), "")
        raise InputError(
            f"{file}: its ids may mean either of several annotation files ({kinds[0]}: {example}): "
            "put images.json beside it, which says what file and class each id is"
        )


def refuse_numbered(
    entries: list[Any],
    name: str,
    truth: GroundTruth,
    ap50: float,
    measure: Callable[[list[Any]], float],
) -> None:
    """Refuses results whose ids number the files in the order of their names.

    They are refused, not mended: only AP shows that another reading of the ids fits better.

    Args:
        entries: of the results.
        name: what messages call them.
        truth: what is to be found.
        ap50: theirs, with the ids as they are.
        measure: finds the same of other entries.

    Raises:
        InputError: with these ids as numbers the AP is more than twice as high.
    """
    by_name = sorted(truth.images, key=lambda one: one["file_name"])
    ids = [number_of(one["image_id"], truth.numbers) for one in entries]
    for first in (1, 0):
        numbered: dict[int | None, int] = {k: one["id"] for k, one in enumerate(by_name, first)}
        if not {*ids} <= numbered.keys() or all(k == id_ for k, id_ in numbered.items()):
            continue
        pairs = zip(entries, ids, strict=True)
        other = measure([{**one, "image_id": numbered[id_]} for one, id_ in pairs])
        if other > 2 * ap50 + 0.01:
            raise InputError(
                f"{name}: its image ids are not those of {truth.name}: AP50 of boxes is "
                f"{100 * ap50:.1f} % by them, and {100 * other:.1f} % where {first} stands for the "
                f"first file name, {first + 1} for the second, and so on; {_WAY_OUT}"
            )


def _by_file_name(
    entries: list[Any], beside: Path, truth: GroundTruth
) -> tuple[list[Any], list[str]]:
    images, categories = _listed(beside)
    own = {one["id"]: one["file_name"] for one in truth.images}
    lines = []
    numbers = {key: number_of(key, truth.numbers) for key in images}
    image_ids: dict[Key, int] = {}
    for key, number in numbers.items():
        if number is not None and own.get(number) == images[key]:
            image_ids[key] = number
    if len(image_ids) < len(images):
        image_ids = _paired(images, own, beside)
        if not image_ids:
            raise InputError(
                f"{beside}: none of its files is in {truth.name} (the first is "
                f"{next(iter(images.values()), 'missing')!r}, there "
                f"{next(iter(own.values()), 'none')!r}): is it of other images?"
            )
        lines.append(f"results matched by file name ({beside}): {len(image_ids):,} images")
    category_ids = _paired_categories(categories, truth, beside)
    kept, elsewhere = [], 0
    for number, entry in enumerate(entries, 1):
        given = entry.get("image_id") if isinstance(entry, dict) else None
        id_ = id_key(given, exact=True)
        if id_ is None or id_ not in images:
            raise InputError(
                f"result {number}: {beside} has no image of its image_id {brief(given)}"
            )
        if id_ not in image_ids:
            elsewhere += 1
            continue
        category = id_key(entry.get("category_id"), exact=True)
        changes: dict[str, Any] = {"image_id": image_ids[id_]}
        if category is not None and category in category_ids:
            changes["category_id"] = category_ids[category]
        kept.append({**entry, **changes})
    if elsewhere:
        lines.append(f"results of images that {truth.name} does not have, left out: {elsewhere:,}")
    lost = len(own) - len({*image_ids.values()} & own.keys())
    if lost:
        lines.append(f"images of {truth.name} that are not in {beside}: {lost:,}; nothing found")
    return kept, lines


def _of_named(entries: list[Any], file: Path, truth: GroundTruth) -> tuple[list[Any], list[str]]:
    """The entries, where those that have a file name in place of an image id have the id.

    The name may have folders in front, and lack its extension, as Ultralytics writes it.
    """
    known = {one["id"] for one in truth.images}
    named: dict[Key, str] = {}
    for entry in entries:
        name = _name_of(entry)
        # 000007 may be the name of a file, whatever image has the id 7.
        if name and (spelled(name) or number_of(name, truth.numbers) not in known):
            named[name] = name
    if not named:
        return entries, []
    own = {one["id"]: one["file_name"] for one in truth.images}
    ids = _paired(named, own, file)
    rest = {key: name for key, name in named.items() if key not in ids}
    stems = {id_: name.rpartition(".")[0] for id_, name in own.items()}
    ids |= _paired(rest, stems, file)
    ids = {name: id_ for name, id_ in ids.items() if number_of(name, truth.numbers) != id_}
    found = [
        {**entry, "image_id": ids[name]} if (name := _name_of(entry)) in ids else entry
        for entry in entries
    ]
    line = f"results whose image_id is a file name, matched by it: {len(ids):,} images"
    return found, [line] if ids else []


def _name_of(entry: Any) -> str | None:
    """What an entry calls its image by, where that is text."""
    if not isinstance(entry, dict):
        return None
    keys = ("image_id",) if entry.get("image_id") is not None else ("file_name", "image_name")
    return next((entry[key] for key in keys if isinstance(entry.get(key), str)), None)


def _listed(beside: Path) -> tuple[dict[Key, str], dict[Key, str]]:
    """Names of images and of categories by id."""
    content = read_json(beside)
    try:
        images, categories = (
            {
                id_key(one["id"], exact=True): fields.text(one[name], empty=True)
                for one in content[key]
            }
            for key, name in (("images", "file_name"), ("categories", "name"))
        )
    except (TypeError, KeyError, ValueError):
        raise InputError(
            f"{beside}: does not say which images the ids of the results are: remove it, or write "
            "images and categories with their ids and names into it"
        ) from None
    return (
        {id_: name for id_, name in images.items() if id_ is not None},
        {id_: name for id_, name in categories.items() if id_ is not None},
    )


def _paired(images: Mapping[Key, str], own: Mapping[int, str], beside: Path) -> dict[Key, int]:
    """Ids in the ground truth of those images that are there: of two names, one ends as the other.

    Raises:
        InputError: an image is two of them, or two are one.
    """
    by_last: dict[str, list[tuple[list[str], int]]] = {}
    for id_, name in own.items():
        words = _words(name)
        if words:
            by_last.setdefault(words[-1], []).append((words, id_))
    paired: dict[Key, int] = {}
    taken: dict[int, str] = {}
    for key, name in images.items():
        words = _words(name)
        found = by_last.get(words[-1], []) if words else []
        alike = {
            truth_id: min(len(words), len(others)) + (words == others)
            for others, truth_id in found
            if all(a == b for a, b in zip(reversed(words), reversed(others), strict=False))
        }
        best = [one for one, count in alike.items() if count == max(alike.values())]
        if len(best) > 1:
            both = " and ".join(repr(own[one]) for one in best[:2])
            raise InputError(f"{beside}: {name!r} may be {both}: write its folder into its name")
        if best:
            if best[0] in taken:
                raise InputError(
                    f"{beside}: {taken[best[0]]!r} and {name!r} are both {own[best[0]]!r}: the "
                    "results are of more than one folder: evaluate each alone"
                )
            taken[best[0]], paired[key] = name, best[0]
    return paired


def _paired_categories(
    categories: Mapping[Key, str], truth: GroundTruth, beside: Path
) -> dict[Key, Key]:
    """What the ground truth looks up the categories by that results hold."""
    names = {one.id: one.name for one in truth.categories}
    own = {
        key: names[id_]
        for key, id_ in CategoryIds.of(truth.categories).ids.items()
        if key is not None
    }
    if all(own.get(id_) == name for id_, name in categories.items()):
        return {id_: id_ for id_ in categories}
    by_name = {name: id_ for id_, name in own.items()}
    if len(by_name) < len(own) or not {*categories.values()} <= by_name.keys():
        strange = next((n for n in categories.values() if n not in by_name), "a name of two")
        raise InputError(
            f"{beside}: its categories are not those of {truth.name} ({strange!r} is none): the "
            "model was trained on other classes"
        )
    return {id_: by_name[name] for id_, name in categories.items()}


def _words(name: str) -> list[str]:
    """Folders and file of a path or URL."""
    if "://" in name:
        name = unquote(urlsplit(name).path)
    plain = unicodedata.normalize("NFC", name).replace("\\", "/")
    return [word for word in plain.split("/") if word not in ("", ".")]


def _without_left_out(entries: list[Any], truth: GroundTruth) -> tuple[list[Any], list[str]]:
    """The entries without those of images that the data leave out, as far as there can be any."""
    kinds = truth.problems.counts.items()
    may_be = sum(count for kind, count in kinds if kind.endswith("(image left out)"))
    known = {one["id"] for one in truth.images}

    def is_known(entry: Any) -> bool:
        return not isinstance(entry, dict) or (
            number_of(entry.get("image_id"), truth.numbers) in known
        )

    strange = {
        id_key(entry.get("image_id"), exact=True) for entry in entries if not is_known(entry)
    }
    kept = [entry for entry in entries if is_known(entry)]
    if not strange or len(strange) > may_be or not kept:
        return entries, []
    return kept, [
        f"results of images that the data leave out, not counted: {len(entries) - len(kept):,} of "
        f"{len(strange):,} images (--annotations FILE counts every image of the file)"
    ]
