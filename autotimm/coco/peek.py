"""What a JSON file is, from its first and last bytes: enough to choose among files, no more.

Nothing here is relied on where annotations are read; ``lists.py`` checks all of a file.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

from autotimm.coco import packed
from autotimm.structures import InputError

Kind = Literal[
    "instances",
    "panoptic",
    "captions",
    "results",
    "labelme",
    "label studio",
    "datumaro",
    "via",
    "createml",
    "supervisely",
    "cityscapes",
    "detectron2",
    "other",
]
CONTENTS: dict[Kind, str] = {
    "results": "results (COCO's format of detections), not annotations",
    "labelme": "labelme's annotations",
    "label studio": "Label Studio's own JSON: export it from there as COCO with images",
    "datumaro": "Datumaro's own JSON: datum convert -f coco_instances makes COCO's of it",
    "via": "VGG Image Annotator's JSON: its Annotation > Export Annotations (COCO format) makes "
    "COCO's of it",
    "createml": "Create ML's boxes without masks",
    "supervisely": "Supervisely's own JSON: its app Export to COCO makes COCO's of it",
    "cityscapes": "Cityscapes' polygons: tools/dataset_converters/cityscapes.py of MMDetection "
    "makes COCO's of them",
    "detectron2": "Detectron2's dataset dicts: convert_to_coco_json of detectron2.data.datasets "
    "makes COCO's of them",
}
"""What a file of another kind holds, with the way out where there is one."""

_READ = 2**22  # bytes at either end
_NAMES = 10
# Patterns as text, which ``re`` compiles once they are used: a COCO folder needs none.
_LIST = rb'"(images|annotations|categories)"\s*:\s*\['
_NAME = rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")'
_URL = rb'"coco_url"\s*:\s*"(?:[^"\\]|\\.)*/([^"/\\]+/[^"/\\]+)"'


class Peek(NamedTuple):
    """What the ends of a JSON file show.

    Attributes:
        kind: "instances" for a COCO file that may have some.
        names: the first few values of ``file_name``, or else folder and file of ``coco_url``.
    """

    kind: Kind
    names: tuple[str, ...]


def peek(path: Path) -> Peek:
    """Reads at most 4 MiB at either end of a JSON file, or what it is packed in.

    Raises:
        InputError: it cannot be read, or is packed by something else than gzip or zip.
    """
    try:
        data = _ends(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error):
        return Peek("other", ())
    names = []
    for match in re.finditer(_NAME, data):
        try:
            names.append(json.loads(match[1]))
        except ValueError:
            continue  # text that was cut, or is not UTF-8: the file is refused when it is read
        if len(names) == _NAMES:
            break
    if not names:  # LVIS has URLs alone
        ends = [match[1] for match in re.finditer(_URL, data)][:_NAMES]
        names = [end.decode("utf-8", "replace") for end in ends]
    return Peek(_kind(data), tuple(names))


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_READ)
        packed_by = packed.kind(data[:8])
        if packed_by == "gzip":
            import gzip  # few files are packed

            file.seek(0)
            with gzip.open(file) as unpacked:
                data = unpacked.read(_READ)
        elif packed_by is not None:
            data = packed.unpacked(data + file.read(), packed_by, path)
        elif len(data) == _READ:
            at = max(file.seek(0, 2) - _READ, _READ)
            file.seek(at)
            data += b"\n" + file.read()
    encoding = json.detect_encoding(data[:4])
    if encoding not in ("utf-8", "utf-8-sig"):  # Windows' tools
        return data.decode(encoding, "replace").encode("utf-8", "replace")
    return data.removeprefix(b"\xef\xbb\xbf")


def _kind(data: bytes) -> Kind:
    if data.lstrip().startswith(b"["):
        if b'"category_id"' in data and b'"score"' in data:
            return "results"
        if b'"annotations"' in data and b'"data"' in data:
            return "label studio"
        if b'"annotations"' in data and b'"bbox_mode"' in data:
            return "detectron2"
        return "createml" if b'"image"' in data and b'"coordinates"' in data else "other"
    if len({match[1] for match in re.finditer(_LIST, data)}) > 1:
        if b'"segments_info"' in data:
            return "panoptic"
        if b'"caption"' in data and b'"category_id"' not in data:
            return "captions"
        return "instances"
    if b'"shapes"' in data and b'"imagePath"' in data:
        return "labelme"
    if b'"items"' in data and b'"categories"' in data and b'"infos"' in data:
        return "datumaro"
    if b'"shape_attributes"' in data and b'"regions"' in data:
        return "via"
    if b'"classTitle"' in data and b'"objects"' in data:
        return "supervisely"
    return "cityscapes" if b'"imgHeight"' in data and b'"polygon"' in data else "other"
