from __future__ import annotations

import json
from typing import Any

import pytest

from client.errors import MetadataError
from client.image import ImageSpec
from client.metadata import ModelMetadata, TensorMetadata, format_shape

METADATA: dict[str, Any] = {"name": "net", "versions": ["2", "10", "9"]}


def config(**changes: Any) -> dict[str, Any]:
    """A config as Triton answers it, with what doesn't matter here left out."""
    return {
        "name": "net",
        "max_batch_size": 8,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": [3, 224, -1], "optional": False}],
        "output": [
            {"name": "scores", "data_type": "TYPE_FP16", "dims": [1000], "label_filename": "labels.txt"},
            {"name": "text", "data_type": "TYPE_STRING", "dims": [-1], "label_filename": ""},
        ],
        "parameters": {},
        **changes,
    }


def test_batched_model() -> None:
    model = ModelMetadata.from_server(METADATA, config())
    assert model.name == "net"
    assert model.batched
    assert model.inputs == (TensorMetadata("image", "FP32", (3, 224, -1)),)
    assert model.outputs == (
        TensorMetadata("scores", "FP16", (1000,), label_filename="labels.txt"),
        TensorMetadata("text", "BYTES", (-1,)),
    )
    assert model.full_shape(model.inputs[0]) == (-1, 3, 224, -1)
    assert model.image is None


def test_unbatched_model_has_its_whole_shape_in_dims() -> None:
    model = ModelMetadata.from_server(METADATA, config(max_batch_size=0))
    assert not model.batched
    assert model.full_shape(model.inputs[0]) == (3, 224, -1)


def test_version_is_the_newest_by_number_or_the_one_asked_for() -> None:
    assert ModelMetadata.from_server(METADATA, config()).version == "10"
    assert ModelMetadata.from_server({"versions": ["2"]}, config(), "2").version == "2"


def test_optional_input() -> None:
    entry = {"name": "mask", "data_type": "TYPE_BOOL", "dims": [1], "optional": True}
    assert ModelMetadata.from_server(METADATA, config(input=[entry])).inputs[0].optional


def test_image_preprocessing() -> None:
    text = json.dumps({"input": "image", "resize": 256, "crop": [224, 224]})
    parameters = {"image_preprocessing": {"string_value": text}, "threads": {"string_value": "2"}}
    model = ModelMetadata.from_server(METADATA, config(parameters=parameters))
    assert model.image == ImageSpec("image", 256, crop=(224, 224))


def test_image_preprocessing_of_an_input_that_is_not_there() -> None:
    parameters = {"image_preprocessing": {"string_value": '{"input": "picture"}'}}
    with pytest.raises(MetadataError, match=r"'picture', but its inputs are image"):
        ModelMetadata.from_server(METADATA, config(parameters=parameters))


@pytest.mark.parametrize(
    ("metadata", "changes"),
    [
        ({}, {}),
        ({"versions": []}, {}),
        ({"versions": ["one"]}, {}),
        (METADATA, {"max_batch_size": "many"}),
        (METADATA, {"input": [{"name": "x"}]}),
        (METADATA, {"output": ["x"]}),
        (METADATA, {"parameters": {"image_preprocessing": {}}}),
    ],
)
def test_what_cannot_be_read(metadata: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(MetadataError):
        ModelMetadata.from_server(metadata, config(**changes))


def test_format_shape() -> None:
    assert format_shape((-1, 3, 224)) == "[-1, 3, 224]"
    assert format_shape(()) == "[]"
