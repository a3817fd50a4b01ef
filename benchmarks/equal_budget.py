"""Who learns more from the same images? Ours and torchvision's Mask R-CNN, step for step.

    python benchmarks/equal_budget.py
    python benchmarks/equal_budget.py --data COCO_FOLDER --size 640 --backbone resnet50 \\
        --boxes 512 --proposals 2000 --device cuda

Both begin with the same backbone weights, see the same augmented batches in the same order, in
float32, and are measured by pycocotools on images they have not seen, at their original size. Each
has its own recipe: ours that of launch/small_cpu.yaml, torchvision that of its reference training
(SGD, learning rate 0.02 at batch 16 scaled with the batch, steps after 16/26 and 22/26 of the run);
"with our recipe" stands for torchvision's network under ours. On a CPU, torchvision's 512 sampled
boxes and 2,000 proposals an image are cut down (``--boxes``, ``--proposals``), or it would take
days. Without ``--data``, painted shapes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from harness import markdown, progress
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead

from autotimm import InputError, InstanceSegmentationDataModule, InstanceSegmentor
from autotimm.coco import index, layouts, masks
from autotimm.data.synthetic import make_dataset
from autotimm.evaluation import coco_eval
from autotimm.models import paste
from autotimm.structures import Detections
from autotimm.tasks import optimization

Factor = Callable[[int], float]
"""Step -> what the learning rate is multiplied by."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A network, how its loss is had and how it is trained."""

    model: nn.Module
    loss: Callable[[dict[str, Any]], Tensor]
    detect: Callable[[dict[str, Any]], list[Detections]]
    optimizer: torch.optim.Optimizer
    factor: Factor
    clip: float | None


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--data", type=Path, help="a COCO folder (default: painted shapes)")
    add("--train", default="train", help="split to train on (train)")
    add("--val", default="val", help="split to measure on (val)")
    add("--painted", type=int, default=600, help="painted training images (600)")
    add("--size", type=int, default=192, help="side of the canvas (192)")
    add("--backbone", default="resnet18", help="a ResNet that timm and torchvision have (resnet18)")
    add("--weights", type=Path, help="a file of its weights (default: random ones, by seed)")
    add("--images-seen", type=int, default=2400, help="of training, repeats counted (2400)")
    add("--batch-size", type=int, default=4)
    add("--seeds", type=int, default=2, help="runs of each (2)")
    add(
        "--boxes",
        type=int,
        default=64,
        help="torchvision's sampled boxes an image, a quarter of them for masks; ours has as many "
        "for masks (64)",
    )
    add("--proposals", type=int, default=200, help="and its proposals (200)")
    add("--only", default=",".join(CONTESTANTS), help="contestants, with commas between (all)")
    add("--device", default="cpu")
    add("--quick", action="store_true", help="a few images, once: does it run at all?")
    given = options.parse_args()
    unseen = 100
    if given.quick:
        given.painted, unseen, given.size, given.seeds = 6, 4, 96, 1
        given.images_seen, given.batch_size, given.boxes, given.proposals = 8, 2, 16, 20
    if unknown := sorted(set(given.only.split(",")) - set(CONTESTANTS)):
        sys.exit(f"--only: {unknown[0]!r} is none of {', '.join(CONTESTANTS)}")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = given.data or Path(temporary) / "painted"
            if given.data is None:
                make_dataset(folder, train=given.painted, val=unseen, size=192, seed=0)
            bench(folder, given)
    except InputError as error:
        sys.exit(f"error: {error}")


def bench(folder: Path, given: argparse.Namespace) -> None:
    """Trains and measures all contestants, seed by seed, and prints the table."""
    splits = layouts.find_splits(folder)
    if given.val not in splits:
        raise InputError(f"{folder}: no split {given.val!r}, only {', '.join(splits)}")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in given.only.split(",")}
    for seed in range(given.seeds):
        for name in rows:
            found = run(name, folder, splits[given.val], seed, given)
            rows[name].append(found)
            said = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
            print(f"seed {seed}, {name}: {said}", file=sys.stderr)  # hours may follow
    print(
        f"{given.images_seen:,} images seen in batches of {given.batch_size} at {given.size} px, "
        f"{given.backbone} from {given.weights or 'random weights'}, {given.seeds} seeds: mean "
        "(lowest to highest)\n"
    )
    keys = ("box AP", "box AP50", "mask AP", "mask AP50")
    table = []
    for name, runs in rows.items():
        figures = [spread([one[key] for one in runs], 3) for key in keys]
        table.append([name, *figures, spread([one["images/s"] for one in runs], 1)])
    print(markdown(("contestant", *keys, "training images/s"), table))


def spread(values: list[float], digits: int) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def run(
    name: str, folder: Path, val: index.Split, seed: int, given: argparse.Namespace
) -> dict[str, float]:
    """One contestant's training and its AP."""
    data = InstanceSegmentationDataModule(
        folder,
        given.size,
        given.batch_size,
        0,
        "light",
        train_split=given.train,
        val_split=given.val,
        seed=seed,
        pin_memory=False,
    )
    data.setup("fit")
    torch.manual_seed(seed)
    weights = timm.create_model(
        given.backbone,
        pretrained=given.weights is not None,
        pretrained_cfg_overlay={"file": str(given.weights)} if given.weights else None,
    ).state_dict()
    steps = given.images_seen // given.batch_size
    made = CONTESTANTS[name](data.num_classes, weights, steps, given)
    made.model.to(given.device).train()
    schedule = torch.optim.lr_scheduler.LambdaLR(made.optimizer, made.factor)
    begun = time.perf_counter()
    for step, batch in zip(range(steps), batches(data, given.device), strict=False):
        loss = made.loss(batch)
        made.optimizer.zero_grad()
        loss.backward()
        if made.clip is not None:
            nn.utils.clip_grad_norm_(made.model.parameters(), made.clip)
        made.optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress(f"seed {seed}, {name}: step {step} of {steps}, loss {loss.item():.3f}")
    speed = steps * given.batch_size / (time.perf_counter() - begun)
    made.model.eval()
    results: list[dict[str, Any]] = []
    ids = [category.id for category in data.categories]
    loader: Any = data.val_dataloader()
    for batch in loader:
        ready = to(data.on_after_batch_transfer(batch, 0), given.device)
        found = zip(made.detect(ready), ready["image_id"], ready["padding"], strict=True)
        for detections, image_id, padding in found:
            if not padding:
                results += coco_eval.to_results(detections, int(image_id), ids)
    ap = {"images/s": speed}
    for kind, label in (("bbox", "box"), ("segm", "mask")):
        stats = coco_eval.evaluate(val.annotation_file, results, kind)  # type: ignore[arg-type]
        ap |= {f"{label} AP": stats["AP"], f"{label} AP50": stats["AP50"]}
    return ap


def batches(data: InstanceSegmentationDataModule, device: str) -> Iterator[dict[str, Any]]:
    """Normalised training batches without end, epoch after epoch."""
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield to(data.on_after_batch_transfer(batch, 0), device)


def to(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def ours(
    classes: int, weights: dict[str, Tensor], steps: int, given: argparse.Namespace
) -> Contestant:
    """InstanceSegmentor under the recipe of launch/small_cpu.yaml."""
    model = InstanceSegmentor(
        given.backbone,
        classes,
        pretrained=False,
        compile_model=False,
        mask_rois=max(given.boxes // 4, 1),
    )
    missing, _ = model.network.backbone.model.load_state_dict(weights, strict=False)
    assert not missing, missing

    def loss(batch: dict[str, Any]) -> Tensor:
        return torch.stack(list(model.losses(batch).values())).sum()  # type: ignore[arg-type]

    @torch.no_grad()
    def detect(batch: dict[str, Any]) -> list[Detections]:
        return model.predict_step(batch, 0)  # type: ignore[arg-type]

    return Contestant(model, loss, detect, adamw(model), cosine(steps), 10.0)


def theirs(
    classes: int,
    weights: dict[str, Tensor],
    steps: int,
    given: argparse.Namespace,
    improved: bool = False,
    our_recipe: bool = False,
) -> Contestant:
    """torchvision's Mask R-CNN with the heads of its first or (``improved``) second version."""
    resnet = getattr(torchvision.models, given.backbone)(weights=None)
    resnet.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fc.")}, False)
    norm = nn.BatchNorm2d if improved else None
    body = _resnet_fpn_extractor(resnet, 5, norm_layer=norm)
    heads: dict[str, Any] = {}
    if improved:  # as maskrcnn_resnet50_fpn_v2 has them
        anchors = AnchorGenerator(
            tuple((side,) for side in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5
        )
        heads = {
            "rpn_anchor_generator": anchors,
            "rpn_head": RPNHead(256, anchors.num_anchors_per_location()[0], conv_depth=2),
            "box_head": FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], nn.BatchNorm2d),
            "mask_head": MaskRCNNHeads(256, [256] * 4, 1, norm_layer=nn.BatchNorm2d),
        }
    model = MaskRCNN(
        body,
        classes + 1,
        min_size=given.size,
        max_size=given.size,
        image_mean=[0.0] * 3,  # the batches are normalised
        image_std=[1.0] * 3,
        rpn_pre_nms_top_n_train=given.proposals,
        rpn_post_nms_top_n_train=given.proposals,
        rpn_pre_nms_top_n_test=given.proposals,
        rpn_post_nms_top_n_test=given.proposals,
        box_batch_size_per_image=given.boxes,
        **heads,
    )
    # Masks are to be drawn at the original size, not at the canvas'.
    model.transform.postprocess = lambda found, *_: found  # type: ignore[method-assign]

    def loss(batch: dict[str, Any]) -> Tensor:
        targets = []
        height, width = batch["image"].shape[-2:]
        for boxes, labels, crops in zip(
            batch["boxes"], batch["labels"], batch["masks"], strict=True
        ):
            real = labels >= 0
            dense = paste.dense(crops[real].float(), boxes[real], height, width)
            targets.append({"boxes": boxes[real], "labels": labels[real] + 1, "masks": dense})
        return torch.stack(list(model(list(batch["image"]), targets).values())).sum()

    @torch.no_grad()
    def detect(batch: dict[str, Any]) -> list[Detections]:
        found = model(list(batch["image"]))
        of_image = zip(
            found, batch["scale"], batch["offset"], batch["original_size"].tolist(), strict=True
        )
        return [original(one, *where) for one, *where in of_image]

    if our_recipe:
        return Contestant(model, loss, detect, adamw(model), cosine(steps), 10.0)
    rate = 0.02 * given.batch_size / 16
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, rate, momentum=0.9, weight_decay=1e-4)

    def factor(step: int) -> float:
        warm = min(1000, steps // 26)  # the reference warms up within the first of 26 epochs
        if step < warm:
            return 0.001 + 0.999 * step / warm
        return 0.1 ** sum(step >= steps * part // 26 for part in (16, 22))

    return Contestant(model, loss, detect, optimizer, factor, None)


def original(
    found: dict[str, Tensor], scale: Tensor, offset: Tensor, size: list[int]
) -> Detections:
    """torchvision's detections on the canvas, in the original image, pasted by its own function."""
    height, width = size
    boxes = (found["boxes"] - offset.repeat(2)) / scale.repeat(2)
    dense = paste_masks_in_image(found["masks"], boxes, (height, width))[:, 0] >= 0.5
    limits = boxes.new_tensor([width, height, width, height])
    return Detections(
        boxes=boxes.clamp(min=0).minimum(limits),
        labels=found["labels"] - 1,
        scores=found["scores"],
        rles=[masks.encode(mask) for mask in dense.cpu().numpy()],
    )


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 1e-4},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3)


def cosine(steps: int) -> Factor:
    return partial(optimization.lr_factor, total_steps=steps, warmup_steps=50, scheduler="cosine")


CONTESTANTS: dict[str, Callable[..., Contestant]] = {
    "autotimm": ours,
    "torchvision": theirs,
    "torchvision with our recipe": partial(theirs, our_recipe=True),
    "torchvision v2 heads": partial(theirs, improved=True),
    "torchvision v2 heads with our recipe": partial(theirs, improved=True, our_recipe=True),
}


if __name__ == "__main__":
    main()
