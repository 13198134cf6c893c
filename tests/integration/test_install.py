"""The wheel, installed in a clean environment, does the main job from another folder: nothing is missing in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/efficientnet-lite0"


def run(command: Sequence[object], folder: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env={**clean, **environment}, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh virtual environment with the built wheel and its `server` extra."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], folder)
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    run([*pip(folder / "venv/bin"), "install", "--quiet", "--no-compile", f"{wheel}[server]"], folder)
    return folder / "venv/bin"


def pip(binaries: Path) -> list[object]:
    """This environment's pip at work on another, which is made faster without one."""
    return [sys.executable, "-m", "pip", "--python", binaries / "python"]


def test_main_job_from_another_folder(binaries: Path, tmp_path: Path) -> None:
    add = [binaries / "repo-builder", "add", EXAMPLE / "model.onnx", "--image", "efficientnet-lite", "--json"]
    added = json.loads(run([*add, "--labels", EXAMPLE / "labels.txt"], tmp_path))
    assert (added["name"], added["version"]) == ("efficientnet-lite0", 1)
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    serve = [binaries / "repo-builder", "serve", "--detach", "--json"]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    server = json.loads(run([*serve, *ports], tmp_path, **state))
    try:
        infer = [binaries / "python", "-m", "client.infer", ROOT / "examples/cat.jpg", "--url", server["url"]]
        assert "cat" in run(infer, tmp_path).lower()
    finally:
        run([binaries / "repo-builder", "stop", "--http-port", "all"], tmp_path, **state)


def test_core_alone_names_the_missing_extra(tmp_path: Path, binaries: Path) -> None:
    run([*pip(binaries), "uninstall", "--quiet", "--yes", "onnxruntime"], tmp_path)
    add = [binaries / "repo-builder", "add", EXAMPLE / "model.onnx"]
    done = subprocess.run([str(part) for part in add], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 1
    assert "error: onnxruntime is not installed" in done.stderr
    assert "pip install 'repo-builder[server]'" in done.stderr
    assert not (tmp_path / "model_repository").exists()
