"""What loading a model takes in every backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Port:
    """An input or output as config.pbtxt declares it."""

    name: str
    datatype: str
    dims: tuple[int, ...]


def dims_of(io: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the dims of an input or output of config.pbtxt as the backend sees them: after ``reshape``."""
    dims = io["reshape"].get("shape", []) if "reshape" in io else io["dims"]
    return tuple(int(dim) for dim in dims)


def on_disk(path: Path) -> Path:
    """The same path for calls of the system: Python in a stub takes names for ASCII, whatever the locale."""
    return Path(os.fsdecode(str(path).encode()))
