"""What keeps a configuration from being served is told from its text (tests/servers runs them)."""

from __future__ import annotations

import pytest

from repo_builder.config.problems import LONGEST_DELAY_US, MOST_INSTANCES, Problem, find_problems
from repo_builder.config.proto import parse_config
from tests.config.configurations import (
    ENDS_THE_SERVER,
    NAME_AND_PLATFORM,
    REFUSED,
    SERVED,
    accelerator,
    of_input,
    of_instances,
    warmup,
    with_,
)


def problems(
    text: str, name: str = "net", *, gpus: int | None = None, versions: tuple[int, ...] = (1,)
) -> list[Problem]:
    config = parse_config(NAME_AND_PLATFORM.format(name=name) + text, name)
    return find_problems(config, versions=versions, gpus=gpus)


@pytest.mark.parametrize(
    ("text", "why"), [*REFUSED.values(), *ENDS_THE_SERVER.values()], ids=[*REFUSED, *ENDS_THE_SERVER]
)
def test_what_is_not_served(text: str, why: str) -> None:
    found = problems(text)

    assert why in found[0].text
    assert found[0].fatal
    assert found[0].hint


@pytest.mark.parametrize("name", SERVED)
def test_what_is_served(name: str) -> None:
    assert [problem for problem in problems(SERVED[name]) if problem.fatal] == []


@pytest.mark.parametrize(
    ("text", "gpus", "why"),
    [
        (of_instances("count: 1 kind: KIND_GPU"), 0, "asks for a GPU, and there is none here"),
        (of_instances("count: 1 gpus: [ 0 ]"), 0, "asks for a GPU, and there is none here"),
        (of_instances("count: 1 kind: KIND_GPU gpus: [ 7 ]"), 2, "has gpus [7], and there are 2 here"),
        (with_("version_policy { specific { versions: 1 } }"), None, "version 2, the latest, is not served"),
        (with_(warmup("")), None, "model_warmup 'w' has no batch_size: Triton skips it"),
        (
            with_(warmup("batch_size: 1", "data_type: TYPE_INT64 dims: [ 4 ] random_data: true")).replace(
                'name: "x" data_type: TYPE_FP32', 'name: "x" data_type: TYPE_INT64'
            ),
            None,
            "gives input 'x' any integers at all",
        ),
        (with_("sequence_batching { }"), None, "sequence_batching is not served by repo-builder serve"),
        (
            with_('batch_input { kind: BATCH_ELEMENT_COUNT target_name: "b" data_type: TYPE_FP32 source_input: "x" }'),
            None,
            "batch_input is not served by repo-builder serve",
        ),
        (of_input("allow_ragged_batch: true"), None, "allow_ragged_batch of input 'x' is not served by repo-builder"),
        (with_('runtime: "model.py"'), None, "runtime 'model.py' is what either repo-builder serve or NVIDIA's"),
        (with_('runtime: "libtriton_onnxruntime.so"'), None, "runtime 'libtriton_onnxruntime.so' is what either"),
        (
            with_('model_repository_agents { agents { name: "checksum" } }'),
            None,
            "model_repository_agents checksum: repo-builder serve has none",
        ),
        (
            with_('model_operations { op_library_filename: "x.so" }'),
            None,
            "model_operations x.so: repo-builder serve passes over it",
        ),
        (with_(accelerator("cpu", "openvino")), None, "execution_accelerators openvino: repo-builder serve passes"),
        (of_instances('count: 1 kind: KIND_CPU host_policy: "mine"'), None, "host_policy 'mine' changes nothing"),
        (with_("model_metrics { }"), None, "model_metrics is newer than Triton 2.51"),
    ],
)
def test_what_another_machine_or_server_may_serve(text: str, gpus: int | None, why: str) -> None:
    [problem] = problems(text, gpus=gpus, versions=(1, 2))

    assert why in problem.text
    assert not problem.fatal


@pytest.mark.parametrize(
    "text", [of_instances("kind: KIND_GPU gpus: [ 0, 1 ]"), of_instances("kind: KIND_GPU"), with_("")]
)
@pytest.mark.parametrize("gpus", [2, None])
def test_gpus_that_are_there_or_not_known(text: str, gpus: int | None) -> None:
    assert problems(text, gpus=gpus) == []


def test_an_accelerator_where_there_is_none() -> None:
    texts = [problem.text for problem in problems(with_(accelerator("gpu", "tensorrt")))]
    assert "gpu_execution_accelerator changes nothing for instances of KIND_CPU" in texts

    engine = parse_config('platform: "tensorrt_plan" ' + accelerator("gpu", "tensorrt"), "net")
    assert "only the onnxruntime backend has any" in find_problems(engine)[0].text


def test_versions_that_are_not_known() -> None:
    config = parse_config('platform: "onnxruntime_onnx" version_policy { specific { versions: 7 } }', "net")

    assert find_problems(config) == []


def test_limits() -> None:
    delay = "dynamic_batching {{ max_queue_delay_microseconds: {} }}"
    assert problems(with_(delay.format(LONGEST_DELAY_US))) == []
    assert len(problems(with_(delay.format(LONGEST_DELAY_US + 1)))) == 1
    assert problems(of_instances(f"count: {MOST_INSTANCES}")) == []
    assert "1025 instances" in problems(of_instances(f"count: 1 }}, {{ count: {MOST_INSTANCES}"))[0].text


@pytest.mark.parametrize("platform", ['platform: "tensorrt_plan"', 'backend: "tensorrt_rtx"'])
@pytest.mark.parametrize("kind", ["KIND_CPU", "KIND_MODEL"])
def test_engines_run_on_gpus_only(platform: str, kind: str) -> None:
    config = parse_config(f"{platform} instance_group [ {{ count: 1 kind: {kind} }} ]", "net")

    assert "an engine runs on GPUs only" in find_problems(config)[0].text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sequence_batching { }", "sequence_batching"),
        ("batch_output { }", "batch_output"),
        ('input { name: "n" is_shape_tensor: true } max_batch_size: 4', "input 'n', is_shape_tensor"),
        ('output { name: "y" is_non_linear_format_io: true }', "is_non_linear_format_io of 'y'"),
    ],
)
def test_what_the_local_server_s_tensorrt_backend_lacks(text: str, what: str) -> None:
    [problem] = find_problems(parse_config(f'platform: "tensorrt_plan" {text}', "net"))
    assert (problem.text.startswith(what), problem.fatal) == (True, False)
    assert "NVIDIA's own tensorrt backend" in problem.hint


def test_what_no_backend_for_rtx_engines_has() -> None:
    [problem] = find_problems(parse_config('backend: "tensorrt_rtx" sequence_batching { }', "net"))
    assert (problem.fatal, problem.hint) == (True, "drop it from config.pbtxt")


@pytest.mark.parametrize(
    ("size", "spec", "told"),
    [
        (4, "batch_size: 4", None),
        (4, "batch_size: 4 graph_lower_bound { batch_size: 2 }", None),
        (0, "batch_size: 0", None),
        (4, "batch_size: 5", "graph_spec has batch_size 5 to 5, and max_batch_size is 4"),
        (4, "batch_size: 4 graph_lower_bound { }", "graph_spec has batch_size 0 to 4"),
        (4, "", "batch_size 0 to 0"),
        (0, "batch_size: 1", "batch_size 1 to 1, and max_batch_size is 0"),
    ],
)
def test_batch_sizes_of_cuda_graphs(size: int, spec: str, told: str | None) -> None:
    text = f'platform: "tensorrt_plan" max_batch_size: {size} optimization {{ cuda {{ graph_spec {{ {spec} }} }} }}'
    found = find_problems(parse_config(text, "net"))
    assert len(found) == (told is not None)
    assert told is None or told in found[0].text


def test_other_backends_have_rules_of_their_own() -> None:
    """A Python model may answer many times, and takes parameters of its own."""
    text = (
        'backend: "python" max_batch_size: 8 model_transaction_policy { decoupled: true } '
        'input [ { name: "x" optional: true } ] '
        'parameters { key: "execution_mode" value { string_value: "mine" } }'
    )
    assert find_problems(parse_config(text, "net")) == []


def test_hints_name_the_place_to_mend() -> None:
    config = parse_config("version_policy { latest { } }", "net")

    assert find_problems(config, where="--config")[0].hint.endswith("in --config")
