"""TensorRT's options: trtexec's spelling means the same as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from repo_builder.cli import app
from repo_builder.cli.trt_options import takes_tensorrt_options
from repo_builder.cli.trtexec import explain
from repo_builder.errors import UsageError
from repo_builder.trt.options import Profile, TensorRTOptions
from tests.conftest import Cli


def options_of(*arguments: str, model: tuple[str, ...] = ("net.onnx",)) -> TensorRTOptions:
    """What a command with ``model`` and these arguments gets."""
    got: list[TensorRTOptions] = []

    def command(model: Annotated[str, typer.Argument()], *, tensorrt: TensorRTOptions) -> None:
        assert model == "net.onnx"
        got.append(tensorrt)

    app = typer.Typer()
    app.command()(takes_tensorrt_options(command))
    result = CliRunner().invoke(app, [*model, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return got[0]


@pytest.mark.parametrize(
    ("ours", "trtexecs"),
    [
        (["--fp16"], ["--best"]),
        (["--fp16", "--half-io"], ["--fp16", "--inputIOFormats=fp16:chw", "--outputIOFormats=fp16:chw"]),
        (["--fp16", "--strict"], ["--fp16", "--stronglyTyped"]),
        (["--no-tf32"], ["--noTF32"]),
        (["--min-shapes", "x:1x3"], ["--minShapes=x:1x3"]),
        (["--workspace", "4096"], ["--memPoolSize=workspace:4096"]),
        (["--timing-cache", "t.cache"], ["--timingCacheFile=t.cache"]),
        (["--builder-optimization-level", "5"], ["--builderOptimizationLevel=5"]),
        (["--version-compatible"], ["--versionCompatible"]),
        (["--hardware-compatibility", "ampere+"], ["--hardwareCompatibilityLevel=ampere+"]),
        (["--plugin", "a.so"], ["--dynamicPlugins=a.so"]),
        (["--tactic-sources", "-CUBLAS,-CUDNN"], ["--tacticSources=-CUBLAS,-CUDNN"]),
        (["--strip-weights"], ["--stripWeights"]),
        (["--compute-capability", "8.6"], ["--compute-capability", "8.6,"]),
        (["--min-shapes", "x:1x3", "--opt-shapes", "x:1x3", "--max-shapes", "x:1x3"], ["--shapes=x:1x3"]),
        (["--hardware-compatibility", "same-compute-capability"], ["--hardware-compatibility=SameComputeCapability"]),
        ([], ["--explicitBatch", "--explicitPrecision", "--skipInference", "--buildOnly", "--cpuOnly"]),
        (["--mem-pool-size", "dla_local_dram:64"], ["--memPoolSize=dlaLocalDRAM:64"]),
        (["--plugin", "a.so"], ["--staticPlugins=a.so"]),
        (["--compute-capability", "8.6,8.9"], ["--computeCapabilities=8.6,8.9"]),
        (["--shapes", "x:1x3,y:2"], ["--shapes='x':1x3,\"y\":2"]),
        (["--shapes", "x:1x3,y:2"], ["--shapes='x:1x3, y:2'"]),
        ([], ["--sparsity=disable"]),
    ],
)
def test_trtexec_spellings(ours: list[str], trtexecs: list[str]) -> None:
    assert options_of(*ours) == options_of(*trtexecs)


def test_trtexecs_way_to_name_the_model() -> None:
    assert options_of("--onnx=net.onnx", "--fp16", model=()) == options_of("--fp16")
    assert options_of("--fp16", "--onnx", "net.onnx", model=()) == options_of("--fp16")
    with pytest.raises(UsageError, match=r"--onnx other\.onnx and net\.onnx are two models"):
        options_of("--onnx=other.onnx")


def test_a_line_of_trtexec_flags() -> None:
    got = options_of(
        *[
            "--minShapes=x:1x3x64x64",
            "--optShapes=x:8x3x64x64",
            "--maxShapes=x:32x3x64x64",
            "--fp16",
            "--sparsity=enable",
        ],
        *["--memPoolSize=workspace:1024,tacticSharedMem:64", "--builderOptimizationLevel=4", "--verbose"],
    )
    assert got == TensorRTOptions(
        fp16=True,
        profiles=(Profile({"x": (1, 3, 64, 64)}, {"x": (8, 3, 64, 64)}, {"x": (32, 3, 64, 64)}),),
        memory_pools={"workspace": 1024, "tactic_shared_memory": 64},
        builder_optimization_level=4,
        sparsity=True,
        verbose=True,
    )


@pytest.mark.parametrize(
    ("size", "mebibytes"),
    [("4096", 4096), ("4G", 4096), ("4g", 4096), ("1024.5", 1024.5), ("512M", 512), ("64K", 0.0625), ("1048576B", 1)],
)
def test_sizes_of_pools_in_trtexecs_units(size: str, mebibytes: float) -> None:
    """What its help says: base-2 suffixes B, K, M, G, MiB without one, decimals too."""
    assert options_of(f"--memPoolSize=workspace:{size}").memory_pools == {"workspace": mebibytes}


def test_several_profiles_and_gpus() -> None:
    got = options_of("--opt-shapes", "x:1x3", "--opt-shapes", "x:8x3", "--compute-capability", "8.6,8.9")
    assert [profile.max for profile in got.profiles] == [{"x": (1, 3)}, {"x": (8, 3)}]
    assert got.compute_capabilities == ("8.6", "8.9")


def test_the_timing_cache_does_not_make_another_build() -> None:
    assert options_of("--timing-cache", "a").timing_cache == Path("a")
    unmarked = TensorRTOptions.__dataclass_fields__["fp16"].metadata
    assert TensorRTOptions.__dataclass_fields__["timing_cache"].metadata == {"fingerprint": False} != unmarked


def test_options_that_only_trtexec_has_are_told_at_once_each_with_its_mend(cli: Cli) -> None:
    line = ["net.onnx", "--fp16", "--saveEngine=net.plan", "--iterations=100", "--duration=5", "--device=1"]
    compiled, added = cli("compile", *line), cli("add", *line)
    names = "--iterations, --duration, --device: options of trtexec that"
    assert compiled.error == f"{names} compile does not have"
    assert added.error == f"--saveEngine, {names} add does not have"
    assert "--iterations, --duration: leave out what only measures" in compiled.hint
    assert "--device: leave it out: CUDA_VISIBLE_DEVICES" in compiled.hint
    assert cli("add", "net.onnx", "--bogus").hint.endswith("repo-builder add --help")
    assert cli("add", "net.onnx", "--fp16=yes").error == "Option '--fp16' does not take a value."


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        (["--onnx=net.onnx", "\N{EN DASH}fp16"], "--fp16"),
        (["\N{EM DASH}onnx=net.onnx"], "--onnx=net.onnx"),
        (["net.onnx", "\N{EN DASH}fp16", "\N{EN DASH}-best"], "--fp16 --best"),
    ],
)
def test_hyphens_that_a_web_page_has_made_a_dash_of(line: list[str], mend: str, cli: Cli) -> None:
    told = cli("compile", *line)
    assert told.error.endswith(": begins with a dash, and options begin with two hyphens")
    assert told.hint == mend


def test_no_option_of_ours_is_called_trtexecs_alone() -> None:
    commands: Any = typer.main.get_command(app)
    for command in ("add", "compile"):
        ours = {name for parameter in commands.commands[command].params for name in parameter.opts}
        told = {name for name in ours if explain(name, [name], command)}
        assert told == ({"--saveEngine"} if command == "compile" else set())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8"], "QuantizeLinear"),
        (["--half-io"], "need --fp16 or --bf16"),
        (["--memPoolSize=4096"], "can't be read"),
        (["--memPoolSize=workspace:4T"], "can't be read"),
        (["--memPoolSize=workspace:-1"], "can't be read"),
        (["--memPoolSize=workspace:" + "9" * 30], "more than any memory holds"),
        (["--workspace", "99999999999999999"], "more than any memory holds"),
        (["--inputIOFormats=fp16:hwc8"], "only fp16:chw"),
        (["--fp16", "--inputIOFormats=bf16:chw"], "only fp16:chw"),
        (["--bf16", "--outputIOFormats=fp16:chw"], "only bf16:chw"),
        (["--sparsity=force"], "enable or disable"),
        (["--min-shapes", "x"], "can't be read"),
        (["--shapes=x:?x3"], r"--shapes x:\?x3: can't be read"),
        (["--shapes=x:1x3", "--maxShapes=x:8x3"], "--shapes is min, opt and max in one"),
        (["--hardwareCompatibilityLevel=bogus"], "--hardware-compatibility bogus: no such level"),
        (["--compute-capability", "86"], "not a compute capability"),
    ],
)
def test_misuse(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options_of(*arguments)
