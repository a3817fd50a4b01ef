"""Records from shards: our own, which are checked strictly, and those of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from coco_folder import CATEGORIES, annotation, image, write

from autotimm.coco import index, layouts
from autotimm.format.record import checked_record, foreign_record
from autotimm.images.decode import DataError


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A valid record with one instance, which has polygons."""
    write(tmp_path, [image()], [annotation()])
    split = layouts.find_splits(tmp_path)["train"]
    return dict(index.load(split.annotation_file, split.image_folder).record(0))


KNOWN = {one["id"] for one in CATEGORIES}


def encoded(record: Any) -> bytes:
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("polygons", "reason"),
    [
        ("5", "'int' object is not iterable"),
        ("[5]", "polygon is not a list of numbers"),
        ('[["a",1,2,3,4,5]]', "polygon is not a list of numbers"),
        ("[[1,2,3,4]]", "polygon with fewer than 3 points"),
        ("null", "'NoneType' object is not iterable"),
    ],
)
def test_damaged_polygons_name_their_sample(
    record: dict[str, Any], polygons: str, reason: str
) -> None:
    record["annotations"][0]["polygons"] = "POLYGONS"
    text = json.dumps(record).replace('"POLYGONS"', polygons)
    with pytest.raises(DataError) as error:
        checked_record(text.encode(), "sample 0 of a.tar")
    assert str(error.value) == f"sample 0 of a.tar: its record is damaged: {reason}"
    assert checked_record(text.replace(polygons, "[[1,2,3,4,5,6.5]]", 1).encode(), "")


def test_records_as_others_write_them(record: dict[str, Any]) -> None:
    """Polygons without RLE, in either field; our own records are read unchanged."""
    full = next(a for a in record["annotations"] if "polygons" in a)
    polygons = full["polygons"]
    bare = {k: v for k, v in full.items() if k not in ("polygons", "segmentation", "iscrowd", "id")}
    given = [full, bare | {"polygons": polygons}, bare | {"segmentation": polygons}]
    given += [full | {"polygons": "none"}, bare | {"segmentation": {"size": [1, 1], "counts": "1"}}]
    read = foreign_record(encoded({**record, "annotations": given}), "here", KNOWN)
    assert read["annotations"][0] == full
    for number in (1, 2):
        assert read["annotations"][number] == full | {"id": number}
    assert read["annotations"][3] == {k: v for k, v in full.items() if k != "polygons"}
    assert len(read["annotations"]) == 4
    lacking = {k: record[k] for k in ("image_id", "width", "height")}
    assert foreign_record(encoded(lacking), "here", KNOWN) == lacking | {
        "file_name": "",
        "annotations": [],
    }
    for text in (b"{", b"[]", encoded({**lacking, "height": "tall"})):
        with pytest.raises(DataError, match=r"^here: its record is damaged"):
            foreign_record(text, "here", KNOWN)


@pytest.mark.parametrize(("width", "height"), [(10**6, 10**6), (214747, 10000), (2**21, 1)])
def test_a_size_that_no_image_has_is_refused(
    record: dict[str, Any], width: int, height: int
) -> None:
    rle = {"size": [height, width], "counts": [width * height]}
    given = record["annotations"][0] | {"segmentation": rle, "iscrowd": 0}
    huge = record | {"width": width, "height": height, "annotations": [given]}
    with pytest.raises(DataError, match=r"^here: .* no width and height of an image"):
        foreign_record(encoded(huge), "here", KNOWN)
    with pytest.raises(DataError, match=r"^here: .* no image has its width and height"):
        checked_record(encoded(huge), "here")


def test_an_id_of_more_than_63_bits_is_refused(record: dict[str, Any]) -> None:
    """No tensor holds one."""
    assert checked_record(encoded(record | {"image_id": 2**63 - 1}), "x")
    with pytest.raises(DataError, match="9223372036854775808 is not a whole number in range"):
        checked_record(encoded(record | {"image_id": 2**63}), "x")
