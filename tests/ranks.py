"""Code on several ranks, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def on_ranks(
    code: str, folder: Path, *arguments: object, ranks: int = 2, restarts: int = 0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs code, which may import what lies in this folder, on each rank of one node.

    Args:
        code: of a script.
        folder: where the script is written to.
        arguments: of the script.
        ranks: how many there are.
        restarts: how often torchrun may start them again.
        env: more variables of the environment.
    """
    script = folder / "each_rank.py"
    script.write_text(textwrap.dedent(code))
    here = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    options = [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
    return subprocess.run(
        [str(word) for word in (*TORCHRUN, *options, script, *arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(here)} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
