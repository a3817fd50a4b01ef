"""The file in which torchrun looks for the reason why a process has ended, for its own report."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import orjson

from autotimm.files.atomic import whole_file
from autotimm.redaction import redacted


def write_error(line: str) -> None:
    """Write a line into the file that torchrun has named; nothing if no torchrun has.

    The content is that of ``torch.distributed.elastic.multiprocessing.errors.ErrorHandler``.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    extra = {"timestamp": str(int(time.time()))}
    content = {"message": {"message": redacted(line), "extraInfo": extra}}
    # The line is printed in any case, and no error of this file may hide it.
    with contextlib.suppress(OSError), whole_file(Path(path), sync=False) as file:
        file.write(orjson.dumps(content))
