"""COCO's evaluation by pycocotools itself: the truth that tests hold numbers against."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from autotimm.evaluation.coco_eval import STATS


def coco_of(content: dict[str, Any]) -> COCO:
    """What an annotation file of this content would be."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def official(truth: COCO, found: COCO, iou_type: str, category: int | None = None) -> Any:
    """The twelve numbers by their names in ``STATS``, of all categories or of one."""
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(truth, found, iou_type)
        if category is not None:
            run.params.catIds = [category]
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(STATS, run.stats.tolist(), strict=True))
