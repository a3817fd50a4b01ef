"""Annotation files: loaded, joined, found in folders; every record of them is made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from documents import mutated, nested, text_of, texts
from hypothesis import strategies as st
from properties import fuzzed, outcome
from pycocotools import mask as pycoco
from samples import coco, folder, images, segmentations

from autotimm.coco import jsontext, peek, segmentation
from autotimm.coco.checks import Rules, check_annotation
from autotimm.coco.index import load
from autotimm.coco.join import load_split
from autotimm.coco.layouts import Split, find_splits
from autotimm.structures import Record

SIDES = st.sampled_from((12, 16))
rules = st.builds(
    Rules, boxes=st.sampled_from(("given", "mask")), crowd=st.sampled_from(("keep", "instance"))
)


def check_record(record: Record) -> None:
    """A record is JSON of 64 bits, and pycocotools decodes its masks to the image's size."""
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    size = [record["height"], record["width"]]
    for one in record["annotations"]:
        assert one["segmentation"]["size"] == size
        assert int(pycoco.area(one["segmentation"])) > 0
        assert pycoco.decode(one["segmentation"]).shape == tuple(size)
        assert min(one["bbox"][2:]) > 0
        assert one["area"] > 0
        check_polygons(one.get("polygons"), one["segmentation"])


def check_polygons(polygons: Any, rle: Any) -> None:
    """The mask is pycocotools' of the polygons that are kept of it."""
    if polygons and rle["size"][0] * rle["size"][1] < 10**6:
        floats = [[float(v) for v in polygon] for polygon in polygons]
        theirs = pycoco.merge(pycoco.frPyObjects(floats, *rle["size"]))
        assert theirs["counts"].decode() == rle["counts"]


def records_of(index: Any) -> None:
    """Makes everything that an index can tell."""
    for i in range(len(index)):
        check_record(index.record(i))
        assert index.annotation_bytes(i) >= 0
        assert Path(index.image_file(i)).resolve().is_relative_to(images())
    assert set(index.untrained_ids()) <= set(index.used_ids())
    assert {one.id for one in index.categories} >= set(index.used_ids())
    assert all(line.isprintable() for line in index.problems.lines())


@fuzzed(texts(mutated(coco())), rules, examples=40)
def test_annotation_file(data: bytes, chosen: Rules) -> None:
    file = folder("coco") / "file.json"
    file.write_bytes(data)
    outcome(lambda: records_of(load(file, images(), chosen)), naming=str(file.parent))


@fuzzed(st.lists(texts(mutated(coco(), 2), plain=True), min_size=2, max_size=3), examples=25)
def test_joined_files(parts: list[bytes]) -> None:
    sources = []
    for number, data in enumerate(parts):
        sources.append((folder("joined") / f"{number}.json", images()))
        sources[-1][0].write_bytes(data)
    split = Split("train", *sources[0], tuple(sources[1:]))
    outcome(lambda: records_of(load_split(split)), naming=str(folder("joined")))


@fuzzed(texts(mutated(coco())), st.integers(1, 40), examples=30)
def test_pieces_against_json(data: bytes, piece: int) -> None:
    """The scanner finds what json finds, whatever the pieces, and refuses what json refuses."""
    file = folder("pieces") / "file.json"
    file.write_bytes(data)
    text = outcome(lambda: jsontext.Text(file), naming=str(file))
    if text is None:
        return
    whole = text.read(text.begin, text.end - text.begin)
    try:
        truth = json.loads(whole)
    except (ValueError, RecursionError):
        truth = None
    try:
        content, arrays = jsontext.scan(text, piece)
        found = {
            key: [one for some in arrays[value[0]].values(text, piece, True) for one in some]
            if isinstance(value, list)
            else value
            for key, value in (content.items() if isinstance(content, dict) else ())
        }
        for array in arrays:  # also those of a key that comes again
            for _ in array.values(text, piece):
                pass
    except jsontext.NotJSONError:
        assert truth is None
        assert str(file) in str(text.fault())
    else:
        if isinstance(content, dict):
            assert text_of(found) == text_of(truth)  # NaN is not itself


NESTS = ("annotations/instances_train.json", "train/_annotations.coco.json", "train.json")


@fuzzed(
    st.lists(st.tuples(st.sampled_from(NESTS), texts(mutated(coco(), 2))), max_size=3),
    st.text(max_size=12),
    examples=25,
)
def test_layouts(files: list[tuple[str, bytes]], name: str) -> None:
    root = folder("layouts")
    for nest in NESTS:
        (root / nest).parent.mkdir(exist_ok=True)
        (root / nest).unlink(missing_ok=True)
    for nest, data in files:
        (root / nest).write_bytes(data.replace(b"a.jpg", name.encode("utf-8", "replace")))
    outcome(lambda: find_splits(root), naming=str(root))
    for nest, _ in files:
        outcome(lambda nest=nest: peek.peek(root / nest), naming=nest)


@fuzzed(mutated(segmentations()), SIDES, SIDES, st.lists(st.floats(), max_size=5), examples=120)
def test_segmentation(given: Any, height: int, width: int, bbox: Any) -> None:
    """A mask, or a short reason; where pycocotools reads the same, it is the same."""
    value, kinds = nested(given), []

    def read() -> Any:
        return segmentation.read(value, height, width, bbox, kinds.append)

    found = outcome(read, ValueError)
    assert all(kind.isprintable() and len(kind) < 200 for kind in kinds)
    if found is None:
        return
    assert found.rle["size"] == [height, width]
    assert pycoco.decode(found.rle).shape == (height, width)
    check_polygons(found.polygons, found.rle)
    if isinstance(value, dict) and not kinds:
        theirs = value
        if isinstance(value["counts"], list):
            theirs = pycoco.frPyObjects(value, height, width)
        assert np.array_equal(pycoco.decode(theirs), pycoco.decode(found.rle))


@fuzzed(
    mutated(
        st.fixed_dictionaries(
            {
                "id": st.just(1),
                "category_id": st.just(3),
                "bbox": st.lists(st.floats(-5, 20), min_size=4, max_size=4),
                "area": st.floats(-1, 100),
                "iscrowd": st.sampled_from((0, 1, "1", True)),
                "segmentation": segmentations(),
                "ignore": st.sampled_from((0, 1)),
            }
        )
    ),
    rules,
    examples=80,
)
def test_annotation(raw: Any, chosen: Rules) -> None:
    value = nested(raw)
    if not isinstance(value, dict):
        return
    value |= {"id": 1, "category_id": 3}
    kinds: list[str] = []
    found = outcome(lambda: check_annotation(value, 12, 16, kinds.append, chosen))
    assert all(kind.isprintable() and len(kind) < 200 for kind in kinds)
    assert found is not None or kinds
    if found is not None:
        assert all(math.isfinite(v) for v in (*found["bbox"], found["area"]))
