"""What Triton would refuse, or accept and then fail on, is found before anything is published."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from repo_builder.compilers.base import Artifact
from repo_builder.config.build import ServingOptions, build_config, merge_config
from repo_builder.config.check import check_config, check_files
from repo_builder.config.proto import ModelConfig, parse_config
from repo_builder.errors import ConfigError
from repo_builder.model import TensorSpec
from repo_builder.trt.options import Profile
from tests.config.artifacts import FP32, INT64, artifact

BATCHED = artifact()
WHOLE = artifact(max_batch_size=0)


def configured(extra: str, size: int = 8) -> ModelConfig:
    config = build_config("net", BATCHED if size else WHOLE, ServingOptions(), size, None)
    merge_config(config, parse_config(extra, "extra"))
    return config


@pytest.mark.parametrize(
    "extra",
    [
        "",
        "max_batch_size: 1",
        'platform: "onnxruntime_onnx"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]',
        'input [ { name: "x" dims: [ 2, 2 ] reshape { shape: [ 4 ] } } ]',
        "dynamic_batching { preferred_batch_size: [ 1, 8 ] }",
        "instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] } ]",
        "optimization { execution_accelerators { cpu_execution_accelerator { name: 'openvino' } } }",
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }',
        "response_cache { enable: true }",
        "sequence_batching { max_sequence_idle_microseconds: 5 }",
        "version_policy { specific { versions: [ 1, 2 ] } }",
    ],
)
def test_fits(extra: str) -> None:
    check_config(configured(extra), "net", BATCHED, None)


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ('name: "other"', "'other' is not the model's name 'net'"),
        ('platform: "tensorrt_plan"', "asks for 'tensorrt_plan'; the artifact is of platform 'onnxruntime_onnx'"),
        ('backend: "python"', "asks for 'python'"),
        ('default_model_filename: "other.onnx"', "'other.onnx' is not 'model.onnx'"),
        ("ensemble_scheduling { }", "ensemble"),
        ("max_batch_size: -1", "max_batch_size -1"),
        ('input [ { name: "x" dims: [ 5 ] } ]', r"input 'x' has dims \[4\] in the model, \[5\] in the config"),
        ('input [ { name: "x" dims: [ 1, 4 ] } ]', r"has dims \[4\] in the model, \[1, 4\]"),
        ('input [ { name: "x" dims: [ -1 ] } ]', r"has dims \[4\] in the model, \[-1\]"),
        ('output [ { name: "y" data_type: TYPE_FP16 } ]', "output 'y' is TYPE_FP32 in the model, TYPE_FP16"),
        ('output [ { name: "y" data_type: 77 } ]', "77 in the config"),
        ('input [ { name: "x" dims: [ 5 ] reshape { shape: [ 4 ] } } ]', r"\[5\] can't be reshaped to \[4\]"),
        ('input [ { name: "x" dims: [ -1 ] reshape { shape: [ 4 ] } } ]', r"\[-1\] can't be reshaped"),
        ('input [ { name: "x" reshape { shape: [ 2, 2 ] } } ]', r"\[2, 2\] in the config"),
        (
            "dynamic_batching { preferred_batch_size: [ 4, 9 ] }",
            "preferred_batch_size 9 is not between 1 and max_batch_size 8",
        ),
        ("dynamic_batching { preferred_batch_size: [ 0 ] }", "preferred_batch_size 0"),
        ("dynamic_batching { preferred_batch_size: [ -4 ] }", "preferred_batch_size -4"),
        ("instance_group [ { count: -2 } ]", "count -2"),
        ('output [ { name: "y" label_filename: "mine.txt" } ]', "label file 'mine.txt'"),
        ('input [ { name: "x" allow_ragged_batch: true } ]', "input 'x' has allow_ragged_batch"),
    ],
)
def test_contradicts(extra: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        check_config(configured(extra), "net", BATCHED, None)
    assert caught.value.hint


def test_a_batch_for_a_model_that_has_none() -> None:
    with pytest.raises(ConfigError, match="max_batch_size 8: the artifact takes 0"):
        check_config(configured("max_batch_size: 8", size=0), "net", WHOLE, None)


def test_a_larger_batch_than_the_artifact_takes() -> None:
    with pytest.raises(ConfigError, match="max_batch_size 8: the artifact takes 4"):
        check_config(configured(""), "net", artifact(max_batch_size=4), None)


def test_a_batch_where_the_first_axis_is_not_free() -> None:
    fixed = artifact((TensorSpec("x", FP32, (1, 4)),))

    with pytest.raises(ConfigError, match=r"first axis of input x FP32 \[1, 4\] is not free"):
        check_config(configured(""), "net", fixed, None)


def test_an_axis_of_no_size() -> None:
    empty = artifact((TensorSpec("x", FP32, (None, 0)),))

    with pytest.raises(ConfigError, match=r"input x FP32 \[\?, 0\] has an axis of size 0"):
        check_config(configured('input [ { name: "x" dims: [ 0 ] } ]'), "net", empty, None)


def test_preferred_sizes_without_batching() -> None:
    with pytest.raises(ConfigError, match="preferred_batch_size 4 is not between 1 and max_batch_size 0"):
        check_config(configured("dynamic_batching { preferred_batch_size: [ 4 ] }", size=0), "net", WHOLE, None)


def test_a_tensor_that_is_missing() -> None:
    config = configured("")
    del config.output[:]

    with pytest.raises(ConfigError, match="output 'y' is missing"):
        check_config(config, "net", BATCHED, None)


def plan(*inputs: TensorSpec, profiles: int = 1, **fields: Any) -> Artifact:
    corner = Profile({}, {}, {})
    return artifact(
        inputs, platform="tensorrt_plan", filename="model.plan", gpu_only=True, profiles=(corner,) * profiles, **fields
    )


@pytest.mark.parametrize(
    ("made", "extra", "why"),
    [
        (
            plan(TensorSpec("s", FP32, ())),
            "",
            r"s FP32 \[\] is a scalar, which Triton's tensorrt",
        ),
        (plan(TensorSpec("n", INT64, (2,)), shape_tensors=frozenset("n")), "", None),
        (
            plan(TensorSpec("n", INT64, (2,)), shape_tensors=frozenset("n")),
            'input { name: "n" is_shape_tensor: false } output { name: "y" is_shape_tensor: true }',
            "'y' is not marked as the engine has it",
        ),
        (plan(), 'output { name: "y" is_non_linear_format_io: true }', "'y' is not marked as the engine has it"),
        (plan(profiles=2), "instance_group { count: 2 }", None),
        (plan(profiles=2), 'instance_group { profile: "1" }', None),
        (plan(profiles=2), 'instance_group { profile: "2" }', "names the profile '2', and the engine has 2"),
        (plan(profiles=2), 'instance_group { profile: "first" }', "names the profile 'first'"),
    ],
)
def test_what_nvidia_s_tensorrt_backend_refuses(made: Artifact, extra: str, why: str | None, tmp_path: Path) -> None:
    (tmp_path / "extra.pbtxt").write_text(extra)
    config = build_config("net", made, ServingOptions(config=tmp_path / "extra.pbtxt"), 0, None)
    with contextlib.nullcontext() if why is None else pytest.raises(ConfigError, match=why):
        check_config(config, "net", made, None)


def test_a_scalar_of_an_engine_that_only_the_local_server_runs() -> None:
    made = artifact((TensorSpec("s", FP32, ()),), platform="", backend="tensorrt_rtx", filename="model.plan")
    check_config(build_config("net", made, ServingOptions(), 0, None), "net", made, None)


class TestLabels:
    def check(self, count: int, *shape: int | str) -> None:
        made = artifact(outputs=(TensorSpec("y", FP32, ("N", *shape)),))
        config = build_config("net", made, ServingOptions(labels=Path("labels")), 8, None)
        check_config(config, "net", made, tuple(map(str, range(count))))

    @pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3), ("k",), ("k", 3), ("h", "w")])
    def test_one_for_each_class(self, shape: tuple[int | str, ...]) -> None:
        self.check(3, *shape)

    @pytest.mark.parametrize("count", [2, 4, 1])
    def test_too_few_or_too_many(self, count: int) -> None:
        with pytest.raises(ConfigError, match=f"{count} labels for the 3 classes of output 'y'"):
            self.check(count, 3)

    def test_a_scalar_has_one_class(self) -> None:
        self.check(1)
        with pytest.raises(ConfigError, match="2 labels for the 1 classes"):
            self.check(2)


def test_warmup_data_has_to_be_there(tmp_path: Path) -> None:
    config = configured(
        'model_warmup [ { name: "mine" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] '
        'input_data_file: "mine.bin" } } } ]'
    )

    with pytest.raises(ConfigError, match=r"'mine' takes input 'x' .* 'mine\.bin'"):
        check_files(config, tmp_path)
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup/mine.bin").touch()
    check_files(config, tmp_path)
    for path in (str(tmp_path / "warmup/mine.bin"), "../warmup/mine.bin", "w" * 300):  # Triton looks below warmup/
        config.model_warmup[0].inputs["x"].input_data_file = path
        with pytest.raises(ConfigError, match="from a file that is not made"):
            check_files(config, tmp_path)
