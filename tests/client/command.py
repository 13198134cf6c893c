"""The client's commands, without a process of their own."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import pytest

import client.bench
import client.compare
import client.infer

MAINS = {"bench": client.bench.main, "compare": client.compare.main, "infer": client.infer.main}


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


def command(module: str, *arguments: object) -> Done:
    """Run a command's own entry point in this process; what it starts are processes of their own all the same."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"client.{module}", *map(str, arguments)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            MAINS[module]()
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, *(_text(stream) for stream in (out, err)))


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()
