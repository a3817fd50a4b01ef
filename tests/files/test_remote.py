"""Downloads from a server that fails in every way; schemes and secrets of URLs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Fault, Server, serve, speak_tls

from autotimm import InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
from autotimm.files import answers, remote, retry
from autotimm.files.retry import Retry
from autotimm.files.urls import locate
from autotimm.sharding.cli import shard
from autotimm.streaming.cache import Cache, RemoteFile
from autotimm.streaming.store import open_source
from autotimm.structures import InputError
from autotimm.tasks.checkpoint import read_checkpoint

QUICK = Retry(attempts=3, wait=0.01, stall=0.3)
CONTENT = os.urandom(100_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "a.tar").write_bytes(CONTENT)
    with serve(tmp_path / "server") as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", None, QUICK)


def file_of(server: Server) -> RemoteFile:
    url, digest = f"{server.url}/a.tar?key=secret", hashlib.sha256(CONTENT).hexdigest()
    return RemoteFile(url, digest, ".tar", len(CONTENT), len(CONTENT))


PASSING: list[tuple[Fault, str]] = [
    (500, "500"),
    (503, "503"),
    (429, "429"),
    (408, "408"),
    ("stall", "nothing came for 0.3 seconds"),
    ("trickle", "only [0-9]+ bytes came in 0[.][0-9] seconds"),
    ("cut", r"payload|completed"),
    ("other", "its content is not what the manifest says"),
    ("endless", "200,000|bytes or more came"),
    ("close", "[Dd]isconnected"),  # aiohttp itself tries again once
    ("headers", "nothing came for 0.3 seconds"),
    ("continue", "nothing came for 0.3 seconds"),
    ("empty", "nothing came for 0.3 seconds"),
]


@pytest.mark.parametrize(("fault", "reason"), PASSING)
def test_temporary_faults_are_retried_as_often_as_allowed(
    fault: Fault, reason: str, server: Server, cache: Cache
) -> None:
    server.faults["a.tar"] = [fault, fault]
    with cache.open(file_of(server)) as file:
        assert file.read() == CONTENT
    asked = server.requests.pop("a.tar")
    assert asked == 3

    Path(file.name).unlink()
    server.faults["a.tar"] = [fault] * 9
    with pytest.raises(InputError, match=rf"after 3 tries: .*({reason})") as error:
        cache.open(file_of(server))
    assert server.requests["a.tar"] == (6 if fault == "close" else 3)
    assert str(error.value).startswith(f"{server.url}/a.tar: cannot be downloaded after 3 tries: ")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)
    assert [path for path in cache.folder.iterdir() if path.is_file()] == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (400, "400"),
        (401, "401"),
        (403, "403"),
        ("why", r"403 Forbidden \(RequestTimeTooSkewed, late \[2J\): set the clock of this"),
        ("nowhere", "301 .*: a redirect that names no address"),
        ("http://no-such-host.invalid/a.tar", "no-such-host.invalid"),
        ("file:///etc/passwd", "file:///etc/passwd is not an http"),
        ("ftp://127.0.0.1/a.tar?key=secret", "ftp://127.0.0.1/a.tar is not an http"),
        ("pipe:cat /etc/passwd", "pipe:cat /etc/passwd is not an http"),
    ],
)
def test_lasting_faults_are_not_retried(
    fault: Fault, reason: str, server: Server, cache: Cache
) -> None:
    server.faults["a.tar"] = [fault] * 9
    with pytest.raises(InputError, match=rf"a\.tar: cannot be downloaded: .*{reason}") as error:
        cache.open(file_of(server))
    assert server.requests["a.tar"] == 1
    assert "secret" not in str(error.value) and "\n" not in str(error.value)
    assert [path for path in cache.folder.iterdir() if path.is_file()] == []


def test_a_server_may_ask_to_wait(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the retries would last: the download ends at once. Shorter: it is waited."""
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    server.faults["a.tar"] = ["later"]
    with Cache(tmp_path / "c", None, Retry(stall=5, minutes=2)).open(file_of(server)) as file:
        assert file.read() == CONTENT
    server.faults["a.tar"] = ["later"]
    with pytest.raises(InputError, match=r"a\.tar: cannot be downloaded: 503"):
        Cache(tmp_path / "d", None, Retry(stall=5, minutes=1)).open(file_of(server))
    assert [one for one in slept if one > 1] == [77]


def test_a_date_in_retry_after_is_of_the_servers_clock() -> None:
    headers = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    for text, seconds in (
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0),
        ("120", 120),
        ("soon", 0),
        ("-5", 0),
    ):
        assert answers.asked_wait({**headers, "retry-after": text}) == seconds
    assert answers.asked_wait({}) == 0


def test_a_checkpoint_at_a_url_has_the_servers_reason(server: Server) -> None:
    server.faults["a.tar"] = ["why", 404]
    with pytest.raises(InputError, match=r"/a\.tar: cannot be downloaded: 403 .*TooSkewed"):
        read_checkpoint(f"{server.url}/a.tar?sig=Hidden12")
    with pytest.raises(InputError, match=r"^there is no checkpoint at .*/a\.tar$"):
        read_checkpoint(f"{server.url}/a.tar?sig=Hidden12")


def test_a_certificate_that_nobody_signed_is_not_tried_again(
    server: Server, tmp_path: Path
) -> None:
    speak_tls(server, tmp_path)
    url = f"{server.url}/a.tar".replace("http:", "https:")
    with pytest.raises(InputError, match=r"a\.tar: cannot be downloaded: .*CERTIFICATE_VERIFY"):
        remote.read_bytes(url, Retry(stall=5))


def test_a_file_that_is_not_there(server: Server, cache: Cache) -> None:
    server.faults["a.tar"] = [404]
    with pytest.raises(FileNotFoundError, match=r"/a\.tar: the server has no such file$"):
        cache.open(file_of(server))


def test_redirects_within_http_are_followed(server: Server, cache: Cache) -> None:
    server.faults["a.tar"] = [f"{server.url}/elsewhere/a.tar"]
    with cache.open(file_of(server)) as file:
        assert file.read() == CONTENT
    server.faults["a.tar"] = [f"{server.url}/a.tar"] * 99
    with pytest.raises(InputError, match=r"a\.tar: cannot be downloaded"):
        cache.open(RemoteFile(f"{server.url}/a.tar", "0" * 64, ".tar", 9))


def test_no_secret_is_shown(server: Server, cache: Cache) -> None:
    """Not even one in the URL of a redirect."""
    server.faults["a.tar"] = [f"{server.url}/gone.tar?signature=SECRET", 403]
    server.faults["gone.tar"] = [403]
    with pytest.raises(InputError, match=r"/a\.tar: .*403") as error:
        cache.open(file_of(server))
    assert "SECRET" not in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(
    "bad", ["../b.tar", "x/b.tar", "http://h/b.tar", "pipe:cat b|x/", ".b", ""]
)
def test_a_manifest_may_only_name_plain_files(bad: str, server: Server) -> None:
    shard = {"name": bad, "samples": 1, "bytes": 2048, "sha256": "0" * 64}
    split = {"images": 1, "instances": 1, "crowd": 0, "problems": {}}
    manifest = {
        "format": "autotimm-shards",
        "version": 2,
        "autotimm": "1",
        "categories": [{"id": 1, "name": "a", "supercategory": ""}],
    }
    for index in ({"name": "a.npy", "sha256": "0" * 64}, {"name": bad, "sha256": "0" * 64}):
        name = bad if index["name"] == "a.npy" else "a.tar"
        shards = [shard | {"name": name, "index": index}]
        content = json.dumps(manifest | {"splits": {"train": split | {"shards": shards}}})
        (server.folder / "manifest.json").write_text(content)
        with pytest.raises(InputError, match=r"manifest\.json: not a manifest of shards: "):
            open_source(server.url, "train")


def test_an_endless_manifest_is_broken_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_MANIFEST_LIMIT", 1 << 20)
    (server.folder / "manifest.json").write_bytes(bytes(4096))
    server.faults["manifest.json"] = ["endless"]
    with pytest.raises(InputError, match=r"manifest\.json: cannot be downloaded: larger than"):
        open_source(server.url, "train")
    assert server.requests["manifest.json"] == 1


@pytest.mark.parametrize(
    "location",
    [
        "ftp://h/x", "pipe:cat x", "gs://b/x", "hdfs://h/x", "ssh://h/x", "github://o:r@main/x",
        "data:text/plain,x", "memory://x", "simplecache::http://h/x", "zip://*::http://h/x.zip",
        "file://host/x",
    ],
)  # fmt: skip
def test_only_four_schemes_are_read(location: str) -> None:
    with pytest.raises(InputError, match=r"are not read|three slashes"):
        open_source(location, "train")


@pytest.mark.parametrize(
    "location",
    [
        "ftp://user:SECRET@host/x#SECRET",
        "simplecache::https://u:SECRET@h/x?sig=SECRET",
        "file://u:SECRET@host/x?SECRET",
    ],
)
def test_no_secret_of_a_refused_url_is_shown(location: str) -> None:
    with pytest.raises(InputError, match=r"are not read|three slashes") as error:
        open_source(location, "train")
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http:x", "not a complete URL, such as http://host/folder"),
        ("http:/x", "not a complete URL, such as http://host/folder"),
        ("HTTPS:///x", "not a complete URL, such as https://host/folder"),
        ("s3:bucket/x", "not a complete URL, such as s3://bucket/folder"),
        ("http://[::1", "IPv6 addresses are not supported: give the server's name"),
        ("http://[::1]:80/x", "IPv6 addresses are not supported: give the server's name"),
        ("~nobody-has-this-name/x", "there is no such home folder: write the path out"),
    ],
)
def test_an_incomplete_url_is_refused(location: str, reason: str) -> None:
    for attempt in (lambda: open_source(location, "train"), lambda: locate(location)):
        with pytest.raises(InputError) as error:
            attempt()
        assert str(error.value) == f"{location}: {reason}"


def test_home_is_expanded_in_local_paths(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/shards").folder == tmp_path / "shards"
    assert locate("a~/~b").folder == Path("a~/~b")
    make_dataset(tmp_path / "coco", train=3, val=2, size=64)
    shard(tmp_path / "coco", tmp_path / "server")
    assert open_source("~/server", "train").shard_sizes.tolist() == [3]
    assert InstanceSegmentationDataModule("~/coco", num_workers=0).class_names
    open_source(server.url, "train", "~/cache").read(0, 0)
    assert list((tmp_path / "cache").glob("*.tar"))
    assert locate(f"{server.url}/~user").folder is None


def test_a_nul_byte_is_refused_in_one_line(server: Server) -> None:
    make_dataset(server.folder.parent / "coco", train=3, val=2, size=64)
    shard(server.folder.parent / "coco", server.folder)
    with pytest.raises(InputError, match=r"^'a\\x00b': a path cannot contain a NUL byte$"):
        open_source(server.url, "train", "a\0b")
    with pytest.raises(InputError, match=r"^'a\\x00b': a path cannot contain a NUL byte$"):
        open_source("a\0b", "train")
