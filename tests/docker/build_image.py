"""An image to build in: Debian with Python and pip, and the wheels that a TensorRT-RTX build lacks in it.

It stands in for NVIDIA's, which no registry hands out here, and has no TensorRT of its own.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from repo_builder.compilers.base import Target
from repo_builder.compilers.container import needed_packages
from tests.docker.make_image import PYTHON, CannotMakeError, make_base, run

DOCKERFILE = "FROM {base}\nENV PATH=/opt/venv/bin:$PATH\nRUN python3 -m venv /opt/venv\n"
WHEELS = "COPY wheels /wheels/\n"


def make_bare_image(engine: Any) -> str:
    """The image without those wheels: pip in it finds no cuda-python and no TensorRT-RTX."""
    with tempfile.TemporaryDirectory() as folder:
        return _build(engine, Path(folder), DOCKERFILE.format(base=make_base(engine)), "repo-builder-test-bare")


def make_build_image(engine: Any) -> str:
    """The image; raises CannotMakeError on another Python, whose pip can't make wheels for this one."""
    base, wanted = make_base(engine), needed_packages(Target.TENSORRT_RTX)
    text = DOCKERFILE.format(base=base) + WHEELS
    tag = f"repo-builder-test-build:{hashlib.sha256(repr((text, wanted)).encode()).hexdigest()[:12]}"
    import docker.errors

    try:
        engine.images.get(tag)
    except docker.errors.ImageNotFound:
        if ".".join(map(str, sys.version_info[:2])) != PYTHON:
            raise CannotMakeError(f"making the image to build in needs Python {PYTHON}") from None
        with tempfile.TemporaryDirectory() as folder:
            wheels = Path(folder, "wheels")
            pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(wheels)]
            run([*pip, *wanted])
            return _build(engine, Path(folder), text, tag)
    return tag


def with_file(engine: Any, base: str, file: Path, place: str, tag: str) -> str:
    """``base`` with one more file."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(file, Path(folder, file.name))
        return _build(engine, Path(folder), f"FROM {base}\nCOPY {file.name} {place}\n", tag)


def _build(engine: Any, folder: Path, text: str, tag: str) -> str:
    (folder / "Dockerfile").write_text(text, encoding="utf-8")
    engine.images.build(path=str(folder), tag=tag, rm=True, forcerm=True)
    return tag
