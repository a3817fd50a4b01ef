"""The verbs that Lightning's command line runs; wrong words are refused at once.

``fit``, ``validate``, ``test``, ``predict``, ``find_lr`` and ``find_batch_size`` take ``--config``,
``--print_config``, ``--help`` and a flag for every argument of AutoTrainer, the model and the data
module. This module imports neither torch nor Lightning before it has checked them.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import Any

from autotimm.cli import early_checks, flags
from autotimm.distributed.error_file import write_error
from autotimm.redaction import guard_process
from autotimm.structures import InputError


def train(args: list[str] | None = None, prog: str | None = None) -> None:
    """Runs the command line.

    Exits with 2 on bad input, after printing one line about it, and with 85 after a signal has
    stopped a fit; the same command then resumes it.

    Args:
        args: the arguments; those of the process by default.
        prog: the name of the command in usage lines.
    """
    guard_process()
    words = sys.argv[1:] if args is None else args
    try:
        early_checks.check(words, flags.help_flag(prog))
    except InputError as error:
        line = f"error: {' '.join(str(error).split())}"
        write_error(line)
        print(line, file=sys.stderr, flush=True)
        raise SystemExit(2) from error
    _lightning_cli().run(args, prog)


def settings(args: list[str]) -> dict[str, Any]:
    """The settings that a fit with these arguments would use: ``data``, ``trainer``, ``model``, ...

    Raises:
        InputError: a flag or a value of the config cannot be used.
    """
    early_checks.check_words(args, flags.help_flag(None))
    found: dict[str, Any] = _lightning_cli().settings(args)
    return found


def _lightning_cli() -> Any:
    """The module that needs torch and Lightning.

    What an import makes stays: passes of the garbage collector over it in the meantime find nothing
    and take a tenth of the CPU time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return import_module("autotimm.cli.lightning_cli")
    finally:
        if collects:
            gc.enable()
