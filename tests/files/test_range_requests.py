"""Ranges over TLS, to hosts of several addresses, and over connections that are kept."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from servers import Server, serve

from autotimm.files import answers, ranges
from autotimm.files.ranges import Ranges
from autotimm.files.targets import Range

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "a.tar").write_bytes(CONTENT)
    with serve(tmp_path / "server") as server:
        server.ranges = True
        yield server


def fetch(url: str, most: int = 8, count: int = 40) -> tuple[list[Any], Ranges]:
    """What comes of as many ranges, in their order; an error in place of bytes."""
    fetcher = Ranges(most, stall=20)
    asked = [Range(url, 1000 * k, 1000 * k + 5000, len(CONTENT)) for k in range(count)]
    for one in asked:
        fetcher.ask(one)
    found: dict[Range, Any] = {}
    while len(found) < count:
        found.update(fetcher.wait(1))
    return [found[one] for one in asked], fetcher


def test_connections_are_kept(server: Server) -> None:
    found, _ = fetch(f"{server.url}/a.tar")
    assert found == [CONTENT[1000 * k : 1000 * k + 5000] for k in range(40)]
    assert server.connections <= 8 and server.requests["a.tar"] == 40


def test_a_host_is_reached_by_its_second_address(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ranges.socket.getaddrinfo
    monkeypatch.setattr(
        ranges.socket,
        "getaddrinfo",
        lambda host, port, **more: [*real(host, 1, **more), *real(host, port, **more)],
    )
    found, _ = fetch(f"{server.url}/a.tar")
    assert found == [CONTENT[1000 * k : 1000 * k + 5000] for k in range(40)]


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
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    made = made.public_key(key.public_key()).serial_number(1).add_extension(names, False)
    made = made.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2090, 1, 1))
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    content = made.sign(key, hashes.SHA256()).public_bytes(pem) + key.private_bytes(pem, *plain)
    (tmp_path / "own.pem").write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = f"{server.url}/a.tar".replace("http:", "https:")
    found, _ = fetch(url, count=2)
    assert all(answers.is_final(one) and "CERTIFICATE_VERIFY" in str(one) for one in found)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    found, _ = fetch(url)
    assert found == [CONTENT[1000 * k : 1000 * k + 5000] for k in range(40)]
