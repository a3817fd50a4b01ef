"""The command autotimm-shard in this process, for several test files."""

from __future__ import annotations

from pathlib import Path

import pytest
from coco_folder import picture, write

from autotimm.sharding import cli


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Runs the command in this process; returns exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


def two_splits(root: Path) -> Path:
    write(root, files={"a.jpg": picture()})
    return write(root, split="val", files={"a.jpg": picture(quality=80)})
