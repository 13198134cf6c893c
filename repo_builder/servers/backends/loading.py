"""What loading a model takes in every backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import triton_python_backend_utils as pb_utils

UNSUPPORTED_FIELDS = ("sequence_batching", "batch_input", "batch_output")  # inputs that the server makes itself


@dataclass(frozen=True)
class Port:
    """An input or output as config.pbtxt declares it."""

    name: str
    datatype: str
    dims: tuple[int, ...]


def refuse_unsupported(config: Mapping[str, Any], backend: str) -> None:
    for field in UNSUPPORTED_FIELDS:
        if config.get(field):
            refuse(field, backend)
    if any(io.get("allow_ragged_batch") for io in config["input"]):
        refuse("allow_ragged_batch", backend)


def refuse(field: str, backend: str, where: str = "") -> NoReturn:
    raise pb_utils.TritonModelException(f"{field} is not supported by the local server's {backend} backend{where}")


def dims_of(io: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the dims of an input or output of config.pbtxt as the backend sees them: after ``reshape``."""
    dims = io["reshape"].get("shape", []) if "reshape" in io else io["dims"]
    return tuple(int(dim) for dim in dims)


def on_disk(path: Path) -> Path:
    """The same path for calls of the system: Python in a stub takes names for ASCII, whatever the locale."""
    return Path(os.fsdecode(str(path).encode()))
