"""``report.html``: its numbers, its pictures, and that nothing in it comes alive or is loaded."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_folder import annotation, image, picture, write
from PIL import Image

from autotimm.cli import evaluate
from autotimm.evaluation import page, report

NASTY = "<b onclick='x'>&amp; \"star\" </script>"
WORST = "Images with mistakes, the worst first"
VOID = {"meta", "link", "img"}
SVG = {"path", "polyline"}


class Parsed(HTMLParser):
    """The tables, texts, addresses and pictures of a page; fails where tags do not match.

    Attributes:
        tables: rows of cells each, without captions.
        texts: of all else.
        addresses: of everything that a browser may load or go to.
        attributes: of each element, by its name.
    """

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.attributes.append((tag, given))
        self.addresses += [given[name] or "" for name in ("src", "href") if name in given]
        if tag in VOID:
            return
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] in (["td"], ["th"]):
            self.tables[-1][-1][-1] += data
        elif self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def pictures(self) -> list[str]:
        """The alternative texts of the pictures, all of which are JPEG files."""
        found = []
        for tag, given in self.attributes:
            if tag == "img":
                address = given["src"] or ""
                content = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
                assert Image.open(io.BytesIO(content)).format == "JPEG"
                found.append(given["alt"] or "")
        return found


def run(*words: object) -> int:
    return evaluate.run(evaluate.parser().parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of an image on which all is right, one with a disc taken for a star, and one
    with a star where nothing is annotated; classes and files have nasty names."""
    root = tmp_path_factory.mktemp("page")
    names = ("right.jpg", 'b<&">c.jpg', "alert(1)&lt;.jpg")
    images = [image(id=n, file_name=name) for n, name in enumerate(names, 1)]
    annotations = [annotation(id=n, image_id=n) for n in range(1, 4)]
    categories = [{"id": 3, "name": "disc"}, {"id": 7, "name": NASTY}]
    files = {name: picture() for name in names}
    folder = write(root / "coco", images, annotations, categories, files=files)
    box = {"bbox": [10, 8, 20, 20]}
    results = [
        {"image_id": 1, "category_id": 3, "score": 0.9, **box},
        {"image_id": 2, "category_id": 7, "score": 0.95, **box},
        {"image_id": 3, "category_id": 3, "score": 0.9, **box},
        {"image_id": 3, "category_id": 7, "score": 0.97, "bbox": [40, 30, 20, 10]},
        {"image_id": 3, "category_id": 7, "score": 0.2, "bbox": [0, 0, 5, 5]},
    ]
    (root / "r.json").write_text(json.dumps(results))
    words = ("--results", root / "r.json", "--data", folder, "--split", "train")
    assert run(*words, "--out", root / "out") == 0
    return root


@pytest.fixture(scope="module")
def parsed(made: Path) -> Parsed:
    return Parsed((made / "out" / "report.html").read_text())


def test_the_tables_are_those_of_metrics_json(made: Path, parsed: Parsed) -> None:
    written = json.loads((made / "out" / "metrics.json").read_text())
    overall, lost, by_class, confusion = parsed.tables
    assert by_class[0] == ["class", "objects", "box AP", "box AP50"]
    for row, one in zip(by_class[1:], written["box"]["classes"], strict=True):
        numbers = [f"{100 * one[key]:.1f}" if one[key] >= 0 else "-" for key in ("ap", "ap50")]
        assert row == [one["name"], str(one["instances"]), *numbers]
    assert overall[0] == ["", "box"]
    for name, value in overall[1:]:
        told = written["box"][name]
        assert value == (f"{100 * told:.1f}" if told >= 0 else "-")
    assert dict(lost[1:]) == {
        name: f"{100 * share:.1f}" for name, share in written["box"]["AP50_lost_to"].items()
    }
    assert confusion[0] == ["truth \\ found", *written["confusion"]["classes"]]
    assert [[int(cell) for cell in row[1:]] for row in confusion[1:]] == (
        written["confusion"]["matrix"]
    )
    # A share of the row gives the colour.
    shares = [
        given["style"] for tag, given in parsed.attributes if tag == "td" and "style" in given
    ]
    assert shares[:3] == ["--share: 0.400", "--share: 0.200", "--share: 0.000"]


def test_the_curves_are_those_of_the_evaluation() -> None:
    truth = {
        "images": [image(id=1), image(id=2, file_name="b.jpg")],
        "categories": [{"id": 3, "name": "disc"}],
        "annotations": [annotation(id=n, image_id=n, segmentation=...) for n in (1, 2)],
    }
    found = [{"image_id": 1, "category_id": 3, "score": 0.9, "bbox": [10, 8, 20, 20]}]
    content = Parsed(page.page(report.measure(truth, found), {}, []))
    lines = [given for tag, given in content.attributes if tag == "polyline"]
    # A class and three means, each with its key.
    [disc] = [one for one in lines if one["class"] == "of-class" and len(one["points"] or "") > 99]
    points = np.array([pair.split(",") for pair in (disc["points"] or "").split()], float)
    assert points.shape == (101, 2)
    x, y = points.T
    recall, precision = (x - x[0]) / (x[-1] - x[0]), (y[-1] - y) / (y[-1] - y[0])
    assert recall == pytest.approx(np.linspace(0, 1, 101), abs=1e-3)
    assert precision == pytest.approx(np.where(np.linspace(0, 1, 101) <= 0.5, 1, 0))
    assert {"disc: 0.50", "all classes, IoU 0.75: 0.50"} <= set(content.texts)


def test_worst_images_and_suspect_labels_are_shown(parsed: Parsed) -> None:
    wrong, extra = 'b<&">c.jpg', "alert(1)&lt;.jpg"
    worst = [f"{wrong}: 0 right, 1 wrong, 1 missed", f"{extra}: 1 right, 1 wrong, 0 missed"]
    taken = f"{NASTY} found with score 0.95, annotated as disc (annotation 2, IoU 1.00)"
    suspect = [f"{extra}: {NASTY} found with score 0.97, nothing annotated", f"{wrong}: {taken}"]
    assert parsed.pictures == [
        f"{title}: {caption}"
        for titles, captions in (
            (("prediction", "ground truth"), worst),
            (("found", "annotated"), suspect),
        )
        for caption in captions
        for title in titles
    ]
    assert {WORST, *worst, *suspect} <= set(parsed.texts)
    assert any("1 of 3 images have no mistake and are not shown" in word for word in parsed.texts)


def test_without_mistakes_there_is_no_worst_image_and_a_line_says_so(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [one for one in json.loads((made / "r.json").read_text()) if one["image_id"] == 1]
    folder = write(tmp_path / "coco", [image(file_name="a.jpg")], files={"a.jpg": picture()})
    (tmp_path / "r.json").write_text(json.dumps(results))
    words = ("--results", tmp_path / "r.json", "--data", folder, "--split", "train")
    assert run(*words, "--out", tmp_path / "out") == 0
    why = "no image has a mistake among detections with a score of at least 0.5"
    assert f"{why}, so there is no worst.png" in capsys.readouterr().out.splitlines()
    assert not (tmp_path / "out" / "worst.png").exists()
    there = Parsed((tmp_path / "out" / "report.html").read_text())
    assert f"There are none: {why}." in there.texts and there.pictures == []


def test_a_suspect_is_drawn_alone(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autotimm import visualize
    from autotimm.evaluation import truth

    drawn: list[Any] = []
    decoded: list[int] = []
    decode = truth.decode_image
    monkeypatch.setattr(
        truth, "decode_image", lambda data, *rest: decoded.append(len(data)) or decode(data, *rest)
    )
    draw = visualize.draw_instances

    def noted(picture: Any, boxes: Any, labels: Any, scores: Any, *rest: Any, **names: Any) -> Any:
        drawn.append((np.asarray(boxes).tolist(), list(labels), scores))
        return draw(picture, boxes, labels, scores, *rest, **names)

    monkeypatch.setattr(visualize, "draw_instances", noted)
    words = ("--results", made / "r.json", "--data", made / "coco", "--split", "train")
    assert run(*words, "--out", made / "again") == 0
    square, other = [10, 8, 30, 28], [40, 30, 60, 40]
    assert drawn[-4:] == [
        ([other], [1], [0.97]),
        ([square], [0], None),  # nothing is annotated there: all that is
        ([square], [1], [0.95]),
        ([square], [0], None),
    ]
    assert len(decoded) == 2  # each image once, though each is drawn twice
    names = ("report.html", "metrics.json")
    for name in names:
        assert (made / "again" / name).read_bytes() == (made / "out" / name).read_bytes()


def test_nothing_is_loaded_and_nothing_runs(made: Path, parsed: Parsed) -> None:
    for address in parsed.addresses:
        assert address.startswith(("data:image/jpeg;base64,", "#s")) or address == "data:,"
    tags = {tag for tag, _ in parsed.attributes}
    assert not tags & {"script", "b'", "iframe", "object", "form"}
    assert not any(name.startswith("on") for _, given in parsed.attributes for name in given)
    content = (made / "out" / "report.html").read_text()
    assert "url(" not in content and "@import" not in content and "http://" not in content
    [policy] = [
        given["content"]
        for tag, given in parsed.attributes
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None and policy.startswith("default-src 'none'")
    for link in (one for one in parsed.addresses if one.startswith("#")):
        assert link[1:] in [given.get("id") for _, given in parsed.attributes]


def test_every_word_is_escaped_and_without_secrets() -> None:
    odd = f"{NASTY}\x00\x1b[31m\ufffe \u202e"
    truth = {
        "images": [image(file_name=odd)],
        "categories": [{"id": 3, "name": odd}],
        "annotations": [annotation(segmentation=...)],
    }
    measured = report.measure(truth, [])
    odd += "\ud800"  # of a file's name that is no UTF-8
    measured.remarks.append(odd)
    shown = page.Shown(odd, (odd, odd), (b"", b""))
    url = "https://me:hunter2xyz@example.com/a.ckpt?X-Amz-Signature=0123abcdef0123abcdef"
    facts = {odd: odd, "checkpoint": url}
    content = page.page(measured, facts, [page.Gallery(odd, odd, [shown])])
    content.encode()  # no lone surrogate is left
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", content)
    assert "hunter2xyz" not in content and "0123abcdef" not in content
    there = Parsed(content)
    assert not any("onclick" in given for _, given in there.attributes)
    plain = f"{NASTY}\ufffd\ufffd[31m\ufffd \u202e"
    assert sum(f"{plain}\ufffd" in word for word in there.texts) == 9
    assert there.tables[2][1][0] == there.tables[3][0][1] == plain


def test_pictures_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = {"images": [image()], "categories": [{"id": 3, "name": "a"}], "annotations": []}
    measured = report.measure(truth, [])
    shown = [page.Shown(f"number {n}", ("left", "right"), (bytes(3000),) * 2) for n in range(9)]
    galleries = [page.Gallery("Worst", "", shown[:6]), page.Gallery("Suspect", "", shown[6:])]
    assert page.page(measured, {}, galleries).count("<img") == 18
    monkeypatch.setattr(page, "MOST_BYTES", 3 * 2**13 + 8000)  # three pairs of twice 4,000 bytes
    content = page.page(measured, {}, galleries)
    assert content.count("<img") == 6
    assert "3 more are not shown" in content


def test_without_images_there_are_no_pictures(made: Path, tmp_path: Path) -> None:
    [truth] = (made / "coco").rglob("*.json")
    words = ("--results", made / "r.json", "--annotations", truth)
    assert run(*words, "--out", tmp_path / "out") == 0
    there = Parsed((tmp_path / "out" / "report.html").read_text())
    assert there.pictures == []
    assert any("give --images or --data to see them here" in word for word in there.texts)
    assert str(truth) in there.texts
    words = ("--results", made / "r.json", "--data", made / "coco", "--split", "train")
    assert run(*words, "--worst", 0, "--out", tmp_path / "none") == 0
    there = Parsed((tmp_path / "none" / "report.html").read_text())
    assert there.pictures == [] and WORST not in there.texts


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_whole_and_says_nothing(made: Path, tmp_path: Path, width: int) -> None:
    """Also on a phone: no wider than the window, and no picture is missing.

    The page runs no script, so that one around it asks the browser; ``--dump-dom`` prints what it
    found. A frame may be narrower than the windows that chromium opens.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium here (apt-get install chromium)")
    (tmp_path / "around.html").write_text(
        f"""<!doctype html><body><iframe src="{(made / "out" / "report.html").as_uri()}"
        width="{width}" height="900"></iframe><pre></pre><script>
        onload = () => {{
          const there = frames[0].document;
          for (const picture of there.images) picture.loading = "eager";
          setTimeout(() => {{
            document.querySelector("pre").textContent = JSON.stringify({{
              wide: there.documentElement.scrollWidth,
              seen: [...there.images].map((one) => one.naturalWidth),
              titles: [...there.querySelectorAll("h2")].map((one) => one.textContent),
              lines: there.querySelectorAll(".curves > svg polyline").length,
            }});
          }}, 500);
        }};
        </script>"""
    )
    done = subprocess.run(
        [
            *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--allow-file-access-from-files", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"),
            (tmp_path / "around.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = re.search("<pre>(.+)</pre>", done.stdout)
    assert found is not None, done.stderr
    told = json.loads(found[1])
    assert told["wide"] <= width
    assert told["seen"] == [640] * 8
    assert told["titles"][-2:] == [WORST, "Suspect labels"]
    assert told["lines"] == 4
