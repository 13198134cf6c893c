"""What keeps the server of the nvidia-pytriton wheel from running here is told before it is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from repo_builder.errors import ServerError
from repo_builder.servers.installation import Installation, find_installation, make_run_directory


def test_a_wheel_without_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pytriton"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver/python_backend_stubs" / python / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ServerError, match=f"no backend for Python {python}"):
        find_installation()
    stub.touch()
    with pytest.raises(ServerError, match=r"bin/tritonserver is missing"):
        find_installation()


def test_a_stub_that_can_not_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    stub = tmp_path / "triton_python_backend_stub"
    stub.write_text("#!/bin/sh\necho libpython3.so: cannot open >&2\nexit 127\n")
    stub.chmod(0o700)
    installation = Installation(tmp_path / "tritonserver", tmp_path, tmp_path / "backend", stub)
    with pytest.raises(ServerError, match=r"backend can't start: libpython3\.so: cannot open") as caught:
        make_run_directory(installation, "repo_builder_0_")
    assert "needs its shared library" not in caught.value.message
    assert "needs its shared library" in str(caught.value.hint)
    assert list((tmp_path / "tmp").iterdir()) == []
