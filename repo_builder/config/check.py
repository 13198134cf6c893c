"""What would make Triton refuse a configuration, or accept it and fail on every request: found before publishing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path

from repo_builder.compilers.base import Artifact, Target
from repo_builder.config.build import LABELS
from repo_builder.config.problems import find_problems
from repo_builder.config.proto import ModelConfig, enum_name
from repo_builder.errors import ConfigError
from repo_builder.model import TensorSpec


def check_config(
    config: ModelConfig,
    name: str,
    artifact: Artifact,
    labels: tuple[str, ...] | None,
    versions: Collection[int] | None = None,
    *,
    built: bool = True,
) -> None:
    """Hold a finished configuration to the artifact, and to what Triton serves at all.

    Args:
        config: the message, the user's fields merged in.
        name: the model's name and folder.
        artifact: inputs, outputs and batch limit as built.
        labels: the lines of the label file, if there is one.
        versions: the numbers of the model's versions, the new one too, if version_policy is to be judged.
        built: False for an artifact that is not made yet, whose types and dims say nothing.

    Raises:
        ConfigError: with the field that is wrong and what it should be.
    """
    if config.name != name:
        raise ConfigError(f"config name {config.name!r} is not the model's name {name!r}", f"use --name {config.name}")
    if config.platform != artifact.platform or config.backend not in {
        artifact.backend,
        artifact.platform.partition("_")[0],
    }:
        served, made = config.backend or config.platform, artifact.backend or artifact.platform
        raise ConfigError(
            f"config asks for {served!r}; the artifact is of platform {made!r}",
            "drop platform and backend from --config",
        )
    _check_filename(config, artifact)
    if built and dict(config.cc_model_filenames) != dict(artifact.cc_filenames):
        raise ConfigError(
            "cc_model_filenames names other files than those that are made",
            "drop it from --config: --cc-plan builds a plan for the GPU here and names it",
        )
    if config.HasField("ensemble_scheduling"):
        raise ConfigError("config has ensemble_scheduling, but the model is no ensemble", "drop it from --config")
    _check_batching(config, artifact)
    for role, tensors in (("input", artifact.inputs), ("output", artifact.outputs)) if built else ():
        check_tensors(config, role, tensors)
    if artifact.platform == Target.TENSORRT.platform:
        _check_plan(config, artifact, built=built)
    _check_entries(config)
    for problem in find_problems(config, versions=versions, where="--config"):
        if problem.fatal:
            raise ConfigError(problem.text, problem.hint)
    _check_labels(config, labels)


def _check_filename(config: ModelConfig, artifact: Artifact) -> None:
    default = config.default_model_filename
    if artifact.cc_filenames and default:
        raise ConfigError(
            f"default_model_filename {default!r} would be tried on every GPU that has no plan of its own",
            "drop it from --config, or drop --cc-plan",
        )
    if default not in {"", artifact.filename}:
        raise ConfigError(f"default_model_filename {default!r} is not {artifact.filename!r}", "drop it from --config")


def _check_batching(config: ModelConfig, artifact: Artifact) -> None:
    size, limit = config.max_batch_size, artifact.max_batch_size
    if size < 0 or (limit is not None and size > limit):
        largest = "any" if limit is None else limit
        raise ConfigError(f"max_batch_size {size}: the artifact takes {largest}", "change it in --config")


def _check_entries(config: ModelConfig) -> None:
    for role, entries in (("input", config.input), ("output", config.output)):
        for entry in entries:
            if entry.HasField("reshape") and _elements(entry.dims) != _elements(entry.reshape.shape):
                dims, shape = list(entry.dims), list(entry.reshape.shape)
                raise ConfigError(
                    f"{role} {entry.name!r}: {dims} can't be reshaped to {shape}",
                    "both need the same number of elements",
                )
            if role == "input" and entry.optional:
                raise ConfigError(f"input {entry.name!r} is optional, and the model needs it", "drop it from --config")
            if role == "input" and entry.allow_ragged_batch:
                raise ConfigError(
                    f"input {entry.name!r} has allow_ragged_batch, for models that get a batch as one long row",
                    "drop it from --config: requests of other shapes are answered in turn",
                )


def check_tensors(config: ModelConfig, role: str, tensors: tuple[TensorSpec, ...]) -> None:
    """Hold the entries of ``role``, input or output, to the model's own ``tensors``; raises ConfigError."""
    entries = {entry.name: entry for entry in getattr(config, role)}
    for tensor in tensors:
        entry = entries.get(tensor.name)
        if entry is None:
            raise ConfigError(f"the model's {role} {tensor.name!r} is missing from the config", _DROP_HINT)
        type_name = enum_name(entry, "data_type")
        if type_name != tensor.dtype.config_name:
            raise ConfigError(
                f"{role} {tensor.name!r} is {tensor.dtype.config_name} in the model, {type_name} in the config",
                _DROP_HINT,
            )
        batched = config.max_batch_size > 0
        if batched and tensor.dims[:1] != (-1,) and (tensor.dims[:1], config.max_batch_size) != ((1,), 1):
            raise ConfigError(
                f"max_batch_size {config.max_batch_size}: the first axis of {role} {tensor} is not free",
                "--max-batch-size 0, or max_batch_size: 0 in --config",
            )
        if 0 in tensor.dims:
            raise ConfigError(
                f"{role} {tensor} has an axis of size 0, which Triton does not take",
                "leave it out of the model, or export it with that axis free",
            )
        stated = tuple(entry.reshape.shape if entry.HasField("reshape") else entry.dims)
        actual = tensor.dims[1:] if batched else tensor.dims
        if not actual and not batched:
            actual = (1,)  # how Triton writes a scalar without batching
        if stated != actual:
            raise ConfigError(
                f"{role} {tensor.name!r} has dims {list(actual)} in the model, {list(stated)} in the config", _DROP_HINT
            )


def _check_plan(config: ModelConfig, artifact: Artifact, *, built: bool) -> None:
    """Hold a plan's configuration to what NVIDIA's tensorrt backend refuses.

    Source: https://github.com/triton-inference-server/tensorrt_backend/blob/main/src/instance_state.cc, ``ValidateIO``
    and, of scalars, ``ConfigureInputDimensions``, which reads the first of their dims.
    """
    for tensor in (*artifact.inputs, *artifact.outputs):
        if tensor.shape == ():
            raise ConfigError(
                f"{tensor} is a scalar, which Triton's tensorrt backend does not take",
                "give it the shape [1] in the model, or --target onnxruntime",
            )
    for entry in (*config.input, *config.output) if built else ():
        if entry.is_shape_tensor != (entry.name in artifact.shape_tensors) or entry.is_non_linear_format_io:
            raise ConfigError(f"{entry.name!r} is not marked as the engine has it", _DROP_HINT)
    count = len(artifact.profiles)
    for name in [name for group in config.instance_group for name in group.profile if built]:
        if name not in map(str, range(count)):
            why = f"instance_group names the profile {name!r}, and the engine has {count}, counted from 0"
            raise ConfigError(why, "drop profile from --config: all are used")


_DROP_HINT = "names, types and dims are the model's: drop them from --config, or change the model"


def _elements(dims: Iterable[int]) -> tuple[int, int]:
    """The product of the fixed sizes, and how many are free."""
    sizes = list(dims)
    return math.prod(size for size in sizes if size >= 0), sum(size < 0 for size in sizes)


def _check_labels(config: ModelConfig, labels: tuple[str, ...] | None) -> None:
    for entry in config.output:
        if not entry.label_filename:
            continue
        if labels is None or entry.label_filename != LABELS:
            raise ConfigError(
                f"output {entry.name!r} names the label file {entry.label_filename!r}",
                f"pass it with --labels; it becomes {LABELS}",
            )
        classes = math.prod(entry.dims)
        if min(entry.dims) > 0 and classes != len(labels):
            raise ConfigError(
                f"{len(labels)} labels for the {classes} classes of output {entry.name!r}",
                "give --labels a file with one line for each class",
            )


def check_files(config: ModelConfig, folder: Path) -> None:
    """Refuse a warmup whose data files are not in ``folder``, the model's own, where Triton looks for them."""
    made = {"", *(file.name for file in (folder / "warmup").glob("*"))}
    for sample in config.model_warmup:
        for name, entry in sample.inputs.items():
            if entry.input_data_file not in made:
                raise ConfigError(
                    f"model_warmup {sample.name!r} takes input {name!r} from a file that is not made: "
                    f"{entry.input_data_file!r}",
                    "drop model_warmup from --config, or use random_data or zero_data there",
                )
