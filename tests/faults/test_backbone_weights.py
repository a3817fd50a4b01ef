"""A file of a backbone's weights with a changed byte is refused, like every checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from autotimm import InputError
from autotimm.models.backbone import Backbone


def test_a_changed_bit_in_the_weights_of_a_backbone_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    weights = timm.create_model("resnet10t").state_dict()
    torch.save(weights, path)
    Backbone("resnet10t", pretrained=path)
    content = bytearray(path.read_bytes())
    content[content.index(weights["layer1.0.conv1.weight"].numpy().tobytes()) + 41] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pretrained=.*weights\.pth.* is damaged"):
        Backbone("resnet10t", pretrained=path)
