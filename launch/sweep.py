"""One training with several seeds, or a search for better settings by Optuna.

    python launch/sweep.py --seeds 3 --out runs/seeds --config ... --data ...
    python launch/sweep.py --trials 20 --out runs/search --search model.lr 1e-4 1e-2 --config ...

All other flags are those of ``autotimm fit``, which trains once for each seed or trial, one after
the other, into ``OUT/seed_<n>`` or ``OUT/trial_<n>``. The value of a run is the best one of its
``best_metric``. The same command goes on after a stop: runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

GOES_ON = 85
"""The exit code of a fit that a signal has stopped."""


def make_parser() -> argparse.ArgumentParser:
    """The flags of the script itself; those of ``fit`` are left over."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--seeds", type=_count, metavar="N", help="train with the seeds 0 to N - 1")
    kind.add_argument("--trials", type=_count, metavar="N", help="of a search, in all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument(
        "--search",
        nargs=3,
        action="append",
        default=[],
        metavar=("FLAG", "LOW", "HIGH"),
        help="a number to search, such as model.lr 1e-4 1e-2; may be repeated",
    )
    return parser


def main() -> None:
    """Train and print a table; exits with the code of the first fit that could not begin."""
    parser = make_parser()
    options, fit = parser.parse_known_args()
    if bool(options.trials) != bool(options.search):
        parser.error("--trials needs --search FLAG LOW HIGH, and --search needs --trials")
    if options.trials:
        try:
            ranges = dict(_range(*given) for given in options.search)
        except ValueError as error:
            parser.error(f"--search: {error}")
        search(options.out, options.trials, ranges, fit)
    else:
        repeat(options.out, options.seeds, fit)


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _range(flag: str, low: str, high: str) -> tuple[str, tuple[float, float]]:
    least, most = float(low), float(high)
    if not 0 < least < most < math.inf:
        raise ValueError(f"{flag} {low} {high}: give two numbers above 0, the smaller one first")
    return flag, (least, most)


def repeat(out: Path, seeds: int, fit: list[str]) -> None:
    """Train with each seed; print the values, their mean and their standard deviation."""
    values = []
    for seed in range(seeds):
        given = ["--seed_everything", str(seed), "--data.seed", str(seed)]
        best = train(out / f"seed_{seed}", [*fit, *given])
        if best is None:
            raise SystemExit(1)
        values.append(best["value"])
        print(f"seed {seed}: {values[-1]:.4f}", flush=True)
    spread = statistics.stdev(values) if seeds > 1 else float("nan")
    print(f"mean {statistics.mean(values):.4f}, standard deviation {spread:.4f}")


def search(out: Path, trials: int, ranges: dict[str, tuple[float, float]], fit: list[str]) -> None:
    """Search the ranges, on a logarithmic scale, for the best value; print the best trial.

    The study is asked for the highest value: one that is best where it is low is stored negated.
    """
    try:
        import optuna
    except ImportError:
        print("error: a search needs Optuna: pip install optuna", file=sys.stderr)
        raise SystemExit(2) from None

    def trained(trial: optuna.Trial) -> float:
        for name, (low, high) in ranges.items():
            trial.suggest_float(name, low, high, log=True)
        best = train(out / f"trial_{trial.number}", [*fit, *given_flags(trial.params)])
        if best is None:  # a rate so high that a loss was not finite, or too little memory
            raise optuna.TrialPruned
        trial.set_user_attr("value", best["value"])
        return best["value"] if best["mode"] == "max" else -best["value"]

    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="autotimm",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        storage=f"sqlite:///{(out / 'study.db').resolve()}",
        load_if_exists=True,
    )
    for stopped in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(stopped.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(stopped.params)
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    study.optimize(trained, n_trials=max(trials - len(study.get_trials(states=ended)), 0))
    if not study.get_trials(states=ended[:1]):
        print(f"error: no trial was trained to its end: see {out}", file=sys.stderr)
        raise SystemExit(1)
    best = study.best_trial
    value = best.user_attrs.get("value", best.value)  # an earlier version kept the latter alone
    print(f"best: trial {best.number}, {value:.4f}: {' '.join(given_flags(best.params))}")


def given_flags(values: dict[str, float]) -> list[str]:
    """The words of a command line that give these values."""
    return [word for name, value in values.items() for word in (f"--{name}", f"{value:.4g}")]


def train(out: Path, flags: list[str]) -> dict[str, Any] | None:
    """Train into a folder, unless a run in it is finished.

    Returns:
        As :func:`finished`; None if it failed after it had begun.

    Raises:
        SystemExit: the fit could not begin, or was stopped by a signal.
    """
    if (best := finished(out)) is not None:
        return best
    where = ["--trainer.default_root_dir", str(out)]
    done = subprocess.run([sys.executable, "-m", "autotimm", "fit", *flags, *where], check=False)
    if done.returncode in (2, GOES_ON):
        raise SystemExit(done.returncode)
    return finished(out)


def finished(out: Path) -> dict[str, Any] | None:
    """What the newest run in a folder was best at: the ``metric``, its ``value``, and the ``mode``,
    "max" or "min"; None if no run is there or it has not ended."""
    record = out / "last" / "run.json"
    if not record.is_file():
        return None
    content: dict[str, Any] = json.loads(record.read_text())
    if content["status"] != "finished":
        return None
    if not content.get("best"):
        message = "a run without validation has no value to compare: see data.val_split"
        print(f"error: {out}: {message}", file=sys.stderr)
        raise SystemExit(2)
    best: dict[str, Any] = content["best"]
    # An earlier version did not record the mode.
    return {"mode": "min" if "loss" in best["metric"].lower() else "max", **best}


if __name__ == "__main__":
    main()
