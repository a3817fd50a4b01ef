"""Configs of ``fit``: YAML whose values are odd; and what jsonargparse says of them, reworded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import damaged, mutated
from hypothesis import strategies as st
from properties import fuzzed, outcome
from samples import folder

from autotimm.cli import parse_errors

CONFIG: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "launch" / "small_cpu.yaml").read_text()
)
configs = mutated(st.just(CONFIG)).map(lambda document: yaml.safe_dump(document).encode())


@pytest.mark.slow
@fuzzed(damaged(configs), examples=8)
def test_config(data: bytes) -> None:
    from autotimm.cli import lightning_cli, train

    file = folder("configs") / "fit.yaml"
    file.write_bytes(data)
    outcome(lambda: train.settings(["fit", "--config", str(file)]), *lightning_cli._USER_ERRORS)


PIECES = (
    *('Parser key "fit.data.image_size": ', "Expected a <class 'int'>. Got value: ", "x\ny", "]"),
    *("Does not validate against any of the Union subtypes Subtypes: [", "['", " Errors: "),
    *(" Given value type: ", " Given value: ", "Problem with given class_path 'a.B': ", " - "),
    *("unrecognized arguments: ", "the following arguments are required: ", "--data.x"),
)
pieces = st.sampled_from(PIECES)


@fuzzed(st.lists(pieces | st.text(max_size=9), max_size=10).map("".join), examples=80)
def test_rewording(message: str) -> None:
    assert "\n" not in outcome(lambda: parse_errors.reword(message))
