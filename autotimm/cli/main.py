"""``autotimm VERB ...``: finds the verb's module and runs it.

Nothing heavy is imported here: ``autotimm --help`` and every verb's ``--help`` answer at once.
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

from autotimm import __version__, urls
from autotimm.cli import training
from autotimm.structures import InputError

_HEAD = """\
usage: autotimm VERB ...

Instance segmentation on COCO-format data: shard, train, evaluate, predict.

examples:
  autotimm shard coco/ shards/
  autotimm fit --config launch/small_cpu.yaml --data.data_dir shards/
  torchrun --standalone --nproc-per-node 8 -m autotimm fit --config launch/coco_r50_1x.yaml
"""
_TAIL = """\
`autotimm VERB --help` explains a verb. With --debug an error shows its traceback.
Exit codes: 0 done, 2 the input cannot be used (one line says what), 85 a training stopped by a
signal after saving, 130 interrupted. A verb's help tells of more where there are.
"""


class _Verb(NamedTuple):
    """A verb's module, which has ``parser()`` and ``run(args)``, and its line in the help."""

    module: str
    line: str


VERBS: dict[str, _Verb] = {
    "predict": _Verb("autotimm.cli.predict", "what a checkpoint finds in any images"),
    "preview": _Verb("autotimm.cli.preview", "draw what each augmentation makes of real samples"),
    "export": _Verb("autotimm.cli.export", "write a checkpoint as ONNX, .pt2 or safetensors"),
    "evaluate": _Verb("autotimm.cli.evaluate", "COCO AP of a checkpoint or of a results file"),
    "doctor": _Verb("autotimm.cli.doctor", "what a run needs here, and what to do about it"),
    "completion": _Verb("autotimm.cli.completion", "have bash, zsh or fish complete the rest"),
}
"""The others, but ``shard``, which is a command of its own as well."""

_SHARD = "write COCO folders as shards (autotimm-shard)"


def main() -> NoReturn:
    """Runs the command line of the process and exits."""
    words, debug = _without_debug(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a class' name in a terminal that lacks it
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(words)
        if sys.stdout is not None:  # as it is where it was closed (>&-)
            sys.stdout.flush()
    except SystemExit as stop:  # a verb that has told what there was to tell
        _settle_output()
        told = stop.__cause__ or stop.__context__
        if debug and stop.code and told is not None:
            traceback.print_exception(told)
        raise
    except (Exception, KeyboardInterrupt) as error:
        ending = _ending(error)
        if ending is None:  # a fault of the program
            raise
        if debug:
            traceback.print_exception(error)
        code, line = ending
        _settle_output()
        if line:
            print(" ".join(["autotimm", *words[:1]]) + f": {line}", file=sys.stderr)
    sys.exit(code)


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words without ``--debug``, which every verb takes, and whether it was there."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return [*kept, *words[end:]], len(kept) < end


def _ending(error: BaseException) -> tuple[int, str] | None:
    """The exit code of an error and its line ("" for none); None for what nobody foresaw."""
    if isinstance(error, InputError):
        return 2, " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, BrokenPipeError):  # nobody reads on, as behind `| head`
        return 141, ""
    if isinstance(error, OSError):  # a full disk, a folder that may not be written
        reason = error.strerror or str(error)
        line = f"{error.filename}: {reason}" if error.filename else reason
        return 2, " ".join(urls.without_secrets(line).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return 2, "out of memory: take smaller batches or images, or fewer workers"
    return None


def _settle_output() -> None:
    """Drops what stdout would not take: it would fail once more when the process ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


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
    elif verb in training.VERBS:
        _train(verb, rest)
    elif verb in VERBS:
        module = import_module(VERBS[verb].module)
        for one in (signal.SIGTERM, signal.SIGHUP):  # what is done so far is written, as on Ctrl-C
            if signal.getsignal(one) is signal.SIG_DFL:  # nohup ignores the second
                signal.signal(one, _end)
        return module.run(module.parser().parse_args(rest))
    else:
        near = difflib.get_close_matches(verb, lines(), 1)
        hint = f"did you mean {near[0]}?" if near else "autotimm --help lists them"
        raise InputError(f"there is no such verb; {hint}")
    return 0


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _train(verb: str, rest: Sequence[str]) -> None:
    if {"-h", "--help"} & {*rest}:
        print(training.parser(verb).format_help(), end="")
        return
    # Lightning starts the other processes of a job with the words of this one.
    sys.argv[1:] = [verb, *("--help" if word == "--help-all" else word for word in rest)]
    import_module("autotimm.cli.train").train(prog="autotimm")


def parser_of_verb(verb: str) -> argparse.ArgumentParser:
    """The parser of any verb, for completion."""
    if verb == "shard":
        return import_module("autotimm.sharding.arguments").parser()
    if verb in training.VERBS:
        return training.parser(verb)
    return import_module(VERBS[verb].module).parser()


def lines() -> dict[str, str]:
    """Every verb with its line, in the order in which a user meets them."""
    found = {"shard": _SHARD}
    found |= {name: verb.line for name, verb in training.VERBS.items()}
    return found | {name: verb.line for name, verb in VERBS.items()}


def _overview() -> str:
    verbs = "\n".join(f"  {name:16} {line}" for name, line in lines().items())
    return f"{_HEAD}\nverbs:\n{verbs}\n\n{_TAIL}".rstrip()
