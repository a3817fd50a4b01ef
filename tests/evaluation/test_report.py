"""What an evaluation reports, by value: the worst images, the confusions, their chart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from coco_folder import CATEGORIES, annotation, image

from autotimm.coco import masks
from autotimm.evaluation import charts, page_curves, precision_recall, report, tables
from autotimm.structures import InputError


def found(image_id: int, category_id: int, place: float, score: float = 0.9) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [place, 8.0, 20.0, 20.0],
        "score": score,
    }


@pytest.fixture(scope="module")
def measured() -> report.Report:
    """Image 1 is right, 2 half right, 3 all wrong, 4 missed one more; 5 is empty and right."""
    truth = {
        "images": [image(id=n, file_name=f"{n}.jpg") for n in range(1, 6)],
        "categories": CATEGORIES,  # ids 3 and 7
        "annotations": [
            annotation(id=n, image_id=n, category_id=3, segmentation=...) for n in range(1, 5)
        ]
        + [
            annotation(id=9, image_id=4, category_id=7, bbox=[40.0, 8, 20, 20], segmentation=...),
        ],
    }
    results = [
        found(1, 3, 10),
        found(2, 3, 10),
        found(2, 7, 40),  # nothing there
        found(3, 7, 10),  # a disc taken for a star
        found(1, 7, 40, score=0.3),  # does not count
    ]
    return report.measure(truth, results, 0.5)


def test_worst_images_come_first(measured: report.Report) -> None:
    # Of 3 and 4 nothing is right; 4 misses two, in 3 one is wrong and one missed.
    assert report.worst(measured, 9) == [3, 4, 2]
    assert report.worst(measured, 1) == [3]
    told = report.as_json(measured, 2)["worst"]
    assert told == [
        {"image_id": 3, "file_name": "3.jpg", "right": 0, "wrong": 1, "missed": 1},
        {"image_id": 4, "file_name": "4.jpg", "right": 0, "wrong": 0, "missed": 2},
    ]
    assert measured.errors.images[2] == (1, 1, 0)
    assert measured.errors.images[4] == (0, 0, 2)


def test_errors_are_those_of_the_masks_where_there_are_masks() -> None:
    truth = {"images": [image()], "categories": CATEGORIES, "annotations": [annotation()]}
    # A corner of the square, in a box that fits.
    corner = [[10.0, 8.0, 20.0, 8.0, 20.0, 18.0, 10.0, 18.0]]
    results = [found(1, 3, 10) | {"segmentation": corner}]
    measured = report.measure(truth, results)
    assert measured.evaluations["bbox"].stats["AP"] == pytest.approx(1)
    assert measured.errors.images == {1: (0, 1, 1)}
    boxes = report.measure(truth, results, boxes_only=True)
    assert boxes.errors.images == {1: (1, 0, 0)}


SLANTED = [10.0, 8.0, 30.0, 12.0, 22.0, 28.0]


@pytest.mark.parametrize(
    ("mask", "remark"),
    [
        (SLANTED, "polygon without its outer list"),
        ([[SLANTED]], "polygon in more lists than one"),
        ([masks.to_rle([SLANTED], 48, 64)], "list of RLEs"),
    ],
    ids=["flat", "deep", "listed"],
)
def test_masks_of_results_are_read_as_those_of_annotations(mask: Any, remark: str) -> None:
    truth = {
        "images": [image()],
        "categories": CATEGORIES,
        "annotations": [annotation(segmentation=[SLANTED])],
    }
    result = {"image_id": 1, "category_id": 3, "score": 0.9, "segmentation": mask}
    done = report.measure(truth, [result], 0.5)
    assert done.evaluations["segm"].stats["AP"] == pytest.approx(1)
    assert any(remark in line and "results: result 1" in line for line in done.remarks)
    with pytest.raises(InputError, match="result 1: polygon with fewer than 3 points"):
        report.measure(truth, [result | {"segmentation": [SLANTED, [1.0, 2.0]]}], 0.5)


def test_confusions_as_json(measured: report.Report) -> None:
    told = report.as_json(measured)["confusion"]
    assert told["classes"] == ["disc", "star", "nothing"]
    rows = {name: dict(zip(told["classes"], row, strict=True)) for name, row in named(told)}
    assert rows["disc"] == {"disc": 2, "star": 1, "nothing": 1}
    assert rows["star"] == {"disc": 0, "star": 0, "nothing": 1}
    assert rows["nothing"] == {"disc": 0, "star": 1, "nothing": 0}


def named(told: dict[str, Any]) -> Any:
    return zip(told["classes"], told["matrix"], strict=True)


def test_the_chart_has_the_truth_in_rows(measured: report.Report) -> None:
    figure = charts.confusion(measured)
    panel = figure.axes[0]
    [picture] = panel.images
    shares = np.asarray(picture.get_array())
    assert shares == pytest.approx(np.array([[0.5, 0.25, 0.25], [0, 0, 1], [0, 1, 0]]))
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("found", "truth")
    for labels in (panel.get_xticklabels(), panel.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["disc", "star", "nothing"]
    written = {(t.get_position(), t.get_text()) for t in panel.texts}
    assert ((1, 0), "1") in written and ((0, 0), "2") in written  # x, y


def test_curves_are_those_of_each_class(measured: report.Report) -> None:
    [panel] = charts.precision_recall(measured).axes
    lines = {line.get_label().split(":")[0]: line for line in panel.get_lines()}
    disc = lines["disc"]
    recall, precision = np.asarray(disc.get_xdata()), np.asarray(disc.get_ydata())
    # Two of four are found, and nothing wrong of this class.
    assert (precision[recall <= 0.5] == 1).all()
    assert (precision[recall > 0.5] == 0).all()
    assert "all classes, IoU 0.50" in lines


def test_no_curve_hides_an_equal_one() -> None:
    """Along a line that three classes share, each shows a third of it, beside the others."""
    count = len(names := ["disc", "square", "star", "rare"])
    truth = {
        "images": [image(id=n, file_name=f"{n}.jpg") for n in range(count + 1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
        "annotations": [
            annotation(id=n, image_id=n, category_id=n % count, segmentation=...)
            for n in range(count + 1)
        ],
    }
    measured = report.measure(truth, [found(n, n, 10) for n in range(1, count)] + [found(0, 0, 10)])
    evaluation = measured.evaluations["bbox"]
    curves = precision_recall.curves(evaluation, names)
    assert [curve.dash for curve in curves[:count]] == [(), *[(8, 16)] * 3]  # of disc half is found
    shown = [
        {at for at in range(240) if (at - curve.offset) % sum(curve.dash) < curve.dash[0]}
        for curve in curves[1:count]
    ]
    assert [len(one) for one in shown] == [80] * 3 and len(set.union(*shown)) == 240
    [panel] = charts.precision_recall(measured).axes
    drawn = {line.get_label().split(":")[0]: line for line in panel.get_lines()}
    mean, disc, star = (drawn[name] for name in ("all classes, IoU 0.50", "disc", "star"))
    assert mean.get_zorder() < disc.get_zorder() < star.get_zorder()
    assert mean.get_linewidth() > disc.get_linewidth() > star.get_linewidth()
    keys = {key.get_label(): key for key in panel.get_legend().legend_handles}
    assert keys["star: 1.00"].get_linestyle() == "-"
    content = page_curves.curves_figure("box", evaluation, names, str)
    places = [content.index(f'stroke-dashoffset="{-offset}"') for offset in (8, 16)]
    assert content.index('class="of-all" points') < min(places)  # the means below


def test_json_and_tables_are_class_by_class(measured: report.Report) -> None:
    from rich.console import Console

    classes = {one["name"]: one for one in report.as_json(measured)["box"]["classes"]}
    assert (classes["disc"]["id"], classes["disc"]["instances"]) == (3, 4)
    assert (classes["star"]["id"], classes["star"]["instances"]) == (7, 1)
    assert classes["disc"]["ap50"] == pytest.approx(0.5, abs=0.01)
    assert classes["star"]["ap50"] == 0
    console = Console(width=100)
    with console.capture() as shown:
        console.print(tables.tables(measured))
    lines = shown.get().splitlines()
    [row] = (line.split() for line in lines if line.split()[:1] == ["disc"] and len(line) > 40)
    assert row[:3] == ["disc", "3", "4"]
    assert float(row[4]) == pytest.approx(50, abs=1)
    assert [line for line in lines if ":" in line] == [
        "all classes, in %: detections of any score",
        "class by class, in %: detections of any score",
        "AP50 lost to, in %: detections of any score",
        "confusions, in objects: detections with a score of at least 0.5 (box IoU 0.5)",
    ]
    assert lines[-2].split() == ["disc", "star", "1"]


def test_confusions_are_printed_most_first_and_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a", "b", "c"]
    truth = {
        "images": [image(id=n, file_name=f"{n}.jpg") for n in range(4)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
        "annotations": [
            annotation(id=n, image_id=n, category_id=n // 2, segmentation=...) for n in range(4)
        ],
    }
    results = [found(0, 2, 10), found(1, 1, 10), found(2, 2, 10), found(3, 2, 10)]
    measured = report.measure(truth, results)
    assert tables._confused(measured) == [["b", "c", "2"], ["a", "b", "1"], ["a", "c", "1"]]
    monkeypatch.setattr(tables, "_MOST_CONFUSIONS", 1)
    [*_, last] = tables.tables(measured).renderables
    assert str(last) == "metrics.json has the other 2 pairs of classes"
    results = [found(n, n // 2, 10) for n in range(4)]
    assert len(tables.tables(report.measure(truth, results)).renderables) == 6  # no confusions
