"""What keeps Triton from serving a configuration, told from config.pbtxt alone.

Each rule was seen at work with tritonserver 2.51 and the backends of the local server: Triton refuses to load the
model, ends, or takes it and then fails on every request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from repo_builder.config.proto import ModelConfig, enum_name

INT32_MAX = 2**31 - 1
MOST_INSTANCES = 1024
"""Of one model.  Triton sets no limit; each instance is a copy of the model, in the local server also a process."""

LONGEST_DELAY_US = 3_600_000_000
"""An hour.  A request that finds no company waits so long for its answer; no client does."""


PLATFORMS = (
    "onnxruntime_onnx",
    "tensorrt_plan",
    "pytorch_libtorch",
    "ensemble",
    "tensorflow_graphdef",
    "tensorflow_savedmodel",
)
"""Source: https://github.com/triton-inference-server/core/blob/main/src/constants.h."""


@dataclass(frozen=True)
class Problem:
    """What is wrong and how to mend it.  Not ``fatal``: another machine or server may well serve it."""

    text: str
    hint: str
    fatal: bool = True


def find_problems(
    config: ModelConfig,
    *,
    versions: Collection[int] | None = None,
    gpus: int | None = None,
    where: str = "config.pbtxt",
) -> list[Problem]:
    """Everything in a model's configuration that keeps it from being served, or may.

    ``add`` refuses to publish what is fatal, and ``doctor`` asks the same of what is published.

    Args:
        config: the whole message, of any platform.
        versions: the model's version numbers, if its version_policy is to be judged.
        gpus: how many GPUs the machine that serves it has, if that is to be judged.
        where: what the hints call the place to mend.
    """
    return [
        *_platform(config, where),
        *_tensors(config, where),
        *_scheduling(config, where),
        *(_graphs(config, where) if _served_by(config, "tensorrt") else ()),
        *_versions(config, versions, where),
        *_instances(config, where),
        *_devices(config, gpus, where),
        *_warmup(config, where),
        *(_onnxruntime_parameters(config, where) if _served_by(config, "onnxruntime") else ()),
        *_server(config, where),
        *_passed_over(config, where),
    ]


def _served_by(config: ModelConfig, *backends: str) -> bool:
    return (config.backend or config.platform.partition("_")[0]) in backends


def _platform(config: ModelConfig, where: str) -> Iterator[Problem]:
    if config.platform not in {"", *PLATFORMS}:
        mend = f'platforms are {", ".join(PLATFORMS)}; if it is a backend: backend: "{config.platform}" in its place'
        if config.backend:
            mend = f"drop platform from {where}: backend is enough"
        yield Problem(f"platform {config.platform!r} is none that Triton has", mend)


def _tensors(config: ModelConfig, where: str) -> Iterator[Problem]:
    for entry in config.input:
        format_name = enum_name(entry, "format")
        if format_name in {"FORMAT_NCHW", "FORMAT_NHWC"} and len(entry.dims) != 3:
            text = f"input {entry.name!r} has format {format_name}, which takes 3 dims, and dims {list(entry.dims)}"
            yield Problem(text, f"drop format from {where}: it changes nothing")
        if entry.optional and config.max_batch_size > 0 and _served_by(config, "onnxruntime"):
            text = f"input {entry.name!r} is optional, which the onnxruntime backend refuses with batching"
            yield Problem(text, f"drop optional from {where}")
    for role, entries in (("input", config.input), ("output", config.output)):
        for entry in entries:
            for flag in ("is_shape_tensor", "is_non_linear_format_io"):
                if getattr(entry, flag) and not _served_by(config, "tensorrt"):
                    text = f"{role} {entry.name!r} has {flag}, which only the tensorrt backend takes"
                    yield Problem(text, f"drop {flag} from {where}")


def _scheduling(config: ModelConfig, where: str) -> Iterator[Problem]:
    batching, size = config.dynamic_batching, config.max_batch_size
    if size < 0:
        yield Problem(f"max_batch_size {size} is no batch size", f"0 or more in {where}")
    for preferred in batching.preferred_batch_size:
        if not 1 <= preferred <= size:
            text = f"preferred_batch_size {preferred} is not between 1 and max_batch_size {size}"
            yield Problem(text, f"raise max_batch_size to {preferred}, or drop that size")
    for delay in (batching.max_queue_delay_microseconds, config.sequence_batching.oldest.max_queue_delay_microseconds):
        if delay > LONGEST_DELAY_US:
            text = f"max_queue_delay_microseconds {delay}: a request that fills no batch is never answered"
            yield Problem(text, f"{LONGEST_DELAY_US} at most, in {where}")
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        text = f"default_priority_level {batching.default_priority_level} is not between 1 and priority_levels {levels}"
        yield Problem(text, f"change one of the two in {where}")
    if levels and any(not 1 <= level <= levels for level in batching.priority_queue_policy):
        worst = max(batching.priority_queue_policy)
        text = f"priority_queue_policy is for level {worst}, and there are priority_levels {levels}"
        yield Problem(text, f"change one of the two in {where}")
    if config.model_transaction_policy.decoupled and _served_by(config, *_OUR_BACKENDS):
        text = "model_transaction_policy is decoupled: every request over HTTP is refused"
        yield Problem(text, f"drop model_transaction_policy from {where}: the model answers each request once")


_OUR_BACKENDS = ("onnxruntime", "tensorrt", "tensorrt_rtx")


def _graphs(config: ModelConfig, where: str) -> Iterator[Problem]:
    largest = config.max_batch_size
    least = min(largest, 1)
    for graph in config.optimization.cuda.graph_spec:
        sizes = [graph.batch_size]
        if graph.HasField("graph_lower_bound"):
            sizes.append(graph.graph_lower_bound.batch_size)
        if not all(least <= size <= largest for size in sizes):
            text = f"graph_spec has batch_size {min(sizes)} to {max(sizes)}, and max_batch_size is {largest}"
            yield Problem(text, f"{least} to {largest} in {where}")


def _versions(config: ModelConfig, versions: Collection[int] | None, where: str) -> Iterator[Problem]:
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "latest" and policy.latest.num_versions < 1:
        yield Problem("version_policy takes the latest 0 versions: nothing is loaded", f"num_versions: 1 in {where}")
    if kind != "specific" or versions is None:
        return
    wanted = ", ".join(map(str, policy.specific.versions)) or "none"
    there = ", ".join(map(str, sorted(versions)))
    if not set(policy.specific.versions) & set(versions):
        text = f"version_policy takes versions {wanted}, and the model has {there}: nothing is loaded"
        yield Problem(text, f"drop version_policy from {where}, or name a version that is there")
    elif max(versions) not in policy.specific.versions:
        text = f"version_policy takes versions {wanted}: version {max(versions)}, the latest, is not served"
        yield Problem(text, f"add it to version_policy in {where}", fatal=False)


def _instances(config: ModelConfig, where: str) -> Iterator[Problem]:
    groups = config.instance_group
    for group in groups:
        kind = enum_name(group, "kind")
        if group.count < 0:
            yield Problem(f"instance_group count {group.count} is not a count", "1 or more")
        if not kind.startswith("KIND_"):
            yield Problem(f"instance_group has the unknown kind {kind}", f"KIND_CPU, KIND_GPU or none in {where}")
        if group.gpus and kind in {"KIND_CPU", "KIND_MODEL"}:
            text = f"instance_group is of {kind} and names gpus {list(group.gpus)}"
            yield Problem(text, f"drop gpus from {where}, or set kind: KIND_GPU")
        if kind in {"KIND_CPU", "KIND_MODEL"} and _served_by(config, "tensorrt", "tensorrt_rtx"):
            yield Problem(f"instance_group is of {kind}, and an engine runs on GPUs only", f"drop kind from {where}")
        if group.profile and not _served_by(config, "tensorrt"):
            yield Problem("instance_group has profile, which only the tensorrt backend takes", f"drop it from {where}")
    count = sum(max(group.count, 1) for group in groups)
    if count > MOST_INSTANCES:
        text = f"{count} instances in instance_group, each a copy of the model"
        yield Problem(text, f"{MOST_INSTANCES} at most; one or two are enough for most models")
    if groups and all(group.passive for group in groups):
        text = "every instance_group is passive: the first request ends the server"
        yield Problem(text, f"drop passive from {where}")


def _devices(config: ModelConfig, gpus: int | None, where: str) -> Iterator[Problem]:
    for group in config.instance_group:
        if any(gpu < 0 for gpu in group.gpus):
            yield Problem(f"instance_group has gpus {list(group.gpus)}", f"numbers of GPUs, from 0, in {where}")
        elif gpus == 0 and (enum_name(group, "kind") == "KIND_GPU" or group.gpus):
            text = "instance_group asks for a GPU, and there is none here: this machine can't load the model"
            plan = _served_by(config, "tensorrt", "tensorrt_rtx")
            mend = "--target onnxruntime" if plan else "--instance-kind cpu"
            yield Problem(text, f"{mend}, unless it is for another machine", fatal=False)
        elif gpus is not None and any(gpu >= gpus for gpu in group.gpus):
            text = f"instance_group has gpus {list(group.gpus)}, and there are {gpus} here, counted from 0"
            yield Problem(text, f"correct gpus in {where}, unless it is for another machine", fatal=False)


def _warmup(config: ModelConfig, where: str) -> Iterator[Problem]:
    entries = {entry.name: entry for entry in config.input}
    mend = f"correct model_warmup in {where}, or drop it"
    for sample in config.model_warmup:
        start = f"model_warmup {sample.name!r}"
        if not sample.batch_size:
            yield Problem(f"{start} has no batch_size: Triton skips it", f"batch_size: 1 in {where}", fatal=False)
            continue
        if sample.batch_size > max(config.max_batch_size, 1):
            text = f"{start} has batch_size {sample.batch_size}, more than max_batch_size {config.max_batch_size}"
            yield Problem(text, mend)
        for name in sorted(entries.keys() | sample.inputs.keys()):
            if name not in sample.inputs:
                if not entries[name].optional:
                    yield Problem(f"{start} has no input {name!r}", mend)
            elif name not in entries:
                yield Problem(f"{start} has an input {name!r}, the model has none of that name", mend)
            else:
                contradiction = _contradiction(sample.inputs[name], entries[name])
                if contradiction:
                    yield Problem(f"{start}, input {name!r}: {contradiction}", mend)
                elif sample.inputs[name].random_data and "INT" in enum_name(entries[name], "data_type"):
                    text = f"{start} gives input {name!r} any integers at all; if they are indices, nothing is loaded"
                    yield Problem(text, f"use zero_data in {where}", fatal=False)


def _contradiction(given: Any, entry: Any) -> str | None:
    """What of a warmup input does not fit the model's input, None if it fits."""
    given_type, wanted_type = enum_name(given, "data_type"), enum_name(entry, "data_type")
    if wanted_type not in {given_type, "TYPE_INVALID"}:  # invalid: the configuration leaves it to the model
        return f"it is {given_type}, the model's is {wanted_type}"
    if any(size < 0 for size in given.dims):
        return f"dims {list(given.dims)} leave a size free"
    fits = len(given.dims) == len(entry.dims) and all(
        wanted in {-1, size} for size, wanted in zip(given.dims, entry.dims, strict=True)
    )
    if not fits:
        return f"dims {list(given.dims)} do not fit the model's {list(entry.dims)} (there is no batch axis in them)"
    return None if given.WhichOneof("input_data_type") else "it has none of zero_data, random_data, input_data_file"


_BOOLEANS = re.compile("0|1|true|false", re.IGNORECASE)
_ARENAS = re.compile(r"((cpu|gpu)(:\d+)?(;(cpu|gpu)(:\d+)?)*)?")


def _onnxruntime_parameters(config: ModelConfig, where: str) -> Iterator[Problem]:
    """Parameters that the onnxruntime backend reads; others are passed over."""
    forms: dict[str, tuple[Callable[[str], object], str]] = {
        "intra_op_thread_count": (_is_int32, "a number of threads, 0 for the default"),
        "inter_op_thread_count": (_is_int32, "a number of threads, 0 for the default"),
        "execution_mode": (lambda text: _is_int32(text) and int(text) <= 1, "0 (sequential) or 1 (parallel)"),
        "enable_mem_arena": (_BOOLEANS.fullmatch, "true or false"),
        "enable_mem_pattern": (_BOOLEANS.fullmatch, "true or false"),
        "memory.enable_memory_arena_shrinkage": (_ARENAS.fullmatch, "devices such as cpu:0;gpu:0"),
    }
    for key, (fits, form) in forms.items():
        if key in config.parameters and not fits(config.parameters[key].string_value):
            text = f"parameter {key!r} can't be {config.parameters[key].string_value!r}"
            yield Problem(text, f"{form}, in {where}")


def _is_int32(text: str) -> bool:
    try:
        return 0 <= int(text) <= INT32_MAX
    except ValueError:
        return False


def _server(config: ModelConfig, where: str) -> Iterator[Problem]:
    backend = next((name for name in _OUR_BACKENDS if _served_by(config, name)), None)
    if backend and config.runtime:
        known = config.runtime in {"model.py", f"libtriton_{backend}.so"}
        text = f"runtime {config.runtime!r} is no part of the {backend} backend"
        if known:
            text = f"runtime {config.runtime!r} is what either repo-builder serve or NVIDIA's container has, not both"
        yield Problem(text, f"drop runtime from {where}: the server finds its own", fatal=not known)
    if config.HasField("model_repository_agents"):
        agents = [agent.name for agent in config.model_repository_agents.agents]
        if agents:
            text = f"model_repository_agents {', '.join(agents)}: repo-builder serve has none and can't load the model"
            yield Problem(text, f"{_DOCKER}; or drop it from {where}", fatal=False)
        else:
            yield Problem("model_repository_agents names no agent: it ends the server", f"drop it from {where}")
    for key in config.metric_tags:
        if not re.fullmatch("(?!__)[A-Za-z0-9_]*", key):
            text = f"metric_tags has the key {key!r}: no name of a Prometheus label, it ends the server at its start"
            yield Problem(text, f"use letters, digits and single underscores in {where}")
    of_nvidia = backend in {"onnxruntime", "tensorrt"}
    mend = f"only NVIDIA's own {backend} backend takes it: {_DOCKER}" if of_nvidia else f"drop it from {where}"
    for field in _not_served(config) if backend else ():
        yield Problem(f"{field} is not served by repo-builder serve", mend, fatal=not of_nvidia)
    if any(field.name == "model_metrics" for field, _ in config.ListFields()):  # older messages lack the field
        text = "model_metrics is newer than Triton 2.51, which repo-builder serve runs"
        yield Problem(text, "repo-builder serve --engine docker with a newer image", fatal=False)


def _not_served(config: ModelConfig) -> Iterator[str]:
    """What the local server's backends do not have and refuse to load."""
    yield from (field for field in ("batch_input", "batch_output") if len(getattr(config, field)))
    if config.HasField("sequence_batching"):
        yield "sequence_batching"
    for entry in config.input:
        if entry.allow_ragged_batch:
            yield f"allow_ragged_batch of input {entry.name!r}"
        if entry.is_shape_tensor and config.max_batch_size > 0:
            yield f"input {entry.name!r}, is_shape_tensor with max_batch_size {config.max_batch_size},"
    yield from (
        f"is_non_linear_format_io of {entry.name!r}"
        for entry in (*config.input, *config.output)
        if entry.is_non_linear_format_io
    )


_DOCKER = "repo-builder serve --engine docker"


def _passed_over(config: ModelConfig, where: str) -> Iterator[Problem]:
    """What loads and then changes nothing."""
    accelerators = config.optimization.execution_accelerators
    on_gpu, on_cpu = accelerators.gpu_execution_accelerator, accelerators.cpu_execution_accelerator
    if _served_by(config, "onnxruntime"):
        fields = {
            "model_operations": config.model_operations.op_library_filename,
            "execution_accelerators": [accelerator.name for accelerator in (*on_gpu, *on_cpu)],
        }
        for field, values in fields.items():
            if values:
                yield Problem(f"{field} {', '.join(values)}: repo-builder serve passes over it", _DOCKER, fatal=False)
    elif (on_gpu or on_cpu) and _served_by(config, *_OUR_BACKENDS):
        text = "execution_accelerators changes nothing: only the onnxruntime backend has any"
        yield Problem(text, f"drop it from {where}", fatal=False)
    groups = config.instance_group
    if on_gpu and groups and all(enum_name(group, "kind") == "KIND_CPU" for group in groups):
        text = "gpu_execution_accelerator changes nothing for instances of KIND_CPU"
        yield Problem(text, f"drop it from {where}, or set kind: KIND_GPU", fatal=False)
    for policy in sorted({group.host_policy for group in groups} - {""}):
        text = (
            f"host_policy {policy!r} changes nothing unless the server is told what it is, as repo-builder serve is not"
        )
        yield Problem(text, f"drop it from {where}, or start tritonserver with --host-policy", fatal=False)
