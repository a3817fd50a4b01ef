"""What users write in one word: sizes, ranges, amounts, parts, folders and URLs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from documents import ODD, nested
from hypothesis import strategies as st
from properties import fuzzed, outcome

from autotimm.cli import predict
from autotimm.data import options
from autotimm.files import remote, units, urls
from autotimm.images.depth import checked_range
from autotimm.sharding import arguments

words = st.text(st.characters(codec="utf-8"), max_size=12)
numerals = st.from_regex(r"[-+]?[0-9_.,/ eEx]{0,24}(k|M|G|T)?i?B?", fullmatch=True)
odd = st.sampled_from(ODD).map(nested)
anything = odd | words | numerals | st.lists(odd | st.integers(), max_size=4)


@fuzzed(anything, examples=80)
def test_amounts(value: Any) -> None:
    found = outcome(lambda: units.byte_count("--max-shard-size", value), naming="--max-shard-size")
    assert found is None or found > 0


@fuzzed(anything | st.lists(st.floats(), min_size=2, max_size=2), examples=80)
def test_ranges(value: Any) -> None:
    found = outcome(lambda: checked_range("--pixel-range", value), naming="--pixel-range")
    if found is not None:
        low, high = found
        assert low < high
        assert math.isfinite(255 / (high - low))


@fuzzed(anything, examples=60)
def test_options(value: Any) -> None:
    outcome(lambda: options.canvas(value), naming="image_size")
    outcome(lambda: options.canvases(value, (640, 640), "letterbox"), naming="aspect_buckets")
    outcome(lambda: options.scales(value, (640, 640)), naming="multi_scale")
    outcome(lambda: options.share("overlap", value), naming="overlap")
    outcome(lambda: options.minutes("retry_minutes", value), naming="retry_minutes")
    outcome(lambda: options.whole("batch_size", value, 1), naming="batch_size")
    outcome(lambda: options.three("mean", value), naming="mean")
    outcome(lambda: options.one_of("resize", value, ("letterbox", "stretch")), naming="resize")


PARTS = "http https s3 file gs :// : / // [ ] ::1 @ ? # % host bucket user:pw ~ ~nobody .. ::"
parts = st.sampled_from([*PARTS.split(), "\0", "\n", "\u2100", " ", "a" * 300])
urls_ = st.lists(parts | words, max_size=8).map("".join)


@fuzzed(urls_, examples=150)
def test_locations(text: str) -> None:
    found = outcome(lambda: urls.locate(text))
    if found is None:
        return
    if found.folder is None:
        assert urls.kind(text) in ("http", "https", "s3")
        assert remote.join(text, "manifest.json")
    else:
        assert isinstance(found.folder, Path)
    outcome(lambda: str(found))


FLAGS = ("--splits", "--samples-per-shard", "--max-shard-size", "--shuffle", "--pixel-range")
FLAGS += ("--limit", "--boxes", "--crowd", "--workers", "--part", "--annotations", "--images")
lines = st.lists(st.tuples(st.sampled_from(FLAGS), words | numerals), max_size=3)


@fuzzed(lines, examples=80)
def test_flags_of_shard(pairs: list[tuple[str, str]]) -> None:
    outcome(lambda: arguments.parse(["coco", "shards", *map("=".join, pairs)]))


OF_PREDICT = ("--image-size", "--tile", "--overlap", "--batch-size", "--min-score")
OF_PREDICT += ("--pixel-range", "--checkpoint", "--out")
of_predict = st.lists(st.tuples(st.sampled_from(OF_PREDICT), words | numerals), max_size=3)
PARSER = predict.parser()


@fuzzed(of_predict, examples=60)
def test_flags_of_predict(pairs: list[tuple[str, str]]) -> None:
    outcome(lambda: PARSER.parse_args([*map("=".join, pairs)]))
