"""What the stages of tensorrt_h100.py share."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repo_builder.onnx_model import read_model
from repo_builder.trt.options import Profile, TensorRTOptions

BATCHES = (1, 8, 16, 32, 64, 128)
LENGTH = 128


def options_for(model: Path, arguments: argparse.Namespace, **precision: Any) -> TensorRTOptions:
    """One profile for batches of 1 to 128, tuned for 32; text of 8 to 512 tokens, tuned for 128."""
    corners: list[dict[str, tuple[int, ...]]] = [{}, {}, {}]
    for tensor in read_model(model).spec.inputs:
        for corner, batch, length in zip(corners, (1, 32, max(BATCHES)), (8, LENGTH, 512), strict=True):
            fixed = [axis if isinstance(axis, int) else length for axis in (tensor.shape or ())[1:]]
            corner[tensor.name] = (batch, *fixed)
    return TensorRTOptions(profiles=(Profile(*corners),), tactic_sources=arguments.tactic_sources, **precision)


def shapes_at(batch: int, opt: Any) -> dict[str, tuple[int, ...]]:
    return {name: (batch, *shape[1:]) for name, shape in opt.items()}


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tensorrt-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def steps() -> Callable[[str], None]:
    last = [""]

    def progress(line: str) -> None:
        if line != last[0]:
            last[0] = line
            say(line)

    return progress


def timing_cache(model: Path, precision: str) -> Path:
    """Where ``table`` leaves what it measured, for ``serve`` to build the same again."""
    return model.with_suffix(f".{precision}.cache")
