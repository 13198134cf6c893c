"""What every compiler makes and how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from repo_builder.model import TensorSpec
from repo_builder.onnx_model import OnnxModel
from repo_builder.verify import Runner

Progress = Callable[[str], None]
"""Called with a line to show whenever something that takes time begins."""


class Target(str, Enum):
    """What a model is compiled to.  ``AUTO`` takes TensorRT where it and a GPU are there, else ONNX Runtime."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Artifact:
    """A compiled model in a folder of its own.

    ``inputs`` and ``outputs`` are read back from the finished file, the batch axis included; ``max_batch_size`` is
    the largest batch that it takes, None for any and 0 when it has no batch axis.
    """

    platform: str
    filename: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int | None
    run: Runner
    tools: Mapping[str, str] = field(default_factory=dict)


class Compiler(Protocol):
    """One target."""

    target: Target

    def identity(self) -> str:
        """What, besides source and options, decides the artifact: a plan is of one TensorRT version and GPU."""
        ...

    def compile(self, model: OnnxModel, folder: Path, *, batchable: bool, progress: Progress) -> Artifact:
        """Write the artifact into ``folder``, where the model's external data already lies."""
        ...
