"""Configurations that Triton does not serve, and some at the edge that it does.

One table for two tests: what :func:`repo_builder.config.problems.find_problems` says of each, and what the real
tritonserver does with it.
"""

from __future__ import annotations

NAME_AND_PLATFORM = 'name: "{name}"\nplatform: "onnxruntime_onnx"\n'
BATCHED = "max_batch_size: 8\n"
X = '{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }'
INPUT, OUTPUT = f"input [ {X} ]\n", 'output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]\n'
CPU = "instance_group [ { count: 1 kind: KIND_CPU } ]\n"


def of_input(fields: str) -> str:
    return BATCHED + INPUT.replace("dims", f"{fields} dims") + OUTPUT + CPU


def of_output(fields: str) -> str:
    return BATCHED + INPUT + OUTPUT.replace("dims", f"{fields} dims") + CPU


def of_instances(fields: str) -> str:
    return BATCHED + INPUT + OUTPUT + f"instance_group [ {{ {fields} }} ]\n"


def with_(fields: str) -> str:
    return BATCHED + INPUT + OUTPUT + CPU + fields


def whole(fields: str) -> str:
    """Without batching."""
    free = (INPUT + OUTPUT).replace("[ 4 ]", "[ -1, 4 ]")
    return f"max_batch_size: 0\n{free}{CPU}{fields}"


def parameter(key: str, value: str) -> str:
    return with_(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')


def warmup(size: str, tensor: str = "data_type: TYPE_FP32 dims: [ 4 ] zero_data: true", name: str = "x") -> str:
    return f'model_warmup [ {{ name: "w" {size} inputs {{ key: "{name}" value {{ {tensor} }} }} }} ]'


def accelerator(device: str, name: str) -> str:
    return f'optimization {{ execution_accelerators {{ {device}_execution_accelerator {{ name: "{name}" }} }} }}'


TWO_INPUTS = (
    'model_warmup [ { name: "w" batch_size: 1 '
    'inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } '
    'inputs { key: "z" value { data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } } ]'
)
MANY = "99999999999"

REFUSED = {
    "decoupled": (with_("model_transaction_policy { decoupled: true }"), "decoupled: every request"),
    "nchw": (of_input("format: FORMAT_NCHW"), "input 'x' has format FORMAT_NCHW, which takes 3 dims, and dims [4]"),
    "nhwc": (of_input("format: FORMAT_NHWC"), "input 'x' has format FORMAT_NHWC"),
    "optional": (of_input("optional: true"), "input 'x' is optional"),
    "shape_input": (of_input("is_shape_tensor: true"), "input 'x' has is_shape_tensor"),
    "shape_output": (of_output("is_shape_tensor: true"), "output 'y' has is_shape_tensor"),
    "linear_input": (of_input("is_non_linear_format_io: true"), "input 'x' has is_non_linear_format_io"),
    "linear_output": (of_output("is_non_linear_format_io: true"), "output 'y' has is_non_linear_format_io"),
    "negative_batch": (with_("").replace("size: 8", "size: -1"), "max_batch_size -1 is no batch size"),
    "preferred_large": (with_("dynamic_batching { preferred_batch_size: [ 9 ] }"), "preferred_batch_size 9"),
    "preferred_0": (with_("dynamic_batching { preferred_batch_size: [ 0 ] }"), "preferred_batch_size 0"),
    "preferred_whole": (whole("dynamic_batching { preferred_batch_size: [ 4 ] }"), "preferred_batch_size 4"),
    "delay": (with_(f"dynamic_batching {{ max_queue_delay_microseconds: {MANY} }}"), f"microseconds {MANY}: a request"),
    "priority": (
        with_("dynamic_batching { priority_levels: 2 default_priority_level: 9 }"),
        "default_priority_level 9 is not between 1 and priority_levels 2",
    ),
    "no_priority": (with_("dynamic_batching { priority_levels: 2 }"), "default_priority_level 0"),
    "queue_priority": (
        with_(
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 "
            "priority_queue_policy { key: 5 value { max_queue_size: 1 } } }"
        ),
        "priority_queue_policy is for level 5",
    ),
    "version": (with_("version_policy { specific { versions: 77 } }"), "version_policy takes versions 77, and"),
    "no_version": (with_("version_policy { specific { } }"), "version_policy takes versions none"),
    "latest_0": (with_("version_policy { latest { } }"), "version_policy takes the latest 0 versions"),
    "unknown_kind": (of_instances("count: 1 kind: 9"), "instance_group has the unknown kind 9"),
    "cpu_gpus": (of_instances("count: 1 kind: KIND_CPU gpus: [ 0 ]"), "is of KIND_CPU and names gpus [0]"),
    "model_gpus": (of_instances("count: 1 kind: KIND_MODEL gpus: [ 0 ]"), "is of KIND_MODEL and names gpus [0]"),
    "negative_gpu": (of_instances("count: 1 kind: KIND_GPU gpus: [ -1 ]"), "instance_group has gpus [-1]"),
    "profile": (of_instances('count: 1 kind: KIND_CPU profile: [ "0" ]'), "instance_group has profile"),
    "warm_batch": (with_(warmup("batch_size: 9")), "model_warmup 'w' has batch_size 9, more than max_batch_size 8"),
    "warm_whole": (
        whole(warmup("batch_size: 2", "data_type: TYPE_FP32 dims: [ 1, 4 ] zero_data: true")),
        "batch_size 2, more than max_batch_size 0",
    ),
    "warm_dims": (
        with_(warmup("batch_size: 1", "data_type: TYPE_FP32 dims: [ 5 ] zero_data: true")),
        "input 'x': dims [5] do not fit the model's [4]",
    ),
    "warm_rank": (
        with_(warmup("batch_size: 1", "data_type: TYPE_FP32 dims: [ 1, 4 ] zero_data: true")),
        "dims [1, 4] do not fit the model's [4] (there is no batch axis in them)",
    ),
    "warm_free": (
        whole(warmup("batch_size: 1", "data_type: TYPE_FP32 dims: [ -1, 4 ] zero_data: true")),
        "dims [-1, 4] leave a size free",
    ),
    "warm_type": (
        with_(warmup("batch_size: 1", "data_type: TYPE_INT64 dims: [ 4 ] zero_data: true")),
        "input 'x': it is TYPE_INT64, the model's is TYPE_FP32",
    ),
    "warm_no_data": (
        with_(warmup("batch_size: 1", "data_type: TYPE_FP32 dims: [ 4 ]")),
        "it has none of zero_data, random_data, input_data_file",
    ),
    "warm_name": (with_(warmup("batch_size: 1", name="z")), "model_warmup 'w' has no input 'x'"),
    "warm_more": (with_(TWO_INPUTS), "model_warmup 'w' has an input 'z', the model has none of that name"),
    "threads": (parameter("intra_op_thread_count", "many"), "parameter 'intra_op_thread_count' can't be 'many'"),
    "no_threads": (parameter("intra_op_thread_count", ""), "parameter 'intra_op_thread_count' can't be ''"),
    "negative_threads": (parameter("inter_op_thread_count", "-1"), "parameter 'inter_op_thread_count' can't be '-1'"),
    "endless_threads": (parameter("inter_op_thread_count", MANY), f"'inter_op_thread_count' can't be '{MANY}'"),
    "execution_mode": (parameter("execution_mode", "2"), "parameter 'execution_mode' can't be '2'"),
    "arena": (parameter("enable_mem_arena", "perhaps"), "parameter 'enable_mem_arena' can't be 'perhaps'"),
    "pattern": (parameter("enable_mem_pattern", "perhaps"), "parameter 'enable_mem_pattern' can't be 'perhaps'"),
    "runtime": (with_('runtime: "nope.so"'), "runtime 'nope.so' is no part of the onnxruntime backend"),
    "other_runtime": (with_('runtime: "libtriton_python.so"'), "runtime 'libtriton_python.so' is no part"),
    "shrinkage": (
        parameter("memory.enable_memory_arena_shrinkage", "perhaps"),
        "parameter 'memory.enable_memory_arena_shrinkage' can't be 'perhaps'",
    ),
}  # fmt: skip

ENDS_THE_SERVER = {
    "no_agent": (with_("model_repository_agents { }"), "model_repository_agents names no agent"),
    "passive": (of_instances("count: 1 kind: KIND_CPU passive: true"), "every instance_group is passive"),
    "dash": (with_('metric_tags { key: "a-b" value: "c" }'), "metric_tags has the key 'a-b'"),
    "underscores": (with_('metric_tags { key: "__a" value: "c" }'), "metric_tags has the key '__a'"),
}

SERVED = {
    "plain": with_(""),
    "whole": whole(""),
    "format_none": of_input("format: FORMAT_NONE"),
    "preferred": with_("dynamic_batching { preferred_batch_size: [ 1, 8 ] }"),
    "levels": with_("dynamic_batching { priority_levels: 2 default_priority_level: 1 }"),
    "level_alone": with_("dynamic_batching { default_priority_level: 1 }"),
    "queue_alone": with_("dynamic_batching { priority_queue_policy { key: 1 value { max_queue_size: 1 } } }"),
    "all_versions": with_("version_policy { all { } }"),
    "a_version": with_("version_policy { specific { versions: [ 1, 77 ] } }"),
    "latest_9": with_("version_policy { latest { num_versions: 9 } }"),
    "one_passive": of_instances("count: 1 kind: KIND_CPU passive: true } , { count: 1 kind: KIND_CPU"),
    "no_count": of_instances("kind: KIND_CPU"),
    "kind_model": of_instances("count: 1 kind: KIND_MODEL"),
    "warm": with_(warmup("batch_size: 8")),
    "warm_whole": whole(warmup("batch_size: 1", "data_type: TYPE_FP32 dims: [ 2, 4 ] zero_data: true")),
    "warm_empty": whole(warmup("batch_size: 1", "data_type: TYPE_FP32 dims: [ 0, 4 ] zero_data: true")),
    "warm_random": with_(warmup("batch_size: 1 count: 3", "data_type: TYPE_FP32 dims: [ 4 ] random_data: true")),
    "threads": parameter("intra_op_thread_count", " 2 "),
    "parallel": parameter("execution_mode", "1"),
    "arena": parameter("enable_mem_arena", "True"),
    "shrinkage": parameter("memory.enable_memory_arena_shrinkage", "cpu:0"),
    "unknown_parameter": parameter("mine", "anything"),
    "metric_tag": with_('metric_tags { key: "a_b" value: "c-d" }'),
    "cuda_graphs": with_("optimization { cuda { graphs: true } }"),
    "own_runtime": with_('runtime: "model.py"'),
    "operators": with_('model_operations { op_library_filename: "x.so" }'),
    "openvino": with_(accelerator("cpu", "openvino")),
    "no_gpu": with_(accelerator("gpu", "tensorrt")),
    "host_policy": of_instances('count: 1 kind: KIND_CPU host_policy: "mine"'),
    "cache": with_("response_cache { enable: true }"),
}
