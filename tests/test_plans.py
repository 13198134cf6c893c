"""Plans by themselves, where something is in the way: refused in one line, with nothing half-written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import onnx
import pytest

from repo_builder.trt.benchmark import Performance, spread
from repo_builder.trt.cuda import find_gpu
from tests.conftest import Cli, SmallDisk
from tests.models import convolution, save, with_external_data
from tests.support import fill, rtx, untouched

pytestmark = pytest.mark.usefixtures("own_folders")
RTX = ("--target", "tensorrt-rtx")


@rtx
@pytest.mark.parametrize("output", ["net.onnx", "./folder/../net.onnx", "hard.onnx", "soft.onnx", "net.data"])
def test_what_the_plan_is_made_from_is_not_overwritten(output: str, tmp_path: Path, cli: Cli) -> None:
    onnx.save_model(
        convolution(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    (tmp_path / "folder").mkdir()
    os.link(tmp_path / "net.onnx", tmp_path / "hard.onnx")
    (tmp_path / "soft.onnx").symlink_to("net.onnx")

    with untouched(tmp_path):
        result = cli("compile", "net.onnx", "-o", output, *RTX)

    assert result.code == 2
    assert "which the plan is made from\n\nhint: name another file: -o model.plan" in result.err


@rtx
def test_weights_that_are_links_as_in_hugging_face_s_cache(tmp_path: Path, cli: Cli) -> None:
    with_external_data(tmp_path / "blobs", "weights.bin")
    (tmp_path / "snapshot").mkdir()
    for name in ("net.onnx", "weights.bin"):
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name}")

    result = cli("compile", "snapshot/net.onnx", "--fp16", "-o", "net.plan", *RTX)

    assert (result.code, (tmp_path / "net.plan").is_file()) == (0, True), result.err


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_nothing_is_built_that_can_not_be_measured(tmp_path: Path, cli: Cli) -> None:
    save(convolution(), tmp_path / "net.onnx")

    with untouched(tmp_path):
        result = cli("compile", "net.onnx", *RTX, "--benchmark")

    assert (result.code, result.err.splitlines()[0]) == (
        1,
        "error: --benchmark runs the plan, and there is no GPU here",
    )


@rtx
def test_what_was_compiled_and_measured_is_told(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    save(convolution(), tmp_path / "net.onnx")
    times = spread([1.0, 2.0, 3.0])
    monkeypatch.setattr("repo_builder.plans.require_gpu_to_measure", lambda: None)
    monkeypatch.setattr("repo_builder.plans.benchmark_plan", lambda _plan, **_: Performance(3, 1.0, 3.0, *[times] * 5))

    result = cli("compile", "net.onnx", "--benchmark", *RTX)
    *_, summary = result.err.splitlines()
    assert re.fullmatch(r"model\.plan \(\S+ kB\): TensorRT-RTX \S+( on .+)?, built in \S+ s; layers: \d+ FP32", summary)
    assert result.out.splitlines()[0] == "Throughput: 3 qps"

    told = cli("compile", "net.onnx", "--benchmark", "--json", "--sparsity", "enable", *RTX)
    assert (told.json["path"], told.json["performance"]["latency"]["median"]) == ("model.plan", 2.0)
    assert told.err.splitlines()[-1] == "note: --sparsity: no effect, TensorRT-RTX makes the same engine without"


@rtx
@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_what_inspect_tells_where_nothing_runs_the_plan(tmp_path: Path, cli: Cli) -> None:
    source = save(convolution(), tmp_path / "net.onnx")
    cli("compile", source, *RTX)
    cli("add", source, *RTX, "-r", "models")

    alone, published = cli("inspect", "model.plan"), cli("inspect", "models/net/1/model.plan")
    assert re.fullmatch(r"plan      TensorRT-RTX \S+, \S+ kB\n", alone.out)
    assert alone.err.endswith("all else can only be told on a GPU that runs it\n")
    assert published.err.endswith("this is what the manifest beside it says\n")
    assert published.out.splitlines()[1:-1] == [
        "gpu       none",
        "input     x FP32 [-1, 3, 8, 8]",
        "output    y FP32 [-1, 4, 1, 1]",
        "profile 0 x: min [1, 3, 8, 8], opt [8, 3, 8, 8], max [8, 3, 8, 8]",
    ]


@rtx
@pytest.mark.parametrize("command", [("compile", "-o", "net.plan"), ("add", "--no-verify", "-r", "models")])
def test_a_range_is_asked_for_an_axis_that_the_model_states_as_0(
    command: tuple[str, ...], tmp_path: Path, cli: Cli
) -> None:
    result = cli(command[0], save(convolution(height=0, width=0), tmp_path / "net.onnx"), *RTX, *command[1:])

    assert result.code == 1
    said = " ".join(result.err.split())
    assert "needs a range for the free axes of 'x' [-1, 3, -1, -1]; the model states input 'x' as [-1, 3, 0, 0]" in said


@rtx
@pytest.mark.usefixtures("file_modes_hold")
@pytest.mark.parametrize(
    ("closed", "mode", "error"),
    [
        ("weights.bin", 0, "weights.bin can't be read: Permission denied"),
        ("folder", 0o500, "folder/net.plan can't be written: Permission denied"),
        ("folder", 0, "folder/net.plan can't be written: Permission denied"),
    ],
)
def test_what_may_not_be_read_or_written(closed: str, mode: int, error: str, tmp_path: Path, cli: Cli) -> None:
    with_external_data(tmp_path, "weights.bin")
    (tmp_path / "folder").mkdir()
    (tmp_path / closed).chmod(mode)

    result = cli("compile", "net.onnx", "-o", "folder/net.plan", *RTX)

    (tmp_path / closed).chmod(0o700)
    assert result.error == error


@rtx
@pytest.mark.parametrize("weights", ["within", "beside"])
def test_a_full_disk_for_the_plan(weights: str, tmp_path: Path, cli: Cli, small_disk: SmallDisk) -> None:
    beside = weights == "beside"
    source = with_external_data(tmp_path, "weights.bin") if beside else save(convolution(), tmp_path / "net.onnx")
    disk = small_disk(64)
    fill(disk)

    result = cli("compile", source, "-o", disk / "net.plan", *RTX)

    assert result.code == 1
    assert f"error: the disk of {disk / 'net.plan'} is full; nothing was changed" in result.err
    assert [file.name for file in disk.iterdir()] == ["full"]


@rtx
@pytest.mark.parametrize("command", [("compile", "-o", "net.plan"), ("add", "-r", "models")])
def test_a_full_disk_for_logs_and_caches_costs_the_log_only(
    command: tuple[str, ...], tmp_path: Path, cli: Cli, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(64)
    monkeypatch.setenv("XDG_STATE_HOME", str(disk))
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    (disk / "repo-builder/builds").mkdir(parents=True)
    fill(disk)

    result = cli(command[0], save(convolution(), tmp_path / "net.onnx"), *RTX, *command[1:])

    assert result.code == 0
    assert f"the log {disk}/repo-builder/builds/tensorrt-rtx-" in result.err
    assert "can't be written: No space left on device" in result.err
    assert {file.name for file in disk.rglob("*") if file.is_file()} == {"full"}


@rtx
@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_verify_without_a_gpu_tells_what_it_checked(tmp_path: Path, cli: Cli) -> None:
    save(convolution(), tmp_path / "net.onnx")
    assert cli("add", "net.onnx", *RTX).code == 0

    result = cli("verify", "net", "--source", "net.onnx")

    assert result.code == 1
    assert "error: net@1: its files are the ones published, by their SHA-256, but its numbers were not" in result.err
    assert "hint: verify it on a machine with a GPU" in result.err
