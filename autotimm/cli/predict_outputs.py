"""What ``autotimm predict`` finds in images and videos, written and reported."""

from __future__ import annotations

import argparse
import contextlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autotimm.cli.notes import note
from autotimm.files.units import counted
from autotimm.structures import InputError


def predict_images(args: argparse.Namespace, model: Any, options: Any, names: list[str]) -> int:
    """Writes what the model finds in images, and prints a line of it.

    Args:
        args: the flags of the verb.
        model: that predicts.
        options: how it predicts.
        names: of the images.

    Returns:
        The number of images that cannot be used.
    """
    from autotimm.inference.predict import predictions
    from autotimm.inference.write import Writer

    out = Path(args.out)
    writer = Writer(
        out,
        _categories(model),
        model.class_names,
        as_json=args.format != "pictures",
        draw_from=None if args.format == "json" else args.draw_score,
    )
    bad = 0
    try:
        found = predictions(model, names, options)
        for name, (pixels, detections) in zip(_with_progress(names), found, strict=True):
            if isinstance(pixels, InputError):
                bad += 1
                note("predict", f"left out: {pixels}")
            else:
                writer.add(name, pixels, detections)
    except BaseException:
        with contextlib.suppress(InputError):  # a full disk: the error that is on its way says so
            if writer.images:  # keep what was found before Ctrl-C
                writer.close()
        raise
    if writer.images:
        written = ", ".join(writer.close())
        counts = f"{counted(len(writer.images), 'image')}, {_counts(args, writer)}"
        if writer.smaller:
            counts += f"; {writer.smaller:,} pictures drawn smaller than their images"
        print(f"{out}: {written}: {counts}{f'; {bad:,} left out' if bad else ''}")
    return bad


def predict_videos(args: argparse.Namespace, model: Any, options: Any, names: list[str]) -> int:
    """Writes what the model finds in videos, and prints a line of each.

    Args:
        args: the flags of the verb.
        model: that predicts.
        options: how it predicts.
        names: of the videos.

    Returns:
        The number of videos that cannot be used as a whole.
    """
    from autotimm.inference.predict import predictions
    from autotimm.inference.video import Frame, frames
    from autotimm.inference.write import VIDEOS, Stems
    from autotimm.inference.write_video import VideoWriter

    stems, problems, bad = Stems(), [], 0

    def pixels_of(video: str, ahead: deque[Frame]) -> Iterator[Any]:
        """The frames' pixels; each frame is kept in ``ahead`` until it is looked at."""
        try:
            for frame in frames(video, args.every):
                ahead.append(frame)
                yield frame.pixels
        except InputError as error:  # what was decoded before is used
            problems.append(error)

    for name in names:
        problems.clear()
        stem, ahead = stems.of(name), deque[Frame]()
        writer = VideoWriter(
            Path(args.out),
            stem,
            name,
            _categories(model),
            model.class_names,
            as_json=args.format != "pictures",
            draw_from=None if args.format == "json" else args.draw_score,
        )
        with writer:
            for _, detections in predictions(model, pixels_of(name, ahead), options):
                writer.add(ahead.popleft(), detections)
        for problem in problems:
            note("predict", f"left out: {problem}")
        if writer.frames:
            endings = {"json": ".json", "pictures": ".mp4", "both": ".{json,mp4}"}
            written = f"{VIDEOS}/{stem}{endings[args.format]}"
            counts = f"{counted(writer.frames, 'frame')}, {_counts(args, writer)}"
            print(f"{args.out}: {written}: {counts}")
        bad += bool(problems)
    return bad


def _counts(args: argparse.Namespace, writer: Any) -> str:
    """How many instances a writer wrote and drew."""
    found = counted(writer.instances, "detection")
    if args.format == "json" or not writer.instances:
        return found
    drawn = f"{writer.drawn:,} of them with a score of at least {args.draw_score:g} (--draw-score)"
    return f"{found}, {drawn}{'' if writer.drawn else ': lower it to draw more'}"


def _categories(model: Any) -> list[dict[str, Any]]:
    if model.categories is None:
        return [{"id": i, "name": name} for i, name in enumerate(model.class_names)]
    # images.json says what the ids in results.json mean: these are the numbers, as of images.
    return [{"id": one["id"], "name": one["name"]} for one in model.categories]


def _with_progress(names: list[str]) -> Any:
    """The names, counted by a progress bar if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        return names
    return track(names, "predicting", console=console)
