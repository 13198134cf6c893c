"""The ModelConfig message of a model: what the artifact is, how it is to be served, what the user adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repo_builder.compilers.base import Artifact
from repo_builder.config.image import PARAMETER, ImagePreprocessing, fit_to_input
from repo_builder.config.problems import INT32_MAX, LONGEST_DELAY_US, MOST_INSTANCES
from repo_builder.config.proto import ModelConfig, enum_name, messages, new_config, read_config, stated_max_batch_size
from repo_builder.errors import ConfigError, UsageError
from repo_builder.model import DataType, TensorSpec, refit

DEFAULT_MAX_BATCH_SIZE = 8
LABELS = "labels.txt"


@dataclass(frozen=True)
class ServingOptions:
    """How Triton is to serve a model.

    ``max_batch_size`` None means 8 where the model can be batched; 0 means no batching.  ``max_queue_delay_us`` is
    how long, in microseconds, Triton may hold a request back to fill a batch; None means 0, and ``instance_count``
    None one.  ``labels`` is a text file with one class a line; ``cuda_graphs`` lets an engine be launched whole at the
    batch sizes 1, preferred and largest, or, without batching, at every shape that comes, up to 64; ``config`` is a
    pbtxt file with any ModelConfig fields, which win over our defaults and may not contradict what else is asked for
    (:func:`reconcile`).
    """

    max_batch_size: int | None = None
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int | None = None
    instance_count: int | None = None
    instance_kind: str = "auto"
    labels: Path | None = None
    image: ImagePreprocessing | None = None
    cuda_graphs: bool = False
    config: Path | None = None

    def __post_init__(self) -> None:
        size = self.max_batch_size
        if size is not None and not 0 <= size <= INT32_MAX:
            raise UsageError(f"--max-batch-size {size} is not a batch size", f"0 (no batching) to {INT32_MAX}")
        for preferred in self.preferred_batch_sizes:
            if not 1 <= preferred <= INT32_MAX:
                raise UsageError(f"--preferred-batch-sizes: {preferred} is not a batch size", f"1 to {INT32_MAX}")
        delay, count = self.max_queue_delay_us, self.instance_count
        if delay is not None and not 0 <= delay <= LONGEST_DELAY_US:
            why = f"--max-queue-delay-us {delay} is no time that a request may wait"
            raise UsageError(why, f"0 to {LONGEST_DELAY_US} microseconds, which is an hour")
        if count is not None and not 1 <= count <= MOST_INSTANCES:
            why = f"--instance-count {count} is no number of copies to serve a model with"
            raise UsageError(why, f"1 to {MOST_INSTANCES}; one or two are enough for most models")
        if self.instance_kind not in {"auto", "cpu", "gpu"}:
            raise UsageError(f"--instance-kind {self.instance_kind} is unknown", "auto, cpu or gpu")


INPUTS_TO_HOST = "FORCE_CPU_ONLY_INPUT_TENSORS"
"""The parameter of Triton's Python backend, through which the local server runs engines, that decides whether what
clients leave in CUDA shared memory is brought to the CPU first; NVIDIA's tensorrt backend never does
(https://github.com/triton-inference-server/python_backend#interoperability-and-gpu-support)."""


@dataclass(frozen=True)
class Warmup:
    """One sample that Triton runs before a model counts as ready.

    ``shapes`` are whole shapes of one request, the batch axis (1) included; ``files`` name a file of raw bytes under
    ``warmup/`` for the inputs that zeros do not fit.
    """

    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, str]


def reconcile(options: ServingOptions) -> ServingOptions:
    """Options whose max_batch_size is the user's pbtxt's, where that states one: everything else has to fit it.

    Raises:
        UsageError: the file can't be read, or says something else than the options do.
        ConfigError: the file can't be parsed.
    """
    if options.config is None:
        return options
    try:
        options.config.read_bytes()
    except OSError as error:
        why = f"--config {options.config} can't be read: {error.strerror}"
        raise UsageError(why, "check the path and its permissions") from None
    extra, size = read_config(options.config), stated_max_batch_size(options.config)
    batching, groups = extra.dynamic_batching, extra.instance_group
    kinds = {enum_name(group, "kind").removeprefix("KIND_").lower() for group in groups}
    unset = (None, ())
    said: tuple[tuple[str, object, object], ...] = (
        ("--max-batch-size", options.max_batch_size, size),
        ("--preferred-batch-sizes", options.preferred_batch_sizes, tuple(batching.preferred_batch_size)),
        ("--max-queue-delay-us", options.max_queue_delay_us, batching.max_queue_delay_microseconds or None),
        ("--instance-count", options.instance_count, sum(max(group.count, 1) for group in groups) or None),
        ("--instance-kind", () if options.instance_kind == "auto" else (options.instance_kind,), tuple(sorted(kinds))),
    )
    for flag, asked, stated in said:
        if asked not in unset and stated not in unset and asked != stated:
            why = f"{flag} {_listed(asked)}, but {options.config} says {_listed(stated)}"
            raise UsageError(why, f"drop {flag}, or change the file")
    for flag in batching_flags(options) if extra.HasField("sequence_batching") else ():
        raise UsageError(f"{flag}: {options.config} has sequence_batching instead", f"drop {flag}, or change the file")
    return options if size is None else replace(options, max_batch_size=size)


def _listed(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def batching_flags(options: ServingOptions) -> tuple[str, ...]:
    """The flags given that mean something with dynamic batching only."""
    given = {
        "--preferred-batch-sizes": options.preferred_batch_sizes,
        "--max-queue-delay-us": options.max_queue_delay_us,
    }
    return tuple(flag for flag, value in given.items() if value)


def choose_max_batch_size(options: ServingOptions, artifact: Artifact, *, batchable: bool, reason: str) -> int:
    """The max_batch_size to write: what was asked if the artifact takes it, else the default.

    Raises:
        ConfigError: a batch size was asked of a model that takes none, or a larger one than the artifact takes.
    """
    asked = options.max_batch_size
    limit = artifact.max_batch_size  # what was built for a range of batches is served with all of it
    if not batchable or limit == 0:
        for flag in ((f"--max-batch-size {asked}",) if asked else ()) + batching_flags(options):
            why = f"{flag}: the model can't be batched: {reason}"
            raise ConfigError(why, "drop the flag; --no-batching serves it as it is")
        return 0
    if asked is None:
        return wanted_max_batch_size(options) if limit is None else limit
    if limit is not None and asked > limit:
        raise ConfigError(
            f"--max-batch-size {asked}: the artifact takes batches of up to {limit}",
            f"--max-batch-size {limit} or less",
        )
    return asked


def wanted_max_batch_size(options: ServingOptions) -> int:
    """The batch size to build for: what was asked, else the largest preferred one, 8 at least."""
    if options.max_batch_size is not None:
        return options.max_batch_size
    return max((DEFAULT_MAX_BATCH_SIZE, *options.preferred_batch_sizes))


def build_config(
    name: str, artifact: Artifact, options: ServingOptions, max_batch_size: int, warmup: Warmup | None
) -> ModelConfig:
    """Make the message and merge the user's own fields over it.

    Raises:
        ConfigError: the user's file can't be read or contradicts the artifact.
    """
    config = new_config(name=name, platform=artifact.platform, backend=artifact.backend, max_batch_size=max_batch_size)
    if artifact.backend:
        config.default_model_filename = artifact.filename  # Triton knows the file names of its own backends only
    config.cc_model_filenames.update(artifact.cc_filenames)
    for tensor in artifact.inputs:
        _add_tensor(config.input.add(), tensor, batched=max_batch_size > 0)
        # Triton's core takes this field, and profile below, for its own tensorrt backend only; ours needs neither.
        config.input[-1].is_shape_tensor = bool(artifact.platform) and tensor.name in artifact.shape_tensors
    for tensor in artifact.outputs:
        _add_tensor(config.output.add(), tensor, batched=max_batch_size > 0)
    if max_batch_size > 0:
        config.dynamic_batching.preferred_batch_size.extend(options.preferred_batch_sizes)
        config.dynamic_batching.max_queue_delay_microseconds = options.max_queue_delay_us or 0
    _add_instances(config, options, artifact)
    if options.cuda_graphs:
        if not artifact.gpu_only:
            raise ConfigError("--cuda-graphs: only an engine is launched that way", "use --target tensorrt, or drop it")
        config.optimization.cuda.graphs = True
    if artifact.gpu_only:
        config.parameters[INPUTS_TO_HOST].string_value = "no"
    config.version_policy.latest.num_versions = 1
    if options.image:
        image, tensor = fit_to_input(options.image, artifact.inputs)
        config.parameters[PARAMETER].string_value = image.to_json(tensor.name)
    if options.config:
        _merge_file(config, options.config)
    if warmup and not config.model_warmup:
        _add_warmup(config, warmup, artifact)
    if options.labels and not any(output.label_filename for output in config.output):
        _labelled_output(config).label_filename = LABELS
    _complete_instances(config, artifact)
    return config


def _merge_file(config: ModelConfig, path: Path) -> None:
    asked = config.parameters[PARAMETER].string_value if PARAMETER in config.parameters else None
    merge_config(config, read_config(path))
    if asked is not None and config.parameters[PARAMETER].string_value != asked:
        why = f"--image and its options do not say what parameter {PARAMETER!r} in {path} says"
        raise UsageError(why, "drop --image with its options, or the parameter")


def _add_instances(config: ModelConfig, options: ServingOptions, artifact: Artifact) -> None:
    kind = options.instance_kind
    if artifact.gpu_only:
        if kind == "cpu":
            raise ConfigError("--instance-kind cpu: an engine runs on GPUs only", "drop it, or --target onnxruntime")
        kind = "gpu"
    value = messages().ModelInstanceGroup.Kind.Value(f"KIND_{kind.upper()}")
    config.instance_group.add(count=options.instance_count or 1, kind=value)


def _complete_instances(config: ModelConfig, artifact: Artifact) -> None:
    """Fill in what groups leave out: one instance, as Triton does, and all profiles, of which it takes the first."""
    several = len(artifact.profiles) > 1 and artifact.platform
    for group in config.instance_group:
        group.count = group.count or 1
        if several and not group.profile:
            group.profile.extend(str(index) for index in range(len(artifact.profiles)))


def _add_tensor(message: Any, tensor: TensorSpec, *, batched: bool) -> None:
    message.name = tensor.name
    message.data_type = messages().DataType.Value(tensor.dtype.config_name)
    dims = tensor.dims[1:] if batched else tensor.dims
    message.dims.extend(dims or (1,))
    if not dims and batched:  # Triton's core refuses an empty reshape without batching; backends then take [1]
        message.reshape.SetInParent()


def _labelled_output(config: ModelConfig) -> Any:
    """The output that labels belong to: the only one, or the only one of floating point."""
    outputs = list(config.output)
    if len(outputs) > 1:
        floats = {dtype.config_name for dtype in DataType if dtype.is_float}
        outputs = [output for output in outputs if enum_name(output, "data_type") in floats]
    if len(outputs) != 1:
        names = ", ".join(output.name for output in config.output)
        raise ConfigError(
            f"--labels: which output has the classes? The model has {names}",
            'name it with --config FILE.pbtxt holding output { name: "..." label_filename: "labels.txt" }',
        )
    return outputs[0]


def _add_warmup(config: ModelConfig, warmup: Warmup, artifact: Artifact) -> None:
    batched = config.max_batch_size > 0
    entries = {entry.name: entry for entry in config.input}
    sizes = dict.fromkeys((1, config.max_batch_size)) if batched else (0,)
    for size in sizes:
        # Without batching Triton wants batch_size 0 left out; with it, N makes N requests of one row in one run.
        sample = config.model_warmup.add(name=f"batch of {size}" if batched else "one request", batch_size=max(size, 1))
        for tensor in artifact.inputs:
            entry = sample.inputs[tensor.name]
            entry.data_type = messages().DataType.Value(tensor.dtype.config_name)
            shape = warmup.shapes[tensor.name]
            entry.dims.extend(_dims_of_request(entries[tensor.name], shape[1:] if batched else shape))
            if tensor.name in warmup.files:
                entry.input_data_file = warmup.files[tensor.name]
            else:
                entry.zero_data = True


def _dims_of_request(entry: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What a request has where the model, behind the input's reshape, has ``shape``: free sizes stay in their order."""
    if not entry.HasField("reshape"):
        return shape or (1,)
    return refit(shape, entry.reshape.shape, entry.dims)


def merge_config(config: Any, extra: Any) -> None:
    """Merge ``extra`` over ``config`` in place: two ModelConfig messages, or two of any kind in them.

    Single fields replace; inputs and outputs are merged by name; other lists (instance_group, preferred sizes,
    warmup...) are replaced whole; maps are merged by key.

    Raises:
        ConfigError: ``extra`` names an input or output that the model does not have.
    """
    for field, value in extra.ListFields():
        if field.name in {"input", "output"}:
            _merge_tensors(config, field.name, value)
        elif _is_repeated(field):
            if not _is_map(field):
                config.ClearField(field.name)
            getattr(config, field.name).MergeFrom(value)
        elif field.message_type is None:
            setattr(config, field.name, value)
        else:
            merge_config(getattr(config, field.name), value)
            getattr(config, field.name).SetInParent()


def _merge_tensors(config: ModelConfig, role: str, tensors: Iterable[Any]) -> None:
    own = {tensor.name: tensor for tensor in getattr(config, role)}
    for tensor in tensors:
        if tensor.name not in own:
            raise ConfigError(
                f"--config: the model has no {role} {tensor.name!r}",
                f"its {role}s: " + ", ".join(map(repr, own)),
            )
        merge_config(own[tensor.name], tensor)


def _is_repeated(field: Any) -> bool:
    repeated = field.is_repeated
    return bool(repeated() if callable(repeated) else repeated)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
