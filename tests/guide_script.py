"""The script that a guide to a framework begins with, run as a reader would: as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

GUIDES = Path(__file__).parents[1] / "docs" / "how-to"
MOST_LINES = 20


def run_script(guide: str, dsn: str, *, prelude: str = "") -> str:
    """Run the first Python block of a guide, and return what it printed.

    `prelude` is done before it: where the block asks a model over the network, it sees to an
    answer.
    """
    script = (GUIDES / guide).read_text("utf-8").split("```python\n")[1].split("```")[0]
    assert len(script.splitlines()) <= MOST_LINES
    path = [str(Path(__file__).parent), *filter(None, sys.path)]
    env = os.environ | {"CONVERSATION_STORE_DSN": dsn, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", prelude + script]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def queries_of(guide: str) -> list[bytes]:
    """Return the SQL blocks of a guide."""
    blocks = (GUIDES / guide).read_text("utf-8").split("```sql\n")[1:]
    return [block.split("```")[0].encode() for block in blocks]


def functions_of(guide: str) -> list[str]:
    """Return the Python blocks of a guide that define something, with the imports of the others."""
    blocks = (GUIDES / guide).read_text("utf-8").split("```python\n")[1:]
    sources = [block.split("```")[0] for block in blocks]
    imports = [line for source in sources for line in source.splitlines() if "import " in line]
    return [*imports, *(each for each in sources[1:] if "def " in each)]
