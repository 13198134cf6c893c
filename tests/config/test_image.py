"""What is stored about pictures fits the model's input, and the client understands it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from client.image import ImageSpec
from repo_builder.config.image import PRESETS, ImagePreprocessing, fit_to_input, image_preset
from repo_builder.errors import ConfigError, UsageError
from repo_builder.model import TensorSpec
from tests.config.artifacts import FP32, INT64

IMAGENET = image_preset("imagenet")


def image(*shape: int | str, name: str = "image") -> TensorSpec:
    return TensorSpec(name, FP32, shape)


def fit(spec: ImagePreprocessing, *inputs: TensorSpec) -> ImagePreprocessing:
    return fit_to_input(spec, inputs)[0]


@pytest.mark.parametrize("name", PRESETS)
def test_the_client_reads_every_preset(name: str) -> None:
    preset = image_preset(name)

    spec = ImageSpec.from_json(preset.to_json("image"))

    assert spec.input == "image"
    for field in ("resize", "crop", "scale", "mean", "std"):
        assert getattr(spec, field) == getattr(preset, field)
    for field in ("interpolation", "color", "layout"):
        assert getattr(spec, field).value == getattr(preset, field)


def test_imagenet_is_torchvisions() -> None:
    assert (IMAGENET.resize, IMAGENET.crop, IMAGENET.interpolation) == (256, (224, 224), "bilinear")
    assert IMAGENET.mean == (0.485, 0.456, 0.406)
    assert IMAGENET.std == (0.229, 0.224, 0.225)


def test_json_names_the_input_and_nothing_else() -> None:
    fields = json.loads(IMAGENET.to_json('a"b'))

    assert fields["input"] == 'a"b'
    assert set(fields) == {"input", "resize", "interpolation", "crop", "color", "layout", "scale", "mean", "std"}


def test_an_unknown_preset_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="--image imagnet") as caught:
        image_preset("imagnet")
    assert "imagenet" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("spec", "shape", "resize", "crop"),
    [
        (IMAGENET, ("N", 3, 224, 224), 256, (224, 224)),
        (IMAGENET, ("N", 3, 299, 299), 342, (299, 299)),
        (IMAGENET, ("N", 3, 112, 224), 128, (112, 224)),
        (IMAGENET, ("N", 3, "h", "w"), 256, (224, 224)),
        (IMAGENET, (3, 299, 299), 342, (299, 299)),
        (replace(IMAGENET, crop=None), ("N", 3, 224, 224), (224, 224), None),
        (replace(IMAGENET, resize=(300, 300), crop=None), ("N", 3, 224, 200), (224, 200), None),
        (replace(IMAGENET, resize=(224, 200), crop=None), ("N", 3, 224, 200), (224, 200), None),
        (replace(IMAGENET, resize=None, crop=None), ("N", 3, 224, 200), (224, 200), None),
        (image_preset("clip"), ("N", 3, 336, 336), 336, (336, 336)),
        (replace(IMAGENET, resize=260, chosen=("resize",)), ("N", 3, 240, 240), 260, (240, 240)),
        (replace(IMAGENET, resize=(300, 260), chosen=("resize",)), ("N", 3, 240, 240), (300, 260), (240, 240)),
        (replace(IMAGENET, crop=(240, 240), chosen=("crop",)), ("N", 3, 240, 240), 256, (240, 240)),
        (replace(IMAGENET, crop=None, chosen=("crop",)), ("N", 3, 240, 240), (240, 240), None),
        (replace(IMAGENET, crop=(200, 200), chosen=("crop",)), ("N", 3, "h", "w"), 256, (200, 200)),
    ],
)
def test_sizes_follow_the_inputs_own(
    spec: ImagePreprocessing,
    shape: tuple[int | str, ...],
    resize: int | tuple[int, int],
    crop: tuple[int, int] | None,
) -> None:
    fitted = fit(spec, image(*shape))

    assert (fitted.resize, fitted.crop) == (resize, crop)


def test_channels_last() -> None:
    fitted = fit(replace(IMAGENET, layout="NHWC"), image("N", 299, 299, 3))

    assert fitted.crop == (299, 299)


def test_one_number_stands_for_every_channel() -> None:
    assert fit(replace(IMAGENET, mean=(0.5,), std=(0.25,)), image("N", 3, 8, 8)).std == (0.25, 0.25, 0.25)
    grey = fit(replace(IMAGENET, color="GRAY", mean=(0.5,), std=(0.25,)), image("N", 1, 8, 8))
    assert (grey.mean, grey.std) == ((0.5,), (0.25,))


def test_the_input_with_four_axes_is_the_picture() -> None:
    ids, picture = TensorSpec("ids", INT64, ("N", 3, 4)), image("N", 3, 8, 8, name="pixels")

    assert fit_to_input(IMAGENET, (ids, picture))[1].name == "pixels"


@pytest.mark.parametrize(
    ("spec", "inputs", "why"),
    [
        (IMAGENET, (image("N", 4),), "0 inputs of the model take pictures"),
        (IMAGENET, (image("N", 3, 8, 8), image("N", 3, 8, 8, name="b")), "2 inputs of the model take pictures"),
        (IMAGENET, (image("N", 8, 8, 3),), "has 8 channels in layout NCHW; RGB has 3"),
        (IMAGENET, (image("N", 1, 8, 8),), "has 1 channels"),
        (replace(IMAGENET, color="GRAY"), (image("N", 3, 8, 8),), "has 3 channels in layout NCHW; GRAY has 1"),
        (replace(IMAGENET, layout="NHWC"), (image("N", 3, 8, 8),), "has 8 channels in layout NHWC"),
        (
            replace(IMAGENET, crop=(200, 200), chosen=("crop",)),
            (image("N", 3, 8, 9),),
            "--crop 200x200: the input takes pictures of 8x9 pixels",
        ),
        (
            replace(IMAGENET, resize=256, crop=None, chosen=("resize", "crop")),
            (image("N", 3, 8, 9),),
            "--resize 256 without a crop: the input takes pictures of 8x9 pixels",
        ),
        (replace(IMAGENET, mean=(0.5, 0.5)), (image("N", 3, 8, 8),), "--mean has 2 values for 3 channels"),
        (replace(IMAGENET, color="GRAY", mean=(0.5,)), (image("N", 1, 8, 8),), "--std has 3 values for 1 channels"),
    ],
)
def test_does_not_fit(spec: ImagePreprocessing, inputs: tuple[TensorSpec, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        fit_to_input(spec, inputs)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"resize": 0}, "--resize 0"),
        ({"resize": (0, 5)}, "--resize 0x5"),
        ({"crop": (5, -1)}, "--crop 5x-1"),
        ({"std": (1.0, 0.0, 1.0)}, "--std: 0"),
        ({"std": (float("nan"),)}, "--std nan"),
        ({"mean": (float("inf"), 0.0, 0.0)}, "--mean inf"),
    ],
)
def test_no_preprocessing_at_all(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        replace(IMAGENET, **fields)
    assert caught.value.hint
