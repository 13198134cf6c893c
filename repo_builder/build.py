"""What ``add`` makes of a model between reading and publishing: prepared, compiled, configured, verified."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import shutil
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.cc_plans import name_by_capability
from repo_builder.comparison import Tolerance
from repo_builder.compilers.base import Artifact, Compiler, Progress, Target
from repo_builder.compilers.container import ContainerOptions
from repo_builder.config.build import (
    LABELS,
    ServingOptions,
    Warmup,
    build_config,
    choose_max_batch_size,
    wanted_max_batch_size,
)
from repo_builder.config.check import check_config, check_files
from repo_builder.config.image import PARAMETER
from repo_builder.config.problems import find_problems
from repo_builder.config.proto import enum_name
from repo_builder.config.render import render_config
from repo_builder.errors import ConfigError, ModelError, UsageError, told_with
from repo_builder.gate import check_artifact, describe_int8_kernels, known_shapes, open_source
from repo_builder.model import DataType, TensorSpec
from repo_builder.onnx_model import OnnxModel, bring_external_data
from repo_builder.passes.batch import Batching, plan_batching, static_batching
from repo_builder.passes.shapes import describe_zero_axes, free_zero_axes, state_output_shapes
from repo_builder.repository import CONFIG, MANIFEST
from repo_builder.runtime import RunError
from repo_builder.samples import SampleOptions, Sampler, flags_for, index_ranges
from repo_builder.trt.options import NOT_IN_FINGERPRINT, TensorRTOptions
from repo_builder.trt.refuse import refuse_model
from repo_builder.verify import Reference, Verification, sizes_to_verify

if TYPE_CHECKING:
    import numpy.typing as npt

    from repo_builder.runtime import Arrays

RESERVED_NAMES = {
    *(CONFIG, MANIFEST, LABELS, "warmup", "model.onnx", "model.plan", "source.onnx", "candidate.onnx"),
    *("graph.onnx", "graph.onnx.data"),
}
"""What external data may not be called, since other files of a version or of its making are."""


@dataclass(frozen=True)
class BuildOptions:
    """How a model is compiled and verified.

    ``batching`` False serves the model as it is, without a batch axis; ``verify`` False publishes without running
    anything; ``samples`` says what is known of the inputs that verification makes up; ``tensorrt`` how an engine is
    built where the target is one; ``cc_plan`` makes the version one that holds a plan for each of several types of GPU,
    and adds the plan for this one to it (:mod:`repo_builder.cc_plans`); ``container`` builds an engine in a container.
    """

    target: Target = Target.AUTO
    batching: bool = True
    verify: bool = True
    tolerance: Tolerance = field(default_factory=Tolerance)
    samples: SampleOptions = field(default_factory=SampleOptions)
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)
    cc_plan: bool = False
    container: ContainerOptions | None = field(default=None, metadata=NOT_IN_FINGERPRINT)


class Build:
    """The stages between reading and publishing, each leaving its result for the next.

    ``versions`` are the numbers that the model will have, the new one too.
    """

    def __init__(
        self,
        name: str,
        model: OnnxModel,
        build: BuildOptions,
        serving: ServingOptions,
        staged: Path,
        progress: Progress,
        versions: tuple[int, ...],
    ) -> None:
        self.name, self.model, self.build, self.serving, self.progress = name, model, build, serving, progress
        self.versions = versions
        self.version_folder, self.model_folder = staged / "version", staged / "model"
        self.version_folder.mkdir()
        self.model_folder.mkdir()
        self.reference: Reference | None = None
        self.verification: Verification | None = None
        self.index_ranges: dict[str, int] = {}
        self.notes: tuple[str, ...] = ()
        self.labels = _read_labels(serving.labels) if serving.labels else None

    def run(self, compiler: Compiler) -> None:
        self.artifact: Artifact = self.compile(compiler)
        with contextlib.closing(self.artifact):
            self._finish()

    def _finish(self) -> None:
        """Configure and verify the artifact, and write what is published with it."""
        if self.build.cc_plan:
            self.artifact = name_by_capability(self.artifact, self.version_folder)
        self.max_batch_size = choose_max_batch_size(
            self.serving, self.artifact, batchable=self.batching.batchable, reason=self.batching.reason
        )
        warmup = self._plan_warmup()
        config = build_config(self.name, self.artifact, self.serving, self.max_batch_size, warmup)
        check_config(config, self.name, self.artifact, self.labels, self.versions)
        check_files(config, self.model_folder)
        self.config = config
        self._verify()
        self._write_model_files(render_config(config))

    def compile(self, compiler: Compiler) -> Artifact:
        """Prepare the source and build the artifact, leaving ``model``, ``batching`` and ``reference``."""
        if compiler.target is not Target.ONNXRUNTIME:
            self._refuse_for_tensorrt(compiler.target)
        self._copy_external_data()
        self.batching = self._prepare(compiler.target)
        self.model = self.model.with_graph(self.batching.proto)
        self._check_beforehand(compiler.target)
        self.progress(f"compiling for {compiler.target.value}")
        with told_with(self.notes):
            return compiler.compile(
                self.model,
                self.version_folder,
                batchable=self.batching.batchable,
                max_batch_size=wanted_max_batch_size(self.serving),
                progress=self.progress,
            )

    def _refuse_for_tensorrt(self, target: Target) -> None:
        """Refuse before anything runs, which may take long, what ``target`` can't take of the file itself."""
        inputs = self.model.spec.inputs
        may_batch = not self._turned_off("--no-batching") and all(t.dims[:1] in {(-1,), (1,)} for t in inputs)
        with told_with(describe_zero_axes(self.model.proto)):
            refuse_model(
                target,
                self.model,
                self.build.tensorrt.profiles,
                batchable=may_batch,
                max_batch_size=wanted_max_batch_size(self.serving),
            )

    def _check_beforehand(self, target: Target) -> None:
        """Refuse before compiling, which may take minutes, what would be refused of the configuration afterwards.

        Only the artifact tells its types, and how large its batches may be at most: the draft has no types, and the
        largest batch that it could come to.
        """
        options, batchable = self.serving, self.batching.batchable
        inputs, outputs = self.model.ports()
        draft = Artifact(
            platform=target.platform,
            backend=target.backend,
            filename=target.filename,
            inputs=inputs,
            outputs=outputs,
            max_batch_size=self._largest_batch() if batchable and self.build.tensorrt.profiles else None,
            run=None,
            cc_filenames={"": target.filename} if self.build.cc_plan else {},
            gpu_only=target is not Target.ONNXRUNTIME,
        )
        size = choose_max_batch_size(options, draft, batchable=batchable, reason=self.batching.reason)
        config = build_config(self.name, draft, options, size, None)
        for entry in (*config.input, *config.output):
            entry.ClearField("data_type")
        check_config(config, self.name, draft, self.labels, self.versions, built=False)

    def _largest_batch(self) -> int:
        """The largest that the artifact may come to take: an engine takes what a profile does on every input.

        A profile has values, not sizes, for inputs that are shapes; those have no batch axis, or one they share.
        """
        wanted = wanted_max_batch_size(self.serving)
        inputs = [tensor.name for tensor in self.model.spec.inputs if tensor.dims[:1] in {(-1,), (1,)}]
        most = [
            min((shape[0] for name in inputs if (shape := profile.max.get(name, (wanted,)))), default=wanted)
            for profile in self.build.tensorrt.profiles
        ]
        return max((wanted, *most))

    def _copy_external_data(self) -> None:
        for file in self.model.spec.external_files:
            if file.parts[0] in RESERVED_NAMES:
                raise ModelError(
                    f"{self.model.spec.path} keeps weights in {str(file)!r}, which is the name of another file in a "
                    "model repository",
                    "save the model again with another name for its external data",
                )
        bring_external_data(self.model.spec, self.version_folder)

    def _prepare(self, target: Target) -> Batching:
        """Bring the graph into a shape that Triton's backends understand, and find its batch axis."""
        self.notes = describe_zero_axes(self.model.proto)
        self.model = self.model.with_graph(free_zero_axes(self.model.proto))
        if not self.build.verify:
            self._refuse_unknown_ranks()
            return self._turned_off("--no-batching") or static_batching(self.model)
        self.reference = self._open_reference(target)
        shapes = {output: array.shape for output, array in self.reference.row(0)[1].items()}
        self.model = self.model.with_graph(state_output_shapes(self.model.proto, shapes))
        if off := self._turned_off("--no-batching"):
            if self.reference.batch_axis and self.samples().has_shapes:
                self.reference = self.reference.without_batch_axis()
            return off
        self.progress("looking for the batch axis")
        batching = plan_batching(self.model, self.reference, self._largest_batch(), self.version_folder)
        if not batching.batchable and self.reference.batch_axis:
            self.reference = self.reference.without_batch_axis()
        return batching

    def _turned_off(self, option: str) -> Batching | None:
        """What comes of it that no batching was asked for, by ``option`` or by a max_batch_size; None if it was not."""
        if self.build.batching and self.serving.max_batch_size != 0:
            return None
        wish = "a max_batch_size of 0" if self.build.batching else option
        return Batching(False, f"{wish} was asked for", self.model.proto)

    def _refuse_unknown_ranks(self) -> None:
        for tensor in self.model.spec.outputs:
            if tensor.shape is None:
                raise ModelError(
                    f"output {tensor.name!r} of {self.model.spec.path} states no shape; only running it would tell",
                    "drop --no-verify, or export the model with output shapes",
                )

    def _open_reference(self, target: Target) -> Reference:
        self.progress("running the source under ONNX Runtime")
        try:
            session = open_source(self.model, self.version_folder, target)
        except ModelError as error:
            if not self.build.tensorrt.plugins:
                raise
            hint = "if it is for want of your custom layers: --no-verify publishes the model without a comparison"
            raise ModelError(error.message, hint) from None
        self.index_ranges = index_ranges(self.model.proto)
        sampler = Sampler(self.model.spec.inputs, self.samples(), self.index_ranges)
        return Reference.open(self.model.spec, session, sampler)

    def samples(self) -> SampleOptions:
        """What is known of the inputs, the shapes too that an engine is tuned for.

        An input of fixed sizes has its shape from the model; what a profile gives of it may be its values.  A batch
        that is fixed at 1 stays 1: the source takes no other.
        """
        profiles = self.build.tensorrt.profiles
        tuned = profiles[0].opt if profiles else {}
        dims = {tensor.name: tensor.dims for tensor in self.model.spec.inputs if -1 in tensor.dims}
        shapes = {
            name: (1, *shape[1:]) if dims[name][0] == 1 else shape for name, shape in tuned.items() if name in dims
        }
        return known_shapes(self.build.samples, shapes)

    def _plan_warmup(self) -> Warmup | None:
        """Zeros where source and artifact take them, else the very inputs that it was verified on."""
        if self.reference is None:
            return None
        import numpy as np

        inputs, _ = self.reference.row(0)
        shapes = {name: array.shape for name, array in inputs.items()}
        if not inputs or any(0 in shape for shape in shapes.values()):
            return None
        zeros = {
            tensor.name: np.full(
                shapes[tensor.name], "" if tensor.dtype is DataType.STRING else 0, tensor.dtype.numpy_dtype()
            )
            for tensor in self.reference.session.inputs
        }
        try:
            self.reference.session.run(zeros)
            taken = not self.artifact.shape_tensors  # of which 0 may be no value that a profile has
        except RunError:
            taken = False
        return Warmup(shapes, {} if taken else self._write_warmup_files(inputs))

    def _write_warmup_files(self, inputs: Arrays) -> dict[str, str]:
        folder = self.model_folder / "warmup"
        folder.mkdir()
        files = {}
        for index, (name, array) in enumerate(inputs.items()):
            files[name] = f"input_{index}.bin"
            dtype = next(tensor.dtype for tensor in self.artifact.inputs if tensor.name == name).numpy_dtype()
            (folder / files[name]).write_bytes(_wire_bytes(array.astype(dtype, copy=False)))
        return files

    def _verify(self) -> None:
        if self.reference is None:
            return
        self.progress(f"verifying against {self.reference.session.runner}")
        self.verification = check_artifact(
            self.artifact,
            self.reference,
            self.model.spec,
            self.samples(),
            self.index_ranges,
            sizes_to_verify(self.max_batch_size, batchable=self.batching.batchable),
            self.build.tolerance,
        )
        if self.artifact.platform == Target.ONNXRUNTIME.platform:
            path = self.version_folder / self.artifact.filename
            self.notes += describe_int8_kernels(path, self.model.proto, self.reference)

    def _write_model_files(self, text: str) -> None:
        (self.model_folder / CONFIG).write_text(text, encoding="utf-8")
        if self.serving.labels and self.labels is not None:
            (self.model_folder / LABELS).write_text("\n".join(self.labels) + "\n", encoding="utf-8")
        shutil.copytree(self.model_folder, self.version_folder, dirs_exist_ok=True)

    def describe(self) -> dict[str, Any]:
        """What this build adds to the manifest."""
        artifact, reason = self.artifact, self.batching.reason
        if self.config.HasField("sequence_batching"):
            reason = "--config has sequence_batching in place of dynamic_batching"
        return {
            "platform": artifact.platform or artifact.backend,
            **artifact.details,
            "inputs": [
                _describe_tensor(tensor) | ({"shape_tensor": True} if tensor.name in artifact.shape_tensors else {})
                for tensor in artifact.inputs
            ],
            "outputs": [_describe_tensor(tensor) for tensor in artifact.outputs],
            "max_batch_size": self.max_batch_size,
            "batching": {"batchable": self.batching.batchable, "reason": reason},
            "verification": dataclasses.asdict(self.verification) if self.verification else None,
            "unverified": artifact.unverified,
            "tools": {
                "repo-builder": package_version("repo-builder"),
                "python": platform.python_version(),
                **artifact.tools,
            },
        }

    def hints(self) -> tuple[str, ...]:
        hints = [*self.notes, *self.artifact.hints, *(self.verification.hints if self.verification else ())]
        asks_for_gpu = any(group.gpus or enum_name(group, "kind") == "KIND_GPU" for group in self.config.instance_group)
        gpus = _count_gpus() if asks_for_gpu else None
        problems = find_problems(self.config, versions=self.versions, gpus=gpus, where="--config")
        hints += [f"{problem.text} ({problem.hint})" for problem in problems]
        if self.reference and self.batching.told_by_values:
            hints.append(f"if random inputs are unlike real ones, say what these are: {flags_for(self.model.spec)}")
        pictures = [
            tensor for tensor in self.artifact.inputs if len(tensor.dims) == 4 and 3 in {tensor.dims[1], tensor.dims[3]}
        ]
        if len(pictures) == 1 and PARAMETER not in self.config.parameters:
            hints.append("it may take pictures: --image PRESET stores their preprocessing with the model")
        by_onnxruntime = self.artifact.platform == Target.ONNXRUNTIME.platform
        if by_onnxruntime and any(
            tensor.dtype is DataType.BF16 for tensor in (*self.artifact.inputs, *self.artifact.outputs)
        ):
            hints.append("NVIDIA's onnxruntime backend does not take BF16 inputs or outputs; the local server does")
        return tuple(hints)


def _count_gpus() -> int:
    from repo_builder.host import ask

    return len((ask("nvidia-smi", "--list-gpus").output or "").splitlines())


def _describe_tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.dtype.value, "shape": list(tensor.dims)}


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        why = f"--labels {path} can't be read: {error.strerror}"
        raise UsageError(why, "check the path and its permissions") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"--labels {path} is not UTF-8 text", "one class a line, in the order of the output"
        ) from None
    labels = tuple(line.strip() for line in text.split("\n"))
    while labels and not labels[-1]:
        labels = labels[:-1]
    if not labels:
        raise ConfigError(f"--labels {path} is empty", "one class a line, in the order of the output")
    return labels


def _wire_bytes(array: npt.NDArray[Any]) -> bytes:
    """An array as Triton reads it from a file: raw, strings each behind their length in four little-endian bytes."""
    from tritonclient.utils import serialize_byte_tensor

    return bytes(serialize_byte_tensor(array).item()) if array.dtype == object else array.tobytes()
