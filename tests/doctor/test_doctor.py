"""``autotimm doctor`` tells what is wrong, and nothing else."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folder import annotation, image, picture, write
from huggingface_hub import constants
from PIL import Image

from autotimm.cli import doctor as verb
from autotimm.doctor import machine, run
from autotimm.doctor.weights import weights
from autotimm.models import hub
from autotimm.sharding import cli
from autotimm.structures import InputError

SAMPLE = Path(__file__).parents[2] / "shards/sample"
SMALL = Path(__file__).parents[2] / "launch/small_cpu.yaml"


def levels(found: list[machine.Finding]) -> dict[str, str]:
    return {one.name: one.level for one in found}


def failing(found: list[machine.Finding]) -> list[str]:
    return [one.name for one in found if one.level == "fail"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLE, tmp_path / "shards"))


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = verb.run(verb.parser().parse_args([*words, "--json"]))
    return code, {one["name"]: one for one in json.loads(capsys.readouterr().out)}


def test_packages_are_those_installed() -> None:
    found = {one.name: one for one in machine.packages()}
    for name in ("torch", "lightning", "timm", "pycocotools"):
        assert found[name] == ("ok", name, importlib.metadata.version(name), "")
    assert "pytest" not in found


def test_a_missing_an_old_and_an_optional_package(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "1.0", "s3fs": None, "timm": None}
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in versions and versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {one.name: one for one in machine.packages()}
    assert found["torch"].level == "fail" and found["torch"].text.startswith("1.0 is not")
    assert found["timm"].level == "fail" and "pip install 'timm" in found["timm"].remedy
    assert found["s3fs"].level == "ok" and "for s3: pip install 's3fs>=" in found["s3fs"].text


def test_a_driver_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "none")
    assert [one.level for one in machine.gpus()] == ["warn"]
    (tmp_path / "there").write_text("NVRM version: 1\n")
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "there")
    assert [one.level for one in machine.gpus()] == ["fail"]


def test_little_shared_memory_and_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(64 * 2**20, 0, 64 * 2**20))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    found = levels(machine.limits())
    assert found["shared memory"] == found["open files"] == "warn"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, 2**40))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert set(levels(machine.limits()).values()) == {"ok"}


def test_the_disk_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    assert "MB/s" in (text := machine.write_speed(tmp_path / "a/b").text) or "GB/s" in text
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").write_bytes(b"a" * 3_000_000)
    assert machine.read_speed(tmp_path, [tmp_path / "x"]).text.endswith("(3 MB)")
    assert machine.read_speed(tmp_path, [tmp_path / "y"]).level == "fail"


def test_a_slow_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._speed("disk", 100 * 2**20, 10.0).level == "warn"
    assert machine._speed("disk", 100 * 2**20, 0.1).level == "ok"
    assert machine._speed("disk", 1000, 10.0).level == "ok"  # of so little the start is most
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 1000))
    assert machine.write_speed(tmp_path)[:1] == ("fail",)
    assert "full" in machine.write_speed(tmp_path).text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert machine.write_speed(tmp_path).level == "fail"


def test_sound_data_and_damaged_ones(shards: Path, tmp_path: Path) -> None:
    assert failing(run.data(str(shards))) == []
    assert failing(run.data(str(tmp_path / "none"))) == ["data"]
    tar = next(shards.glob("train*.tar"))
    tar.write_bytes(tar.read_bytes()[:1000])
    assert failing(run.data(str(shards))) == ["split train"]
    manifest = shards / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"train"', '"other"'))
    assert failing(run.data(str(shards))) == ["data"]


def test_odd_data_are_a_warning(tmp_path: Path) -> None:
    images = [image(), image(id=2, file_name="gone.jpg")]
    found = run.data(str(write(tmp_path / "coco", images)))
    [split] = [one for one in found if one.name == "split train"]
    assert split.level == "warn" and "gone.jpg" in split.text and split.remedy


def test_roboflows_unused_class_is_said_and_no_warning(tmp_path: Path) -> None:
    roof = {"id": 0, "name": "things", "supercategory": "none"}
    discs = {"id": 3, "name": "disc", "supercategory": "things"}
    coco = write(tmp_path / "coco", categories=[roof, discs])
    found = next(one for one in run.data(str(coco)) if one.name == "split train")
    assert (found.level, found.remedy) == ("ok", "")
    assert "things (id 0)" in found.text


def odd_images() -> dict[str, bytes]:
    """Files of kinds that are easily misread, of 64 x 48 pixels unless named otherwise."""
    ramp = np.arange(64 * 48).reshape(48, 64)
    turned, upside_down = Image.Exif(), Image.Exif()
    turned[0x0112], upside_down[0x0112] = 6, 3
    plain, lying = Image.open(io.BytesIO(picture())), Image.open(io.BytesIO(picture(48, 64)))
    film = {"save_all": True, "append_images": [plain.rotate(180)]}
    images: list[tuple[str, Image.Image, dict]] = [
        ("12 bits.png", Image.fromarray(ramp.astype(np.uint16)), {}),
        ("floats.tif", Image.fromarray((ramp / 4096).astype(np.float32)), {}),
        ("integers.tif", Image.fromarray(ramp.astype(np.int32) * 1000), {}),
        ("no numbers.tif", Image.fromarray(np.full((48, 64), np.nan, np.float32)), {}),
        ("turned.jpg", lying, {"exif": turned}),
        ("upside down.png", plain, {"exif": upside_down}),
        ("turned.tif", lying, {"tiffinfo": {0x0112: 6}}),
        ("ink.jpg", plain.convert("CMYK"), {}),
        ("palette.png", plain.quantize(9), {}),
        ("grey and alpha.png", plain.convert("LA"), {}),
        ("film.gif", plain, film),
        ("film.webp", plain, film),
        ("two.mpo", plain, film),
        ("other size.jpg", plain.crop((0, 0, 64, 47)), {}),
    ]
    files = {"cut.jpg": picture()[:-500], "empty.jpg": b"", "page.jpg": b"<!DOCTYPE html>"}
    for name, one, options in images:
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.rpartition(".")[2].upper())
        one.save(file := io.BytesIO(), kind, **options)
        files[name] = file.getvalue()
    return files


@pytest.mark.parametrize("name", odd_images())
def test_it_says_of_an_image_what_shard_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    files = {"a.jpg": picture(), name: odd_images()[name]}
    images = [image(id=2), image(file_name=name)]
    coco = write(tmp_path / "coco", images, files=files, annotations=[annotation(image_id=2)])
    # It ends with an error where there is no range for pixels, say.
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(coco), "--dry-run", "--json", "--workers", "1"])
    assert not exit_.value.code
    [split] = json.loads(capsys.readouterr().out)["splits"].values()
    [found] = [one for one in run.data(str(coco)) if one.name == "split train"]
    for kind, of_kind in split["problems"].items():
        assert f"{kind}: {of_kind['count']} ({', '.join(of_kind['examples'])})" in found.text
    assert (found.level == "warn") == bool(split["problems"]) == bool(found.remedy)
    assert ("more than 8 bits a channel" in found.text) == bool(split["deep_images"])


def test_images_none_of_which_can_be_used_are_a_failure(tmp_path: Path) -> None:
    for size, told in (((48, 64), "are the picture's, but swapped"), ((64, 47), "are not the")):
        coco = write(tmp_path / "coco", [image(width=size[0], height=size[1])])
        [found] = [one for one in run.data(str(coco)) if one.name == "split train"]
        assert found.level == "fail" and f"width and height {told}" in found.text


def test_how_many_images_it_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [image(id=n, file_name=f"{n}.jpg") for n in range(1, 8)]
    files = {f"{n}.jpg": b"" if n == 1 else picture() for n in range(1, 8)}
    coco = write(tmp_path / "coco", images, files=files, annotations=[annotation(image_id=2)])
    monkeypatch.setattr(run, "_OPENED", 3)
    [found] = [one for one in run.data(str(coco)) if one.name == "split train"]
    assert "7 images" in found.text and "3 images were opened" in found.text
    assert "file is empty (0 bytes) (image left out): 1 (1.jpg)" in found.text


@pytest.mark.slow  # it is tried several times
def test_a_server_that_is_not_there() -> None:
    found = run.data("http://user:secret@127.0.0.1:9/shards?signature=hidden")
    assert failing(found) == ["data"]
    assert "secret" not in found[0].text and "hidden" not in found[0].text


@pytest.mark.parametrize(
    ("data", "trainer", "wrong"),
    [
        ({}, {}, {}),
        ({"train_split": "other"}, {}, {"config and data": "fail"}),
        ({"image_size": -1}, {}, {"config and data": "fail"}),
        ({"batch_size": 64}, {}, {"batch": "warn"}),
        ({"batch_size": 2}, {"num_nodes": 8}, {"batch": "warn"}),
        ({}, {"accelerator": "gpu", "devices": 4}, {"devices": "fail"}),
        ({}, {"strategy": "fsdp", "devices": 2, "accelerator": "cpu"}, {}),
        ({}, {"strategy": "fsdp2"}, {"strategy": "fail"}),
        ({}, {"precision": "16-mixed"}, {}),  # which goes on in 32-true
        ({}, {"precision": "16-mixed", "accelerator": "cpu"}, {"precision": "fail"}),
        ({}, {"accelerator": "zz"}, {"devices": "fail"}),
        ({"image_size": -1}, {"strategy": "no"}, {"config and data": "fail", "strategy": "fail"}),
        ({"num_workers": 10_000}, {}, {"workers": "warn"}),
    ],
)
def test_whether_a_config_suits(
    data: dict[str, object],
    trainer: dict[str, object],
    wrong: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(run.resources, "check_open_files", lambda *_: None)
    monkeypatch.setattr(run.resources, "check_shared_memory", lambda *_: None)
    given = {"data_dir": str(SAMPLE), "num_workers": 1, "batch_size": 1} | data
    trainer = {"accelerator": "auto", "devices": "auto"} | trainer
    found = levels(run.config(given, trainer))
    assert {name: level for name, level in found.items() if level != "ok"} == wrong


def test_an_epoch_with_repeated_images_is_told() -> None:
    given = {"data_dir": str(SAMPLE), "num_workers": 1, "repeat_threshold": 0.9}
    [epoch] = (f for f in run.config(given, {"accelerator": "cpu"}) if f.name == "epoch")
    assert epoch.level == "ok" and "samples of 8 images" in epoch.text
    assert not [f for f in run.config(given | {"repeat_threshold": 0}, {}) if f.name == "epoch"]


def test_memory_and_files_that_workers_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: object) -> None:
        raise InputError("too little: take more")

    monkeypatch.setattr(run.resources, "check_shared_memory", lacks)
    found = run.config({"data_dir": str(SAMPLE), "num_workers": 1}, {"accelerator": "cpu"})
    lacking = next(one for one in found if one.name == "memory of workers")
    assert lacking == ("fail", "memory of workers", "too little", "take more")


@pytest.mark.parametrize(
    ("devices", "count"), [("auto", 4), (-1, 4), (2, 2), ("3", 3), ([0, 2], 2), ("0,1,", 2)]
)
def test_devices_are_counted_as_lightning_does(devices: object, count: int) -> None:
    assert run._count(devices, 4) == count


def test_the_verb(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("--config", str(SMALL), "--data", str(SAMPLE), "--out", str(tmp_path))
    code, found = told(capsys, *words)
    assert code == 0
    assert found["config and data"]["text"] == "train, val: 4 classes at 320 x 320 pixels"
    code, found = told(capsys, "--data", str(tmp_path))
    assert code == 1 and found["data"]["level"] == "fail" and "config and data" not in found
    assert verb.run(verb.parser().parse_args([])) in (0, 1)  # as this machine is
    lines = capsys.readouterr().out.splitlines()
    begun = [line.split()[0] for line in lines[:-1] if not line.startswith(" ")]
    levels_shown = ("ok", "warn", "fail")
    assert lines[-1] == ", ".join(f"{begun.count(one)} {one}" for one in levels_shown)
    [packages] = (line for line in lines if line.startswith("ok   packages"))
    assert f"torch {torch.__version__.partition('+')[0]}" in packages
    assert len(lines) < 15


@pytest.mark.parametrize(
    ("model", "kept", "level", "words"),
    [
        (None, [], "warn", "no way; none is here"),
        (
            None,
            ["vit.a", "resnet50.a1_in1k"],
            "warn",
            "fetched before: resnet50.a1",
        ),
        ({"backbone": "resnet50"}, [], "fail", "no way, and those of resnet50 are not here"),
        ({"backbone": "resnet50"}, ["resnet50d.a"], "fail", "those of resnet50 are not here"),
        ({"backbone": "resnet50"}, ["resnet50.a1_in1k"], "ok", "those of resnet50 were fetched"),
        ({"backbone": "resnet50.a1_in1k"}, ["resnet50.a1_in1k"], "ok", "were fetched before"),
        ({"backbone": "resnet50.b_in1k"}, ["resnet50.a1_in1k"], "fail", "are not here"),
    ],
)
def test_weights_that_cannot_be_had(
    model: dict | None,
    kept: list[str],
    level: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "out_of_reach", lambda seconds: "no way" if seconds <= 4 else "")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in kept:
        snapshot = tmp_path / f"models--timm--{name}" / "snapshots" / "0123abcd"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").touch()
    for name in ("models--timm--vgg11", "models--other--resnet50/snapshots/0"):  # half fetched
        (tmp_path / name).mkdir(parents=True)
    [found] = weights(model)
    assert found.level == level and words in found.text
    assert (level == "ok") != ("--model.pretrained false" in found.remedy)
    monkeypatch.setattr(hub, "out_of_reach", lambda _: "")
    assert [one.level for one in weights(model)] == ["ok"]


@pytest.mark.parametrize("pretrained", [False, "weights.safetensors"])
def test_who_needs_no_weights_of_the_hub_does_not_wait_for_it(
    pretrained: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "out_of_reach", lambda _: pytest.fail("asked the hub"))
    assert weights({"backbone": "resnet50", "pretrained": pretrained}) == []


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("data: {image_sizes: 3}\n")
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe")
    for name in ("none.yaml", "wrong.yaml", "latin.yaml"):
        with pytest.raises(InputError):
            verb.run(argparse.Namespace(config=str(tmp_path / name), data=None, out=None, json=0))
