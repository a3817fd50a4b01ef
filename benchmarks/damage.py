"""Is damage noticed? ``python damage.py READER FOLDER``: a container is damaged again and again.

A flip inverts one bit of one byte of an image or record (so that it always matters); a cut ends one
of the container's files at a random byte, or just before a sample. Then the whole container is
read, in a process of its own. Damage counts as found if reading raises an error, as lost if it ends
well but delivers other samples than were written, and as hung if it has not ended after ten
seconds; a cut that takes nothing but padding away does no harm. No peer's code here imports
autotimm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
from pathlib import Path

from readers import READERS

_LIMIT = 10  # seconds
_CONTAINERS = (".tar", ".mds", ".bin")
_OUTCOMES = {0: "harmless", 1: "found", 2: "lost", None: "hung"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=100, help="flips, and as many cuts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)  # noqa: S311
    samples = read(options.reader, options.folder)
    truth = digest(samples)
    containers = [p for p in sorted(options.folder.iterdir()) if p.suffix in _CONTAINERS]
    if outcome(options.reader, options.folder, truth) != "harmless":
        sys.exit(f"{options.reader} cannot read {options.folder} even undamaged")
    told = {}
    for kind, damage in (("flips", flip), ("cuts", cut), ("cuts between samples", part)):
        outcomes = dict.fromkeys(_OUTCOMES.values(), 0)
        for _ in range(options.trials):
            path = chance.choice(containers)
            whole = path.read_bytes()
            path.write_bytes(damage(whole, samples, chance))
            outcomes[outcome(options.reader, options.folder, truth)] += 1
            path.write_bytes(whole)
        told[kind] = outcomes
    print(json.dumps(told))


def flip(whole: bytes, samples: list[tuple[bytes, bytes]], chance: random.Random) -> bytes:
    """The file with one bit of a sample inverted."""
    members = [member for sample in samples for member in sample]
    at = -1
    while at < 0:  # the sample may be in another file
        member = chance.choice(members)
        at = whole.find(member)
    at += chance.randrange(len(member))
    return whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :]


def cut(whole: bytes, _samples: list[tuple[bytes, bytes]], chance: random.Random) -> bytes:
    """The beginning of the file."""
    return whole[: chance.randrange(len(whole))]


def part(whole: bytes, samples: list[tuple[bytes, bytes]], chance: random.Random) -> bytes:
    """The file up to one of its samples, the first excepted."""
    header = 512 * (whole[257:262] == b"ustar")
    starts = sorted(at - header for image, _ in samples if (at := whole.find(image)) >= 0)
    return whole[: chance.choice(starts[1:])]


def outcome(reader: str, folder: Path, truth: str) -> str:
    """Reads all in a forked process, whose exit code tells."""

    def work() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            found = digest(read(reader, folder))
        except Exception:  # whatever a reader raises
            os._exit(1)
        os._exit(0 if found == truth else 2)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(_LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        return _OUTCOMES[None]
    if process.exitcode not in _OUTCOMES:
        # A reader that died of a signal, such as a bus error, has not gone on with wrong data.
        print(f"{reader} ended with {process.exitcode}", file=sys.stderr)
        return _OUTCOMES[1]
    return _OUTCOMES[process.exitcode]


def read(reader: str, folder: Path) -> list[tuple[bytes, bytes]]:
    """All samples, as a reader's user gets them."""
    return [(bytes(a), bytes(b)) for a, b in READERS[reader](folder, "train", False)()]


def digest(samples: list[tuple[bytes, bytes]]) -> str:
    """Of all samples in whatever order."""
    each = sorted(hashlib.sha256(image + text).digest() for image, text in samples)
    return hashlib.sha256(b"".join(each)).hexdigest()


if __name__ == "__main__":
    main()
