"""``autotimm``: its verbs are found, explained and ended as a user expects."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from conftest import SAMPLE
from lightning.pytorch import Trainer

from autotimm import AutoTrainer, InstanceSegmentationDataModule, InstanceSegmentor, __version__
from autotimm.augmentation import presets
from autotimm.cli import lightning_help, main, parse_errors, preview
from autotimm.cli.train import settings
from autotimm.inference.predict import Options
from autotimm.strategies import choice
from autotimm.structures import InputError
from autotimm.tasks.detector import ObjectDetector

SMALL = Path(__file__).parents[2] / "launch/small_cpu.yaml"
AUTOTIMM = (sys.executable, "-m", "autotimm")


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AUTOTIMM, *words], text=True, stderr=subprocess.PIPE, check=False, **options
    )


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["autotimm", *words])
    with pytest.raises(SystemExit) as stop:
        main.main()
    return int(stop.value.code or 0)


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> object:
    def put(error: BaseException) -> None:
        def fail(_: object) -> int:
            raise error

        monkeypatch.setattr(main, "_run", fail)

    return put


def test_no_help_imports_torch() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from autotimm.cli import main\n"
        "main._overview()\n"
        "for verb in main.verb_lines():\n"
        "    assert 'usage: ' in main.parser_of_verb(verb).format_help(), verb\n"
        "    heavy = {'torch', 'lightning', 'jsonargparse', 'matplotlib'} & {*sys.modules}\n"
        "    assert not heavy, (verb, heavy)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_and_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, code, said in (
        (("--help",), 0, "examples:"),
        ((), 2, "examples:"),
        (("--version",), 0, f"autotimm {__version__}\n"),
        (("fit", "--help"), 0, "--help-all"),
        (("fit", "--config", "x.yaml", "-h"), 0, "usage: autotimm fit "),
        (("predict", "--help"), 0, "usage: autotimm predict "),
        (("shard", "--help"), 0, "--samples-per-shard"),
    ):
        assert ended(monkeypatch, *words) == code, words
        assert said in capsys.readouterr().out, words


@pytest.mark.parametrize("verb", [v for v in main.verb_lines() if v != "shard"])
def test_examples_come_before_the_flags(verb: str) -> None:
    text = main.parser_of_verb(verb).format_help()
    assert text.startswith(f"usage: autotimm {verb} ")
    assert text.index("\nexamples:\n  autotimm ") < text.index("\noptions:\n")
    assert max(map(len, text.splitlines())) <= 100


def test_an_unknown_verb_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "predikt") == 2
    assert capsys.readouterr().err == ("error: there is no such verb; did you mean predict?\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a\nb"), 2, "error: a b\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (BrokenPipeError(), 141, ""),
        (OSError(28, "No space left on device", "x"), 2, "error: x: No space left on"),
        (MemoryError(), 2, "error: out of memory"),
    ],
)
def test_an_error_is_a_line_and_with_debug_a_traceback(
    raising: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    raising(error)  # type: ignore[operator]
    assert ended(monkeypatch, "fit") == code
    said = capsys.readouterr().err
    assert said.startswith(line) and "Traceback" not in said
    assert said.count("\n") == bool(line)
    assert ended(monkeypatch, "fit", "--debug") == code
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback(
    raising: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(KeyError("x"))  # type: ignore[operator]
    monkeypatch.setattr(sys, "argv", ["autotimm", "fit"])
    with pytest.raises(KeyError):
        main.main()


def test_debug_of_verbs_that_tell_their_errors_themselves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("shard", str(tmp_path / "none"), str(tmp_path / "out"))
    assert ended(monkeypatch, *words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert ended(monkeypatch, *words, "--debug") == 2
    assert "InputError" in capsys.readouterr().err


def test_debug_behind_two_dashes_is_a_file() -> None:
    assert main._without_debug(["a", "--debug", "--", "--debug"]) == (["a", "--", "--debug"], True)


def test_who_does_not_read_on_and_a_full_disk() -> None:
    read, write = os.pipe()
    os.close(read)
    done = run("--help", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    with Path("/dev/full").open("w") as full:
        done = run("--help", stdout=full)
    assert (done.returncode, done.stderr) == (
        2,
        "error: No space left on device for standard output, or a file that the system "
        "does not name: free some room there, or choose another folder\n",
    )


def test_help_tells_defaults_also_of_nothing() -> None:
    text = " ".join(main.parser_of_verb("preview").format_help().split())
    assert "are pasted, 0 to 1 (0.0)" in text
    assert "chooses the samples (0)" in text
    text = " ".join(main.parser_of_verb("predict").format_help().split())
    assert "--draw-score SCORE least, of detections to draw (0.5)" in text
    assert "--flip also detect in the mirror image --pixel-range" in text  # off, and not said


def test_what_verbs_take_by_default_is_what_python_takes() -> None:
    known = {
        ("predict", "batch_size"): Options().batch_size,
        ("predict", "overlap"): Options().overlap,
        ("evaluate", "batch_size"): default_of(InstanceSegmentationDataModule, "batch_size"),
        ("preview", "resize"): default_of(InstanceSegmentationDataModule, "resize"),
        ("preview", "seed"): default_of(InstanceSegmentationDataModule, "seed"),
        ("preview", "copy_paste"): default_of(InstanceSegmentationDataModule, "copy_paste"),
    }
    for (verb, name), value in known.items():
        assert main.parser_of_verb(verb).get_default(name) == value, (verb, name)
    assert set(preview._PRESETS) == set(presets.PRESETS)


def default_of(kind: type, name: str) -> object:
    return inspect.signature(kind.__init__).parameters[name].default


def test_a_terminal_that_lacks_a_letter_gets_its_number() -> None:
    code = "import autotimm.cli.main as m; m._run = lambda _: print('\U0001f431') or 0; m.main()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\U0001f431\n", "")


def test_the_help_of_fit_tells_the_flags_and_defaults_that_are() -> None:
    signatures = {
        "--data.": [InstanceSegmentationDataModule],
        "--model.init_args.": [InstanceSegmentor, ObjectDetector],
        "--trainer.": [AutoTrainer, Trainer],
    }
    checked = 0
    for flag in (flag for flags in lightning_help.GROUPS.values() for flag in flags):
        for prefix, classes in signatures.items():
            if not flag.name.startswith(prefix):
                continue
            known = [inspect.signature(one.__init__).parameters for one in classes]
            name = flag.name.removeprefix(prefix)
            of = next(parameters[name] for parameters in known if name in parameters)
            assert flag.default == (None if of.default is of.empty else of.default), flag.name
            checked += 1
    assert checked >= 15
    lines = {flag.name: flag.line for flags in lightning_help.GROUPS.values() for flag in flags}
    for flag, known in (
        ("--trainer.strategy", choice.NAMES),
        ("--data.augmentation_preset", presets.PRESETS),
    ):
        named = lines[flag].replace(", ...", "").replace(" or ", ", ").split(", ")
        assert set(named) <= set(known), flag


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (("--data.image_size", "abc"), "--data.image_size abc: must be int or tuple[int, int] ("),
        (("--data.num_workers", "1.5"), "--data.num_workers 1.5: must be int ("),
        (("--trainer.max_epochs", "x"), "--trainer.max_epochs x: must be int ("),
        (("--model.init_args.lr", "x"), "--model.init_args.lr x: must be float ("),
        (("--config", "no.yaml"), "no.yaml: no such file ("),
        (("--data.dat_dir", "x"), "--data.dat_dir (did you mean --data.data_dir?) ("),
        (("--model.init_args.backbon", "x"), "no 'backbon' (did you mean --model.backbone?)"),
        (("--data.augmentation_preset", "{flip: 2}"), None),
    ],
)
def test_the_error_of_a_wrong_flag_of_fit_names_it(
    flag: tuple[str, str], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", SMALL, "--data.data_dir", SAMPLE, *flag]
    if said is None:  # the data module rejects it, when it is made
        assert settings([*map(str, words)])["data"]["augmentation_preset"] == {"flip": 2}
        return
    with pytest.raises(InputError) as error:
        settings([*map(str, words)])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""  # neither usage nor the message: the caller reports it


def test_reading_the_settings_of_a_fit_runs_and_seeds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    before = torch.get_rng_state()
    found = settings(["fit", "--config", str(SMALL), "--data.data_dir", str(SAMPLE)])
    assert found["trainer"]["max_epochs"] == 100
    assert torch.equal(torch.get_rng_state(), before)
    assert "PL_GLOBAL_SEED" not in os.environ


def test_a_required_flag_is_named() -> None:
    with pytest.raises(InputError, match=r"^--data\.data_dir must be given"):
        settings(["fit"])
    odd = "something else\nthat nobody foresaw"
    assert parse_errors.reword(odd) == "something else that nobody foresaw"


@pytest.mark.slow
def test_fit_takes_debug_and_lists_all_flags_when_asked() -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return forked.run("-m", "autotimm", *words)

    done = run("fit", "--help-all")
    assert done.returncode == 0 and done.stdout.startswith("usage: autotimm ")
    for flag in (flag for flags in lightning_help.GROUPS.values() for flag in flags):
        if not flag.name.startswith("--model.init_args."):  # those of the class chosen
            assert flag.name in done.stdout
    done = run("fit", "--nope", "1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--help-all lists" in done.stderr
    done = run("fit", "--nope", "1", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr
