"""One S3 client a process, whose keys are renewed; the server answers S3's GET as any other."""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from servers import Server, serve

from autotimm.files import remote, s3
from autotimm.files.retry import Retry
from autotimm.sharding.destinations.object_store import ObjectStore
from autotimm.structures import InputError

session = pytest.importorskip("aiobotocore.session")
pytest.importorskip("s3fs")

ONCE = Retry(attempts=1, stall=20)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    folder = tmp_path / "server"
    folder.mkdir()
    for k in range(8):
        (folder / f"{k}.tar").write_bytes(bytes([k]) * 1000)
    with serve(folder) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        write_keys(tmp_path, "FIRST")
        yield server


def write_keys(folder: Path, key: str) -> None:
    text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = hidden\n"
    (folder / "credentials").write_text(text)


def keys_of(server: Server) -> list[str]:
    """The key that signed each request."""
    return [re.findall(r"Credential=(\w+)/", text)[0] for text in server.authorizations]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A name for each client that botocore makes."""
    names: list[str] = []
    real = session.AioSession.create_client

    def create(self: Any, name: str, *words: Any, **options: Any) -> Any:
        names.append(name)
        return real(self, name, *words, **options)

    monkeypatch.setattr(session.AioSession, "create_client", create)
    return names


def read(k: int) -> bytes:
    return remote.read_bytes(f"s3://bucket/{k}.tar", ONCE)


def read_all() -> bool:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(read, range(8))) == [bytes([k]) * 1000 for k in range(8)]


def _in_a_fork(made: list[str], found: Any) -> None:
    inherited = len(made)
    found.put((read_all(), len(made) - inherited))


def test_threads_share_a_client_and_a_fork_makes_its_own(server: Server, made: list[str]) -> None:
    assert read_all() and made == ["s3"]
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    process = context.Process(target=_in_a_fork, args=(made, found))
    process.start()
    assert found.get(timeout=60) == (True, 1)
    process.join()
    assert read_all() and made == ["s3"]  # the parent's still works


def test_a_store_is_asked_by_one_client(server: Server, made: list[str]) -> None:
    for k in range(4):
        assert ObjectStore("s3://bucket/", ONCE).read(f"{k}.tar") == bytes([k]) * 1000
    assert made == ["s3"]


def test_keys_that_have_expired_are_read_again(
    server: Server, made: list[str], tmp_path: Path
) -> None:
    read(0)
    write_keys(tmp_path, "SECOND")
    read(1)
    server.faults = {"2.tar": ["expired"], "3.tar": ["expired"]}
    assert read(2) == bytes([2]) * 1000
    assert keys_of(server) == ["FIRST", "FIRST", "FIRST", "SECOND"]
    write_keys(tmp_path, "THIRD")
    store = ObjectStore("s3://bucket", ONCE)
    store.read("4.tar")
    write_keys(tmp_path, "FOURTH")
    assert store.read("3.tar") == bytes([3]) * 1000
    assert keys_of(server)[4:] == ["THIRD", "THIRD", "FOURTH"]
    assert len(made) == 4


def test_keys_that_stay_refused_are_told(server: Server) -> None:
    server.faults = {"2.tar": ["expired"] * 9}
    with pytest.raises(InputError, match=r"^s3://bucket/2\.tar: .* 400 \(ExpiredToken, old\): get"):
        read(2)
    assert server.requests["2.tar"] == 2


def test_keys_with_an_end_are_renewed_by_the_same_client(
    server: Server, made: list[str], tmp_path: Path
) -> None:
    """They end in a minute, and botocore renews what ends within ten."""
    (tmp_path / "credentials").unlink()
    (tmp_path / "keys.py").write_text(
        "import datetime, json, pathlib\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "number = int(count.read_text()) + 1 if count.exists() else 1\n"
        "count.write_text(str(number))\n"
        "end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'KEY{number}',\n"
        "    'SecretAccessKey': 'hidden', 'SessionToken': 't', 'Expiration': end.isoformat()}))\n"
    )
    command = f"{sys.executable} {tmp_path / 'keys.py'}"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {command}\n")
    for k in range(3):
        read(k)
    keys = keys_of(server)
    assert len(set(keys)) == 3 and made == ["s3"]


def test_signatures_are_kept_for_some_objects(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_SIGNATURES", 2)
    signatures, names = s3.Signatures(20), [f"s3://bucket/{k}.tar" for k in range(3)]
    first, second = map(signatures.url_of, names[:2])
    assert signatures.url_of(names[0]) == first and signatures.is_present(names[1], second)
    signatures.url_of(names[2])
    assert [signatures._counts(name) for name in names] == [False, False, True]
