"""Real engines of TensorRT-RTX, which builds without a GPU: what comes out, and everything that can be refused."""

from __future__ import annotations

import ast
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from repo_builder.add import BuildOptions, add_model
from repo_builder.compilers import choose_compiler
from repo_builder.compilers.base import Target
from repo_builder.config.build import ServingOptions
from repo_builder.config.proto import read_config
from repo_builder.errors import (
    CompileError,
    ConfigError,
    MissingExtraError,
    ModelError,
    RepoBuilderError,
    UsageError,
    VerificationError,
)
from repo_builder.model import DataType
from repo_builder.plans import compile_plan, inspect_plan
from repo_builder.samples import SampleOptions
from repo_builder.trt.cuda import find_gpu
from repo_builder.trt.library import Library, is_installed
from repo_builder.trt.options import Profile, TensorRTOptions
from tests.conftest import Cli
from tests.models import (
    FP32,
    INT64,
    Batches,
    Shape,
    beginning,
    convolution,
    linear,
    mean_over_rows,
    model,
    node,
    quantised,
    save,
    value,
    weights,
)
from tests.support import compile_library, rtx

pytestmark = pytest.mark.usefixtures("own_folders")


def build(**options: Any) -> BuildOptions:
    return BuildOptions(target=Target.TENSORRT_RTX, tensorrt=TensorRTOptions(**options))


def publish(tmp_path: Path, proto: onnx.ModelProto, serving: ServingOptions | None = None, **options: Any) -> Any:
    source = save(proto, tmp_path / "net.onnx")
    return add_model(source, repository=tmp_path / "models", build=build(**options), serving=serving)


def nothing_published(tmp_path: Path) -> bool:
    return not (tmp_path / "models" / "net").exists()


@rtx
@pytest.mark.parametrize(("options", "precision"), [({}, "FP32"), ({"fp16": True}, "FP16"), ({"bf16": True}, "BF16")])
def test_the_engine_computes_in_what_was_asked_for(tmp_path: Path, options: dict[str, Any], precision: str) -> None:
    published = publish(tmp_path, convolution(), **options)
    assert published.manifest["engine"]["layers_by_precision"][precision] >= 1
    assert [tensor["datatype"] for tensor in published.manifest["inputs"]] == ["FP32"]
    assert published.manifest["max_batch_size"] == 8


@rtx
def test_the_config_names_our_backend_and_a_gpu(tmp_path: Path) -> None:
    published = publish(tmp_path, convolution(), ServingOptions(max_batch_size=4))
    config = read_config(published.folder / "config.pbtxt")
    assert (config.platform, config.backend, config.default_model_filename) == ("", "tensorrt_rtx", "model.plan")
    assert config.max_batch_size == 4
    assert [group.kind for group in config.instance_group] == [1]  # KIND_GPU
    assert sorted(file.name for file in (published.folder / "1").iterdir()) == [
        "config.pbtxt",
        "manifest.json",
        "model.plan",
    ]


@rtx
def test_what_has_not_run_is_called_unverified(tmp_path: Path, cli: Cli) -> None:
    manifest = publish(tmp_path, convolution(), fp16=True).manifest
    if manifest["engine"]["verified_by_running"]:
        pytest.skip("this machine's GPU runs the engine")
    assert "its numbers are unverified" in manifest["unverified"]
    assert "FP16 graph under ONNX Runtime" in manifest["unverified"]
    [output] = manifest["verification"]["outputs"]
    assert 0 < output["max_absolute_error"] < 0.05
    assert output["cosine_error"] < 1e-4
    assert cli("list", "-r", tmp_path / "models", "--json").json[0]["verified"] is False
    shown = cli("show", "net", "-r", tmp_path / "models").out
    assert re.search(r"^  engine    TensorRT-RTX .*; layers: \d+ FP16", shown, re.MULTILINE)
    assert "  verified  NO: the engine has not run" in shown
    assert "  compared  y: largest relative error" in shown


@rtx
def test_half_ports_come_out_half(tmp_path: Path) -> None:
    manifest = publish(tmp_path, convolution(), fp16=True, half_inputs=True, half_outputs=True).manifest
    assert [tensor["datatype"] for tensor in (*manifest["inputs"], *manifest["outputs"])] == ["FP16", "FP16"]


@rtx
def test_two_profiles_of_free_sizes(tmp_path: Path) -> None:
    def profile(*sides: int) -> Profile:
        return Profile(*[{"x": (batch, 3, side, side)} for batch, side in zip((1, 2, 4), sides, strict=True)])

    proto = convolution(height="height", width="width")
    published = publish(tmp_path, proto, fp16=True, profiles=(profile(8, 16, 32), profile(32, 48, 64)))
    config = read_config(published.folder / "config.pbtxt")
    assert not config.instance_group[0].profile  # which Triton refuses here; the backend uses all of them
    assert config.max_batch_size == 4
    assert list(config.input[0].dims) == [3, -1, -1]


@rtx
@pytest.mark.parametrize("fp16", [True, False])
def test_inputs_that_no_profile_takes_are_refused_where_nothing_runs_them_too(tmp_path: Path, fp16: bool) -> None:
    corners = [{"x": (batch, 3, side, side)} for batch, side in ((1, 32), (2, 48), (4, 64))]
    asked = build(fp16=fp16, profiles=(Profile(*corners),))
    source = save(convolution(height="height", width="width"), tmp_path / "net.onnx")
    outside = replace(asked, samples=SampleOptions(shapes={"x": (1, 3, 16, 48)}))
    with pytest.raises(VerificationError, match="takes x:1x3x16x48; it takes x:1x3x32x32 to 4x3x64x64") as caught:
        add_model(source, repository=tmp_path / "models", build=outside)
    assert "--shape" in (caught.value.hint or "")
    assert nothing_published(tmp_path)


@rtx
@pytest.mark.parametrize("given", [False, True])
def test_an_engine_for_whole_batches_only(tmp_path: Path, given: bool) -> None:
    corners = [{"x": (rows, 4)} for rows in (4, 5, 8)]
    np.save(tmp_path / "rows.npy", weights(6, 4))
    samples = SampleOptions(files={"x": tmp_path / "rows.npy"} if given else {})
    asked = replace(build(fp16=True, profiles=(Profile(*corners),)), batching=False, samples=samples)
    published = add_model(save(linear(), tmp_path / "net.onnx"), repository=tmp_path / "models", build=asked)
    [compared] = published.manifest["verification"]["outputs"]
    assert compared["elements"] == 3 * (6 if given else 5 + 4 + 8)


@rtx
@pytest.mark.parametrize("names", [("?", "?"), ("side", "side")])
def test_axes_of_one_name_may_differ(tmp_path: Path, names: tuple[str, str]) -> None:
    corners = [{"x": (batch, 3, 48, width)} for batch, width in ((1, 48), (2, 192), (4, 320))]
    proto = convolution(height=names[0], width=names[1])
    published = publish(tmp_path, proto, profiles=(Profile(*corners),))
    assert published.manifest["engine"]["profiles"][0]["max"] == {"x": [4, 3, 48, 320]}


@rtx
def test_a_shape_tensors_profile_has_values(tmp_path: Path) -> None:
    source = save(beginning(), tmp_path / "net.onnx")
    profiles = (Profile({"end": (1,)}, {"end": (3,)}, {"end": (6,)}),)
    asked = replace(build(profiles=profiles), samples=SampleOptions(ranges={"end": (0, 0)}))
    with pytest.raises(VerificationError, match=r"no profile of the engine takes x:4x6, end:0; it takes end:1 to 6"):
        add_model(source, repository=tmp_path / "models", build=asked)
    asked = replace(build(profiles=profiles), samples=SampleOptions(ranges={"end": (1, 6)}))
    published = add_model(source, repository=tmp_path / "models", build=asked)
    assert published.manifest["engine"]["profiles"] == [{"min": {"end": [1]}, "opt": {"end": [3]}, "max": {"end": [6]}}]
    assert [tensor["shape"] for tensor in published.manifest["inputs"]] == [[4, 6], [1]]
    assert [tensor.get("shape_tensor") for tensor in published.manifest["inputs"]] == [None, True]  # for verify
    [warmup] = read_config(published.folder / "config.pbtxt").model_warmup
    size = np.fromfile(published.folder / "warmup" / warmup.inputs["end"].input_data_file, np.int64)
    assert 1 <= size <= 6  # zeros would be what no profile takes, and the model not loaded


@rtx
def test_a_batch_is_one_that_every_input_takes(tmp_path: Path) -> None:
    proto = model(
        [node("ReduceMax", ["end"], ["last"], keepdims=1), node("Slice", ["x", "start", "last", "axis"], ["y"])],
        {"x": (FP32, ["batch", 6]), "end": (INT64, [1])},
        {"y": (FP32, ["batch", "n"])},
        {"start": np.array([0]), "axis": np.array([1])},
    )
    source = save(proto, tmp_path / "net.onnx")
    profiles = (Profile({"end": (1,)}, {"end": (4,)}, {"end": (2_000_000,)}),)  # the batch of x is the default
    asked = replace(build(profiles=profiles), samples=SampleOptions(ranges={"end": (4, 4)}))
    published = add_model(source, repository=tmp_path / "models", build=asked)
    assert published.manifest["max_batch_size"] == 8


@rtx
def test_integers_booleans_and_their_types(tmp_path: Path) -> None:
    proto = model(
        [
            node("Gather", ["table", "ids"], ["e"], axis=0),
            node("Unsqueeze", ["mask", "last"], ["m"]),
            node("Where", ["m", "e", "zero"], ["w"]),
            node("ReduceSum", ["w", "middle"], ["y"], keepdims=0),
            node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
        ],
        {"ids": (INT64, ["batch", 5]), "mask": (DataType.BOOL, ["batch", 5])},
        {"y": (FP32, ["batch", 8]), "best": (INT64, ["batch"])},
        {
            "table": weights(10, 8),
            "last": np.array([-1]),
            "middle": np.array([1]),
            "zero": np.array(0, np.float32),
        },
    )
    published = publish(tmp_path, proto)
    config = read_config(published.folder / "config.pbtxt")
    types = {tensor.name: tensor.data_type for tensor in (*config.input, *config.output)}
    assert types == {"ids": 9, "mask": 1, "y": 11, "best": 9}  # INT64, BOOL, FP32, INT64
    assert next(list(tensor.reshape.shape) for tensor in config.output if tensor.name == "best") == []


@rtx
def test_external_data_does_not_stay_beside_the_plan(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    onnx.save_model(convolution(), source, save_as_external_data=True, location="net.bin", size_threshold=0)
    published = add_model(source, repository=tmp_path / "models", build=build(fp16=True))
    assert not list(published.folder.rglob("*.bin"))


@rtx
@pytest.mark.parametrize("options", [{}, {"fp16": True}])
def test_attention_without_a_kernel_of_its_own_is_computed_in_parts(tmp_path: Path, options: dict[str, Any]) -> None:
    shape = ("batch", 2, 8, 16)
    proto = model(
        [node("MatMul", ["x", "W"], ["q"]), node("Attention", ["q", "x", "x"], ["y"])],
        {"x": (FP32, shape)},
        {"y": (FP32, shape)},
        {"W": weights(16, 16)},
        opset=23,
        ir_version=10,
    )
    source = tmp_path / "net.onnx"
    onnx.save_model(proto, source, save_as_external_data=True, location="net.bin", size_threshold=0)
    engine = add_model(source, repository=tmp_path / "models", build=build(**options)).manifest["engine"]
    assert engine["layers_by_precision"].keys() == ({"FP16", "FP32"} if options else {"FP32"})


@rtx
def test_the_same_again_is_recognised_though_build_times_were_noted(tmp_path: Path) -> None:
    publish(tmp_path, convolution(), fp16=True)
    assert publish(tmp_path, convolution(), fp16=True).unchanged
    assert not publish(tmp_path, convolution(), bf16=True).unchanged


FREE_SIDES, OF_X = convolution(height="height", width="width"), {"X": (1, 3, 8, 8)}
FREE_SIDES_OF_ONE = convolution(batch=1, height="height", width="width")
WORDS: tuple[DataType, Shape] = (DataType.STRING, ["batch", "words"])
FREE_WORDS = model([node("Identity", ["x"], ["y"])], {"x": WORDS}, {"y": WORDS})


@rtx
@pytest.mark.parametrize(
    ("proto", "profiles", "error", "message", "hint"),
    [
        (FREE_SIDES, (), CompileError, r"'x' \[-1, 3, -1, -1\]", "--max-shapes x:8x3x512x512"),
        (FREE_SIDES_OF_ONE, (), CompileError, r"'x' \[-1, 3, -1, -1\]", "--max-shapes x:8x3x512x512"),
        (FREE_SIDES, (Profile(OF_X, OF_X, OF_X),), UsageError, "the model has no input 'X'", "its inputs: x"),
        (FREE_WORDS, (), CompileError, "its input 'x' is STRING", "or serve it by add --target onnxruntime"),
    ],
)
def test_what_the_file_tells_is_refused_before_anything_runs(
    tmp_path: Path,
    proto: onnx.ModelProto,
    profiles: tuple[Profile, ...],
    error: type[RepoBuilderError],
    message: str,
    hint: str,
) -> None:
    begun: list[str] = []
    source = save(proto, tmp_path / "net.onnx")
    with pytest.raises(error, match=message) as caught:
        add_model(source, repository=tmp_path / "models", build=build(profiles=profiles), progress=begun.append)
    assert hint in (caught.value.hint or "")
    assert begun == [f"reading {source}"]
    assert nothing_published(tmp_path)


@rtx
def test_a_free_first_axis_that_proves_to_be_no_batch_needs_a_range(tmp_path: Path) -> None:
    rows: tuple[DataType, Shape] = (FP32, ["n", 4])
    proto = model([node("CumSum", ["x", "axis"], ["y"])], {"x": rows}, {"y": rows}, {"axis": np.array(0)})
    with pytest.raises(CompileError, match=r"'x' \[-1, 4\]"):
        publish(tmp_path, proto, fp16=True)


@rtx
def test_a_range_of_batches_for_a_model_that_takes_one_row_only(tmp_path: Path) -> None:
    corners = [{"x": (batch, width)} for batch, width in ((1, 4), (8, 8), (8, 16))]
    with pytest.raises(UsageError, match=r"shape x:8x8 does not fit the model's input \[1, -1\]"):
        publish(tmp_path, mean_over_rows((1, "n")), profiles=(Profile(*corners),))


@rtx
def test_a_size_of_0_is_any_size_and_told(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": (FP32, [0, 4])}, {"y": (FP32, [0, 4])})
    compiled = compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)
    published = publish(tmp_path, proto)
    for hint in (compiled.hints[0], published.hints[0]):
        assert hint.startswith("the model states input 'x' as [0, 4]: 0 is taken as any size")
    assert compiled.inputs == ("x FP32 [?, 4]",)
    assert published.manifest["max_batch_size"] == 8


@rtx
def test_unsupported_operators_are_all_named(tmp_path: Path) -> None:
    proto = model(
        [
            node("Det", ["sq"], ["d"], name="/first/Det"),
            *[node("Unique", ["x"], [f"u{index}"], name=f"/{index}/Unique") for index in range(10)],
            node("Sum", ["d", *[f"u{index}" for index in range(10)]], ["y"]),
        ],
        {"x": (FP32, [4]), "sq": (FP32, [2, 2])},
        {"y": (FP32, [None])},
    )
    with pytest.raises(CompileError, match="can't take the model") as caught:
        compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)
    said = caught.value.message.partition("the model: ")[2]
    assert said == (
        "node /first/Det (Det): operator not supported; nodes /0/Unique, /1/Unique, /2/Unique, /3/Unique, /4/Unique, "
        "/5/Unique, /6/Unique, /7/Unique and 2 more (Unique): operator not supported"
    )
    assert "--plugin LIB.so" in (caught.value.hint or "")
    assert not (tmp_path / "net.plan").exists()


@rtx
def test_what_was_quantised_to_other_types_or_scales_is_told_how(tmp_path: Path) -> None:
    proto = quantised(tmp_path / "net.onnx")
    [scale] = [tensor for tensor in proto.graph.initializer if tensor.name == "x_scale"]
    scale.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(scale), scale.name))
    with pytest.raises(CompileError, match="must all be positive") as caught:
        compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)
    assert caught.value.hint == "quantise it again: its scales are wrong"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int16), "zero_of_int16"))
    with pytest.raises(CompileError, match="'zero_of_int16' is INT16") as caught:
        compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)
    assert (caught.value.hint or "").startswith("quantise it with onnxruntime.quantization.quantize_static")


@rtx
def test_what_was_quantised_otherwise_is_told_how(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    source, dynamic = save(linear(), tmp_path / "net.onnx"), tmp_path / "dynamic.onnx"
    quantize_dynamic(source, dynamic)
    with pytest.raises(CompileError, match=r"\(DynamicQuantizeLinear\): operator not supported") as caught:
        compile_plan(dynamic, tmp_path / "net.plan", target=Target.TENSORRT_RTX, max_batch_size=4)
    assert "quantise it with onnxruntime.quantization.quantize_static" in (caught.value.hint or "")


@rtx
def test_where_the_parser_tells_the_operator_alone_its_nodes_are_named(tmp_path: Path) -> None:
    rows: tuple[DataType, Shape] = (FP32, [4, 3])
    nodes = [
        node("ScatterElements", ["x", "i", "x"], ["a"], name="/first", reduction="add"),
        node("ScatterElements", ["a", "i", "x"], ["y"], name="/second", reduction="add"),
    ]
    proto = model(nodes, {"x": rows}, {"y": rows}, {"i": np.zeros((4, 3), np.int64)})
    said = r"the model: nodes /first, /second \(ScatterElements\): Unsupported reduction type \(one of them at least\)"
    with pytest.raises(CompileError, match=said):
        compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)


@rtx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_capabilities": ("9.0",)}, "does not build for it"),
        ({"memory_pools": {"swap": 1}}, "--mem-pool-size swap"),
        ({"hardware_compatibility": "everything"}, "--hardware-compatibility"),
        ({"tactic_sources": "-CUBLAS"}, "--tactic-sources -CUBLAS"),
        ({"timing_cache": Path("x.cache")}, "--timing-cache"),
        ({"plugins": (Path("missing.so"),)}, "--plugin missing.so"),
    ],
)
def test_options_that_this_library_does_not_have(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = save(convolution(), tmp_path / "net.onnx")
    with pytest.raises(UsageError) as caught:
        compile_plan(source, tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=TensorRTOptions(**options))
    assert caught.value.message.startswith(message) or message in caught.value.message
    assert not (tmp_path / "net.plan").exists()


@rtx
def test_shapes_too_large_for_tensorrt_name_the_flags_to_lower(tmp_path: Path) -> None:
    shape = {"x": (2**31 - 1, 3, 2**20, 2**20)}
    source = save(convolution(height="height", width="width"), tmp_path / "net.onnx")
    options = TensorRTOptions(profiles=(Profile(shape, shape, shape),))
    with pytest.raises(CompileError, match=r"can't build the engine: .*volume exceeds") as caught:
        compile_plan(source, tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=options)
    assert "lower --max-batch-size, --opt-shapes or --max-shapes" in (caught.value.hint or "")


@rtx
def test_shapes_that_do_not_fit_each_other(tmp_path: Path) -> None:
    rows: tuple[DataType, Shape] = (FP32, ["batch", None])
    proto = model([node("Add", ["a", "b"], ["y"], name="/add")], {"a": rows, "b": rows}, {"y": rows})
    least, most = {"a": (1, 2), "b": (1, 2)}, {"a": (1, 4), "b": (1, 5)}
    options = TensorRTOptions(profiles=(Profile(least, most, most),))
    with pytest.raises(CompileError, match=r"node /add \(Add\): kOPT values") as caught:
        compile_plan(
            save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=options
        )
    assert (caught.value.hint or "").startswith("--opt-shapes with sizes that the model takes")


@rtx
def test_half_precision_that_nothing_can_use(tmp_path: Path) -> None:
    proto = model([node("Add", ["a", "b"], ["y"])], {"a": (INT64, ["n"]), "b": (INT64, ["n"])}, {"y": (INT64, ["n"])})
    with pytest.raises(CompileError, match="nothing of the model can compute in FP16"):
        publish(tmp_path, proto, fp16=True)
    assert nothing_published(tmp_path)


@rtx
def test_a_cpu_instance_of_an_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepoBuilderError, match="GPUs only"):
        publish(tmp_path, convolution(), ServingOptions(instance_kind="cpu"))
    assert nothing_published(tmp_path)


@rtx
def test_cuda_graphs_are_written_for_engines_only(tmp_path: Path) -> None:
    published = publish(tmp_path, convolution(), ServingOptions(cuda_graphs=True))
    assert read_config(published.folder / "config.pbtxt").optimization.cuda.graphs
    with pytest.raises(ConfigError, match="--cuda-graphs"):
        add_model(tmp_path / "net.onnx", repository=tmp_path / "cpu", serving=ServingOptions(cuda_graphs=True))


def test_a_pipe_or_device_is_not_replaced_by_a_plan(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is no ordinary file"):
        compile_plan(save(convolution(), tmp_path / "net.onnx"), tmp_path / "pipe", target=Target.TENSORRT_RTX)


@rtx
def test_a_link_to_the_plan_stays_one(tmp_path: Path) -> None:
    plan = tmp_path / "net.plan"
    plan.symlink_to("real.plan")
    compile_plan(save(convolution(), tmp_path / "net.onnx"), plan, target=Target.TENSORRT_RTX)
    assert plan.is_symlink()
    assert (tmp_path / "real.plan").stat().st_size > 1000


@rtx
def test_compile_for_some_gpus_and_inspect(tmp_path: Path) -> None:
    source = save(convolution(), tmp_path / "net.onnx")
    options = TensorRTOptions(fp16=True, compute_capabilities=("8.6", "8.9"))
    compiled = compile_plan(source, tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=options)
    facts = inspect_plan(compiled.path)
    assert facts["target"] == "tensorrt-rtx"
    assert compiled.engine["library"] == f"TensorRT-RTX {facts['version']}"
    assert facts["bytes"] == compiled.bytes


@rtx
def test_a_published_plan_is_described_from_its_manifest_where_it_does_not_run(tmp_path: Path) -> None:
    published = publish(tmp_path, convolution(), fp16=True)
    facts = inspect_plan(published.folder / "1" / "model.plan")
    assert facts["source"] in {"manifest", "engine"}
    assert (
        facts["layers_by_precision"]
        == json.loads((published.folder / "1" / "manifest.json").read_text())["engine"]["layers_by_precision"]
    )


def test_a_file_that_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "short.plan").write_bytes(b"vtrt")
    (tmp_path / "other.plan").write_bytes(b"x" * 100)
    for name in ("short.plan", "other.plan"):
        with pytest.raises(ModelError, match="not a TensorRT plan"):
            inspect_plan(tmp_path / name)


@pytest.mark.skipif(is_installed(Target.TENSORRT), reason="TensorRT is installed here")
def test_without_tensorrt_auto_takes_onnxruntime_and_says_why() -> None:
    compiler, why = choose_compiler(Target.AUTO)
    assert compiler.target is Target.ONNXRUNTIME
    assert why == "TensorRT is not installed here"
    with pytest.raises(MissingExtraError, match="tensorrt is not installed"):
        choose_compiler(Target.TENSORRT)


@pytest.mark.skipif(is_installed(Target.TENSORRT), reason="TensorRT is installed here")
@pytest.mark.parametrize("target", [Target.AUTO, Target.ONNXRUNTIME])
def test_options_of_tensorrt_are_not_ignored(target: Target) -> None:
    with pytest.raises(UsageError, match="these options are TensorRT's"):
        choose_compiler(target, TensorRTOptions(fp16=True))


@rtx
def test_a_graph_that_is_half_already_needs_no_flag(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(weights(4, 4).astype(np.float16), "w")
    proto = model(
        [
            node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            node("MatMul", ["h", "w"], ["m"]),
            node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
        ],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"w": numpy_helper.to_array(weight)},
    )
    assert publish(tmp_path, proto).manifest["engine"]["layers_by_precision"].get("FP16")


@rtx
def test_a_node_that_can_not_be_typed_is_named(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["r"], name="/ok"), node("Add", ["r", "h"], ["y"], name="/mixed/Add")]
    half = {"h": weights(4).astype(np.float16)}
    proto = model(nodes, {"x": (FP32, ["batch", 4])}, {"y": (FP32, ["batch", 4])}, half)
    with pytest.raises(CompileError, match=r"node /mixed/Add \(Add\): .*types Float and Half") as caught:
        compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)
    assert "cudaError" not in caught.value.message
    assert not (tmp_path / "net.plan").exists()


@rtx
def test_a_node_without_a_name_has_the_users_name_of_its_output(tmp_path: Path) -> None:
    proto = model(
        [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"w": weights(4, 4), "v": weights(5, 4)},
    )
    for node_ in proto.graph.node:
        node_.ClearField("name")
    source = save(proto, tmp_path / "net.onnx")
    options = TensorRTOptions(fp16=True)
    with pytest.raises(CompileError, match=r"the model: node y \(MatMul\): last dimension of input0 = 4") as caught:
        compile_plan(source, tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=options)
    assert "--plugin" not in (caught.value.hint or "")


@rtx
def test_nodes_that_wait_for_each_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [node("Add", ["x", "b"], ["a"], name="/first"), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]
    proto = model(nodes, {"x": (FP32, [4])}, {"y": (FP32, [4])})
    with pytest.raises(CompileError, match=r"node (/first \(Add\)|b \(Relu\)) waits for its own output"):
        compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)
    assert capfd.readouterr().err == ""


def branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return onnx.helper.make_graph(nodes, name, [], [value(output, FP32, None)])


@rtx
@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ([node("Relu", ["after"], ["t"])], r"/If \(If\)|after \(Relu\)"),
        ([node("Relu", ["z"], ["t"])], r"/If \(If\)"),
        ([node("Add", ["x", "t"], ["u"]), node("Relu", ["u"], ["t"])], r"u \(Add\)|t \(Relu\)"),
    ],
    ids=["through a branch", "a branch reads what its If makes", "in a branch"],
)
def test_cycles_through_and_in_branches(tmp_path: Path, inside: list[onnx.NodeProto], said: str) -> None:
    branches = {"then_branch": branch("then", inside, "t"), "else_branch": branch("else", [], "x")}
    chooses = node("If", ["c"], ["z"], name="/If", **branches)
    proto = model(
        [chooses, node("Relu", ["z"], ["after"]), node("Neg", ["after"], ["y"])],
        {"c": (DataType.BOOL, []), "x": (FP32, [4])},
        {"y": (FP32, [4])},
    )
    with pytest.raises(CompileError, match=f"the model: node ({said}) waits for its own output"):
        compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)


@rtx
def test_an_if_without_outputs_is_passed_over(tmp_path: Path) -> None:
    nothing = onnx.helper.make_graph([node("Neg", ["x"], ["n"])], "nothing", [], [])
    empty = node("If", ["c"], [], name="/assert", then_branch=nothing, else_branch=nothing)
    proto = model([empty, node("Relu", ["x"], ["y"])], {"c": (DataType.BOOL, []), "x": (FP32, [4])}, {"y": (FP32, [4])})
    source = save(proto, tmp_path / "net.onnx")
    assert compile_plan(source, tmp_path / "net.plan", target=Target.TENSORRT_RTX).outputs == ("y FP32 [4]",)


def without_output(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(node("Clip", ["x"], [], name="/left"))


def made_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(node("Neg", ["x"], ["y"], name="/again"))


def made_beforehand(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, node("Neg", ["x"], ["w"], name="/w"))


def without_input(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(node("Add", ["h"], ["z"], name="/half"))


def unmade_in_a_branch(proto: onnx.ModelProto) -> None:
    inside = onnx.helper.make_graph([node("Neg", ["gone"], ["n"], name="n")], "inside", [], [])
    condition = numpy_helper.from_array(np.array(True), "c")
    proto.graph.initializer.append(condition)
    proto.graph.node.append(node("If", ["c"], [], then_branch=inside, else_branch=inside))


def unmade_output(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = "z"


def scan_without_output(proto: onnx.ModelProto) -> None:
    row = [value("row", FP32, [4])]
    body = onnx.helper.make_graph([], "body", row, row)
    proto.graph.node.append(node("Scan", ["h"], [], name="/scan", body=body, num_scan_inputs=1))


def loop_without_its_condition(proto: onnx.ModelProto) -> None:
    body = branch("body", [node("Neg", ["s"], ["n"])], "n")
    body.input.extend(value(name, FP32, [4]) for name in ("i", "go", "s"))
    proto.graph.node.append(node("Loop", ["", "", "h"], ["z"], name="/loop", body=body))


def cut_weights(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:8]


def negative_size(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = -1


def cut_constant(proto: onnx.ModelProto) -> None:
    tensor = onnx.helper.make_tensor("v", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    del tensor.float_data[2:]
    proto.graph.node.append(node("Constant", [], ["k"], value=tensor, name="/k"))


@rtx
@pytest.mark.parametrize("options", [{}, {"fp16": True}])
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (without_output, r"node /left \(Clip\) has no output"),
        (made_twice, r"'y' is made by node add \(Add\), and made by node /again \(Neg\)"),
        (made_beforehand, r"'w' is an initializer, and made by node /w \(Neg\)"),
        (without_input, r"node /half \(Add\) has 1 of 2 inputs"),
        (unmade_in_a_branch, r"node n \(Neg\) reads 'gone', which nothing makes"),
        (unmade_output, "nothing makes the output 'y'"),
        (scan_without_output, r"node /scan \(Scan\) has no output"),
        (loop_without_its_condition, r"the body of node /loop \(Loop\) has 3 of 3 inputs and 1 of 2 outputs"),
        (cut_weights, r"the values of 'w' are not those of a tensor \[4, 4\]: "),
        (negative_size, r"the values of 'w' are not those of a tensor \[-1, 4\]: "),
        (cut_constant, r"the values of '/k' are not those of a tensor \[4\]: "),
    ],
)
def test_a_broken_graph(
    tmp_path: Path, broken: Any, said: str, options: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """The parser dies of some, writes to stderr of others, and names nothing of the rest."""
    proto = model(
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "h"], ["y"], name="add")],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"w": weights(4, 4)},
    )
    broken(proto)
    source = save(proto, tmp_path / "net.onnx")
    with pytest.raises(CompileError, match=said):
        compile_plan(source, tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=TensorRTOptions(**options))
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "net.plan").exists()


@rtx
def test_a_node_that_fails_in_the_build_is_named(tmp_path: Path) -> None:
    proto = model(
        [
            node(
                "If",
                ["c"],
                ["y"],
                name="/model/If_3",
                then_branch=branch("then", [node("Identity", ["x"], ["t"])], "t"),
                else_branch=branch("else", [node("Unsqueeze", ["x", "axis"], ["e"])], "e"),
            )
        ],
        {"c": (DataType.BOOL, []), "x": (FP32, [3, 4])},
        {"y": (FP32, None)},
        {"axis": np.array([0])},
    )
    said = r"can't build the engine: node /model/If_3 \(If\): .*equal ranks"
    with pytest.raises(CompileError, match=said) as caught:
        publish(tmp_path, proto)
    assert "TensorRT stricter than others" in (caught.value.hint or "")
    assert nothing_published(tmp_path)


@rtx
@pytest.mark.parametrize("dtype", [DataType.STRING, DataType.UINT16])
def test_an_input_of_a_type_that_tensorrt_has_not(tmp_path: Path, dtype: DataType) -> None:
    proto = model([node("Identity", ["x"], ["y"])], {"x": (dtype, ["batch", 3])}, {"y": (dtype, ["batch", 3])})
    with pytest.raises(CompileError, match=f"its input 'x' is {dtype.value}"):
        publish(tmp_path, proto)
    assert nothing_published(tmp_path)


@rtx
def test_an_output_of_a_type_that_tensorrt_has_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cast = node("Cast", ["x"], ["y"], to=TensorProto.STRING)
    proto = model([cast], {"x": (FP32, ["batch", 3])}, {"y": (DataType.STRING, ["batch", 3])})
    with pytest.raises(CompileError, match="its output 'y' is STRING"):
        publish(tmp_path, proto, fp16=True)
    assert capfd.readouterr().err == ""


@rtx
def test_an_initializer_of_a_type_that_tensorrt_has_not(tmp_path: Path) -> None:
    proto = convolution()
    proto.graph.initializer.append(numpy_helper.from_array(np.array(["cat", "dog"], dtype=object), "labels"))
    with pytest.raises(CompileError, match="its initializer 'labels' is STRING"):
        compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)


@rtx
@pytest.mark.parametrize("shape", [[1] * 9, ["batch", 2**31]], ids=["nine axes", "an axis too large"])
def test_an_input_that_tensorrt_can_not_take_is_named(tmp_path: Path, shape: Shape) -> None:
    proto = model([node("Relu", ["pixels"], ["y"])], {"pixels": (FP32, shape)}, {"y": (FP32, shape)})
    with pytest.raises(CompileError, match="can't take the model: input 'pixels': "):
        compile_plan(save(proto, tmp_path / "net.onnx"), tmp_path / "net.plan", target=Target.TENSORRT_RTX)


@rtx
def test_types_that_the_engine_has_instead_are_told(tmp_path: Path) -> None:
    port: tuple[DataType, Shape] = (DataType.FP64, ["batch", 3])
    published = publish(tmp_path, model([node("Add", ["x", "x"], ["y"])], {"x": port}, {"y": port}))
    told = "other types in the engine than in the model: 'x' is FP32, not FP64, 'y' is FP32, not FP64"
    assert told in published.hints
    assert not any(
        "other types" in hint for hint in publish(tmp_path, convolution(), fp16=True, half_inputs=True).hints
    )


@rtx
@pytest.mark.parametrize("options", [{}, {"fp16": True}])
def test_a_nameless_node_that_fails_in_the_build_is_named(tmp_path: Path, options: dict[str, Any]) -> None:
    proto = model(
        [node("TopK", ["x", "k"], ["y", "at"])],
        {"x": (FP32, ["batch", 5000])},
        {"y": (FP32, ["batch", 4000])},
        {"k": np.array([4000])},
    )
    proto.graph.node[0].ClearField("name")
    source, asked = save(proto, tmp_path / "net.onnx"), TensorRTOptions(**options)
    with pytest.raises(CompileError, match=r"can't build the engine: node y \(TopK\): ITopKLayer y: K exceeds"):
        compile_plan(source, tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=asked)


@rtx
@pytest.mark.filterwarnings("ignore")
def test_a_model_quantised_as_the_hint_says_becomes_an_int8_engine(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat, quantize_static

    proto = model(
        [node("Conv", ["x", "w", "b"], ["y"])],
        {"x": (FP32, ["batch", 3, 8, 8])},
        {"y": (FP32, ["batch", 4, 6, 6])},
        {"w": weights(4, 3, 3, 3), "b": weights(4)},
    )
    source, int8, plan = save(proto, tmp_path / "net.onnx"), tmp_path / "int8.onnx", tmp_path / "int8.plan"
    pictures = [{"x": weights(2, 3, 8, 8)}] * 2
    quantize_static(source, int8, Batches(pictures), quant_format=QuantFormat.QDQ)
    with pytest.raises(CompileError, match=r"\(QuantizeLinear\): Non-zero zero point") as caught:
        compile_plan(int8, plan, target=Target.TENSORRT_RTX)
    told = re.search(r"extra_options=(\{.*?\})", caught.value.hint or "")
    assert told
    settings = ast.literal_eval(told[1])
    quantize_static(source, int8, Batches(pictures), quant_format=QuantFormat.QDQ, extra_options=settings)
    assert compile_plan(int8, plan, target=Target.TENSORRT_RTX).engine["layers_by_precision"]["INT8"]


@rtx
def test_a_quantised_model_is_held_to_what_its_graph_says(tmp_path: Path) -> None:
    """ONNX Runtime's own kernels round once where the graph does twice, and saturate on some CPUs."""
    proto = quantised(tmp_path / "net.onnx", batch=1)
    proto.graph.initializer.append(numpy_helper.from_array(weights(16, 16), "u"))
    proto.graph.node.append(node("MatMul", ["x", "u"], ["plain"]))
    proto.graph.output.append(value("plain", FP32, [1, 16]))
    manifest = publish(tmp_path, proto, fp16=True).manifest
    assert {"FP16", "INT8"} <= set(manifest["engine"]["layers_by_precision"])
    assert manifest["engine"]["quantised"]
    assert "no value leaves FP16's range" in manifest["unverified"]
    assert manifest["batching"]["batchable"]
    assert manifest["verification"]


@rtx
def test_a_quantised_model_may_have_nothing_left_for_fp16(tmp_path: Path) -> None:
    quantised(tmp_path / "net.onnx")
    options = TensorRTOptions(fp16=True)
    compiled = compile_plan(tmp_path / "net.onnx", tmp_path / "net.plan", target=Target.TENSORRT_RTX, options=options)
    assert compiled.engine["layers_by_precision"].keys() == {"INT8", "FP32"}


@rtx
def test_a_detector_that_picks_its_boxes(tmp_path: Path) -> None:
    """Of 500 random scores some lie nearer to each other than FP16 can tell."""
    proto = model(
        [
            node("MatMul", ["x", "w"], ["scores"]),
            node("MatMul", ["x", "v"], ["flat"]),
            node("Reshape", ["flat", "shape"], ["all"]),
            node("TopK", ["scores", "k"], ["best", "index"], name="pick"),
            node("Unsqueeze", ["index", "last"], ["column"]),
            node("Tile", ["column", "sides"], ["columns"]),
            node("GatherElements", ["all", "columns"], ["boxes"], axis=1),
        ],
        {"x": (FP32, ["batch", 16])},
        {"best": (FP32, ["batch", 60]), "boxes": (FP32, ["batch", 60, 4])},
        {
            "w": weights(16, 500),
            "v": weights(16, 2000, seed=1),
            "shape": np.array([0, 500, 4]),
            "k": np.array([60]),
            "last": np.array([-1]),
            "sides": np.array([1, 1, 4]),
        },
    )
    published = publish(tmp_path, proto, fp16=True)
    best, boxes = published.manifest["verification"]["outputs"]
    assert boxes["flipped"]
    assert not best["flipped"]
    assert any("of output 'boxes' are not ONNX Runtime's: near ties" in hint for hint in published.hints)


@rtx
@pytest.mark.parametrize("options", [{}, {"fp16": True}])
def test_an_input_that_is_an_output_too(tmp_path: Path, options: dict[str, Any]) -> None:
    rows: tuple[DataType, Shape] = (FP32, ["batch", 4])
    proto = model([node("Relu", ["x"], ["y"])], {"x": rows}, {"y": rows, "x": rows})
    with pytest.raises(CompileError, match="its input 'x' is one of its outputs, too"):
        publish(tmp_path, proto, **options)
    assert nothing_published(tmp_path)


@rtx
def test_shapes_that_the_source_does_not_take(tmp_path: Path) -> None:
    corners = [{"x": (batch, 3, side, side)} for batch, side in ((1, 1), (2, 8), (8, 16))]
    with pytest.raises(ModelError, match="the engine was to take x:1x3x1x1, and the model does not"):
        publish(tmp_path, convolution(height="height", width="width"), profiles=(Profile(*corners),))
    assert nothing_published(tmp_path)


@rtx
def test_too_little_workspace(tmp_path: Path) -> None:
    proto = model(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": (FP32, ["n", 512])},
        {"y": (FP32, ["n", 512])},
        {"w": weights(512, 512)},
    )
    with pytest.raises(CompileError, match="workspace") as caught:
        publish(tmp_path, proto, memory_pools={"workspace": 0})
    assert "--workspace MiB" in (caught.value.hint or "")
    assert nothing_published(tmp_path)


@rtx
def test_a_plan_that_is_cut_short(tmp_path: Path) -> None:
    plan = tmp_path / "net.plan"
    compile_plan(save(convolution(), tmp_path / "net.onnx"), plan, target=Target.TENSORRT_RTX)
    whole = plan.read_bytes()
    for size in (10, 100, len(whole) - 1):
        plan.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="cut short"):
            inspect_plan(plan)


@rtx
def test_custom_layers_can_only_be_published_unverified(tmp_path: Path) -> None:
    proto = model(
        [node("Special", ["x"], ["y"], domain="my.layers")],
        {"x": (FP32, ["batch", 3])},
        {"y": (FP32, ["batch", 3])},
        domains={"my.layers": 1},
    )
    layers = compile_library(tmp_path / "libraries", "special")
    with pytest.raises(ModelError, match=r"no operator 'my\.layers:Special'") as caught:
        publish(tmp_path, proto, plugins=(layers,))
    assert "--no-verify" in (caught.value.hint or "")
    assert nothing_published(tmp_path)


@rtx
def test_options_that_make_no_difference_say_so(tmp_path: Path) -> None:
    """What is said is held to the bytes: RTX builds are the same each time."""
    source = save(convolution(), tmp_path / "net.onnx")

    def build_plan(**options: Any) -> tuple[bytes, tuple[str, ...]]:
        plan = tmp_path / "net.plan"
        made = compile_plan(source, plan, target=Target.TENSORRT_RTX, options=TensorRTOptions(**options))
        return plan.read_bytes(), made.hints

    plain, hints = build_plan()
    assert not any("no effect" in hint for hint in hints)
    idle = {"sparsity": True, "hardware_compatibility": "ampere_plus", "builder_optimization_level": 5}
    for option, given in idle.items():
        plan, hints = build_plan(**{option: given})
        assert plan == plain
        assert any(f"--{option.replace('_', '-')}: no effect" in hint for hint in hints)
    for option, given in {"tf32": False, "memory_pools": {"workspace": 64}, "compute_capabilities": ("8.6",)}.items():
        plan, hints = build_plan(**{option: given})
        assert plan != plain
        assert not any("no effect" in hint for hint in hints)


@rtx
@pytest.mark.skipif(find_gpu() is not None, reason="here is a GPU")
@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"refit": True}, "drop --refit and --strip-weights, which need a GPU here"),
        ({"strip_weights": True}, "drop --refit and --strip-weights, which need a GPU here"),
        ({"version_compatible": True}, "drop --version-compatible: this installation lacks the lean runtime"),
    ],
)
def test_what_rtx_can_not_build_without_a_gpu(tmp_path: Path, options: dict[str, Any], hint: str) -> None:
    with pytest.raises(CompileError, match="can't build the engine") as caught:
        publish(tmp_path, convolution(), **options)
    assert hint in (caught.value.hint or "")
    assert nothing_published(tmp_path)


def test_tensorrt_without_a_gpu_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setattr("repo_builder.compilers.tensorrt.load_library", lambda target: Library(None, target))
    monkeypatch.setattr("repo_builder.trt.cuda.find_gpu", lambda: None)
    save(convolution(), tmp_path / "net.onnx")
    for command in ("add", "compile"):
        result = cli(command, "net.onnx", "--target", "tensorrt")
        assert result.error == "building for TensorRT needs an NVIDIA GPU, and CUDA finds none here"
        assert result.err.startswith("error: ")


@pytest.mark.skipif(is_installed(Target.TENSORRT), reason="TensorRT is installed here")
def test_tensorrt_without_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    package = tmp_path / "site" / "tensorrt"
    package.mkdir(parents=True)
    why = "libnvinfer.so.10: cannot open shared object file: No such file or directory"
    (package / "__init__.py").write_text(f"raise ImportError({why!r})\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    save(convolution(), tmp_path / "net.onnx")
    result = cli("add", "net.onnx", "--target", "tensorrt")
    assert result.error == f"the package tensorrt is installed but does not load: {why}"
    assert "LD_LIBRARY_PATH" in result.hint
    assert not (tmp_path / "model_repository").exists()
    added = cli("add", "net.onnx")  # auto takes what works, and says why
    assert added.code == 0
    assert "onnxruntime (" in added.err
