"""The images and categories of a file: what they may be called, which are left out or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coco_folder import annotation, image, picture, write
from coco_read import load, read

from autotimm.coco import index as coco
from autotimm.coco.checks import Problems
from autotimm.structures import InputError


def refused(root: Path, **content: Any) -> str:
    with pytest.raises(InputError) as error:
        load(root, **content)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"file_name": ...}, "no file_name"),
        ({"file_name": 7}, "no file_name"),
        ({"file_name": "../secret.jpg"}, "file_name leaves the image folder"),
        ({"file_name": "sub/../../secret.jpg"}, "file_name leaves the image folder"),
        ({"file_name": "/etc/hosts"}, "file_name leaves the image folder"),
        ({"file_name": ".."}, "file_name leaves the image folder"),
        ({"file_name": "a\0.jpg"}, "file_name holds a NUL character"),
        ({"file_name": "\ud800.jpg"}, "no file_name"),
        ({"file_name": "sub"}, "image file missing"),
        ({"file_name": "gone/x.jpg"}, "image file missing"),
        ({"file_name": "link.jpg"}, "link leaves the image folder"),
        ({"file_name": "linked/secret.jpg"}, "link leaves the image folder"),
        ({"file_name": "loop.jpg"}, "image cannot be opened"),
        ({"file_name": "loop.jpg/x.jpg"}, "image file missing"),
        ({"file_name": "x" * 300 + "/x.jpg"}, "image file missing"),
        ({"id": ...}, "image id is neither a number nor text"),
        ({"id": True}, "image id is neither a number nor text"),
        ({"width": True}, "width or height is not a sane whole number"),
        ({"width": "wide"}, "width or height is not a sane whole number"),
        ({"height": 48.5}, "width or height is not a sane whole number"),
        ({"height": 10**12}, "width or height is not a sane whole number"),
        ({"width": 214747, "height": 10000}, "width or height is not a sane whole number"),
        ({"width": 2**20 + 1, "height": 1}, "width or height is not a sane whole number"),
        ({"file_name": "broken.jpg", "width": ...}, "image cannot be opened"),
    ],
)
def test_images_left_out(tmp_path: Path, changes: dict, kind: str) -> None:
    files = {"a.jpg": picture(), "sub/b.jpg": picture(), "broken.jpg": b"not an image"}
    (tmp_path / "secret.jpg").write_bytes(picture())
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "train" / "linked").symlink_to(tmp_path)
    (tmp_path / "train" / "loop.jpg").symlink_to("loop.jpg")
    images = [image(id=7), image(**changes)]
    records, problems = read(tmp_path, images=images, annotations=[], files=files)
    assert [r["image_id"] for r in records] == [7]
    assert problems == {f"{kind} (image left out)": 1}


@pytest.mark.parametrize(
    ("changes", "found", "kind"),
    [
        ({"file_name": "sub\\b.jpg"}, "sub/b.jpg", "has backslashes (taken for slashes)"),
        ({"file_name": ".\\a.jpg"}, "./a.jpg", "has backslashes (taken for slashes)"),
        ({"file_name": "train\\a.jpg"}, "a.jpg", "has the image folder's own name (left off)"),
        (
            {"file_name": "train/sub/b.jpg"},
            "sub/b.jpg",
            "has the image folder's own name (left off)",
        ),
        ({"file_name": "c.jpg"}, "c.JPG", "'s extension is in another case (file's taken)"),
        ({"file_name": "sub/D.PNG"}, "sub/D.png", "'s extension is in another case (file's taken)"),
        ({"file_name": "train/c.Jpg"}, "c.JPG", "has the image folder's own name (left off)"),
    ],
)
def test_file_names_of_other_machines(tmp_path: Path, changes: dict, found: str, kind: str) -> None:
    files = {name: picture() for name in ("a.jpg", "c.JPG", "sub/b.jpg", "sub/D.png")}
    index = load(tmp_path, images=[image(**changes)], files=files)
    assert (tmp_path / "train" / found).samefile(index.image_path(0))
    assert index.file_name(0) == index.record(0)["file_name"] == found
    name = changes["file_name"]
    space = "" if kind.startswith("'") else " "
    assert index.problems.lines() == [f"file_name{space}{kind}: 1 ({name})"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("..\\secret.jpg", "file_name leaves the image folder"),
        ("sub\\..\\..\\secret.jpg", "file_name leaves the image folder"),
        ("C:\\x\\a.jpg", "file_name leaves the image folder"),
        ("C:/x/a.jpg", "file_name leaves the image folder"),
        ("\\\\server\\a.jpg", "file_name leaves the image folder"),
        ("train/../../secret.jpg", "file_name leaves the image folder"),
        ("linked\\secret.jpg", "link leaves the image folder"),
        ("link.JPG", "link leaves the image folder"),
        ("train/link.jpg", "link leaves the image folder"),
        ("two.jpg", "file_name fits several files"),
        ("A.jpg", "image file missing"),
        ("train/x.jpg", "image file missing"),
        ("file:///a.jpg", "image file missing"),
    ],
)
def test_file_names_that_nothing_mends(tmp_path: Path, name: str, reason: str) -> None:
    files = {"a.jpg": picture(), "two.JPG": picture(), "two.Jpg": picture(), "sub/b.jpg": b""}
    (tmp_path / "secret.jpg").write_bytes(picture())
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "train" / "linked").symlink_to(tmp_path)
    entries = [image(), image(id=2, file_name=name)]
    index = load(tmp_path, images=entries, annotations=[], files=files)
    assert index.problems.lines() == [f"{reason} (image left out): 1 ({name})"]


@pytest.mark.parametrize("file", ["train2017/7.jpg", "7.jpg"])
def test_lvis_has_urls_instead_of_file_names(tmp_path: Path, file: str) -> None:
    url = "http://images.example.org/train2017/7.jpg"
    odd = [image(id=n, file_name=..., coco_url=u) for n, u in enumerate(["x/8.jpg", "../a", 5], 2)]
    lvis = image(file_name=..., coco_url=url, neg_category_ids=[3], not_exhaustive_category_ids=[])
    index = load(
        tmp_path,
        images=[lvis, *odd],
        annotations=[annotation(iscrowd=...)],
        files={file: picture()},
    )
    problems = Problems()
    assert index.record(0, problems)["file_name"] == file and len(index) == 1
    assert index.problems.counts == {
        "no file_name (coco_url's taken)": 1,
        "no file_name, and no file as its coco_url has it: write file_name (image left out)": 2,
        "no file_name (image left out)": 1,
    }
    assert problems.counts == {"iscrowd missing (0 taken)": 1}


@pytest.mark.parametrize(
    "key", ["path", "filename", "url", "coco_url", "name", "image", "img_path"]
)
@pytest.mark.parametrize("front", ["", "/home/me/set/", "https://host/bucket/"])
def test_a_file_name_under_another_key_is_found(tmp_path: Path, key: str, front: str) -> None:
    for absent in (..., None, " "):
        other = image(file_name=absent, **{key: f"{front}a.jpg"})
        records, problems = read(tmp_path, images=[other])
        assert records[0]["file_name"] == "a.jpg"
        assert problems == {f"no file_name ({key}'s taken)": 1}


def test_annotations_inside_of_images_are_told(tmp_path: Path) -> None:
    images = [image(annotations=[annotation()]), image(id=2, annotations=[])]
    index = load(tmp_path, images=images, annotations=[])
    kind = "image entry has annotations in it, where COCO has none (these are not read)"
    assert index.problems.counts[kind] == 1


def test_urls_of_two_folders_are_no_single_file(tmp_path: Path) -> None:
    images = [image(id=n, file_name=..., url=f"http://h/{n}/a.jpg") for n in (1, 2)]
    images.append(image(id=3, file_name=..., url="http://h/3/b.jpg"))
    files = {"a.jpg": picture(), "b.jpg": picture()}
    index = load(tmp_path, images=images, annotations=[], files=files)
    assert [index.file_name(i) for i in range(len(index))] == ["b.jpg"]
    assert index.problems.counts == {
        "no file as its url has it, and of that name another image's: write file_name (image left "
        "out)": 2,
        "no file_name (url's taken)": 1,
    }


@pytest.mark.parametrize("unknown", [0, -1, "0", "", None, ...])
def test_a_size_that_the_exporter_did_not_know_is_the_pictures(
    tmp_path: Path, unknown: Any
) -> None:
    records, problems = read(tmp_path, images=[image(width=unknown, height=unknown)])
    assert (records[0]["width"], records[0]["height"]) == (64, 48)
    assert problems == {"width or height missing (picture's taken)": 1}


def test_odd_categories_with_one_reading_are_counted(tmp_path: Path) -> None:
    categories = [{"id": 3, "name": 7}, {"id": 4, "name": "b"}, {"id": "4", "name": "b"}]
    index = load(tmp_path, categories=categories)
    assert [(one.id, one.name) for one in index.categories] == [(3, "7"), (4, "b")]
    assert index.problems.counts == {
        "category's name is a number (taken as text)": 1,
        "category is listed twice (taken once)": 1,
    }


def test_file_names_that_occur_twice_are_kept_and_counted(tmp_path: Path) -> None:
    images = [image(), image(id=2), image(id=3, file_name="b.jpg")]
    records, problems = read(
        tmp_path,
        images=images,
        annotations=[annotation(), annotation(id=2, image_id=2)],
        files={"a.jpg": picture(), "b.jpg": picture()},
    )
    assert [len(record["annotations"]) for record in records] == [1, 1, 0]
    assert problems == {"file_name occurs twice (both images kept)": 1}


def test_links_and_folders_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "train").symlink_to(tmp_path / "elsewhere")  # the user's own choice of a folder
    (tmp_path / "train" / "b.jpg").symlink_to("deep/a.jpg")
    names = ["deep/a.jpg", "b.jpg"]
    images = [image(id=n, file_name=name) for n, name in enumerate(names)]
    records, problems = read(
        tmp_path, images=images, annotations=[], files={"deep/a.jpg": picture()}
    )
    assert [r["file_name"] for r in records] == names and not problems


def test_missing_size_is_the_pictures_as_it_is_shown(tmp_path: Path) -> None:
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6
    records, problems = read(
        tmp_path,
        images=[image(width=...), image(id=2, file_name="b.jpg", height=None)],
        files={"a.jpg": picture(), "b.jpg": picture(exif=turned.tobytes())},
    )
    assert [(r["width"], r["height"]) for r in records] == [(64, 48), (48, 64)]
    assert problems == {"width or height missing (picture's taken)": 2}


def test_labels_are_contiguous_by_id_and_keep_the_unused(tmp_path: Path) -> None:
    index = load(tmp_path, categories=[{"id": i, "name": f"c{i}"} for i in (90, 3, 0, 17)])
    assert [c.id for c in index.categories] == [0, 3, 17, 90]
    assert coco.label_of(reversed(index.categories)) == {0: 0, 3: 1, 17: 2, 90: 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("", "not a JSON file"),
        ("\x00\xff", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "not a COCO file: it holds a list, not an object"),
        ('"text"', "it holds text, not an object"),
        ("7", "it holds a number, not an object"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer: git lfs pull"),
        ("<!DOCTYPE html>", "not a JSON file: XML or HTML"),
        ('{"images": []}\n{"images": []}\n', "it is JSON Lines, an object a line"),
        ('{"images": [1, 2],}', "JSON has neither comments nor commas behind the last value"),
        ('// made by hand\n{"images": []}', "JSON has neither comments nor commas behind"),
        ('{"version": "5", "shapes": [], "imagePath": "a.jpg"}', "it holds labelme's annotations"),
        (
            '{"a.jpg": {"filename": "a.jpg", "regions": [{"shape_attributes": {}}]}}',
            "it has no 'images'; it holds VGG Image Annotator's JSON: its Annotation > Export",
        ),
        (
            '{"images": [], "categories": [{}], "annotations": [{}], "annotations": []}',
            "has 'annotations' twice, and readers of JSON take the last alone: join the two lists",
        ),
        (
            '{"images": [{}], "categories": [], "images" : [], "annotations": []}',
            "has 'images' twice",
        ),
        ('{"images": [], "categories": []}', "no 'annotations'"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is not a list"),
        ('{"images": [], "annotations": [], "categories": []}', "'categories' is empty"),
    ],
)
def test_files_that_are_not_coco(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        coco.load(file, tmp_path / "train")
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(coco.load(file, tmp_path / "train")) == 1


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "'b' has id 1, which 'a' has"),
        ([{"name": "a"}], "no 'id', a number or text"),
        ([{"id": 1}], "no 'name'"),
        ([{"id": 1, "name": "\ud800"}], "no 'name'"),
        (["a"], "not an object"),
    ],
)
def test_odd_categories_are_refused(tmp_path: Path, categories: list, message: str) -> None:
    assert message in refused(tmp_path, categories=categories)


def test_nothing_left_to_read_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, images=[image(file_name="x.jpg"), image(id=2, file_name="y.jpg")])
    assert "image file missing (image left out): 2 (x.jpg, y.jpg)" in message
    assert "it lists none" in refused(tmp_path, images=[])
    with pytest.raises(InputError, match=r"nowhere: no such folder, but .*train\.json"):
        coco.load(tmp_path / "annotations" / "instances_train.json", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"gone\.json: cannot be read: No such file"):
        coco.load(tmp_path / "gone.json", tmp_path)


def test_names_of_classes_that_are_about_the_same_are_told(tmp_path: Path) -> None:
    """Typed by hand, or of files that were joined: each is a class of its own."""
    names = ["Car", "car ", "CAR", "traffic light", "traffic_light", "cart", "_background_"]
    names += ["Ignored regions", "DontCare"]
    categories: list[dict[str, Any]] = [{"id": n, "name": name} for n, name in enumerate(names)]
    categories[5]["deleted"] = True
    index = load(tmp_path, categories=categories, annotations=[annotation(category_id=0)])
    assert [category.name for category in index.categories] == names
    assert index.problems.lines() == [
        "category is marked as deleted (kept, as a class): 1 (cart (id 5))",
        "category has about the name of another (kept, as a class): 3 ('Car' and 'car ', 'Car' and "
        "'CAR', 'traffic light' and 'traffic_light')",
        "category is called background (kept, as a class): 1 (id 6)",
        "category is of regions to be ignored, by its name (kept, as a class; annotations with "
        "ignore: 1 are not trained on): 2 ('Ignored regions' (id 7), 'DontCare' (id 8))",
    ]
