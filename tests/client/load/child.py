"""A fake server as a process of its own, so that it answers on time whatever the tests do."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def running(module: str, script: dict[str, Any]) -> Iterator[str]:
    """``host:port`` of ``python -m module SCRIPT``, which prints its port, for as long as the block lasts."""
    line = [sys.executable, "-m", module, json.dumps(script)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()
