"""One loader, timed from JPEG to augmented, normalised batches with boxes and masks.

    python loaders.py LOADER FOLDER [options]

The peers and the folder loaders share what most training scripts do: decode with cv2 (or PIL), a
dense mask for every instance by pycocotools, scale, crop, flip, colours, normalised float32, the
batch a stack of images and a list of targets. Ours is the data module with its default preset and
the normalisation that it leaves to the device; the peers' augmentation varies as much. The first
epoch is not timed, so that workers are up. No peer's code here imports autotimm. All import
Lightning, the trainer that they would feed: ours cannot do without, and it takes 200 MB.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch  # noqa: F401 (for its memory, see above)
import numpy as np
import torch
from harness import measured

SIDE = 640
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
Batches = Callable[[], Iterable[Any]]
"""An epoch of batches, the next one at every call."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loader", choices=LOADERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    epoch = LOADERS[options.loader](
        options.folder, options.split, options.batch_size, options.workers
    )
    handed = images = 0
    for batch in epoch():
        handed += weight(batch)
        images += count(batch)
    measured(
        lambda: sum(count(batch) for _ in range(options.epochs) for batch in epoch()),
        bytes=handed / images,
    )


def count(batch: Any) -> int:
    """The images of a batch."""
    return len(batch["image"])


def weight(batch: Any) -> int:
    """The bytes of all tensors in a batch: what leaves a worker."""
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    if isinstance(batch, dict):
        return sum(map(weight, batch.values()))
    return sum(map(weight, batch)) if isinstance(batch, list | tuple) else 0


def folder(root: Path, _split: str, batch: int, workers: int, decode: Any = None) -> Batches:
    """A map-style dataset over a COCO folder, as torchvision's CocoDetection is one."""
    from pycocotools.coco import COCO

    found = json.loads((root / "split.json").read_text())
    coco = COCO(found["annotations"])
    dataset = _Folder(coco, found["images"], decode or decode_cv2)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, shuffle=True, collate_fn=collate, **loading(workers)
    )
    return lambda: loader


class _Folder(torch.utils.data.Dataset):
    def __init__(self, coco: Any, images: str, decode: Callable[[bytes], np.ndarray]) -> None:
        self.coco, self.images, self.decode = coco, images, decode
        self.ids = sorted(coco.imgs)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_id = self.ids[index]
        entry = self.coco.loadImgs(image_id)[0]
        annotations = self.coco.loadAnns(self.coco.getAnnIds(image_id, iscrowd=0))
        masks = [self.coco.annToMask(annotation) for annotation in annotations]
        data = Path(self.images, entry["file_name"]).read_bytes()
        return augment(self.decode(data), masks, [a["category_id"] for a in annotations])


def webdataset(root: Path, split: str, batch: int, workers: int) -> Batches:
    """webdataset over the shards of autotimm-shard."""
    import webdataset as wds

    shards = [f"file:{p.resolve()}" for p in sorted(root.glob(f"{split}-*.tar"))]
    dataset = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000)
    dataset = dataset.map(from_record).batched(batch, collation_fn=collate)
    loader = wds.WebLoader(dataset, batch_size=None, **loading(workers))
    return lambda: loader


def mosaicml(root: Path, _split: str, batch: int, workers: int) -> Batches:
    """mosaicml-streaming's dataset in torch's DataLoader."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Decoded(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return from_record(super().__getitem__(at))

    clean_stale_shared_memory()
    dataset = Decoded(local=str(root), shuffle=True, batch_size=batch)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, collate_fn=collate, **loading(workers)
    )
    return lambda: loader


def litdata(root: Path, _split: str, batch: int, workers: int) -> Batches:
    """litdata's dataset in its own loader."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Decoded(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return from_record(super().__getitem__(index))

    loader = StreamingDataLoader(
        Decoded(str(root), shuffle=True), batch_size=batch, collate_fn=collate, **loading(workers)
    )
    return lambda: loader


def autotimm(root: Path, split: str, batch: int, workers: int) -> Batches:
    """Our data module, normalisation included."""
    from autotimm import InstanceSegmentationDataModule

    data = InstanceSegmentationDataModule(
        root, SIDE, batch, workers, train_split=split, val_split=None, pin_memory=False
    )
    data.setup("fit")
    loader = data.train_dataloader()

    class Normalised:
        """Hands over what a worker does at first; the timed epochs normalise."""

        epochs = 0

        def __call__(self) -> Iterable[Any]:
            self.epochs += 1
            if self.epochs == 1:
                return iter(loader)
            return (data.on_after_batch_transfer(batch, 0) for batch in loader)

    return Normalised()


def jpeg(root: Path, _split: str, _batch: int, _workers: int) -> Batches:
    """The limit: the images' JPEGs decoded, one after another, and nothing else."""
    import simplejpeg

    images = Path(json.loads((root / "split.json").read_text())["images"])
    files = sorted(images.iterdir())
    data = [p.read_bytes() for p in files if p.suffix.lower() in (".jpg", ".jpeg")]

    def epoch() -> Iterable[Any]:
        for content in data:
            yield {"image": [simplejpeg.decode_jpeg(content)]}

    return epoch


def loading(workers: int) -> dict[str, Any]:
    """DataLoader's options, the same for all."""
    if not workers:
        return {"num_workers": 0}
    return {
        "num_workers": workers,
        "persistent_workers": True,
        "worker_init_fn": partial(_one_thread),
    }


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the threads


def decode_cv2(data: bytes) -> np.ndarray:
    flat = np.frombuffer(data, np.uint8)
    return cv2.cvtColor(cv2.imdecode(flat, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def decode_pil(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def from_record(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample of the peers' containers: image bytes and a record with RLEs."""
    from pycocotools import mask as masks

    record = json.loads(bytes(sample["json"]))
    annotations = [a for a in record["annotations"] if not a["iscrowd"]]
    dense = [masks.decode(annotation["segmentation"]) for annotation in annotations]
    return augment(decode_cv2(sample["jpg"]), dense, [a["category_id"] for a in annotations])


def augment(pixels: np.ndarray, masks: list[np.ndarray], labels: list[int]) -> dict[str, Any]:
    """Scale, crop or pad, flip, colours; only the pixels that are seen are resized."""
    rng = np.random.default_rng()
    height, width = pixels.shape[:2]
    scale = min(SIDE / width, SIDE / height) * math.exp(rng.uniform(math.log(0.8), math.log(1.25)))
    spans = [_span(length, scale, rng.random()) for length in (height, width)]
    flip = rng.random() < 0.5
    image = _place(pixels, spans, flip, np.full((SIDE, SIDE, 3), 114, np.uint8), cv2.INTER_LINEAR)
    gain, contrast, saturation = rng.uniform(0.8, 1.2, 3)
    grey = np.full((3, 3), 1 / 3)
    linear = gain * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    shift = np.full((3, 1), gain * (1 - contrast) * 114.0)
    image = cv2.transform(image, np.hstack([linear, shift]))
    kept, boxes, classes = [], [], []
    for mask, label in zip(masks, labels, strict=True):
        placed = _place(mask, spans, flip, np.zeros((SIDE, SIDE), np.uint8), cv2.INTER_NEAREST)
        x, y, w, h = cv2.boundingRect(placed)
        if w and h:
            kept.append(placed)
            boxes.append((x, y, x + w, y + h))
            classes.append(label)
    stack = np.stack(kept) if kept else np.zeros((0, SIDE, SIDE), np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float().div_(255)
    return {
        "image": tensor.sub_(_MEAN[:, None, None]).div_(_STD[:, None, None]),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(classes, dtype=torch.int64),
        "masks": torch.from_numpy(stack),
    }


def _span(length: int, scale: float, chance: float) -> tuple[int, int, int, int]:
    """One axis: which pixels of the image, from and to, come to which of the canvas."""
    size = max(round(length * scale), 1)
    if size <= SIDE:
        start = int(chance * (SIDE - size + 1))
        return 0, length, start, start + size
    seen = min(round(SIDE / scale), length)
    start = int(chance * (length - seen + 1))
    return start, start + seen, 0, SIDE


def _place(
    source: np.ndarray, spans: list[Any], flip: bool, canvas: np.ndarray, how: int
) -> np.ndarray:
    (wy1, wy2, py1, py2), (wx1, wx2, px1, px2) = spans
    part = np.ascontiguousarray(source[wy1:wy2, wx1:wx2])
    canvas[py1:py2, px1:px2] = cv2.resize(part, (px2 - px1, py2 - py1), interpolation=how)
    return cv2.flip(canvas, 1) if flip else canvas


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Images in one tensor, targets in a list, as detectors take them."""
    targets = [{k: v for k, v in sample.items() if k != "image"} for sample in samples]
    return {"image": torch.stack([sample["image"] for sample in samples]), "targets": targets}


LOADERS: dict[str, Callable[[Path, str, int, int], Batches]] = {
    "folder": folder,
    "folder-pil": partial(folder, decode=decode_pil),
    "webdataset": webdataset,
    "mosaicml": mosaicml,
    "litdata": litdata,
    "autotimm": autotimm,
    "jpeg": jpeg,
}


if __name__ == "__main__":
    main()
