"""The whole pipeline on real images: an overfitted model detects them at the original size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from autotimm.augmentation.sample import evaluation_sample
from autotimm.coco import index as coco
from autotimm.data.collate import collate, finish
from autotimm.evaluation.coco_eval import evaluate, ground_truth, to_results
from autotimm.images.decode import decode_image
from autotimm.models.network import Network
from autotimm.models.restore import restore

SIDE, IMAGES, STEPS, PEAK_LR = 96, 2, 200, 2e-3


@pytest.mark.slow
def test_a_few_real_images_are_learnt_by_heart(shared_data: Path) -> None:
    """18 fruits and nuts, from random weights. A mistake that training and inference share would
    lower AP here, and comparisons of parts would not detect it."""
    folder = shared_data / "fruits_nuts" / "train2017"
    index = coco.load(folder.parent / "annotations/instances_train2017.json", folder)
    records = [index.record(i) for i in range(len(index))][:IMAGES]
    labels, ids = coco.label_of(index.categories), [c.id for c in index.categories]
    samples = []
    for record in records:
        data = (folder / record["file_name"]).read_bytes()
        pixels = decode_image(data, record["width"], record["height"])
        samples.append(
            evaluation_sample(
                pixels,
                record,
                labels,
                (SIDE, SIDE),
                resize="letterbox",
                fill=(0,) * 3,
                with_masks=True,
            )
        )
    batch = finish(collate(samples, [False] * len(samples)))
    image = (batch["image"].float() - 116) / 58

    torch.manual_seed(0)
    network = Network(
        "resnet10t", len(ids), pretrained=False, fpn_channels=64, head_convs=1, with_masks=True
    )
    network.add_masks(28, 12)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LR)
    for step in range(STEPS):
        factor = min(1.0, (step + 1) / 30) * (0.51 + 0.49 * math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * factor
        sums = network(image, batch["boxes"], batch["labels"], batch["masks"])
        optimizer.zero_grad()
        torch.stack(list(sums.normalised(sums.counts().detach()).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()

    results = []
    for i, found in enumerate(network.eval().detect(image)):
        height, width = batch["original_size"][i].tolist()
        restored = restore(found, batch["scale"][i], batch["offset"][i], height, width)
        results += to_results(restored, records[i]["image_id"], ids)
    truth = ground_truth(records, index.categories)
    for kind in ("bbox", "segm"):
        stats = evaluate(truth, results, kind)
        print(f"{kind}: AP {stats['AP']:.3f}, AP50 {stats['AP50']:.3f}")
        assert stats["AP50"] > 0.95
        assert stats["AP"] > 0.9
