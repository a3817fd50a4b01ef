"""Object stores that send shards in parts: signatures, proxies, certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from range_reads import IMAGES, QUICK, SHARD
from servers import Server
from sources import everything

from autotimm.files import answers, connection, s3
from autotimm.streaming.store import ShardSource
from autotimm.structures import InputError


@pytest.fixture
def s3_url(range_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An S3 store, which is the test's server: it checks no signature, and refuses those requests
    for which the test sets a fault."""
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{range_server.server_port}")
    return "s3://bucket/shards"


@pytest.mark.slow
def test_signatures_that_expire_are_made_again(
    range_server: Server, s3_url: str, range_shards: Path, tmp_path: Path
) -> None:
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    range_server.faults = {path.name: ["expired"] for path in range_shards.glob("train*.tar")}
    assert everything(source) == everything(ShardSource(range_shards, "train"))
    assert not list((tmp_path / "cache").glob("*.tar"))
    range_server.faults = {"train-000000.tar": ["expired"] * 9}
    other = ShardSource(s3_url, "train", tmp_path / "other", retry=QUICK)
    with pytest.raises(
        InputError, match=r"000000\.tar: .*ExpiredToken, old\): get new keys"
    ) as told:
        other.read(0, 0)
    assert "Signature" not in str(told.value)


def test_a_store_that_refuses_signed_urls_is_asked_by_its_client(
    range_server: Server, s3_url: str, range_shards: Path, tmp_path: Path
) -> None:
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    range_server.faults = {"train-000000.tar": ["nowhere"]}
    assert everything(source) == everything(ShardSource(range_shards, "train"))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == IMAGES // SHARD


def test_a_store_behind_a_proxy_is_asked_by_its_client(
    range_server: Server,
    s3_url: str,
    range_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server is the proxy, and the only way to a store whose name nobody else knows."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.invalid")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{range_server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    assert everything(source) == everything(ShardSource(range_shards, "train"))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == IMAGES // SHARD


def test_a_store_whose_certificate_its_client_alone_knows(
    range_server: Server,
    s3_url: str,
    range_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: object) -> None:
        raise ssl.SSLCertVerificationError(1, "unable to get local issuer certificate")

    monkeypatch.setattr(connection.Connection, "_connect", unknown)
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    known = ShardSource(range_shards, "train").read(0, 0)
    assert source.read(0, 0) == known
    plain = ShardSource(range_server.url, "train", tmp_path / "other", retry=QUICK)
    with pytest.raises(InputError, match="unable to get local issuer"):
        plain.read(0, 0)


def test_a_signature_that_ended_while_the_machine_slept_is_made_again(
    range_server: Server,
    s3_url: str,
    range_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the clock of the store; a request that was sent before is asked for once more."""
    source = ShardSource(s3_url, "train", tmp_path / "cache", retry=QUICK)
    known = everything(ShardSource(range_shards, "train"))
    assert bytes(source.read(0, 0)[0]) == known[0][0]
    fetcher = source._ranges._reader._made.fetcher  # type: ignore[union-attr]
    fetcher.ask((0, 1))
    while not fetcher._ranges._busy:
        pass
    (one,) = fetcher._places
    fetcher._ranges._failed.append((one, answers.AnswerError(403, "Request has expired")))
    real = s3.time.time
    monkeypatch.setattr(s3.time, "time", lambda: real() + 4000)
    for busy in [*fetcher._ranges._busy]:
        fetcher._ranges._end(busy, keep=False)
    assert bytes(source.read(0, 1)[0]) == known[1][0]
    refused = [(one, answers.AnswerError(403, "no"))]
    fetcher.ask((0, 2))
    (one,) = fetcher._places
    monkeypatch.setattr(fetcher._ranges, "wait", lambda _: [(one, refused[0][1])])
    with pytest.raises(InputError, match=r"000000\.tar: cannot be downloaded: no"):
        source.read(0, 2)
