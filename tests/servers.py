"""A real HTTP server over a folder, which misbehaves as it is told to."""

from __future__ import annotations

import http.server
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

Fault = int | str
"""A status to answer with, or "stall", "trickle", "cut", "other", "endless", "close", "headers"
(byte by byte), "continue" (100 without an end), "empty" (compressed blocks that hold nothing),
"why" (403 with a reason in XML), "expired" (400, as S3 refuses old keys), "nowhere" (301 without an
address), "later" (503 with Retry-After), "wait" (429 with a short one), "whole" (200 instead of a
range) or a URL to redirect to."""


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of a folder under any path.

    Attributes:
        faults: by file name, how the first GETs of it are answered, one after another.
        requests: how often each file was asked for.
        authorizations: the header of that name of each request, "" without one.
        delay: seconds before each body.
        ranges: whether it sends ranges of files, and keeps connections.
        sent: the bytes of bodies that were sent of each file.
        connections: how many were opened.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.requests = folder, dict[str, list[Fault]](), Counter[str]()
        self.delay, self.ranges, self.connections = 0.0, False, 0
        self.sent = Counter[str]()
        self.authorizations: list[str] = []
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: clients that have had enough drop their connections."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/some/folder"


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Runs a server while the block does."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def speak_tls(server: Server, folder: Path) -> Path:
    """Has a server speak TLS with a certificate that nobody else has signed; returns its file."""
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
    (folder / "own.pem").write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return folder / "own.pem"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def setup(self) -> None:
        self.server.connections += 1
        self.protocol_version = "HTTP/1.1" if self.server.ranges else "HTTP/1.0"
        super().setup()

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.requests[name] += 1
        self.server.authorizations.append(self.headers.get("Authorization", ""))
        faults = self.server.faults.get(name)
        fault = faults.pop(0) if faults else None
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has had enough
            self.answer(name, fault)

    def do_HEAD(self) -> None:
        size = (self.server.folder / self.path.rpartition("/")[2]).stat().st_size
        self.send_response(200)
        for header in ("Last-Modified: Mon, 02 Nov 2026 00:00:00 GMT", f"Content-Length: {size}"):
            self.send_header(*header.split(": "))
        self.send_header("ETag", '"tag"')
        self.end_headers()

    def answer(self, name: str, fault: Fault | None) -> None:
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault is not None and ":" in fault:
            self.send_response(302)
            self.send_header("Location", fault)
            self.end_headers()
        elif fault == "close":
            self.close_connection = True
            self.connection.close()
        elif fault == "wait":
            self.plain(429, b"", ("Retry-After", "1"))
        elif fault == "headers":
            self.drip(b"HTTP/1.1 200 OK\r\n", b"X-Long: " + bytes(99).replace(b"\0", b"a"))
        elif fault == "continue":
            self.drip(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 9999, pieces=True)
        elif fault == "empty":
            head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
            begin = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
            self.drip(head, begin, *[b"\0\0\0\xff\xff"] * 9999, pieces=True)
        elif fault == "why":
            code, message = (
                b"<Code>RequestTimeTooSkewed</Code>",
                b"<Message>late\x1b[2J</Message>",
            )
            self.plain(403, b"<Error>" + code + message + b"</Error>")
        elif fault == "expired":
            self.plain(400, b"<Error><Code>ExpiredToken</Code><Message>old</Message></Error>")
        elif fault == "nowhere":
            self.plain(301, b"")
        elif fault == "later":
            self.plain(503, b"", ("Retry-After", "77"))
        elif not (self.server.folder / name).is_file():
            self.send_error(404)
        else:
            self.body((self.server.folder / name).read_bytes(), fault)

    def plain(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, *parts: bytes, pieces: bool = False) -> None:
        """Sends parts one by one, or their bytes."""
        for piece in parts if pieces else [bytes([byte]) for byte in b"".join(parts)]:
            self.wfile.write(piece)
            if self.server.over.wait(0.02):
                return

    def body(self, content: bytes, fault: Fault | None) -> None:
        asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("Range", ""))
        if asked and self.server.ranges and fault != "whole":
            begin, end, size = int(asked[1]), int(asked[2]) + 1, len(content)
            if begin >= size:
                self.send_error(416)
                return
            content = content[begin:end]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(content) - 1}/{size}")
        else:
            self.send_response(200)
        if fault != "endless":
            self.send_header("Content-Length", str(len(content)))
        if fault in ("stall", "endless", "cut"):
            self.close_connection = True
        self.end_headers()
        self.server.sent[self.path.partition("?")[0].rpartition("/")[2]] += len(content)
        self.server.over.wait(self.server.delay)
        if fault == "stall":
            self.wfile.write(content[:100])
            self.server.over.wait()
        elif fault == "trickle":
            for byte in content:
                self.wfile.write(bytes([byte]))
                if self.server.over.wait(0.02):
                    return
        elif fault == "endless":
            while not self.server.over.is_set():
                self.wfile.write(content)
        elif fault == "cut":
            self.wfile.write(content[: len(content) // 2])
        elif fault == "other":
            self.wfile.write(bytes(len(content)))
        else:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def wait_until(condition: object, seconds: float = 60) -> None:
    """Waits until a call returns something true."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
