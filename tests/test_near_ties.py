"""What a TopK or an ArgMax in the model chose: near ties may fall either way, and nothing else may."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repo_builder.comparison import Tolerance
from repo_builder.compilers.base import Target
from repo_builder.errors import VerificationError
from repo_builder.gate import open_source
from repo_builder.onnx_model import read_model
from repo_builder.samples import SampleOptions, Sampler
from repo_builder.verify import Reference, Verification, verify
from tests.models import FP32, INT64, model, node, save, weights

Arrays = dict[str, npt.NDArray[Any]]

SCORES = np.array([[0.5, 0.9, 0.1, 0.499, 0.3, 0.299]], np.float32)
LIMITS = Tolerance(rtol=1e-2, scale=1e-2, flips=0.01)
A_QUARTER = Tolerance(rtol=1e-2, scale=1e-2, flips=0.25)


def top_four(*, largest: int = 1) -> onnx.ModelProto:
    """The best four of six boxes, their scores and, from 1 on, their numbers."""
    sign = np.array(1 if largest else -1, np.float32)
    return model(
        [
            node("Mul", ["scores", "sign"], ["signed"]),
            node("TopK", ["signed", "four"], ["best", "index"], name="pick", largest=largest),
            node("Unsqueeze", ["index", "last"], ["column"]),
            node("Tile", ["column", "sides"], ["columns"]),
            node("GatherElements", ["all", "columns"], ["boxes"], axis=1),
            node("Add", ["index", "one"], ["numbers"]),
        ],
        {"scores": (FP32, ["batch", 6]), "all": (FP32, ["batch", 6, 4])},
        {"best": (FP32, ["batch", 4]), "numbers": (INT64, ["batch", 4]), "boxes": (FP32, ["batch", 4, 4])},
        {
            "sign": sign,
            "four": np.array([4]),
            "last": np.array([-1]),
            "sides": np.array([1, 1, 4]),
            "one": np.array([1]),
        },
    )


def nearest_colour(*, operator: str = "ArgMax") -> onnx.ModelProto:
    """For each of 100 pixels, scores of which lie along axis 1, the row of a table."""
    return model(
        [
            node(operator, ["scores"], ["index"], axis=1, keepdims=0, name="pick"),
            node("Gather", ["table", "index"], ["colours"]),
        ],
        {"scores": (FP32, ["batch", 3, 100])},
        {"colours": (FP32, ["batch", 100, 4])},
        {"table": weights(3, 4)},
    )


def reference(proto: onnx.ModelProto, folder: Path, **inputs: npt.NDArray[Any]) -> Reference:
    for name, array in inputs.items():
        np.save(folder / f"{name}.npy", array)
    source = read_model(save(proto, folder / "net.onnx"))
    samples = SampleOptions(files={name: folder / f"{name}.npy" for name in inputs})
    session = open_source(source, folder, Target.TENSORRT)
    assert [path.name for path in folder.glob("*.onnx")] == ["net.onnx"]
    assert [tensor.name for tensor in session.outputs] == [output.name for output in proto.graph.output]
    return Reference.open(source.spec, session, Sampler(source.spec.inputs, samples, {}))


def flipped(verification: Verification) -> dict[str, int]:
    return {report.name: report.flipped for report in verification.outputs}


def rounded(source: Reference, box: int, score: float) -> Callable[[Arrays], Arrays]:
    """The source with another score of one box, as of an artifact that rounds."""

    def run(inputs: Arrays) -> Arrays:
        changed = inputs["scores"].copy()
        changed[:, box] = score
        return source.session.run({**inputs, "scores": changed})

    return run


def spoilt(source: Reference, output: str, row: int, value: float) -> Callable[[Arrays], Arrays]:
    """The source with near ties that fell otherwise, and one row of one output that is another's."""

    def run(inputs: Arrays) -> Arrays:
        outputs = rounded(source, box=3, score=0.501)(inputs)
        outputs[output] = outputs[output].copy()
        outputs[output][:, row] = value
        return outputs

    return run


@pytest.mark.parametrize("largest", [1, 0])
@pytest.mark.parametrize("size", [1, 8])
def test_a_near_tie_may_fall_either_way(largest: int, size: int, tmp_path: Path) -> None:
    source = reference(top_four(largest=largest), tmp_path, scores=np.tile(SCORES, (2, 1)), all=weights(2, 6, 4))

    result = verify(rounded(source, box=3, score=0.501), source, (size,), LIMITS, seed=0)

    assert flipped(result) == {"best": 0, "numbers": 2 * size, "boxes": 8 * size}
    assert result.worst.max_absolute_error < 0.01
    assert f"{8 * size} of the {16 * size} values of output 'boxes' are not ONNX Runtime's" in result.hints[1]


@pytest.mark.parametrize(
    ("output", "row", "value"),
    [("boxes", 0, 7), ("boxes", 1, 7), ("numbers", 0, 1), ("numbers", 2, 5), ("boxes", 3, 7), ("numbers", 1, 1)],
)
def test_anything_else_is_refused(output: str, row: int, value: float, tmp_path: Path) -> None:
    """Other boxes, numbers of boxes with other scores, and of a near tie the same one twice."""
    source = reference(top_four(), tmp_path, scores=SCORES, all=weights(1, 6, 4))

    with pytest.raises(VerificationError, match=f"output '{output}' is not what ONNX Runtime computes") as caught:
        verify(spoilt(source, output, row, value), source, (1,), LIMITS, seed=0)

    hint = str(caught.value.hint)
    assert hint.startswith("node pick (TopK) chooses what comes out there")
    for flag in ("--input NAME=FILE.npy", "--rtol and --atol", "--no-verify"):
        assert flag in hint


def test_few_may_be_near_ties_of_what_was_left_out(tmp_path: Path) -> None:
    source = reference(top_four(), tmp_path, scores=SCORES, all=weights(1, 6, 4))
    other_last = rounded(source, box=5, score=0.301)

    assert flipped(verify(other_last, source, (1,), A_QUARTER, seed=0)) == {"best": 0, "numbers": 1, "boxes": 4}
    with pytest.raises(VerificationError):
        verify(other_last, source, (1,), LIMITS, seed=0)
    for row, value in ((2, 7), (3, np.nan)):
        with pytest.raises(VerificationError, match="'boxes'"):
            verify(spoilt(source, "boxes", row, value), source, (1,), A_QUARTER, seed=0)


def test_all_of_them_in_order_leave_none_out(tmp_path: Path) -> None:
    proto = top_four()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    proto.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 4
    source = reference(proto, tmp_path, scores=SCORES[:, [0, 1, 3, 4]], all=weights(1, 4, 4))

    assert verify(rounded(source, box=2, score=0.501), source, (1,), LIMITS, seed=0)
    with pytest.raises(VerificationError, match="'boxes'"):
        verify(spoilt(source, "boxes", 3, 7), source, (1,), A_QUARTER, seed=0)


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
def test_of_what_an_argmax_looks_up(operator: str, tmp_path: Path) -> None:
    scores = np.zeros((1, 3, 100), np.float32)
    scores[:, 1] = 1 if operator == "ArgMax" else -1
    scores[0, 2, 7] = scores[0, 1, 7] * 0.999
    source = reference(nearest_colour(operator=operator), tmp_path, scores=scores)

    def other(*pixels: int) -> Callable[[Arrays], Arrays]:
        def run(inputs: Arrays) -> Arrays:
            changed = inputs["scores"].copy()
            changed[0, 2, pixels] = 2 * changed[0, 1, pixels]
            return source.session.run({"scores": changed})

        return run

    assert flipped(verify(other(7), source, (1,), LIMITS, seed=0)) == {"colours": 4}
    for pixels in ((8,), (7, 8)):
        with pytest.raises(VerificationError, match="of 400 elements differ") as caught:
            verify(other(*pixels), source, (1,), LIMITS, seed=0)
        assert str(caught.value.hint).startswith(f"node pick ({operator}) chooses")


def test_another_number_of_boxes(tmp_path: Path) -> None:
    proto = model(
        [node("NonMaxSuppression", ["all", "scores", "most"], ["found"], name="nms")],
        {"all": (FP32, [1, 6, 4]), "scores": (FP32, [1, 1, 6])},
        {"found": (INT64, ["found", 3])},
        {"most": np.array([3])},
    )
    source = reference(proto, tmp_path, scores=SCORES[None], all=weights(1, 6, 4))

    with pytest.raises(VerificationError, match="has shape") as caught:
        verify(lambda inputs: {"found": source.session.run(inputs)["found"][:-1]}, source, (0,), LIMITS, seed=0)
    assert str(caught.value.hint).startswith("node nms (NonMaxSuppression) chooses what comes out there")


def test_the_best_values_themselves_are_no_matter_of_ties(tmp_path: Path) -> None:
    proto = top_four()
    del proto.graph.output[1:]
    source = reference(proto, tmp_path, scores=SCORES, all=weights(1, 6, 4))

    with pytest.raises(VerificationError) as caught:
        verify(lambda inputs: {"best": source.session.run(inputs)["best"][:, ::-1]}, source, (1,), A_QUARTER, seed=0)
    assert (caught.value.hint or "").startswith("rounding rarely comes to that")


def test_scores_of_a_model_whose_weights_are_elsewhere(tmp_path: Path) -> None:
    onnx.save_model(
        nearest_colour(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "net.data").rename(tmp_path / "data" / "net.data")
    (tmp_path / "net.data").symlink_to("data/net.data")
    (tmp_path / "empty").mkdir()

    session = open_source(read_model(tmp_path / "net.onnx"), tmp_path / "empty", Target.TENSORRT)

    assert [spec.name for spec in session.rankings] == ["index/scores"]


def test_where_there_is_no_room_for_the_scores_the_model_is_opened_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_model(save(nearest_colour(), tmp_path / "net.onnx"))

    def full(_proto: onnx.ModelProto, path: Path) -> None:
        path.write_bytes(b"begun")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx, "save", full)
    session = open_source(source, tmp_path, Target.TENSORRT)

    assert ([spec.name for spec in session.outputs], session.choices) == (["colours"], {})
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
