"""Shards at a URL, into an empty cache: autotimm by ranges and by whole shards, webdataset, curl.

nginx serves them; with ``--delay`` a relay adds milliseconds to each request. CPU seconds are those
of the reader and of its children, without the server and the relay. As a store of S3 nginx answers
signed requests like all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import harness
from harness import Run, contestant, cpu_ms, markdown, measured, rate, rounds

HERE = Path(__file__)
_CONF = """
daemon off; pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  log_format sized '$body_bytes_sent'; access_log {root}/access.log sized;
  client_body_temp_path {root}/t; proxy_temp_path {root}/t; fastcgi_temp_path {root}/t;
  uwsgi_temp_path {root}/t; scgi_temp_path {root}/t;
  sendfile on; keepalive_requests 100000;
  server {{
    listen 127.0.0.1:{port};
    location /ranges/ {{ alias {folder}/; }}
    location /bucket/shards/ {{ alias {folder}/; }}
    location /whole/ {{ alias {folder}/; max_ranges 0; }}
  }}
}}
"""


def main() -> None:
    options = harness.parser(__doc__)
    options.add_argument("--delay", type=float, default=0, help="milliseconds a request (0)")
    given = options.parse_args()
    if shutil.which("nginx") is None:
        sys.exit("this benchmark needs nginx")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(given.work or folder)
        print(table(root, *(60, 1) if given.quick else (given.images, given.repeats), given))


def table(root: Path, images: int, repeats: int, given: Any) -> str:
    """Makes the shards, runs the contestants and returns their table."""
    import photos

    from autotimm.sharding.cli import shard

    shards = root / "shards"
    if not shards.exists():
        photos.make(root / "photos", images, given.seed)
        with contextlib.redirect_stdout(sys.stderr):
            shard(root / "photos", shards, samples_per_shard=300)
    size = sum(path.stat().st_size for path in shards.iterdir())
    with contextlib.ExitStack() as stack:
        log, port = stack.enter_context(nginx(root, shards))
        if given.delay:
            port = stack.enter_context(relayed(port, given.delay / 1000))
        url = f"http://127.0.0.1:{port}"
        every = {
            "curl": partial(contestant, HERE, "curl", f"{url}/ranges", shards),
            "webdataset": partial(contestant, HERE, "webdataset", f"{url}/ranges", shards),
            "autotimm, whole shards": partial(contestant, HERE, "autotimm", f"{url}/whole"),
            "autotimm, ranges": partial(contestant, HERE, "autotimm", f"{url}/ranges"),
        }
        if importlib.util.find_spec("s3fs") is not None:
            os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "nobody")
            os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url}
            every["autotimm, ranges, S3"] = partial(
                contestant, HERE, "autotimm", "s3://bucket/shards"
            )
        sent: dict[str, int] = {}
        runs = rounds(
            {name: counted(run(), log, sent, name) for name, run in every.items()},
            repeats,
            watch=False,
        )
    rows = [
        [
            name,
            f"{rate(one):,.0f}",
            f"{cpu_ms(one) * one[0].images / size * 1e6:.2f}",
            f"{sent[name] / size:.3f}" if sent[name] else "-",
        ]
        for name, one in runs.items()
    ]
    return markdown(["", "samples/s", "CPU s a GB", "bytes fetched of the data"], rows)


def counted(
    run: Callable[[bool], Run], log: Path, sent: dict[str, int], name: str
) -> Callable[[bool], Run]:
    """The contestant, whose fetched bytes the server's log tells."""

    def once(watch: bool) -> Run:
        log.write_text("")
        found = run(watch)
        time.sleep(0.2)
        sent[name] = sum(map(int, log.read_text().split()))
        return found

    return once


@contextlib.contextmanager
def nginx(root: Path, folder: Path) -> Iterator[tuple[Path, int]]:
    """Serves a folder; yields the log of sent bytes, and the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = root / "nginx.conf"
    conf.write_text(_CONF.format(root=root, folder=folder, port=port))
    os.chmod(root, 0o755)  # noqa: PTH101, S103 (nginx's worker is another user)
    server = subprocess.Popen(["nginx", "-c", str(conf), "-p", str(root)], stderr=sys.stderr)
    try:
        wait_for(port)
        yield root / "access.log", port
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def relayed(port: int, seconds: float) -> Iterator[int]:
    """A relay to a port in a process of its own, which holds each request back for a while."""
    words = [sys.executable, str(HERE), "relay", str(port), str(seconds)]
    relay = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert relay.stdout is not None
    try:
        yield int(relay.stdout.readline())
    finally:
        relay.terminate()
        relay.wait()


def relay(port: int, seconds: float) -> None:
    """Relays connections to a port; prints its own."""

    async def copy(reader: Any, writer: Any, wait: float) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: Any, writer: Any) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, forth, seconds), copy(back, writer, 0))

    async def serve() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(serve())


def wait_for(port: int) -> None:
    """Waits until something listens there."""
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    sys.exit(f"nothing listens at port {port}")


def curl(url: str, folder: str) -> None:
    """Downloads all shards to nowhere, by one process."""
    shards = sorted(Path(folder).glob("train-*.tar"))
    words = [word for path in shards for word in ("-o", "/dev/null", f"{url}/{path.name}")]
    import json

    images = json.loads((Path(folder) / "manifest.json").read_text())["splits"]["train"]["images"]

    def work() -> int:
        subprocess.run(["curl", "-sf", *words], check=True)
        return images

    measured(work)


def webdataset(url: str, folder: str) -> None:
    """Reads raw samples as webdataset does, shuffled by its usual buffer."""
    import webdataset as wds

    urls = [f"{url}/{path.name}" for path in sorted(Path(folder).glob("train-*.tar"))]
    dataset = wds.WebDataset(urls, shardshuffle=100, seed=1, empty_check=False).shuffle(1000)
    measured(lambda: sum(1 for _ in dataset))


def autotimm(url: str) -> None:
    """Reads an epoch of raw samples, shuffled by seed, as a training does without workers."""
    # Imports are not measured, nor are webdataset's.
    import aiohttp  # noqa: F401
    import fsspec.implementations.http  # noqa: F401
    import yarl  # noqa: F401

    from autotimm.streaming.order import EpochOrder, Plan
    from autotimm.streaming.shards import ShardSource
    from autotimm.streaming.upcoming import places, upcoming
    from autotimm.structures import World

    if url.startswith("s3:"):
        import botocore  # noqa: F401
        import s3fs  # noqa: F401

    def work() -> int:
        source = ShardSource(url, "train", cache)
        order = EpochOrder(source.shard_sizes, 1, 0, True)
        plan = Plan(order, World(), 8)
        source.announce(upcoming(order, plan, range(plan.steps), 1, 0, 0))
        window = -1
        for step in range(plan.steps):
            if plan.window(step) > window:
                window = plan.window(step)
                ahead = *order.window_shards(window), *order.window_shards(window + 1)
                source.prefetch(map(int, ahead))
            for place in places(order, plan.positions(step)):
                source.raw(*place)
        return 8 * plan.steps

    with tempfile.TemporaryDirectory() as cache:
        measured(work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["relay"]:
        relay(int(sys.argv[2]), float(sys.argv[3]))
    elif sys.argv[1:2] and sys.argv[1] in ("curl", "webdataset", "autotimm"):
        globals()[sys.argv[1]](*sys.argv[2:])
    else:
        main()
