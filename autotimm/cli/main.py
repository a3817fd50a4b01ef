"""``autotimm VERB ...``: finds the verb's module and runs it.

This module imports nothing heavy, so ``autotimm --help`` and each verb's ``--help`` answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

from autotimm import __version__
from autotimm.cli import lightning_help
from autotimm.cli.notes import shorten_warnings
from autotimm.files.shortage import shortage
from autotimm.redaction import guard_process
from autotimm.structures import InputError

_HEAD = """\
usage: autotimm VERB ...

Instance segmentation on COCO-format data: shard, train, evaluate, predict.

examples:
  autotimm shard coco/ shards/
  autotimm fit --config launch/small_cpu.yaml --data shards/
  torchrun --standalone --nproc-per-node 8 -m autotimm fit --config launch/coco_r50_1x.yaml
"""
_TAIL = """\
`autotimm VERB --help` explains a verb. With --debug an error shows its traceback.
Exit codes: 0 done, 2 the input cannot be used (one line says what), 85 a training stopped by a
signal after saving, 130 interrupted. Some verbs have more: see their help.
"""


class _Verb(NamedTuple):
    """The module of a verb, with ``parser()`` and ``run(args)``, and its line in the help."""

    module: str
    line: str


VERBS: dict[str, _Verb] = {
    "predict": _Verb("autotimm.cli.predict", "what a checkpoint finds in any images"),
    "preview": _Verb("autotimm.cli.preview", "draw what each augmentation makes of real samples"),
    "export": _Verb("autotimm.cli.export", "write a checkpoint as ONNX, .pt2 or safetensors"),
    "evaluate": _Verb("autotimm.cli.evaluate", "COCO AP of a checkpoint or of a results file"),
    "plot": _Verb("autotimm.cli.plot", "draw losses, learning rates and AP of runs"),
    "doctor": _Verb("autotimm.cli.doctor", "what a run needs here, and what to do about it"),
    "completion": _Verb("autotimm.cli.completion", "have bash, zsh or fish complete the rest"),
}
"""The verbs beside Lightning's, and beside ``shard``, which has a command of its own as well."""

_OTHER_VERBS = {
    "check": "doctor",
    "convert": "shard",
    "detect": "predict",
    "eval": "evaluate",
    "infer": "predict",
    "inference": "predict",
    "resume": "fit",
    "train": "fit",
    "val": "evaluate",
}
"""What other programs call some of the verbs."""

_SHARD = "write COCO folders as shards (autotimm-shard)"


def main() -> NoReturn:
    """Runs the command line of the process and exits."""
    words, debug = _without_debug(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # class names may have letters it cannot encode
            stream.reconfigure(errors="backslashreplace")
    guard_process()
    if words and not debug:
        shorten_warnings(words[0])
    try:
        code = _run(words)
        if sys.stdout is not None:  # None if the shell closed it (>&-)
            sys.stdout.flush()
    except SystemExit as stop:  # the verb has printed its own error
        _flush_or_drop_stdout()
        cause = stop.__cause__ or stop.__context__
        if debug and stop.code and cause is not None:
            traceback.print_exception(cause)
        raise
    except (Exception, KeyboardInterrupt) as error:
        known = _exit_code_and_line(error, next(iter(words), ""))
        if known is None:  # a fault of the program
            raise
        if debug:
            traceback.print_exception(error)
        code, line = known
        _flush_or_drop_stdout()
        if line:
            print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words without ``--debug``, which all verbs have, and whether it was among them."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return [*kept, *words[end:]], len(kept) < end


def _exit_code_and_line(error: BaseException, verb: str) -> tuple[int, str] | None:
    """The exit code of an error and its line ("" for none); None for a fault of the program."""
    if isinstance(error, InputError):
        return 2, " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `| head` does
        return 141, ""
    if (line := shortage(error, verb)) is not None:
        return 2, " ".join(line.split())
    if isinstance(error, OSError):  # a folder without write permission
        reason = error.strerror or str(error)
        line = f"{error.filename}: {reason}" if error.filename else reason
        return 2, " ".join(line.split())
    return None


def _flush_or_drop_stdout() -> None:
    """Flushes stdout; drops the rest if that fails, as Python would flush it again at the end."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"autotimm {__version__}")
        return 0
    verb, *rest = words
    if verb == "shard":
        import_module("autotimm.sharding.cli").main(rest)
    elif verb in lightning_help.VERBS:
        _run_lightning(verb, rest)
    elif verb in VERBS:
        module = import_module(VERBS[verb].module)
        for one in (signal.SIGTERM, signal.SIGHUP):  # exit as on Ctrl-C, which keeps finished work
            if signal.getsignal(one) is signal.SIG_DFL:  # nohup has SIGHUP ignored
                signal.signal(one, _exit_on_signal)
        return module.run(module.parser().parse_args(rest))
    else:
        raise InputError(_no_verb(words))
    return 0


def _no_verb(words: Sequence[str]) -> str:
    """The line about a command whose first word is no verb."""
    known = verb_lines()
    if words[0].startswith("-"):
        later = next((word for word in words if word in known), "fit")
        return f"the verb comes first: autotimm {later} ..., and then its flags"
    near = [verb for name, verb in _OTHER_VERBS.items() if words[0].lower() == name]
    near = near or difflib.get_close_matches(words[0], known, 1)
    hint = f"did you mean {near[0]}?" if near else "autotimm --help lists them"
    return f"there is no such verb; {hint}"


def _exit_on_signal(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _run_lightning(verb: str, rest: Sequence[str]) -> None:
    if {"-h", "--help"} & {*rest}:
        print(lightning_help.parser(verb).format_help(), end="")
        return
    # Lightning starts the other processes of a job with this process's command line.
    sys.argv[1:] = [verb, *("--help" if word == "--help-all" else word for word in rest)]
    import_module("autotimm.cli.train").train(prog="autotimm")


def parser_of_verb(verb: str) -> argparse.ArgumentParser:
    """The parser of any verb, for its help and its completion."""
    if verb == "shard":
        return import_module("autotimm.sharding.arguments").parser()
    if verb in lightning_help.VERBS:
        return lightning_help.parser(verb)
    return import_module(VERBS[verb].module).parser()


def verb_lines() -> dict[str, str]:
    """The line of help of each verb, in the order in which a user needs the verbs."""
    found = {"shard": _SHARD}
    found |= {name: verb.line for name, verb in lightning_help.VERBS.items()}
    return found | {name: verb.line for name, verb in VERBS.items()}


def _overview() -> str:
    verbs = "\n".join(f"  {name:16} {line}" for name, line in verb_lines().items())
    return f"{_HEAD}\nverbs:\n{verbs}\n\n{_TAIL}".rstrip()
