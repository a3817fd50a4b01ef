"""No secret of a URL leaves the process: all verbs, all places that take a URL, twelve forms.

A server refuses each request and puts the request into its reason, as some do. What is searched:
both streams, the names and the bytes of all files that the process has left.
"""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import forked
import pytest
from conftest import SAMPLE
from servers import serve

from autotimm.files import urls

FORMS = {  # what stands before and behind the host, and what must not be seen
    "plain": ("me:Hunter2xyz@", "", "Hunter2xyz"),
    "question mark": ("me:Hunt?er2xyz@", "", "er2xyz"),
    "hash": ("me:Hunt#er2xyz@", "", "er2xyz"),
    "slash": ("me:Hunt/er2xyz@", "", "er2xyz"),
    "at": ("me:Hunt@er2xyz@", "", "er2xyz"),
    "colon": ("me:Hunt:er2xyz@", "", "er2xyz"),
    "percent": ("me:Hunt%2Fer2%xyz@", "", "Hunt/er2%xyz"),
    "encoded": ("me:Hunt%3Fer2%40xyz@", "", "Hunt?er2@xyz"),
    "token": ("ghp_Hunter2xyz@", "", "ghp_Hunter2xyz"),
    "signature": ("", "?X-Amz-Expires=9&X-Amz-Signature=Hunter2xyz99&a=b", "Hunter2xyz99"),
    "shared access": ("", "?sv=2026&sig=Hunt%2Fer2%2Bxyz%3D", "Hunt/er2+xyz="),
    "fragment": ("", "#token=Hunter2xyz99", "Hunter2xyz99"),
}
LIGHT = ["--trainer.accelerator=cpu", "--data.num_workers=0", "--trainer.max_steps=1"]
LIGHT += ["--model.init_args.backbone=resnet10t", "--model.init_args.pretrained=false"]
LIGHT += ["--model.init_args.compile_model=false", "--model.init_args.mask_rois=4"]
LIGHT += ["--data.image_size=64", "--data.batch_size=2", "--trainer.enable_progress_bar=false"]
DATA = ["--data.data_dir", "SAMPLE"]
PLACES = {
    "evaluate --checkpoint": ["evaluate", "--checkpoint", "URL", "--data", "SAMPLE"],
    "evaluate --data": ["evaluate", "--checkpoint", "GOOD", "--data", "URL"],
    "evaluate --results": ["evaluate", "--results", "URL", "--data", "SAMPLE"],
    "evaluate --annotations": ["evaluate", "--results", "none.json", "--annotations", "URL"],
    "evaluate --out": ["evaluate", "--results", "none.json", "--data", "SAMPLE", "--out", "URL"],
    "evaluate unknown flag": ["evaluate", "--password-of", "URL"],
    "evaluate wrong type": ["evaluate", "--batch-size", "URL"],
    "predict image": ["predict", "URL", "--checkpoint", "GOOD", "--out", "out"],
    "predict s3 image": ["predict", "S3/a.jpg", "--checkpoint", "GOOD", "--out", "out"],
    "predict s3 pattern": ["predict", "S3/*", "--checkpoint", "GOOD", "--out", "out"],
    "predict --checkpoint": ["predict", "none.json", "--checkpoint", "URL", "--out", "out"],
    "predict --out": ["predict", "none.json", "--checkpoint", "GOOD", "--out", "URL"],
    "export --checkpoint": ["export", "--checkpoint", "URL", "--out", "a.onnx"],
    "export --checkpoint to weights": ["export", "--checkpoint", "URL", "--out", "a.safetensors"],
    "export --out": ["export", "--checkpoint", "GOOD", "--out", "URL/a.onnx"],
    "export --metrics": [
        "export",
        "--checkpoint",
        "GOOD",
        "--out",
        "a.safetensors",
        "--metrics",
        "URL",
    ],
    "preview --data": ["preview", "--data", "URL", "--out", "a.png"],
    "preview --out": ["preview", "--data", "SAMPLE", "--out", "URL/a.png"],
    "shard source": ["shard", "URL", "out"],
    "shard destination": ["shard", "SAMPLE", "URL"],
    "shard s3 destination": ["shard", "SAMPLE", "S3"],
    "shard --annotations": ["shard", "out", "--annotations", "URL", "--images", "SAMPLE"],
    "doctor --data": ["doctor", "--data", "URL", "--json"],
    "doctor --config": ["doctor", "--config", "URL"],
    "doctor --out": ["doctor", "--out", "URL"],
    "completion": ["completion", "URL"],
    "no verb": ["URL"],
    "fit data": ["fit", *LIGHT, "--data.data_dir", "URL"],
    "fit data of s3": ["fit", *LIGHT, "--data.data_dir=S3/a"],
    "fit --ckpt_path": ["fit", *LIGHT, *DATA, "--ckpt_path", "URL"],
    "fit --config": ["fit", "--config", "URL"],
    "fit --config=": ["fit", "--config=URL"],
    "fit root": ["fit", *LIGHT, *DATA, "--trainer.default_root_dir", "URL"],
    "fit cache": ["fit", *LIGHT, "--data.data_dir=URL", "--data.cache_dir=URL"],
    "fit wrong type": ["fit", *LIGHT, *DATA, "--trainer.max_epochs", "URL"],
    "fit unknown flag": ["fit", *LIGHT, *DATA, "--data.data_dri", "URL"],
    "fit unknown flag=": ["fit", *LIGHT, *DATA, "--data.data_dri=URL"],
    "fit wrong class": ["fit", "--model", "URL"],
    "fit logger": ["fit", *LIGHT, *DATA, "--trainer.logger", "URL"],
    "fit transforms": ["fit", *LIGHT, *DATA, "--data.custom_train_transforms", "URL"],
    "fit pretrained": ["fit", *LIGHT, *DATA, "--model.init_args.pretrained", "URL"],
    "fit from a config": ["fit", *LIGHT, "--config", "config.yaml"],
    "fit from a bad config": ["fit", *LIGHT, "--config", "config.yaml", "--trainer.max_epochs=x"],
    "validate --ckpt_path": ["validate", *LIGHT, *DATA, "--ckpt_path", "URL"],
    "test data": ["test", *LIGHT, "--data.data_dir", "URL", "--ckpt_path", "GOOD"],
    "find_lr data": ["find_lr", *LIGHT, "--data.data_dir", "URL"],
}


class Refusing(http.server.BaseHTTPRequestHandler):
    """Refuses everything, and says what was asked for."""

    def do_GET(self) -> None:
        body = f"<Error><Code>AccessDenied</Code><Message>no {self.path}</Message></Error>".encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def leaks(secret: str, done: object, folder: Path, given: set[Path]) -> list[str]:
    """Where a secret can be seen, in any of its forms."""
    forms = {secret, unquote(secret), quote(secret), quote(secret, safe="")}
    needles = [form.lower().encode() for form in forms]
    seen = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}  # type: ignore[attr-defined]
    for path in set(folder.rglob("*")) - given:
        seen[f"the name {path}"] = str(path).encode()
        if path.is_file():
            seen[f"the file {path}"] = path.read_bytes()
    return [
        f"{place}: {text[:600]!r}"
        for place, text in seen.items()
        if any(needle in text.lower() for needle in needles)
    ]


def check(place: str, form: str, host: str, checkpoint: Path, folder: Path) -> None:
    user, query, secret = FORMS[form]
    url, s3 = f"http://{user}{host}/some/x{query}", f"s3://{user}bucket/some{query}"
    (folder / "none.json").write_text("[]")
    (folder / "config.yaml").write_text(f"data:\n  data_dir: '{url}'\n")
    words = PLACES[place]
    for name, value in {"URL": url, "S3": s3, "GOOD": checkpoint, "SAMPLE": SAMPLE}.items():
        words = [word.replace(name, str(value)) for word in words]
    env = dict(os.environ, XDG_CACHE_HOME=str(folder / "cache"), AWS_ENDPOINT_URL=f"http://{host}")
    env |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    given = set(folder.rglob("*"))
    done = forked.run("-m", "autotimm", *words, "--debug", cwd=folder, env=env)
    assert done.returncode, done.stdout
    assert leaks(secret, done, folder, given) == []
    left = {path.relative_to(folder).parts[0] for path in set(folder.rglob("*")) - given}
    assert left <= {"cache", "out", "runs", "evaluation"}, left


PAIRS = [(place, [*FORMS][i % len(FORMS)]) for i, place in enumerate(PLACES)]


@pytest.mark.slow  # a process each
@pytest.mark.parametrize(("place", "form"), PAIRS)
def test_a_refusal_shows_no_secret(
    place: str, form: str, refusing: str, checkpoint: Path, tmp_path: Path
) -> None:
    check(place, form, refusing, checkpoint, tmp_path)


@pytest.mark.release  # five hundred processes
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_every_form_in_every_place(
    place: str, form: str, refusing: str, checkpoint: Path, tmp_path: Path
) -> None:
    check(place, form, refusing, checkpoint, tmp_path)


@pytest.mark.slow  # processes
@pytest.mark.parametrize(
    "form",
    [
        "signature",
        *(
            pytest.param(one, marks=pytest.mark.release)
            for one in ("plain", "encoded", "token", "shared access")
        ),
    ],
)
def test_a_run_records_no_secret(form: str, tmp_path: Path) -> None:
    """In its folder: run.json, config.yaml, hparams.yaml, TensorBoard's events, checkpoints."""
    user, query, secret = FORMS[form]
    with serve(SAMPLE) as server:
        url = server.url.replace("://", f"://{user}") + query
        env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / "cache"), MY_API_KEY="key-of-mine-12")
        words = ["-m", "autotimm", "fit", *LIGHT, "--data.data_dir", url]
        done = forked.run(*words, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        assert leaks(secret, done, tmp_path, set()) == []
        last = tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"
        out = tmp_path / "out"
        words = ["-m", "autotimm", "export", "--checkpoint", last, "--out", "w.safetensors"]
        done = forked.run(*words, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        words = ["-m", "autotimm", "evaluate", "--checkpoint", last, "--data", url, "--out", out]
        done = forked.run(*words, "--split", "train", cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        assert leaks(secret, done, tmp_path, set()) == []
    assert urls.shown(url) in (tmp_path / "runs" / "version_0" / "run.json").read_text()
