"""What is wrong with ``--config`` and its like is told before an engine is built, which may take minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repo_builder import BuildOptions, Published, ServingOptions, Target, add_model
from repo_builder.compilers.base import Artifact
from repo_builder.config.proto import read_config
from repo_builder.errors import ConfigError
from repo_builder.model import DataType
from repo_builder.trt.options import Profile, TensorRTOptions
from tests.fake_compiler import H100, FakeTensorRT
from tests.models import linear, save
from tests.support import untouched

Add = Callable[..., Published]


class HalfInputs(FakeTensorRT):
    """As --fp16 with FP16 inputs, and TensorRT 8.6 with INT64: the artifact's types are not the source's."""

    def compile(self, *arguments: Any, **options: Any) -> Artifact:
        artifact = super().compile(*arguments, **options)
        return replace(artifact, inputs=tuple(replace(tensor, dtype=DataType.FP16) for tensor in artifact.inputs))


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    net = save(linear(), tmp_path / "net.onnx")

    def add(compiler: FakeTensorRT, config: str = "", build: BuildOptions | None = None, **serving: Any) -> Published:
        monkeypatch.setattr("repo_builder.add.choose_compiler", lambda *_: (compiler, "asked for"))
        file = tmp_path / "extra.pbtxt"
        file.write_text(config, encoding="utf-8")
        return add_model(
            net,
            repository=tmp_path / "models",
            build=build or BuildOptions(target=Target.TENSORRT),
            serving=ServingOptions(config=file, **serving),
        )

    return add


@pytest.mark.parametrize(
    ("config", "serving", "why"),
    [
        ("nonsense: 1", {}, 'no field named "nonsense"'),
        ('input { name: "z" }', {}, "--config: the model has no input 'z'"),
        ('output { name: "x" }', {}, "--config: the model has no output 'x'"),
        ('name: "other"', {}, "'other' is not the model's name"),
        ('platform: "onnxruntime_onnx"', {}, "asks for 'onnxruntime_onnx'; the artifact is of platform"),
        ('default_model_filename: "a.plan"', {}, "'a.plan' is not 'model.plan'"),
        ("ensemble_scheduling { }", {}, "the model is no ensemble"),
        ("dynamic_batching { preferred_batch_size: [ 64 ] }", {}, "preferred_batch_size 64 is not between 1 and"),
        ("instance_group { kind: KIND_CPU }", {}, "an engine runs on GPUs only"),
        ("version_policy { specific { versions: 7 } }", {}, "takes versions 7, and the model has 1"),
        ("model_transaction_policy { decoupled: true }", {}, "decoupled"),
        ('input { name: "x" optional: true }', {}, "input 'x' is optional, and the model needs it"),
        ('input { name: "x" reshape { shape: [ 5 ] } }', {}, r"\[4\] can't be reshaped to \[5\]"),
        ('output { name: "y" label_filename: "mine.txt" }', {}, "names the label file 'mine.txt'"),
        ('model_warmup { name: "w" batch_size: 1 }', {}, "model_warmup 'w' has no input 'x'"),
        (
            'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { dims: 5 zero_data: true } } }',
            {},
            r"dims \[5\] do not fit the model's \[4\]",
        ),
        ("", {"instance_kind": "cpu"}, "--instance-kind cpu: an engine runs on GPUs only"),
    ],
)
def test_is_refused_before_anything_is_built(
    config: str, serving: dict[str, Any], why: str, add: Add, tmp_path: Path
) -> None:
    compiler = FakeTensorRT(H100)
    (tmp_path / "extra.pbtxt").write_text(config, encoding="utf-8")
    with untouched(tmp_path), pytest.raises(ConfigError, match=why):
        add(compiler, config, **serving)
    assert compiler.built == 0


def test_types_are_the_artifacts(add: Add) -> None:
    """They can't be known beforehand."""
    warmup = 'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { %s dims: 4 zero_data: true } } }'
    unverified = BuildOptions(target=Target.TENSORRT, verify=False)
    published = add(
        HalfInputs(H100),
        'input { name: "x" data_type: TYPE_FP16 }' + warmup % "data_type: TYPE_FP16",
        unverified,
    )
    assert read_config(published.folder / "config.pbtxt").model_warmup[0].name == "w"

    compiler = FakeTensorRT(H100)
    with pytest.raises(ConfigError, match="'x' is TYPE_FP32 in the model, TYPE_FP16 in the config"):
        add(compiler, 'input { name: "x" data_type: TYPE_FP16 }', unverified)
    assert compiler.built == 1


def test_the_largest_batch_of_a_profile_counts(add: Add) -> None:
    profile = Profile({"x": (1, 4)}, {"x": (8, 4)}, {"x": (32, 4)})
    build = BuildOptions(target=Target.TENSORRT, tensorrt=TensorRTOptions(profiles=(profile,)))
    preferred = "dynamic_batching { preferred_batch_size: [ 32 ] }"
    assert (
        read_config(add(FakeTensorRT(H100, largest=32), preferred, build).folder / "config.pbtxt").max_batch_size == 32
    )
    compiler = FakeTensorRT(H100, largest=32)
    with pytest.raises(ConfigError, match="preferred_batch_size 33 is not between 1 and max_batch_size 32"):
        add(compiler, preferred.replace("32", "33"), build)
    assert compiler.built == 0
