"""``autotimm completion``: the shells take the scripts, and bash completes with its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from autotimm.cli import completion, main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert completion.run(completion.parser().parse_args([shell])) == 0
    return capsys.readouterr().out


def completed(text: str, line: str, folder: Path) -> set[str]:
    """What bash offers at the end of a line."""
    words = line.split(" ")
    code = (
        f"{text}\nCOMP_WORDS=({' '.join(repr(word) for word in words)})\n"
        f"COMP_CWORD={len(words) - 1}\nCOMP_LINE={line!r}\nCOMP_POINT={len(line)}\n"
        "compopt() { :; }\n_shtab_autotimm\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return {word.strip() for word in done.stdout.split("\n")} - {""}


def test_bash_completes_verbs_flags_values_and_paths(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "best.ckpt").touch()
    text = script("bash", capsys)
    assert completed(text, "autotimm ", tmp_path) >= set(main.verb_lines())
    assert completed(text, "autotimm pre", tmp_path) == {"predict", "preview"}
    assert "--checkpoint" in completed(text, "autotimm predict --ch", tmp_path)
    assert "--debug" in completed(text, "autotimm shard --de", tmp_path)
    assert "--data.data_dir" in completed(text, "autotimm fit --data.data", tmp_path)
    assert completed(text, "autotimm predict --format p", tmp_path) == {"pictures"}
    assert completed(text, "autotimm predict --checkpoint be", tmp_path) == {"best.ckpt"}
    assert completed(text, "autotimm doctor --data sh", tmp_path) == {"shards"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_takes_the_script(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script(shell, capsys))
    done = subprocess.run(
        [shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_gets_every_verb_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    rows = script("fish", capsys).splitlines()
    for verb, line in main.verb_lines().items():
        assert any(f" -a {verb} -d {line[:12]}" in row.replace("'", "") for row in rows), verb
        own = [row for row in rows if f"'_shtab_autotimm_using {verb}'" in row]
        for action in main.parser_of_verb(verb)._actions:
            for flag in (one for one in action.option_strings if one.startswith("--")):
                assert any(f" -l {flag[2:]} " in row for row in own), (verb, flag)
        assert any(" -l debug " in row for row in own), verb


def test_fish_completes_paths_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    rows = script("fish", capsys).splitlines()
    for flag, offered in (
        ("-l checkpoint", "(__fish_complete_suffix '')"),  # any file, also in ~ and behind =
        ("-l out", "(__fish_complete_directories)"),
        ("-l format", "json pictures both"),
    ):
        [row] = (r for r in rows if "_using predict'" in r and f"{flag} " in r)
        assert f'{flag} -xka "{offered}" -d' in row
    [row] = (r for r in rows if "_using predict;" in r)
    assert """ -ka "(__fish_complete_suffix '')" """ in row, "images"
