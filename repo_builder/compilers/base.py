"""What every compiler makes and how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from repo_builder.comparison import Tolerance
from repo_builder.model import TensorSpec
from repo_builder.onnx_model import OnnxModel
from repo_builder.trt.cuda import Gpu
from repo_builder.trt.options import Profile
from repo_builder.verify import Runner

Progress = Callable[[str], None]
"""Called with a line to show whenever something that takes time begins.

The same line again means that the work goes on; what follows a tab in it may differ: how far it is.
"""


@dataclass(frozen=True)
class Maker:
    """What, besides source and options, decides an artifact: a plan is of one TensorRT version and one type of GPU."""

    library: str
    gpu: Gpu | None = None

    def __str__(self) -> str:
        return f"{self.library} {self.gpu.name}" if self.gpu else self.library


class Target(str, Enum):
    """What a model is compiled to.  ``AUTO`` takes TensorRT where it and a GPU are there, else ONNX Runtime."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"

    @property
    def platform(self) -> str:
        """What Triton calls the artifact's kind of file, empty where it ships no backend for it."""
        return {Target.ONNXRUNTIME: "onnxruntime_onnx", Target.TENSORRT: "tensorrt_plan"}.get(self, "")

    @property
    def backend(self) -> str:
        """The backend that serves it, where the platform does not tell."""
        return "tensorrt_rtx" if self is Target.TENSORRT_RTX else ""

    @property
    def filename(self) -> str:
        return "model.onnx" if self is Target.ONNXRUNTIME else "model.plan"


@dataclass(frozen=True)
class Artifact:
    """A compiled model in a folder of its own.

    ``inputs`` and ``outputs`` are read back from the finished file, the batch axis included; ``max_batch_size`` is
    the largest batch that it takes, None for any and 0 when it has no batch axis.

    Attributes:
        platform: Triton's name for the kind of file; empty where ``backend`` names one that Triton does not ship.
        cc_filenames: the file by the compute capability of the GPUs that load it, where it is not one for all.
        run: runs the artifact, or what comes nearest (then ``unverified`` says so); None when nothing can.
        close: lets go of what ``run`` needs, when nothing more is to be run.
        tolerance: what the artifact's precision allows, unless the user says otherwise.
        unverified: a sentence for when the artifact itself can't run here.
        profiles: the ranges of shapes that it was built for.
        shape_tensors: inputs whose values are shapes.
        gpu_only: there is no way to serve it on a CPU.
        hints: sentences for the person.
        details: what else the manifest is to say.
    """

    platform: str
    filename: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int | None
    run: Runner | None
    backend: str = ""
    cc_filenames: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    tolerance: Tolerance = field(default_factory=Tolerance)
    unverified: str | None = None
    profiles: tuple[Profile, ...] = ()
    shape_tensors: frozenset[str] = frozenset()
    gpu_only: bool = False
    hints: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None


class Compiler(Protocol):
    """One target."""

    @property
    def target(self) -> Target: ...

    def identity(self) -> Maker: ...

    def compile(
        self, model: OnnxModel, folder: Path, *, batchable: bool, max_batch_size: int, progress: Progress
    ) -> Artifact:
        """Write the artifact into ``folder``, where the model's external data already lies.

        ``max_batch_size`` is the largest batch it has to take, for what is built for a range; calling ``progress``
        again with the same line means that the work goes on.
        """
        ...
