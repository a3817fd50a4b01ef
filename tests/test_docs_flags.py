"""Every command of the docs is one, and every flag that they name exists."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from autotimm.cli import early_checks, flags, main
from autotimm.structures import InputError

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("launch", "shards", "slurm")),
]
OF_OTHERS = {
    "--from-env-file",  # kubectl  # of sbatch, srun, torchrun, docker
    *("--array", "--cpus-per-gpu", "--exclusive", "--gpus-per-node", "--gpus-per-task"),
    *("--nodes", "--requeue", "--signal", "--max-restarts", "--nproc-per-node"),
    *("--signals-to-handle", "--gpus", "--shm-size", "--user", "--volume", "--env"),
    *("--stop-timeout", "--flag", "--partition", "--account", "--time"),
}


def sweep_parser() -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location("sweep", ROOT / "launch/sweep.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_parser()


def commands(page: Path) -> list[list[str]]:
    """The words from the verb on of each of our commands, in code blocks and in the text."""
    text = page.read_text()
    fenced = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    inline = re.findall(r"`(autotimm [^`]+)`", text)
    lines = [*"\n".join(fenced).replace("\\\n", " ").splitlines(), *indented, *inline]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True) if "autotimm" in line or "launch/" in line else []
        for index, word in enumerate(words):
            if word == "autotimm-shard":
                found.append(["shard", *words[index + 1 :]])
            elif word == "launch/sweep.py":
                _, rest = sweep_parser().parse_known_args(words[index + 1 :])
                found.append(["fit", *rest])
            elif word in ("autotimm", "launch/train.py") and words[index + 1 : index + 2]:
                found.append(words[index + 1 :])
            elif word == "slurm/train.sh":
                found.append(["fit", *words[index + 1 :]])
    return [words for words in found if words[0] in main.verb_lines() and "..." not in words]


def check(words: list[str]) -> None:
    """Fails if a command has a flag that does not exist, or a value that cannot be one."""
    verb, *rest = words
    if verb in flags.table()["flags"] and verb != "predict":
        rest = [word.replace("/opt/autotimm/", "") for word in rest]  # in the Docker image
        rest = ["launch/small_cpu.yaml" if word.startswith("runs/") else word for word in rest]
        early_checks.check_words([verb, *rest], "--help")
    else:
        parser = main.parser_of_verb(verb)
        known = {option for action in parser._actions for option in action.option_strings}
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert given <= known, f"{verb}: {given - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_flags_that_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        try:
            check(words)
        except InputError as error:
            pytest.fail(f"{page.name}: {shlex.join(words)}: {error}")


def test_a_wrong_flag_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = tmp_path / "page.md"
    for line in ("fit --epocs 3", "predict a.jpg --titles 3", "shard coco/ s/ --jobs 3"):
        page.write_text(f"Text.\n\n    autotimm {line}\n")
        [words] = commands(page)
        with pytest.raises((InputError, AssertionError)):
            check(words)


@pytest.fixture(scope="module")
def known() -> set[str]:
    table = flags.table()
    names = {f"--model.{name}" for args in table["classes"].values() for name in args}
    names |= {name.replace(".", ".init_args.", 1) for name in names}
    names |= {name for verb in table["flags"].values() for name in verb} | {*flags.SHORT}
    parsers = [sweep_parser(), main.parser_of_verb("shard")]
    parsers += [main.parser_of_verb(verb) for verb in main.VERBS]
    names |= {"--model.help"}
    return names | {one for p in parsers for a in p._actions for one in a.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_that_the_text_names_exist(page: Path, known: set[str]) -> None:
    text = page.read_text()
    named = {
        flag
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
        for flag in re.findall(r"(?<!\S)(--[a-z][\w.-]*)", code)
    }
    assert {one for one in named if one.replace("-", "_") not in spelt(known)} - OF_OTHERS == set()


def spelt(names: set[str]) -> set[str]:
    return {name.replace("-", "_") for name in names}
