"""One run of hotcoco over a ground truth and what was found in it.

hotcoco takes ids of images and categories from 0 on; COCO's files may have others, which are
numbered here, in their order, and given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hotcoco import COCO, COCOeval

from autotimm.coco.federated import FEDERATED
from autotimm.evaluation.coco_input import IouType


class Ids:
    """Ids, and the numbers from 0 on that stand for them where one of them is below 0."""

    def __init__(self, entries: Iterable[dict[str, Any]]) -> None:
        ids = sorted({one["id"] for one in entries})
        self._ids = ids if ids and ids[0] < 0 else []
        self._numbers = {id_: number for number, id_ in enumerate(self._ids)}

    def __bool__(self) -> bool:
        return bool(self._ids)

    def number(self, id_: int) -> int:
        """The number of an id; another, not below 0, of one that is none of them."""
        return self._numbers.get(id_, len(self._ids) + abs(id_)) if self._ids else id_

    def given(self, number: int) -> int:
        """The id that a number stands for."""
        return self._ids[number] if self._ids else number


class Run:
    """What hotcoco found at each IoU, image by image.

    Args:
        truths: as ``coco_input.prepared`` returns them.
        detections: their ids.
        iou_type: compare boxes or masks.
        max_dets: of ``coco_eval.limits``; a single one means LVIS' rule.

    Attributes:
        of: hotcoco's evaluation.
        images: the ids of images, for what ``of`` calls by their numbers.
        categories: likewise.
    """

    def __init__(
        self,
        truths: dict[str, Any],
        detections: dict[str, Any],
        iou_type: IouType,
        max_dets: Sequence[int],
    ) -> None:
        self.images, self.categories = Ids(truths["images"]), Ids(truths["categories"])
        if self.images or self.categories:
            truths, detections = self._numbered(truths), self._numbered(detections)
        found, of_lvis = COCO(detections), len(max_dets) == 1
        if of_lvis:
            found = found.cap_detections_per_image(max_dets[0])
        self.of: Any = COCOeval(COCO(truths), found, iou_type, lvis_style=of_lvis)
        params = self.of.params
        params.max_dets = list(max_dets)
        self.of.params = params
        self.of.evaluate()

    def _numbered(self, content: dict[str, Any]) -> dict[str, Any]:
        image, category = self.images.number, self.categories.number
        return {
            "images": [
                {**one, "id": image(one["id"])}
                | {key: [*map(category, one[key])] for key in FEDERATED if key in one}
                for one in content["images"]
            ],
            "categories": [{**one, "id": category(one["id"])} for one in content["categories"]],
            "annotations": [
                {
                    **one,
                    "image_id": image(one["image_id"]),
                    "category_id": category(one["category_id"]),
                }
                for one in content["annotations"]
            ],
        }
