"""Files that were damaged on their way: whatever is in them, they are refused as a model or published as one."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repo_builder import BuildOptions, SampleOptions, Target, add_model
from repo_builder.errors import RepoBuilderError
from tests import models
from tests.models import FP32, STRING, identity, linear, model, node, save, weights
from tests.support import snapshot

BUILD = BuildOptions(target=Target.ONNXRUNTIME)

SOUND = [
    linear(),
    linear(1),
    models.picture(),
    models.two_outputs(),
    models.lookup(),
    identity(STRING),
    model(
        [node("Reshape", ["x", "target"], ["y"])],
        {"x": (FP32, [1, 3, 4])},
        {"y": (FP32, [1, 12])},
        {"target": np.array([1, 12])},
    ),
    model(
        [
            node("Constant", [], ["target"], value=numpy_helper.from_array(np.array([1, -1]))),
            node("Reshape", ["x", "target"], ["y"]),
        ],
        {"x": (FP32, [1, 3, 4])},
        {"y": (FP32, [1, 12])},
    ),
    model(
        [node("Add", ["x", "W"], ["y"])],
        {"x": (FP32, [0, 2])},
        {"y": (FP32, None)},
        {"W": weights(2)},
        ir_version=3,
        opset=8,
    ),
]


@pytest.fixture(autouse=True)
def _memory_has_an_end() -> Iterator[None]:
    """A damaged size may ask for terabytes: that has to be a refusal, not the end of this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (4 << 30), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(data: bytes, folder: Path) -> bool:
    """Whether ``data`` is refused with one line and a hint, and without a trace; any other exception is a failure."""
    path = folder / "net.onnx"
    path.write_bytes(data)
    before = snapshot(folder)
    try:
        add_model(path, repository=folder / "models", build=BUILD, force=True)
    except RepoBuilderError as caught:
        error = caught
    else:
        return False
    assert error.hint
    assert "\n" not in error.message
    assert snapshot(folder) == before
    return True


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)

    results = [refused(damaged(rng.choice(SOUND).SerializeToString(), rng), tmp_path) for _ in range(10)]

    assert any(results)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """``data`` with some bytes changed, bits flipped, bytes lost and bytes come in between."""
    broken = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at = rng.randrange(len(broken))
        match rng.randrange(4):
            case 0:
                broken[at] = rng.randrange(256)
            case 1:
                broken[at] ^= 1 << rng.randrange(8)
            case 2:
                del broken[at : at + rng.randrange(1, 4)]
            case _:
                broken[at:at] = rng.randbytes(rng.randrange(1, 4))
    return bytes(broken)


def test_the_damage_reaches_what_lies_behind_the_parser(tmp_path: Path) -> None:
    """Some damaged files are still models: else the test above would only see refusals of the parser."""
    rng = random.Random(0)

    assert not all(refused(damaged(linear().SerializeToString(), rng), tmp_path) for _ in range(40))


@pytest.mark.parametrize("proto", [linear(), models.two_outputs(), SOUND[7]], ids=["linear", "two outputs", "constant"])
def test_a_file_cut_short_anywhere(proto: onnx.ModelProto, tmp_path: Path) -> None:
    data = proto.SerializeToString()

    for length in range(len(data) - 1, 0, -7):
        refused(data[:length], tmp_path)
    assert not refused(data, tmp_path)


def test_a_real_file_cut_short(tmp_path: Path) -> None:
    example = Path(__file__).parents[1] / "examples/efficientnet-lite0/model.onnx"
    data = example.read_bytes()

    for part in (0.0001, 0.1, 0.5, 0.9, 0.999, 0.99999):
        assert refused(data[: int(len(data) * part)], tmp_path)


def test_the_file_that_damage_is_made_of_is_sound(tmp_path: Path) -> None:
    for number, proto in enumerate(SOUND):
        build = BuildOptions(target=Target.ONNXRUNTIME, samples=SampleOptions())
        if proto is SOUND[4]:
            build = BuildOptions(target=Target.ONNXRUNTIME, samples=SampleOptions(ranges={"ids": (0, 0)}))
        path = save(proto, tmp_path / f"net{number}.onnx")

        assert add_model(path, repository=tmp_path / "models", build=build).version == 1
