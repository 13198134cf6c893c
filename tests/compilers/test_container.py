"""What a host and a worker hand each other, by a real worker without a container around it, and what is told of pip."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from repo_builder.add import BuildOptions, add_model
from repo_builder.cli.output import Steps
from repo_builder.comparison import Tolerance
from repo_builder.compilers.base import Artifact, Target
from repo_builder.compilers.container import ContainerOptions, needed_packages
from repo_builder.compilers.container_setup import bindings_requirement, pip_error
from repo_builder.compilers.exchange import (
    PROGRESS,
    answer_path,
    describe_artifact,
    describe_error,
    load_arrays,
    read_artifact,
    read_error,
    read_options,
    request_path,
    save_arrays,
    write_json,
)
from repo_builder.errors import CompileError, MissingExtraError, UsageError
from repo_builder.model import DataType, TensorSpec
from repo_builder.onnx_model import read_model
from repo_builder.runtime import RunError
from repo_builder.trt.options import Profile, TensorRTOptions
from tests.models import linear, save
from tests.support import rtx, wait_for


def through_json(data: dict[str, Any], path: Path) -> Any:
    write_json(path, data)
    return json.loads(path.read_text(encoding="utf-8"))


def test_options_arrive_as_they_were(tmp_path: Path) -> None:
    shapes = {"x": (1, 3), "n": ()}
    options = TensorRTOptions(
        fp16=True,
        profiles=(Profile(shapes, shapes, shapes),),
        memory_pools={"workspace": 64},
        compute_capabilities=("8.6", "8.9"),
        plugins=(Path("/a.so"),),
        timing_cache=Path("/b.cache"),
    )
    for each in (options, TensorRTOptions()):
        assert read_options(through_json(dataclasses.asdict(each), tmp_path / "options.json")) == each


def test_an_artifact_arrives_as_it_was(tmp_path: Path) -> None:
    def run(arrays: Any) -> Any:
        return arrays

    profile = Profile({"x": (1,)}, {"x": (2,)}, {"x": (3,)})
    artifact = Artifact(
        platform="tensorrt_plan",
        filename="model.plan",
        inputs=(TensorSpec("x", DataType.BF16, (None, 3, "w")),),
        outputs=(TensorSpec("y", DataType.STRING, None),),
        max_batch_size=None,
        run=run,
        tolerance=Tolerance(1e-2, None, 1e-3),
        profiles=(profile,),
        shape_tensors=frozenset({"n"}),
        hints=("one",),
        details={"engine": {"gpu": None}},
    )
    for each in (artifact, dataclasses.replace(artifact, run=None)):
        assert read_artifact(through_json(describe_artifact(each), tmp_path / "artifact.json"), run) == each


def test_arrays_of_every_kind_arrive_as_they_were(tmp_path: Path) -> None:
    arrays = {
        "a/../b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "file": np.array(1.5, dtype=ml_dtypes.bfloat16),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 4), np.int64),
        "half": np.ones((2, 2), ml_dtypes.bfloat16)[:, ::-1],
    }
    save_arrays(tmp_path / "arrays.npz", arrays)
    loaded = load_arrays(tmp_path / "arrays.npz")
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert np.array_equal(loaded[name], array)


@pytest.mark.parametrize(
    "error", [UsageError("a", "b"), CompileError("c", None), RunError("d"), OSError(errno.ENOSPC, "full")]
)
def test_errors_arrive_as_they_were(tmp_path: Path, error: Exception) -> None:
    described = describe_error(error)
    assert described is not None
    raised = read_error(through_json(described, tmp_path / "error.json"))
    assert (type(raised), str(raised)) == (type(error), str(error))
    assert getattr(raised, "hint", None) == getattr(error, "hint", None)


def test_a_package_that_lacks_there_is_not_asked_for_here() -> None:
    described = describe_error(MissingExtraError("rtx", "tensorrt-rtx"))
    assert described is not None
    assert type(read_error(described)) is CompileError


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EACCES, "denied")])
def test_mistakes_are_not_handed_on(error: Exception) -> None:
    assert describe_error(error) is None


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "exchange"
    folder.mkdir()
    command = [sys.executable, "-m", "repo_builder.compilers.worker", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        yield folder
        process.kill()


def ask(folder: Path, number: int, **request: Any) -> Any:
    write_json(request_path(folder, number), request)
    wait_for(answer_path(folder, number).exists, within_s=60)
    return json.loads(answer_path(folder, number).read_text(encoding="utf-8"))


@rtx
def test_a_worker_identifies_builds_and_runs(worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "staged"
    folder.mkdir()
    model = read_model(save(linear(), folder / "source.onnx"))
    common = {"target": "tensorrt-rtx", "options": dataclasses.asdict(TensorRTOptions(fp16=True))}
    assert ask(worker, 0, do="identify", **common)["library"].startswith("TensorRT-RTX 1.")
    build = {"batchable": True, "max_batch_size": 4, "spec": dataclasses.asdict(model.spec)}
    answer = ask(worker, 1, do="compile", model=str(folder / "source.onnx"), **common, **build)
    artifact = read_artifact(answer, lambda arrays: arrays)
    assert artifact.max_batch_size == 4
    assert [file.name for file in folder.iterdir()] == ["model.plan"]
    assert "building the engine" in (worker / PROGRESS).read_text(encoding="utf-8")
    values = np.ones((2, *artifact.inputs[0].dims[1:]), np.float32)
    save_arrays(tmp_path / "in.npz", {artifact.inputs[0].name: values})
    assert ask(worker, 2, do="run", inputs=str(tmp_path / "in.npz"), outputs=str(tmp_path / "out.npz")) == {}
    assert load_arrays(tmp_path / "out.npz")[artifact.outputs[0].name].shape[0] == 2
    refused = {**common, "options": dataclasses.asdict(TensorRTOptions(compute_capabilities=("9.0",)))}
    save(linear(), folder / "source.onnx")
    with pytest.raises(UsageError, match="does not build for it"):
        raise read_error(ask(worker, 3, do="compile", model=str(folder / "source.onnx"), **refused, **build))


@pytest.mark.parametrize(
    ("version", "cuda", "requirement"),
    [
        ((8, 6, 1), "12.0.1", "tensorrt-bindings==8.6.1.*"),
        ((10, 13, 3), "13.0.1.010", "tensorrt-cu13-bindings==10.13.3.*"),
        ((10, 3, 0), "", "tensorrt-cu12-bindings==10.3.0.*"),
    ],
)
def test_bindings_are_those_of_the_library(version: tuple[int, int, int], cuda: str, requirement: str) -> None:
    assert bindings_requirement(version, cuda) == requirement


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["ERROR: No matching distribution found for onnx"], "lacks onnx, and no package index has it"),
        (
            ["... Failed to establish a new connection", "ERROR: No matching distribution found for onnx"],
            "lacks onnx, and pip in it reaches no package index",
        ),
        (["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"], "disk is full"),
        (["ERROR: something else"], "pip in it can't install: something else"),
        ([], "it said nothing"),
    ],
)  # fmt: skip
def test_what_is_told_of_pip(said: list[str], message: str) -> None:
    assert message in pip_error(said).message


def test_what_the_worker_needs_is_what_we_require() -> None:
    names = [line.split(">")[0].split("<")[0].split("=")[0] for line in needed_packages(Target.TENSORRT_RTX)]
    assert names == ["cuda-python", "ml-dtypes", "numpy", "onnx", "onnxruntime", "tensorrt-rtx"]
    assert needed_packages(Target.TENSORRT) == needed_packages(Target.TENSORRT_RTX)[:-1]


def test_a_network_definition_stays_here(tmp_path: Path) -> None:
    build = BuildOptions(Target.TENSORRT_RTX, container=ContainerOptions("any"))
    with pytest.raises(UsageError, match="container: a network definition is a function of this process"):
        add_model(lambda _network, _trt: None, name="net", repository=tmp_path / "models", build=build)


def test_a_line_whose_end_changes_is_one_step(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps() as progress:
        for done in range(3):
            progress(f"pulling image\t{done} of 3 layers")
    assert capsys.readouterr().err.count("pulling image") == 1
