"""Names of image files as tools write them: found in the image folder, never outside, counted."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from coco_folder import image, picture, write

from autotimm.coco import index as coco
from autotimm.images.names import ImageFolder

NFC = unicodedata.normalize("NFC", "prüfung.jpg")
NFD = unicodedata.normalize("NFD", "prüfung.jpg")


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


# (name given, files there, the one it means, part of what is said to be mended)
FOUND = {
    "the split's folders in front": ("images/train/x.jpg", ["x.jpg"], "x.jpg", "own name"),
    "one of them": ("train/x.jpg", ["x.jpg"], "x.jpg", "own name"),
    "a folder that is not there": ("data/x.jpg", ["x.jpg"], "x.jpg", "folders that the image"),
    "two of them": ("./data/new/x.jpg", ["x.jpg"], "x.jpg", "folders that the image"),
    "a folder is missing": ("x.jpg", ["sub/deep/x.jpg"], "sub/deep/x.jpg", "lacks its file's"),
    "up and down again": ("../images/x.jpg", ["x.jpg"], "x.jpg", "folders that the image"),
    "through a folder": ("sub/../x.jpg", ["x.jpg"], "x.jpg", "'.' or '..'"),
    "from elsewhere": ("/home/me/set/train/x.jpg", ["x.jpg"], "x.jpg", "from elsewhere"),
    "from Windows": ("D:\\set\\x.jpg", ["x.jpg"], "x.jpg", "backslashes"),
    "from a drive": ("D:/set/x.jpg", ["x.jpg"], "x.jpg", "from elsewhere"),
    "from elsewhere, deeper": ("/a/sub/x.jpg", ["sub/x.jpg", "x.jpg"], "sub/x.jpg", "elsewhere"),
    "from elsewhere, unique": ("/a/b/x.jpg", ["sub/x.jpg"], "sub/x.jpg", "from elsewhere"),
    "NFC": (NFC, [NFD], NFD, "Unicode form"),
    "NFD": (NFD, [NFC], NFC, "Unicode form"),
    "NFC in a folder": (f"train/{NFC}", [NFD], NFD, "own name"),
    "extension": ("x.jpg", ["x.JPG"], "x.JPG", "extension is in another case"),
    "case": ("img_1.jpg", ["IMG_1.JPG"], "IMG_1.JPG", "in another case"),
    "case of a folder": ("sub/x.jpg", ["Sub/x.jpg"], "Sub/x.jpg", "in another case"),
    "encoded": ("a%20b%C3%BC.jpg", ["a bü.jpg"], "a bü.jpg", "percent-encoded"),
    "encoded on disk": ("a b.jpg", ["a%20b.jpg"], "a%20b.jpg", "percent-encoded"),
    "a true percent sign, encoded": ("50%25.jpg", ["50%.jpg"], "50%.jpg", "percent-encoded"),
    "file URL": ("file:///data/set/a%20b.jpg", ["a b.jpg"], "a b.jpg", "URL"),
    "signed URL": ("https://b.example/k/x.jpg?X-Amz-Date=1&d=y.jpg", ["x.jpg"], "x.jpg", "URL"),
    "bucket": ("s3://bucket/set/sub/x.jpg", ["sub/x.jpg"], "sub/x.jpg", "URL"),
    "local files": ("/data/local-files/?d=set/a%20b.jpg", ["a b.jpg"], "a b.jpg", "URL"),
    "local files on a host": (
        "http://localhost:8080/data/local-files/?d=set/x.jpg",
        ["x.jpg"],
        "x.jpg",
        "URL",
    ),
    "upload's prefix": ("a1b2c3d4-x.jpg", ["x.jpg"], "x.jpg", "upload"),
    "upload's path": ("/data/upload/3/a1b2c3d4-x.jpg", ["x.jpg"], "x.jpg", "upload"),
    "upload's prefix on disk": ("x.jpg", ["a1b2c3d4-x.jpg"], "a1b2c3d4-x.jpg", "upload"),
    "a UUID in front": (
        "0a1b2c3d-1234-4aaa-8bbb-0123456789ab_x.jpg",
        ["x.jpg"],
        "x.jpg",
        "upload",
    ),
    "query": ("sub/x.jpg?v=2&sig=a%2Fb", ["sub/x.jpg"], "sub/x.jpg", "query"),
    "blanks": (" x.jpg\n", ["x.jpg"], "x.jpg", "blanks"),
    "quotes": ('"sub/x.jpg"', ["sub/x.jpg"], "sub/x.jpg", "quotes"),
    "no extension": ("im.07", ["im.07.PNG"], "im.07.PNG", "extension"),
    "another extension": ("train/x.png", ["x.jpg", "x.txt"], "x.jpg", "extension"),
    "beside its mask": ("x.bmp", ["x.jpg", "SegmentationClass/x.png"], "x.jpg", "extension"),
    "jpeg": ("x.jpeg", ["sub/x.jpg"], "sub/x.jpg", "extension"),
    "Roboflow's name": ("x_png.rf.0a9f3c.jpg", ["x.png"], "x.png", "upload"),
    "Roboflow's name on disk": (
        "x.jpg",
        ["x_jpg.rf.0a9F.jpg"],
        "x_jpg.rf.0a9F.jpg",
        "upload",
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_a_name_means(tmp_path: Path, case: str) -> None:
    name, files, expected, mended = FOUND[case]
    root = folder(tmp_path / "images" / "train", "other.jpg", *files)
    match = ImageFolder(root).find(name)
    assert match.name == expected and mended in (match.mended or "")
    assert (root / match.name).read_bytes() == expected.encode()


def test_pictures_of_masks_that_people_wear_are_images(tmp_path: Path) -> None:
    root = folder(tmp_path, "with_mask/x.png", "without_mask/y.png", "notes.txt")
    assert ImageFolder(root).find("x.png").name == "with_mask/x.png"


@pytest.mark.parametrize("name", ["50%.jpg", "a%20b.jpg", "a b.jpg", "a1b2c3d4-x.jpg", "#?.jpg"])
def test_a_name_that_is_there_means_itself(tmp_path: Path, name: str) -> None:
    names = ("50%.jpg", "a%20b.jpg", "a b.jpg", "a1b2c3d4-x.jpg", "x.jpg", "#?.jpg", NFC, NFD)
    listing = ImageFolder(folder(tmp_path, *names))
    for one in (name, NFC, NFD):
        match = listing.find(one)
        assert (match.name, match.mended, match.doubt) == (one, None, None)


def test_absolute_names_inside_of_the_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "real" / "train", "x.jpg", "sub/y.jpg")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    for place in (root, link / "train"):
        listing = ImageFolder(place)
        for base in (root, link / "train"):
            for name in ("x.jpg", "sub/y.jpg"):
                match = listing.find(str(base / name))
                assert match.name == name and match.doubt is None
                assert "absolute path in the image folder" in (match.mended or "")


REFUSED = {
    "two files of one base name": ("/a/x.jpg", ["b/x.jpg", "c/x.jpg"], "fits several files"),
    "two cases": ("x.jpg", ["X.jpg", "x.JPg", "x.jPG"], "fits several files"),
    "two uploads": ("x.jpg", ["a1b2c3d4-x.jpg", "b1b2c3d4-x.jpg"], "fits several files"),
    "its folder is there": ("sub/x.jpg", ["sub/y.jpg", "x.jpg"], "missing"),
    "its folder is there, behind the own name": ("train/sub/x.jpg", ["sub/y", "x.jpg"], "missing"),
    "nothing like it": ("x.jpg", ["y.jpg", "ax.jpg"], "missing"),
    "two extensions": ("x.bmp", ["x.jpg", "old/x.png"], "fits several files"),
    "its mask beside others": ("x.jpg", ["y.jpg", "y.png", "x.png"], "missing"),
    "its mask in a folder": ("x.png", ["y.png", "Masks/x.png"], "missing"),
    "its mask in a folder, without extension": ("x", ["y.jpg", "gt_images/a/x.png"], "missing"),
    "no picture": ("x.jpg", ["x.txt", "x.json", "x"], "missing"),
    "query of a secret": ("../secret.jpg?x=1", ["x.jpg"], "missing|leaves"),
    "not a prefix": ("a1b2c3d4x.jpg", ["x.jpg"], "missing"),
    "secret": ("../secret.jpg", ["x.jpg"], "leaves the image folder"),
    "encoded secret": ("..%2Fsecret.jpg", ["x.jpg"], "missing"),
    "URL of a secret": ("file:///etc/secret.jpg", ["x.jpg"], "missing"),
    "link of another case": ("LINK.jpg", ["x.jpg"], "link leaves the image folder"),
    "link in front": ("train/link.jpg", ["x.jpg"], "link leaves the image folder"),
    "link as upload": ("a1b2c3d4-link.jpg", ["x.jpg"], "link leaves the image folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_mean_no_file(tmp_path: Path, case: str) -> None:
    name, files, reason = REFUSED[case]
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    root = folder(tmp_path / "train", *files)
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(ValueError, match=reason):
        ImageFolder(root).find(name)


SECRETS = ("secret.jpg", "SECRET.jpg", "out.jpg", "a1b2c3d4-out.jpg", "secret.jpg?", "out ")


def test_no_name_leads_outside(tmp_path: Path) -> None:
    """Whatever is written in front of or behind it, and however it is encoded."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    root = folder(tmp_path / "train", "x.jpg", "sub/y.jpg")
    (root / "out").symlink_to(tmp_path)
    (root / "sub" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    fronts = ["", "/", "../", "out/", "sub/", "sub/../../", "file://", "file:///", f"{tmp_path}/"]
    fronts += [f"{root}/", f"{root}/../", "/data/local-files/?d=../", "C:\\", "..\\", "%2e%2e/"]
    listing = ImageFolder(root)
    for front in fronts:
        for middle in fronts:
            for name in (
                "secret.jpg",
                "SECRET.jpg",
                "out.jpg",
                "a1b2c3d4-out.jpg",
                "secret.png?",
                "out ",
            ):
                with pytest.raises(ValueError, match=r"missing|leaves the image folder"):
                    listing.find(front + middle + name)


def names(root: Path, given: list[str], files: list[str]) -> tuple[list[str], dict[str, int]]:
    """What a COCO file with these names comes to: the files of its images, what is counted."""
    images: list[Any] = [image(id=n, file_name=name) for n, name in enumerate(given, 1)]
    write(root, images, [], files={name: picture() for name in files})
    index = coco.load(root / "annotations/instances_train.json", root / "train")
    assert [index.image_id(i) for i in range(len(index))] == [
        n for n, name in enumerate(given, 1) if index_has(index, n)
    ]
    return [index.file_name(i) for i in range(len(index))], index.problems.counts


def index_has(index: coco.CocoIndex, id_: int) -> bool:
    return id_ in [index.image_id(i) for i in range(len(index))]


def test_two_entries_never_come_to_one_file_unseen(tmp_path: Path) -> None:
    found, counts = names(
        tmp_path,
        # Two that may mean x.jpg; one that may mean y.jpg, which another has; one that is sure.
        ["a/x.jpg", "b/x.jpg", "c/y.jpg", "y.jpg", "d/z.jpg", "./y.jpg"],
        ["x.jpg", "y.jpg", "z.jpg"],
    )
    assert found == ["y.jpg", "z.jpg", "./y.jpg"]
    assert counts == {
        "image file missing (image left out)": 3,
        "file_name has folders that the image folder lacks (left off)": 1,
        "file_name occurs twice (both images kept)": 1,
    }


def test_annotations_follow_their_images(tmp_path: Path) -> None:
    from coco_folder import annotation

    given = ["a/x.jpg", "b/x.jpg", "y.jpg", "c/z.jpg"]
    images = [image(id=n, file_name=name) for n, name in enumerate(given, 1)]
    annotations = [annotation(id=n, image_id=n) for n in range(1, 5)]
    files = {name: picture() for name in ("x.jpg", "y.jpg", "z.jpg")}
    write(tmp_path, images, annotations, files=files)
    index = coco.load(tmp_path / "annotations/instances_train.json", tmp_path / "train")
    records = [index.record(i) for i in range(len(index))]
    assert [(r["file_name"], [a["id"] for a in r["annotations"]]) for r in records] == [
        ("y.jpg", [3]),
        ("z.jpg", [4]),
    ]
    assert index.problems.counts["annotation of an image that is left out (left out)"] == 2


def test_names_that_are_there_are_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ordinary data cost one listing a folder, whatever else lies below."""
    root = folder(tmp_path, "x.jpg", "sub/y.jpg")
    monkeypatch.setattr(os, "walk", None)
    listing = ImageFolder(root)
    assert [listing.find(name).name for name in ("x.jpg", "sub/y.jpg")] == ["x.jpg", "sub/y.jpg"]
