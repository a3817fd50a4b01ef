"""What shard folders hold: manifest, indices, tars, records; also tars of other tools."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from documents import damaged, mutated, text_of, texts
from hypothesis import strategies as st
from properties import fuzzed, outcome
from samples import folder, picture, record, tar

from autotimm.augmentation.presets import augmentation_of
from autotimm.coco.index import Category
from autotimm.data.load import Load
from autotimm.files.retry import Retry
from autotimm.format.index import INDEX_DTYPE, build_index, index_bytes, read_index
from autotimm.format.manifest import Manifest, Shard, SplitInfo
from autotimm.format.manifest_file import manifest_bytes, read_manifest
from autotimm.format.record import checked_record, foreign_record
from autotimm.format.tar import members
from autotimm.streaming import foreign
from autotimm.streaming.cache import Cache

SHARD = Shard("train-000000.tar", 2, 10240, "0" * 64, "train-000000.idx.npy", "f" * 64)
MANIFEST = json.loads(
    manifest_bytes(
        Manifest(
            [Category(3, "disc", "shape"), Category(7, "star", given_id="x7", frequency="r")],
            {"train": SplitInfo(2, 3, 1, {"odd": 1}, [SHARD], 1, [7])},
            "1.0",
            {"options": {"limit": None}},
            pixel_range=(0.0, 4095.0),
        )
    )
)
UNSEALED = {key: value for key, value in MANIFEST.items() if key != "sha256"}
FORMATS = st.sampled_from((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))


def check_ids(*ids: int) -> None:
    """Ids fit 64 bits: tensors and indices hold no others."""
    assert all(type(one) is int and -(2**63) <= one < 2**63 for one in ids), ids


@fuzzed(texts(mutated(st.sampled_from((UNSEALED, UNSEALED, MANIFEST)))), examples=80)
def test_manifest(data: bytes) -> None:
    found = outcome(lambda: read_manifest(data, "s/manifest.json"), naming="s/manifest.json")
    if found is not None:
        check_ids(*(one.id for one in found.categories))
        for split in found.splits.values():
            check_ids(split.images, split.instances, split.crowd, split.ignored, *split.untrained)
            assert sum(shard.samples for shard in split.shards) == split.images
        # What is read can be written, and is the same then.
        assert read_manifest(manifest_bytes(found)) == found


ROWS = np.zeros(2, INDEX_DTYPE)
ROWS["image_offset"], ROWS["json_offset"] = (512, 4096), (2048, 6144)
ROWS["image_bytes"] = ROWS["json_bytes"] = 100
HEADS = [b"(2,)", b"(200000000000,)", b"(1, 2)", b"()", b"(-1,)", b"(2.0,)", b"(True,)", b"([2],)"]


@fuzzed(
    damaged(
        st.builds(
            lambda head, names: index_bytes(ROWS).replace(b"(2,)", head).replace(*names),
            st.sampled_from(HEADS),
            st.sampled_from(((b"<u8", b"<f8"), (b"<u8", b"|O8"), (b"width", b"wodth"), (b"", b""))),
        ),
        often=True,
    ),
    examples=60,
)
def test_index(content: bytes) -> None:
    found = outcome(lambda: read_index(content, SHARD), naming=SHARD.index)
    if found is not None:
        assert found.shape == (2,)
        assert found.dtype == INDEX_DTYPE
        for kind in ("image", "json"):
            offsets, sizes = (found[f"{kind}_{part}"].tolist() for part in ("offset", "bytes"))
            assert all(o + n <= SHARD.bytes for o, n in zip(offsets, sizes, strict=True))


names = st.sampled_from(
    ("a", "b", "sub/a", "a.b", ".hidden", "../up", "x" * 120, "y" * 300, "é", "日本", "a\nb", "")
)
extensions = st.sampled_from((".png", ".jpg", ".json", ".json", ".JSON", ".txt", "", ".cls"))


@st.composite
def tars(draw: st.DrawFn, own: bool = False) -> bytes:
    """A tar of samples, as tarfile writes it."""
    parts: list[tuple[str, bytes]] = []
    for number in range(draw(st.integers(0, 3))):
        text = text_of(draw(mutated(st.just(record(image_id=number)), 1))).encode()
        if own or draw(st.integers(0, 2)):
            parts += [(f"k{number}.png", picture()), (f"k{number}.json", text)]
        else:
            parts.append((draw(names) + draw(extensions), draw(st.sampled_from((text, b"")))))
    kinds = FORMATS.filter(lambda kind: kind != tarfile.USTAR_FORMAT) if _long(parts) else FORMATS
    return tar(parts, tarfile.USTAR_FORMAT if own else draw(kinds))


def _long(parts: list[tuple[str, bytes]]) -> bool:
    """Whether a name is too long for ustar."""
    return any(len(name.encode()) > 100 for name, _ in parts)


@fuzzed(damaged(tars(), often=True), st.booleans(), examples=80)
def test_tar_against_tarfile(data: bytes, plain: bool) -> None:
    """Where tarfile reads all of a tar that we read, it finds the same files at the same places."""
    found = outcome(lambda: [*members(memoryview(data), plain)])
    outcome(lambda: build_index(data))
    if found is None:
        return
    assert all(0 <= at <= at + size <= len(data) for _, at, size in found)
    with contextlib.suppress(tarfile.TarError, ValueError, OverflowError):
        with tarfile.open(fileobj=io.BytesIO(data), errors="replace") as archive:
            theirs = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
        # tarfile ends at the first header that it cannot read, and takes off a name's last slash.
        assert [part[1:] for part in found][: len(theirs)] == [part[1:] for part in theirs]


def clean(root: Path) -> Cache:
    for file in [*root.glob("*.tar"), *root.glob("cache/*/*")]:
        file.unlink()
    return Cache(root / "cache", None, Retry(attempts=1))


@fuzzed(st.lists(damaged(tars()), min_size=1, max_size=2), examples=30)
def test_foreign_tars(contents: list[bytes]) -> None:
    root = folder("foreign")
    cache = clean(root)
    for number, data in enumerate(contents):
        (root / f"train-{number}.tar").write_bytes(data)
    found = outcome(lambda: foreign.manifest_of_tars(root, cache), naming=str(root))
    if found is not None:
        check_ids(*(one.id for one in found[0].categories))
        assert found[0] == foreign.manifest_of_tars(root, cache)[0]  # what is kept says the same


TAR = tar([("k.png", picture()), ("k.json", text_of(record()).encode())])


@fuzzed(st.data(), examples=30)
def test_what_the_cache_keeps(data: st.DataObject) -> None:
    """A damaged summary or index in the cache is made anew."""
    root = folder("kept")
    cache = clean(root)
    (root / "train-0.tar").write_bytes(TAR)
    os.utime(root / "train-0.tar", (0, 0))
    whole = foreign.manifest_of_tars(root, cache)[0]
    (summary,) = root.glob(f"cache/{foreign.FOLDER}/*.json")
    (index,) = root.glob(f"cache/{foreign.FOLDER}/*.npy")
    file = data.draw(st.sampled_from((summary, index)))
    file.write_bytes(data.draw(damaged(st.just(file.read_bytes()), often=True)))
    assert outcome(lambda: foreign.manifest_of_tars(root, cache))[0] == whole


def check_read(found: Any) -> None:
    """A record that a data module can use: numbers of 64 bits, sizes of an image."""
    check_ids(found["image_id"], *(one["id"] for one in found["annotations"]))
    check_ids(*(one["category_id"] for one in found["annotations"]))
    assert 0 < found["width"] * found["height"] <= 2**28


LOADS = [
    Load({3: 0, 7: 1}, (32, 32), vary, "letterbox", (0, 0, 0), True)
    for vary in (None, augmentation_of("strong"))
]


@fuzzed(texts(mutated(st.just(record())), plain=True), examples=60)
def test_own_record(data: bytes) -> None:
    found = outcome(lambda: checked_record(data, "shard: sample 3"), naming="shard: sample 3")
    if found is not None:
        check_read(found)
        for load in LOADS:  # checked_record leaves the masks to their readers
            outcome(lambda load=load: load(picture(), found, np.random.default_rng(0)))


@fuzzed(texts(mutated(st.just(record())), plain=True), examples=80)
def test_foreign_record(data: bytes) -> None:
    found = outcome(
        lambda: foreign_record(data, "shard: sample 3", {3, 7}), naming="shard: sample 3"
    )
    if found is not None:
        check_read(found)
