"""``add`` of a network that a Python function defines: built first, then held to a function that computes the same."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from repo_builder.build import Build, BuildOptions
from repo_builder.compilers.base import Artifact, Compiler, Target
from repo_builder.config.build import wanted_max_batch_size
from repo_builder.errors import ModelError, UsageError
from repo_builder.model import ModelSpec
from repo_builder.onnx_model import OnnxModel
from repo_builder.passes.batch import Batching
from repo_builder.repository import file_sha256
from repo_builder.runtime import Session
from repo_builder.samples import Sampler
from repo_builder.trt.definition import Definition, describe_definition
from repo_builder.verify import Reference

if TYPE_CHECKING:
    import numpy.typing as npt

    from repo_builder.runtime import Arrays

ReferenceFunction = Callable[["Arrays"], Mapping[str, "npt.NDArray[Any]"]]
"""What a network is held to: from its inputs by name, the batch axis too, its outputs by name."""

UNVERIFIED = (
    "no reference was given, so nothing has checked what the network computes: add_model(..., reference=FUNCTION) "
    "with a function that computes the same"
)


@dataclass(frozen=True)
class FunctionSession(Session):
    """A reference function in the place of ONNX Runtime; what it raises goes through."""

    runner: ClassVar[str] = "the reference function"

    def run(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """The outputs for ``arrays``, in the network's own types.

        Raises:
            ModelError: an output is missing.
        """
        import numpy as np

        results = self._session(dict(arrays))
        for spec in self.outputs:
            if spec.name not in results:
                raise ModelError(
                    f"the reference function gives no {spec.name!r}, an output of the network",
                    f"it gives {', '.join(map(repr, results)) or 'nothing'}: return a mapping of all outputs by name",
                )
        return {spec.name: np.asarray(results[spec.name], spec.dtype.numpy_dtype()) for spec in self.outputs}


def describe_source(definition: Definition) -> dict[str, Any]:
    """What a manifest says of where a network came from; the hash is of the file that defines it, None without one."""
    try:
        file = Path(inspect.getsourcefile(definition) or "")
        name, sha256 = file.name, file_sha256(file)
    except (OSError, TypeError):
        name, sha256 = "", None
    return {
        "definition": describe_definition(definition),
        "file": name,
        "sha256": sha256,
        "external_data": {},
        "ir_version": None,
        "opset": None,
    }


def refuse_misuse(target: Target, why: str, build: BuildOptions) -> None:
    """Raise UsageError where a definition can't be built: by ONNX Runtime, or as one of several plans."""
    if target is Target.ONNXRUNTIME:
        raise UsageError(
            f"a network definition is built by TensorRT only, and {why}",
            "target=Target.TENSORRT needs TensorRT and a GPU, Target.TENSORRT_RTX builds without a GPU",
        )
    if build.container:
        raise UsageError(
            "container: a network definition is a function of this process, and can't be built in a container",
            "install TensorRT here, or add an ONNX file",
        )
    if build.cc_plan:
        raise UsageError(
            "cc_plan: whether a network definition is the same on another machine can't be told", "add an ONNX file"
        )


class NetworkBuild(Build):
    """The stages of ``add`` for a network definition: its inputs are known once it is built."""

    def __init__(
        self, name: str, definition: Definition, reference: ReferenceFunction | None, *rest: Any, **named: Any
    ) -> None:
        import onnx

        spec = ModelSpec(Path(describe_definition(definition)), (), (), (), 0, 0)
        super().__init__(name, OnnxModel(onnx.ModelProto(), spec), *rest, **named)
        self.definition, self.function = definition, reference

    def compile(self, compiler: Compiler) -> Artifact:
        """Build the network, then look at what it is."""
        from repo_builder.compilers.tensorrt import TensorRTCompiler

        assert isinstance(compiler, TensorRTCompiler)  # noqa: S101  (refuse_misuse saw to it)
        self.progress(f"compiling for {compiler.target.value}")
        off = self._turned_off("batching=False")
        artifact = compiler.compile_network(
            self.definition,
            self.version_folder,
            batching=off is None,
            max_batch_size=wanted_max_batch_size(self.serving),
            progress=self.progress,
        )
        self.batching = off or self._batching(artifact)
        spec = replace(self.model.spec, inputs=artifact.inputs, outputs=artifact.outputs)
        self.model = replace(self.model, spec=spec)
        if not self.build.verify:
            return artifact
        if self.function is None:
            warnings.warn(f"{self.name}: {UNVERIFIED}", stacklevel=4)
            return replace(artifact, unverified=UNVERIFIED, hints=(f"UNVERIFIED: {UNVERIFIED}", *artifact.hints))
        self.progress("running the reference function")
        session = FunctionSession(artifact.inputs, artifact.outputs, self.function)
        sampler = Sampler(artifact.inputs, self.samples(), self.index_ranges)
        self.reference = Reference(spec, session, sampler, batch_axis=self.batching.batchable)
        return artifact

    def _batching(self, artifact: Artifact) -> Batching:
        batchable = artifact.max_batch_size != 0
        free = "are free" if batchable else "are not all free"
        return Batching(batchable, f"the first axes of its inputs and outputs {free}", self.model.proto)
