"""Every reader finds a changed bit and a missing end, and no reader goes round the check."""

from __future__ import annotations

import ast
import io
import json
import pickletools
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pytest
import torch
from batches import small
from conftest import SAMPLE

import autotimm
from autotimm import InputError, InstanceSegmentor, load
from autotimm.checkpoints.convert import convert
from autotimm.checkpoints.resume import damage_of, newest
from autotimm.checkpoints.storage import COMPLETE, PlainCheckpointIO, whole_folder
from autotimm.cli import main as verbs
from autotimm.files import checksums
from autotimm.files.checksums import DamagedError, SealedReader, SealedZip, check, sealed
from autotimm.tasks.archive import check_readable, read_archive, write_archive
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.tasks.weights import write_weights
from autotimm.training.start import starting_point

CONTENT = {
    "pytorch-lightning_version": "2.6.4",
    "epoch": 1,
    "global_step": 7,
    "state_dict": {f"w{i}": torch.arange(40.0) + i for i in range(3)},
    "hyper_parameters": {"num_classes": 3, "lr": 1e-3, "backbone": "resnet10t"},
    "loops": {"fit_loop": {"seen": list(range(60))}},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(40)}}, "param_groups": [{}]}],
}


def as_text(content: Any) -> str:
    """A text that is equal only for bitwise equal contents."""
    if isinstance(content, dict):
        return str({key: as_text(one) for key, one in sorted(content.items())})
    if isinstance(content, list | tuple):
        return str([as_text(one) for one in content])
    if isinstance(content, torch.Tensor):
        return f"{content.dtype} {tuple(content.shape)} {content.numpy().tobytes().hex()}"
    return repr(content)


def ours() -> bytes:
    file = io.BytesIO()
    write_archive(CONTENT, file)
    return file.getvalue()


def others() -> bytes:
    file = io.BytesIO()
    torch.save(CONTENT, file)
    return file.getvalue()


def safetensors(folder: Path) -> bytes:
    write_weights(CONTENT, CONTENT["state_dict"], folder / "a.safetensors")
    return (folder / "a.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:.*has no checksum")
@pytest.mark.parametrize("kind", ["ours", "ours in pieces", "others", "safetensors"])
def test_1000_flipped_bits_and_200_cuts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flip is found, or harmless: then the content is the same, bit for bit."""
    if kind == "ours in pieces":  # as tensors of megabytes are written and read
        monkeypatch.setattr(checksums, "_SMALL", 100)
        monkeypatch.setattr(checksums, "_CHUNK", 130)
        kind = "ours"
    whole = {"ours": ours, "others": others, "safetensors": lambda: safetensors(tmp_path)}[kind]()
    path, chance = tmp_path / "a.ckpt", random.Random(0)
    path.write_bytes(whole)
    truth, found = as_text(read_checkpoint(path)), 0
    # Half of the flips fall into the structure: the pickle, the headers, the directory.
    structure = [i for i in range(len(whole)) if i < 1500 or i > len(whole) - 1200]
    for attempt in range(1000):
        at = chance.choice(structure) if attempt % 2 else chance.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << attempt % 8]) + whole[at + 1 :])
        try:
            content = read_checkpoint(path)
        except InputError as error:
            assert str(path) in str(error)
            found += 1
        else:
            assert as_text(content) == truth, at
    assert found > (600 if kind == "others" else 950)
    for _ in range(200):
        path.write_bytes(whole[: chance.randrange(len(whole))])
        with pytest.raises(InputError, match=r"a\.ckpt"):
            read_checkpoint(path)


def test_the_bit_that_makes_a_member_a_folder_is_damage() -> None:
    """torch would read zeros for it, and its CRC is as before."""
    whole = bytearray(others())
    entry = whole.index(b"PK\x01\x02", whole.index(b"archive/data/1") + 20)
    assert read_archive(io.BytesIO(whole))
    whole[entry + 38] ^= 0x10
    with pytest.raises(DamagedError, match="is not what was written"):
        check(io.BytesIO(whole))


def test_a_checksum_is_that_of_the_whole_file() -> None:
    """The zip stays one that others read, whatever the sizes of the writes."""
    whole = others()
    for size in (1, 2, 3, 7, 10_000):
        file = io.BytesIO()
        zip_file = SealedZip(file)
        for i in range(0, len(whole), size):
            assert zip_file.write(whole[i : i + size]) == len(whole[i : i + size])
        zip_file.seal()
        content = file.getvalue()
        assert check(io.BytesIO(content))
        assert content[: len(whole) - 2] == whole[:-2]
        assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
        assert as_text(torch.load(io.BytesIO(content), weights_only=True)) == as_text(CONTENT)
    with pytest.raises(ValueError, match="not a zip"):
        SealedZip(io.BytesIO()).seal()


def test_a_load_reads_a_file_once(tmp_path: Path) -> None:
    """Memory and disk are the cost of a check: tensors are hashed as torch reads them."""

    class Counted(io.FileIO):
        seen = 0

        def readinto(self, buffer: Any) -> int:
            count = super().readinto(buffer) or 0
            self.seen += count
            return count

    content = {"tensors": [torch.arange(size) for size in (100_000, 3, 50_000, 2_000, 0)]}
    with (tmp_path / "a").open("wb") as file:
        write_archive(content, file)
    with Counted(tmp_path / "a") as raw:
        loaded, checked = read_archive(cast(BinaryIO, raw))
        assert checked
        assert as_text(loaded) == as_text(content)
        assert raw.seen < 1.05 * (tmp_path / "a").stat().st_size


def test_tensors_that_are_read_in_another_order_are_checked() -> None:
    """As by a torch that would sort them: then they are read twice."""
    file = io.BytesIO()
    write_archive([torch.arange(50_000) + i for i in range(4)], file)
    end = file.seek(0, 2)
    for first, second in ((0, end // 2), (end // 2, 0), (end // 2, end // 2), (end - 20_000, 0)):
        reader = SealedReader(file)
        for at in (first, second):
            reader.seek(at)
            assert reader.readinto(memoryview(bytearray(60_000))) == min(60_000, end - at)
        reader.compare()
        reader = SealedReader(io.BytesIO(file.getvalue()[:-1000] + file.getvalue()[-999:] + b"0"))
        reader.seek(first)
        reader.readinto(memoryview(bytearray(60_000)))
        with pytest.raises(DamagedError):
            reader.compare()


def test_a_text_is_checked_but_for_its_checksum() -> None:
    text = sealed(json.dumps({"a": 1, "xxh3": "0" * 16}, separators=(",", ":")).encode())
    assert check(io.BytesIO(text))
    assert json.loads(text)["a"] == 1
    with pytest.raises(DamagedError):
        check(io.BytesIO(text.replace(b'"a":1', b'"a":2')))
    assert not check(io.BytesIO(b'{"a":1}'))
    assert not check(io.BytesIO(b""))


# ------------------------------------------------------------------- the readers


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model, as a trainer writes it."""
    path = tmp_path_factory.mktemp("model") / "step_1.ckpt"
    model = small(mask_size=12)
    content: dict[str, Any] = {**CONTENT, "state_dict": model.state_dict()}
    content["hyper_parameters"] = dict(model.hparams)
    model.on_save_checkpoint(content)
    PlainCheckpointIO().save_checkpoint(content, path)
    return path


def flipped(path: Path, out: Path) -> Path:
    """A copy with the lowest bit of a weight's number flipped, which does no visible harm."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    out.write_bytes(content)
    return out


READERS: dict[str, Callable[[str, Path], object]] = {
    "load": lambda path, _: load(path),
    "load_from_checkpoint": lambda path, _: InstanceSegmentor.load_from_checkpoint(path),
    "convert": lambda path, out: convert(path, out / "out.safetensors"),
    "resume": lambda path, _: PlainCheckpointIO().load_checkpoint(path),
}


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_a_bit_and_names_the_file(
    reader: str, ending: str, model_file: Path, tmp_path: Path
) -> None:
    whole = model_file
    if ending == "safetensors":
        whole = convert(model_file, tmp_path / "whole.safetensors")
    bad = flipped(whole, tmp_path / f"bad.{ending}")
    with pytest.raises(InputError, match=rf"bad\.{ending}.* damaged") as error:
        READERS[reader](str(bad), tmp_path)
    assert "\n" not in str(error.value)
    with fsspec.open(f"memory://bad.{ending}", "wb") as file:
        file.write(bad.read_bytes())
    with pytest.raises(InputError, match=rf"bad\.{ending}.* damaged"):
        READERS[reader](f"memory://bad.{ending}", tmp_path)
    assert [p.name for p in tmp_path.glob("out*")] == []


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_the_verbs_find_it(
    ending: str,
    model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = model_file
    if ending == "safetensors":
        whole = convert(model_file, tmp_path / "whole.safetensors")
    bad = flipped(whole, tmp_path / f"bad.{ending}")
    out = tmp_path / "out"
    picture = Path(__file__).parents[2] / "docs" / "shapes.jpg"
    model = ("backbone=test_resnet", "pretrained=false", "compile_model=false")
    for words in (
        ["predict", picture, "--checkpoint", bad, "--out", out],
        ["export", "--checkpoint", bad, "--out", out / "e.safetensors"],
        ["evaluate", "--checkpoint", bad, "--data", SAMPLE, "--out", out],
        [
            *("fit", f"--ckpt_path={bad}", f"--data.data_dir={SAMPLE}", "--data.image_size=64"),
            *(f"--model.init_args.{one}" for one in model),
            *("--trainer.max_steps=1", f"--trainer.default_root_dir={out}"),
        ],
    ):
        monkeypatch.setattr(sys, "argv", ["autotimm", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            verbs.main()
        assert end.value.code == 2, words
        said = capsys.readouterr().err
        assert f"bad.{ending}" in said and "is damaged" in said, (words, said[-3000:])
        assert not [one for one in out.rglob("*") if one.is_file()], words


def test_a_requested_one_is_refused_before_the_training(model_file: Path, tmp_path: Path) -> None:
    bad = flipped(model_file, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match=r"bad\.ckpt is damaged"):
        starting_point(tmp_path, str(bad))


def test_only_the_checked_readers_call_torch_load() -> None:
    """A new caller belongs into ``tasks/checkpoint.py:read_content``, which checks first."""
    package = Path(autotimm.__file__).parent
    callers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("torch.load", "safetensors.torch.load", "safetensors.safe_open")
    }
    assert callers == {
        "tasks/archive.py",  # checks
        "tasks/weights.py",  # checks
        "checkpoints/resume.py",  # looks at the epoch and step, and checks the file it returns
        "checkpoints/zero_files.py",  # checks
        "checkpoints/sources.py",  # after zero_files.check_folder
        "training/earlier_runs.py",  # looks at the counters of one that was chosen, and so checked
        "models/backbone.py",  # looks at the names alone, to say why it refuses a file
    }


def test_a_file_without_a_checksum_is_told_once(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Files of before: a zip has CRCs and needs no word; a safetensors file has nothing."""
    (tmp_path / "old.ckpt").write_bytes(others())
    read_checkpoint(tmp_path / "old.ckpt")
    assert not recwarn.list
    old = tmp_path / "old.safetensors"
    old.write_bytes(safetensors(tmp_path).replace(b'"xxh3"', b'"hash"'))
    for _ in range(3):
        assert as_text(read_checkpoint(old)["state_dict"]) == as_text(CONTENT["state_dict"])
    assert [str(old) in str(one.message) for one in recwarn.list] == [True]


# ------------------------------------------------------------------- folders


def in_folder(path: Path, step: int = 7) -> Path:
    with whole_folder(path, step, epoch=1) as folder:
        (folder / "checkpoint").mkdir()
        for name in ("model_states.pt", "optim_states.pt"):
            with (folder / "checkpoint" / name).open("wb") as file:
                write_archive(CONTENT, file)
        (folder / "latest").write_text("checkpoint")
    return path


def test_damage_in_a_folder_is_found_and_the_one_before_is_taken(tmp_path: Path) -> None:
    """Also in the optimizer's state alone, a text beside it, and the list of files."""
    old, new = in_folder(tmp_path / "step_6.ckpt", 6), in_folder(tmp_path / "step_7.ckpt")
    assert newest(tmp_path) == new
    chance = random.Random(0)
    for path in sorted(one for one in new.rglob("*") if one.is_file()):
        whole = path.read_bytes()
        for _ in range(30):
            at = chance.randrange(len(whole))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            if damage_of(new) is None:  # the checksum itself, or the name of its entry
                digits = len(whole) - 16 if path.suffix == ".pt" else whole.find(b'"xxh3"')
                assert digits <= at < digits + 16
                continue
            with pytest.warns(UserWarning, match=r"step_7\.ckpt is damaged and left aside"):
                assert newest(tmp_path) == old, (path, at)
        path.write_bytes(whole)
        assert newest(tmp_path) == new


def test_a_folder_of_before_has_the_crcs_of_its_files(tmp_path: Path) -> None:
    path = in_folder(tmp_path / "step_7.ckpt")
    part = path / "checkpoint" / "optim_states.pt"
    part.write_bytes(others())
    sizes = {
        one.relative_to(path).as_posix(): one.stat().st_size
        for one in path.rglob("*")
        if one.is_file() and one.name != COMPLETE
    }
    (path / COMPLETE).write_text(json.dumps({"saved": 1.5, "step": 7, "files": sizes}))
    assert damage_of(path) is None
    content = bytearray(part.read_bytes())
    content[content.index(torch.ones(40).numpy().tobytes()) + 5] ^= 1
    part.write_bytes(content)
    assert "is not what was written" in str(damage_of(path))


def test_a_list_of_files_outside_the_folder_is_not_followed(tmp_path: Path) -> None:
    path = in_folder(tmp_path / "step_7.ckpt")
    listed = {"saved": 1.5, "step": 7, "files": {"../secret": 3}}
    (path / COMPLETE).write_text(json.dumps(listed))
    assert damage_of(path) == "complete.json lists files outside the folder"


# ------------------------------------------------------------------- what is saved can be read


class Odd:
    """A class of a user's, which no safe reader makes."""


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"callbacks": {"Mine": {"best": Odd()}}}, r"callbacks\.Mine\.best is a .*\.Odd"),
        ({"hyper_parameters": {"sizes": [1, Odd()]}}, r"hyper_parameters\.sizes\[1\] is a"),
        ({"callbacks": {"Mine": {Path("a"): 1}}}, r"the key callbacks\.Mine\.a is a pathlib"),
        ({"loops": {"at": torch.nn.Linear(1, 1)}}, r"loops\.at is a torch\.nn.*Linear"),
        ({"loops": {"f": lambda: 1}}, r"loops\.f is a builtins\.function"),
    ],
)
def test_what_could_not_be_read_is_not_written_over_a_good_one(
    entry: dict[str, Any], name: str, tmp_path: Path
) -> None:
    files, path = PlainCheckpointIO(), tmp_path / "step_7.ckpt"
    files.save_checkpoint(CONTENT, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"step_7.ckpt is not written: {name}") as error:
        files.save_checkpoint({**CONTENT, **entry}, path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["step_7.ckpt"]


def test_what_can_be_read_is_written(tmp_path: Path) -> None:
    """Values that torch's safe reader takes, and a container that contains itself twice."""
    shared = [1, 2.5]
    content = {
        **CONTENT,
        "loops": {"a": shared, "b": shared, "d": torch.float16, "s": {1, 2}, "c": 1 + 2j},
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "size": torch.Size([2]),
        "device": torch.device("cpu"),
        "bytes": b"abc",
    }
    PlainCheckpointIO().save_checkpoint(content, tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert found["loops"] == content["loops"]
    assert found["bytes"] == b"abc"


def test_the_check_does_not_read_tensors() -> None:
    """It takes what the structure takes: tensors that fill no memory would fill it if copied."""
    huge = {"w": torch.empty(1 << 40, device="meta"), "v": torch.zeros(1).expand(1 << 40)}
    check_readable({"state_dict": huge})


def test_pickle_of_a_checkpoint_names_few_functions(tmp_path: Path) -> None:
    """The files stay what every torch reads: the comment is outside of the zip's members."""
    PlainCheckpointIO().save_checkpoint(CONTENT, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.comment.startswith(b"autotimm xxh3 ")
        [name] = [n for n in archive.namelist() if n.endswith("data.pkl")]
        names = {
            arg for op, arg, _ in pickletools.genops(archive.read(name)) if op.name == "GLOBAL"
        }
    assert names <= {
        "torch._utils _rebuild_tensor_v2",
        "torch FloatStorage",
        "collections OrderedDict",
    }
