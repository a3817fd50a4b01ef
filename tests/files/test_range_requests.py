"""Ranges over TLS, to hosts of several addresses, and over connections that are kept."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Server, serve, speak_tls

from autotimm.files import addresses, answers, ranges
from autotimm.files.answers import RefusedError
from autotimm.files.connection import NoRangesError, OtherFileError
from autotimm.files.ranges import Ranges
from autotimm.files.targets import Range, Target

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "a.tar").write_bytes(CONTENT)
    with serve(tmp_path / "server") as server:
        server.ranges = True
        yield server


def fetch(url: str, most: int = 8, count: int = 40, stall: float = 20) -> tuple[list[Any], Ranges]:
    """What comes of as many ranges, in their order; an error in place of bytes."""
    fetcher = Ranges(most, stall)
    asked = [Range(url, 1000 * k, 1000 * k + 5000, len(CONTENT)) for k in range(count)]
    for one in asked:
        fetcher.ask(one)
    found: dict[Range, Any] = {}
    while len(found) < count:
        found.update(fetcher.wait(0.1))
    return [found[one] for one in asked], fetcher


def test_connections_are_kept(server: Server) -> None:
    found, _ = fetch(f"{server.url}/a.tar")
    assert found == [CONTENT[1000 * k : 1000 * k + 5000] for k in range(40)]
    assert server.connections <= 8 and server.requests["a.tar"] == 40


@pytest.mark.parametrize("first", ["refused", "no way", "silent"])
def test_a_host_is_reached_by_its_second_address(
    first: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is refused, there is no way to it, or nothing ever answers there."""
    real, full = addresses.socket.getaddrinfo, socket.create_server(("127.0.0.1", 0), backlog=0)
    held = [socket.socket() for _ in range(8)]  # so that it accepts nobody else
    for one in held:
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    dead = {"refused": ("127.0.0.1", 1), "no way": ("255.255.255.255", 1)}
    other = (socket.AF_INET, socket.SOCK_STREAM, 6, "", dead.get(first, full.getsockname()))
    monkeypatch.setattr(
        addresses.socket, "getaddrinfo", lambda *given, **more: [other, *real(*given, **more)]
    )
    found, fetcher = fetch(f"{server.url}/a.tar", most=4, stall=4)
    assert found == [CONTENT[1000 * k : 1000 * k + 5000] for k in range(40)]
    monkeypatch.setattr(addresses, "_KNOWN", -1.0)  # looked up again, the dead one is not the first
    fetcher._addresses = addresses.Addresses()
    origin = Target.of(server.url, encoded=True).origin
    assert fetcher._addresses.best(origin) == (other[0], other[4])
    assert fetcher._addresses.have_another(origin, (other[0], other[4]))
    assert fetcher._addresses.best(origin)[1][1] == server.server_port
    for one in (*held, full):
        one.close()


def test_a_name_server_that_fails_is_not_asked_for_each_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def fails(*given: Any, **more: Any) -> Any:
        asked.append(given)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(addresses.socket, "getaddrinfo", fails)
    found, _ = fetch("http://somewhere.test/a.tar", count=9)
    assert len(asked) == 1
    assert all("Temporary failure" in str(one) and not answers.is_final(one) for one in found)


def test_connections_that_were_idle_for_long_are_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fetcher = fetch(f"{server.url}/a.tar", count=1)
    for kept, connections in ((1000.0, 1), (-1.0, 2)):
        monkeypatch.setattr(ranges, "_KEPT", kept)
        fetcher.ask(Range(f"{server.url}/a.tar", 0, 9, len(CONTENT)))
        while not (found := fetcher.wait(0.1)):
            pass
        assert found[0][1] == CONTENT[:9] and server.connections == connections


def test_an_idle_connection_that_hangs_discards_the_others(server: Server) -> None:
    """After a sleep of this machine, all of them may lead nowhere."""
    _, fetcher = fetch(f"{server.url}/a.tar", most=4, count=8)
    fetcher._stall = 0.2
    assert sum(map(len, fetcher._idle.values())) > 1
    server.faults = {"a.tar": ["stall"]}
    fetcher.ask(Range(f"{server.url}/a.tar", 0, 9000, len(CONTENT)))
    while not (found := fetcher.wait(0.1)):
        pass
    assert "bytes came" in str(found[0][1]) and not fetcher._idle


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_redirect_keeps_the_user_on_its_own_server(host: str, server: Server) -> None:
    there = f"http://{host}:{server.server_port}/other/a.tar"
    server.faults = {"a.tar": [there]}
    url = f"{server.url}/a.tar".replace("http://", "http://me:word@")
    found, _ = fetch(url, count=1)
    assert found == [CONTENT[:5000]]
    user = "Basic bWU6d29yZA=="
    assert server.authorizations == [user, user if host == "127.0.0.1" else ""]


def test_odd_letters_of_a_signed_url_are_encoded() -> None:
    url = "http://host/a\u4e00 b\x85\r\nX: y.tar?X-Amz-Signature=ab"
    lines = ranges._target(url).request(Range(url, 0, 9, 9)).decode().split("\r\n")
    assert lines[0] == "GET /a%E4%B8%80%20b%C2%85X:%20y.tar?X-Amz-Signature=ab HTTP/1.1"
    assert any(line.startswith("User-Agent: Python/") for line in lines)
    assert not any(line.startswith("X:") for line in lines)


def test_a_host_that_cannot_be_reached(server: Server) -> None:
    found, _ = fetch("http://127.0.0.1:1/a.tar", count=3)
    assert all("Connection refused" in str(one) and not answers.is_final(one) for one in found)
    found, _ = fetch("http://no-such-host.invalid/a.tar", count=1)
    assert answers.is_final(found[0])


def test_a_user_and_a_query_are_sent(server: Server) -> None:
    url = server.url.replace("http://", "http://me:pass%20word@")
    fetch(f"{url}/a.tar?key=a%2Fb", count=1)
    assert server.authorizations == ["Basic bWU6cGFzcyB3b3Jk"]


def test_certificates_are_checked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = speak_tls(server, tmp_path)
    url = f"{server.url}/a.tar".replace("http:", "https:")
    found, _ = fetch(url, count=2)
    assert all(answers.is_final(one) and "CERTIFICATE_VERIFY" in str(one) for one in found)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    found, _ = fetch(url)
    assert found == [CONTENT[1000 * k : 1000 * k + 5000] for k in range(40)]


RANGE = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 9\r\n"
IS = b"Content-Range: bytes 0-8/%d\r\n" % len(CONTENT)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (RANGE + IS + b"\r\n" + CONTENT[:9], None, ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + RANGE + IS + b"\r\n" + CONTENT[:9], None, ""),
        (RANGE + IS.replace(b"0-8", b"1-9") + b"\r\n", NoRangesError, "another range"),
        (RANGE + b"Content-Range: bytes 0-8/7\r\n\r\n", OtherFileError, "has 7 bytes"),
        (RANGE + b"Content-Type: multipart/byteranges\r\n\r\n", NoRangesError, "not one range"),
        (RANGE + IS + b"Content-Encoding: gzip\r\n\r\n", NoRangesError, "not one range"),
        (RANGE + IS + b"Transfer-Encoding: chunked\r\n\r\n", NoRangesError, "not one range"),
        (RANGE.replace(b"9", b"-9") + IS + b"\r\n", NoRangesError, "not one range"),
        (b"HTTP/1.1 200 OK\r\n\r\n", NoRangesError, "whole files"),
        (b"ICY 200 OK\r\n\r\n", RefusedError, "does not answer by HTTP"),
        (b"HTTP/1.1 206 OK\r\nX: " + b"a" * (1 << 17), RefusedError, "headers have no end"),
        (RANGE + IS + b"\r\nshort", ConnectionError, "4 bytes before its end"),
    ],
)
def test_answers_of_odd_servers(answer: bytes, error: type[Exception] | None, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve_one() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve_one)
        thread.start()
        fetcher = Ranges(1, stall=20)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.tar"
        fetcher.ask(Range(url, 0, 9, len(CONTENT)))
        while not (found := fetcher.wait(0.1)):
            pass
        thread.join()
    if error is None:
        assert found[0][1] == CONTENT[:9]
    else:
        assert isinstance(found[0][1], error) and text in str(found[0][1])


@pytest.mark.parametrize("error", [ssl.SSLEOFError, ssl.SSLZeroReturnError, BrokenPipeError])
def test_a_kept_connection_whose_tls_has_ended_costs_no_try(
    error: type[OSError], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fetcher = fetch(f"{server.url}/a.tar", count=1)
    ((_, kept),) = next(iter(fetcher._idle.values()))

    class Ended:
        def send(self, data: bytes) -> int:
            raise error(8, "EOF occurred in violation of protocol")

        def close(self) -> None:
            real.close()

    real, kept.sock = kept.sock, Ended()  # type: ignore[assignment]
    fetcher.ask(Range(f"{server.url}/a.tar", 0, 9, len(CONTENT)))
    while not (found := fetcher.wait(0.1)):
        pass
    assert found[0][1] == CONTENT[:9] and server.connections == 2
