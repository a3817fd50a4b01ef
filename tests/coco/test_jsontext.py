"""Large JSON files read in pieces: always what ``json.loads`` makes of the whole file."""

from __future__ import annotations

import json
import os
import pickle
import random
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from autotimm.coco import jsontext
from autotimm.structures import InputError

PIECES = (1, 2, 3, 7, 50, 10**6)
SEEDS = [pytest.param(n, marks=pytest.mark.release) if n > 14 else n for n in range(60)]
STRINGS = ["", "a", "images", '"', "\\", '\\"', '}],"x":[{', "{[", "\n", "é€😀", "\ud800", "_y\x7f"]


def written(root: Path, data: bytes) -> jsontext.Text:
    file = root / "file.json"
    file.write_bytes(data)
    return jsontext.Text(file)


def read(text: jsontext.Text, piece: int) -> Any:
    """Puts the file together again from its pieces."""
    content, arrays = jsontext.scan(text, piece)
    lists = [list(chain.from_iterable(array.values(text, piece))) for array in arrays]
    for array, values in zip(arrays, lists, strict=True):
        where = zip(array.starts.tolist(), array.lengths.tolist(), strict=True)
        objects = [jsontext.parse(text.read(start, length)) for start, length in where]
        assert repr(objects) == repr([value for value in values if isinstance(value, dict)])
    if not isinstance(content, dict):
        return None  # nobody asks what is in it
    return {k: lists[v[0]] if isinstance(v, list) else v for k, v in content.items()}


def value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth else 6)
    if kind < 6:
        number = rng.choice([0, -7, 2.5, 1e-7, float("nan"), 10**18])
        return rng.choice([None, True, number, number, rng.choice(STRINGS), {}, []])
    many = range(rng.randrange(4))
    if kind == 6:
        return [value(rng, depth - 1) for _ in many]
    return {rng.choice(STRINGS): value(rng, depth - 1) for _ in many}


def document(rng: random.Random) -> str:
    """A file whose outermost object holds lists, mostly of objects; keys may occur twice."""
    parts = []
    for key in rng.choices(["images", "annotations", "info", *STRINGS], k=rng.randrange(6)):
        kind = rng.randrange(5)
        content = [value(rng, 3 if rng.random() < 0.7 else 0) for _ in range(rng.randrange(8))]
        one = value(rng, 2) if kind == 0 else [c if kind == 1 else {"x": c} for c in content]
        layout = rng.choice([{}, {"separators": (",", ":")}, {"indent": 2}, {"indent": "\t"}])
        text = json.dumps(one, ensure_ascii=rng.random() < 0.5, **layout)
        parts.append(f"{json.dumps(key)}{rng.choice([':', ' : '])}{text}")
    space = rng.choice(["", " ", "\r\n"])
    return f"{space}{{{space}{f'{space},{space}'.join(parts)}{space}}}{space}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_is_the_same_in_pieces_of_any_size(tmp_path: Path, seed: int) -> None:
    data = document(random.Random(seed)).encode("utf-8", "surrogatepass")
    text = written(tmp_path, data)
    for piece in PIECES:
        assert repr(read(text, piece)) == repr(json.loads(data))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_file_is_refused_unless_it_is_still_json(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = document(rng).encode("utf-8", "surrogatepass")
    for _ in range(20):
        at, upto = rng.randrange(len(data)), 0
        while rng.random() < 0.7:
            upto += 1
        new = bytes(rng.choices(b'[]{}",:\\ 0.e5n\xff', k=rng.randrange(3)))
        odd = data[:at] + new + data[at + upto :]
        text = written(tmp_path, odd)
        try:
            expected = json.loads(odd)
        except ValueError:
            for piece in (2, 10**6):
                with pytest.raises(jsontext.NotJSONError):
                    read(text, piece)
            assert "not a JSON file" in str(text.fault())
        else:
            for piece in (2, 10**6):
                assert repr(read(text, piece)) == repr(
                    expected if odd.strip()[:1] == b"{" else None
                )


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": [{"b": 1}.5, {"b": 2}]}',
        b'{"a": [{"b": 1} {"b": 2}]}',
        b'{"a": [{"b": 1},]}',
        b'{"a": [,{"b": 1}]}',
        b'{"a": [{"b": 1}, , {"b": 1}]}',
        b'{"a": [{"b": 1]}}',
        b'{"a": {] [}}',
        b'{"a": [{"b": 1}]]',
        b'{"a": [{"b": 1}]} {"c": []}',
        b'{"a": [{"b": "1}]}',
        b'{"a": [{"b": \\"1}]}',
        b"]",
        b"",
    ],
)
def test_what_comes_between_the_objects_is_read_too(tmp_path: Path, data: bytes) -> None:
    for piece in PIECES:
        with pytest.raises(jsontext.NotJSONError):
            read(written(tmp_path, data), piece)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-16-be"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    content = {"images": [{"file_name": "é.jpg"}, {"x": [1]}], "y": 2}
    data = json.dumps(content, ensure_ascii=False).encode(encoding)
    for piece in PIECES:
        assert read(pickle.loads(pickle.dumps(written(tmp_path, data))), piece) == content  # noqa: S301


def test_text_of_no_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"file\.json: not a JSON file"):
        written(tmp_path, '{"a": 1}'.encode("utf-16")[:-1])


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it
    (tmp_path / "link").symlink_to("/dev/zero")  # has no end
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path):
        with pytest.raises(InputError, match=f"{path}: is no plain file"):
            jsontext.Text(path)


def test_a_file_that_changes_is_refused_not_misread(tmp_path: Path) -> None:
    data = json.dumps({"images": [{"x": n} for n in range(100)]}).encode()
    text = written(tmp_path, data)
    copy = pickle.dumps(text)
    file = tmp_path / "file.json"
    (tmp_path / "new.json").write_bytes(data[::-1])
    (tmp_path / "new.json").rename(file)  # another file in its place: the old one stays readable
    assert text.read(0, len(data)) == data
    with pytest.raises(InputError, match=r"file\.json: it changed"):
        pickle.loads(copy).read(0, 1)  # noqa: S301
    file.unlink()
    with pytest.raises(InputError, match=r"file\.json: cannot be read: No such file"):
        pickle.loads(copy).read(0, 1)  # noqa: S301
    text = written(tmp_path, data)
    with file.open("r+b") as opened:
        opened.truncate(20)
    for offset in (0, 30):
        with pytest.raises(InputError, match="it changed"):
            text.read(offset, 40)
    assert "it changed" in str(written(tmp_path, data).fault())


def test_a_fork_reads_where_its_parent_does(tmp_path: Path) -> None:
    data = json.dumps({"images": [{"x": n} for n in range(1000)]}).encode()
    text = written(tmp_path, data)
    child = os.fork()
    if not child:
        os._exit(all(text.read(at, 50) == data[at : at + 50] for at in range(0, 5000, 7)))
    assert all(text.read(at, 50) == data[at : at + 50] for at in range(5000, 0, -7))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
