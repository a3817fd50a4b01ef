"""Shards on S3: a real server of its protocol, two processes, one cache."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranks import on_ranks

from autotimm.data.synthetic import make_dataset
from autotimm.sharding.cli import shard
from autotimm.streaming.store import ShardSource, open_source
from autotimm.structures import InputError

server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
pytest.importorskip("s3fs")

URL = "s3://bucket/some folder/shards"


class Requests(logging.Handler):
    """Counts the downloads that the server logs, by file name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        match = re.search(r"GET /bucket/[^ ]*?([^/ ?]+)(?:\?[^ ]*)? HTTP", record.getMessage())
        if match:
            self.counts[match[1]] += 1


@pytest.fixture(scope="module")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    make_dataset(folder / "coco", train=10, val=3, size=64)
    shard(folder / "coco", folder / "shards", samples_per_shard=4)
    return folder / "shards"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, shard_folder: Path) -> Iterator[Counter[str]]:
    log = logging.getLogger("werkzeug")
    counter = Requests()
    log.addHandler(counter)
    log.setLevel(logging.INFO)
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
    moto.start()
    host, port = moto.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for path in shard_folder.iterdir():
        client.upload_file(str(path), "bucket", f"some folder/shards/{path.name}")
    yield counter.counts
    log.removeHandler(counter)
    moto.stop()


def content_of(source: Any) -> str:
    digest = hashlib.sha256()
    for shard_, size in enumerate(source.shard_sizes):
        for index in range(size):
            image, record = source.read(shard_, index)
            digest.update(bytes(image) + repr(record).encode())
    return digest.hexdigest()


EACH = """
import hashlib, os, sys, time
from pathlib import Path
from autotimm.streaming.store import ShardSource

url, cache, folder = sys.argv[1], *map(Path, sys.argv[2:])
source = ShardSource(url, "train", cache)
(folder / f"ready{os.environ['RANK']}").touch()
while len(list(folder.glob("ready*"))) < 2:
    time.sleep(0.01)
digest = hashlib.sha256()
for shard, size in enumerate(source.shard_sizes):
    for index in range(size):
        image, record = source.read(shard, index)
        digest.update(bytes(image) + repr(record).encode())
(folder / f"read{os.environ['RANK']}").write_text(digest.hexdigest())
"""
"""The code of both processes; a string, because importing this file would import the server."""


def test_two_processes_stream_from_s3_through_one_cache(
    requests: Counter[str], shard_folder: Path, tmp_path: Path
) -> None:
    done = on_ranks(EACH, tmp_path, URL, tmp_path / "cache", tmp_path)
    assert done.returncode == 0, done.stderr
    local = content_of(ShardSource(str(shard_folder), "train"))
    assert [path.read_text() for path in tmp_path.glob("read?")] == [local, local]
    counts = {name: n for name, n in requests.items() if name.startswith("train-")}
    assert counts.keys() == {path.name for path in shard_folder.glob("train-*")}
    for name, count in counts.items():  # both may ask for a sample before one has it
        assert count == 1 if name.endswith(".npy") else 1 <= count <= 2 * 4


def test_what_s3_does_not_have(requests: Counter[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s3://bucket/nothing/manifest\.json: the server has no"):
        open_source("s3://bucket/nothing", "train", tmp_path / "cache")
    with pytest.raises(InputError, match=r"s3://elsewhere/x/manifest\.json: "):
        open_source("s3://elsewhere/x", "train", tmp_path / "cache")
