"""Shapes in trtexec's syntax, profiles, and what contradicts itself."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from repo_builder.errors import CompileError, UsageError
from repo_builder.trt.options import Profile, TensorRTOptions, parse_profiles, parse_shapes
from repo_builder.trt.profiles import (
    NetworkInput,
    free_unequal_axes,
    largest_batch,
    plan_profiles,
    refuse_other_than_one_row,
)
from tests.models import INT64, model, node

IMAGE = NetworkInput("image", (-1, 3, -1, -1))
IDS = NetworkInput("ids", (-1, -1))
VALUES = NetworkInput("s", (2,), shape_tensor=True)
BATCHED = NetworkInput("x", (-1, 4))


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("input:1x3x224x224", {"input": (1, 3, 224, 224)}),
        ("input:1x3,mask:1x128", {"input": (1, 3), "mask": (1, 128)}),
        ("serving_default_x:0:8x4", {"serving_default_x:0": (8, 4)}),
        ("steps:scalar,x:2", {"steps": (), "x": (2,)}),
    ],
)
def test_shapes(text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    assert parse_shapes("--opt-shapes", text) == shapes


@pytest.mark.parametrize("text", ["input", "input:", "input:1x", ":1x2", "'':1x2", "a:1,a:2", "a:1,'a':2", "a:-1x3"])
def test_shapes_that_can_not_be_read(text: str) -> None:
    with pytest.raises(UsageError, match="--opt-shapes"):
        parse_shapes("--opt-shapes", text)


def test_missing_corners_are_taken_from_the_others() -> None:
    assert parse_profiles([], ["x:8x4"], []) == (Profile({"x": (8, 4)}, {"x": (8, 4)}, {"x": (8, 4)}),)
    assert parse_profiles(["x:1x4"], [], ["x:8x4"]) == (Profile({"x": (1, 4)}, {"x": (8, 4)}, {"x": (8, 4)}),)


def test_each_flag_is_given_once_a_profile() -> None:
    assert len(parse_profiles(["x:1x4", "x:8x4"], ["x:2x4", "x:16x4"], ["x:4x4", "x:32x4"])) == 2
    with pytest.raises(UsageError, match="--max-shapes is given 1 times, others 2"):
        parse_profiles(["x:1x4", "x:8x4"], ["x:2x4", "x:16x4"], ["x:4x4"])


def test_the_batch_axis_has_a_range_by_itself() -> None:
    [profile] = plan_profiles([BATCHED], (), batchable=True, max_batch_size=16)
    assert profile == Profile({"x": (1, 4)}, {"x": (16, 4)}, {"x": (16, 4)})
    assert largest_batch([BATCHED], [profile]) == 16


def test_a_batch_that_no_tensor_has() -> None:
    with pytest.raises(UsageError, match="--max-batch-size 3000000000 is a size that no tensor has"):
        plan_profiles([BATCHED], (), batchable=True, max_batch_size=3_000_000_000)


def test_a_model_of_fixed_shape_needs_no_range() -> None:
    assert plan_profiles([NetworkInput("x", (1, 4))], (), batchable=False, max_batch_size=0) == (Profile(),)


def test_an_input_left_out_of_a_profile_gets_the_default() -> None:
    given = parse_profiles(["image:1x3x64x64"], ["image:2x3x64x64"], ["image:4x3x64x64"])
    [profile] = plan_profiles([IMAGE, BATCHED], given, batchable=True, max_batch_size=4)
    assert profile.max == {"image": (4, 3, 64, 64), "x": (4, 4)}


def test_every_free_axis_without_a_range_is_in_one_error_with_the_flags_to_add() -> None:
    with pytest.raises(CompileError, match=r"'image' \[-1, 3, -1, -1\], 'ids' \[-1, -1\]") as caught:
        plan_profiles([IMAGE, IDS], (), batchable=True, max_batch_size=8)
    hint = caught.value.hint or ""
    flags = dict(zip(*[iter(hint.partition(": ")[2].split())] * 2, strict=True))
    profiles = parse_profiles([flags["--min-shapes"]], [flags["--opt-shapes"]], [flags["--max-shapes"]])
    [planned] = plan_profiles([IMAGE, IDS], profiles, batchable=True, max_batch_size=8)
    assert planned.max["image"][0] == planned.max["ids"][0] == 8


def test_the_flags_to_add_can_be_pasted_whatever_the_names_are() -> None:
    odd = NetworkInput("in put $1", (-1, -1))
    with pytest.raises(CompileError) as caught:
        plan_profiles([odd], (), batchable=True, max_batch_size=8)
    flags = shlex.split((caught.value.hint or "").partition("sizes: ")[2])
    assert parse_profiles([flags[1]], [flags[3]], [flags[5]])[0].opt == {"in put $1": (8, 64)}


def test_axes_of_one_name_have_the_same_size_in_the_flags_to_add() -> None:
    """Of others TensorRT would say that they don't fit."""
    mask = NetworkInput("mask", (-1, -1, -1), names=("n", "h", "w"))
    image = NetworkInput("image", (-1, 3, -1, -1), names=("n", "", "h", "w"))
    past = NetworkInput("past", (-1, 4, -1, 64), names=("n", "", "length", ""))
    with pytest.raises(CompileError) as caught:
        plan_profiles([mask, image, past], (), batchable=True, max_batch_size=8)
    assert "--opt-shapes mask:8x224x224,image:8x3x224x224,past:8x4x64x64 " in (caught.value.hint or "")


def test_the_flags_to_add_hold_and_follow_what_is_given() -> None:
    """A flag given twice is for two profiles, so the proposed ones are to replace what is there."""
    ids, mask = (NetworkInput(name, (-1, -1), names=("n", "length")) for name in ("ids", "mask"))
    given = parse_profiles(["ids:1x16"], ["ids:2x32"], ["ids:4x48"])
    with pytest.raises(CompileError, match=r"a range for the free axes of 'mask' \[-1, -1\]$") as caught:
        plan_profiles([ids, mask], given, batchable=True, max_batch_size=8)
    flags = "--min-shapes ids:1x16,mask:1x16 --opt-shapes ids:2x32,mask:2x32 --max-shapes ids:4x48,mask:4x48"
    assert caught.value.hint == f"with your own sizes: {flags}"


def test_shapes_of_a_model_whose_sizes_are_fixed() -> None:
    given = parse_profiles([], ["x:8x4"], [])
    with pytest.raises(UsageError, match=r"x:8x4 does not fit the model's input \[1, 4\]") as caught:
        plan_profiles([NetworkInput("x", (1, 4))], given, batchable=False, max_batch_size=8)
    assert "leave its shapes out" in (caught.value.hint or "")


def test_a_shape_tensor_takes_values() -> None:
    with pytest.raises(
        CompileError, match=r"the free axes of 'ids'.* and the values of 's', which are a shape"
    ) as caught:
        plan_profiles([IDS, VALUES], (), batchable=False, max_batch_size=8)
    hint = caught.value.hint or ""
    assert "--min-shapes ids:1x1,s:1x1 " in hint
    flags = dict(zip(*[iter(hint.partition(": ")[2].split())] * 2, strict=True))
    profiles = parse_profiles([flags["--min-shapes"]], [flags["--opt-shapes"]], [flags["--max-shapes"]])
    [planned] = plan_profiles([IDS, VALUES], profiles, batchable=False, max_batch_size=8)
    assert planned.opt["s"] == (64, 64)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["y:1x4", "y:1x4", "y:1x4"], "no input 'y'"),
        (["x:1x5", "x:1x5", "x:1x5"], "does not fit"),
        (["x:4", "x:4", "x:4"], "does not fit"),
        (["x:1x4", "x:1x4", "x:4"], "does not fit"),
    ],
)
def test_profiles_that_contradict_the_model(shapes: list[str], message: str) -> None:
    given = parse_profiles(*[[text] for text in shapes])
    with pytest.raises(UsageError, match=message):
        plan_profiles([BATCHED], given, batchable=True, max_batch_size=8)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["x:4x4", "x:2x4", "x:8x4"], "do not ascend"),
        (["x:1x4", "x:1x4", "x:3000000000x4"], "x:3000000000x4 has a size that no tensor has"),
        (["x:1x4", "x:1x4", f"x:{'9' * 30}x4"], "has a size that no tensor has"),
    ],
)
def test_ranges_that_are_none(shapes: list[str], message: str) -> None:
    given = parse_profiles(*[[text] for text in shapes])
    with pytest.raises(UsageError, match=message):
        TensorRTOptions(profiles=given)


def test_a_profile_names_its_inputs_three_times() -> None:
    with pytest.raises(UsageError, match="min, opt and max name different inputs"):
        TensorRTOptions(profiles=(Profile(opt={"x": (1, 3)}),))


@pytest.mark.parametrize("values", ["s:4x6x1", "s:4", "s:scalar"])
def test_values_of_a_shape_tensor_that_are_too_many_or_few(values: str) -> None:
    given = parse_profiles(["s:1x1"], [values], ["s:24x24"])
    with pytest.raises(UsageError, match=f"{values} does not fit the input 's', whose values are a shape: it has 2"):
        plan_profiles([VALUES], given, batchable=False, max_batch_size=8)


@pytest.mark.parametrize(
    ("texts", "axes"),
    [
        (["ids:1x1,mask:1x1", "ids:4x64,mask:4x64", "ids:8x128,mask:8x128"], [["batch", "length"]] * 2),
        (["ids:1x1,mask:1x1", "ids:4x64,mask:4x64", "ids:8x128,mask:8x64"], [["batch", ""]] * 2),
        (["ids:1x1", "ids:4x64", "ids:8x128"], [["", "length"]] * 2),  # the other's batch is the default, 1 to 16
        (["ids:1x1", "ids:16x64", "ids:16x128"], [["batch", "length"]] * 2),
    ],
)
def test_only_axes_that_are_equal_keep_a_common_name(texts: list[str], axes: list[list[str]]) -> None:
    shape: list[int | str | None] = ["batch", "length"]
    second = shape if "mask" in texts[0] else shape[:1]
    proto = model(
        [node("Identity", ["ids"], ["y"])], {"ids": (INT64, shape), "mask": (INT64, second)}, {"y": (INT64, shape)}
    )
    before = proto.SerializeToString()
    freed = free_unequal_axes(proto, parse_profiles(*[[text] for text in texts]), 16)
    named = [[dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in freed.graph.input]
    assert named == [axes[0], axes[1][: len(second)]]
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [("x:4x4", "x:8x4", "smallest shape is x:4x4"), ("x:0x4", "x:0x4", "largest shape is x:0x4")],
)
def test_a_served_engine_must_take_single_rows(low: str, high: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"{said}, so a request of one row would fail"):
        refuse_other_than_one_row([BATCHED], parse_profiles([low], [low], [high]))
    refuse_other_than_one_row([BATCHED], parse_profiles(["x:0x4"], ["x:1x4"], ["x:1x4"]))


@pytest.mark.parametrize(
    "options",
    [
        {"half_inputs": True},
        {"fp16": True, "bf16": True, "strict": True},
        {"compute_capabilities": ("86",)},
        {"memory_pools": {"workspace": -1}},
        {"memory_pools": {"workspace": 2**43}},
    ],
)
def test_options_that_contradict_themselves(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TensorRTOptions(**options)
