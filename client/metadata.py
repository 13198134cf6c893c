"""What a server says about a model: tensors, batching, labels and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from client.errors import MetadataError
from client.image import ImageSpec

IMAGE_PREPROCESSING: Final = "image_preprocessing"


@dataclass(frozen=True)
class TensorMetadata:
    """One input or output; ``shape`` is one item's, without the batch axis, with -1 for a free axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    label_filename: str | None = None
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.datatype} {format_shape(self.shape)})"


@dataclass(frozen=True)
class ModelMetadata:
    """A model as served.

    ``version`` is the one asked for, else the newest ready one, which the server takes by itself.
    ``max_batch_size`` 0 means that the tensors have no batch axis of Triton's.
    """

    name: str
    version: str
    max_batch_size: int
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    image: ImageSpec | None = None

    @property
    def batched(self) -> bool:
        return self.max_batch_size > 0

    def full_shape(self, tensor: TensorMetadata) -> tuple[int, ...]:
        """The shape on the wire: with a free batch axis in front if the model is batched."""
        return (-1, *tensor.shape) if self.batched else tensor.shape

    @classmethod
    def from_server(cls, metadata: Mapping[str, Any], config: Mapping[str, Any], version: str = "") -> ModelMetadata:
        """Read the JSON of ``/v2/models/NAME`` and ``/v2/models/NAME/config``.

        Tensors come from the config: only it tells a batch axis from a free first axis.
        """
        try:
            inputs = tuple(_tensor(entry) for entry in config.get("input", []))
            model = cls(
                name=str(config["name"]),
                version=version or max(map(str, metadata["versions"]), key=int),
                max_batch_size=int(config.get("max_batch_size", 0)),
                inputs=inputs,
                outputs=tuple(_tensor(entry) for entry in config.get("output", [])),
                image=_image(config.get("parameters", {})),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MetadataError(f"the server's description of the model can't be read: {error!r}") from None
        if model.image is not None and model.image.input not in {tensor.name for tensor in inputs}:
            raise MetadataError(
                f"image_preprocessing of model {model.name!r} is for the input {model.image.input!r}, "
                f"but its inputs are {', '.join(tensor.name for tensor in inputs)}"
            )
        return model


def format_shape(shape: tuple[int, ...]) -> str:
    """``[3, 224, 224]``, with -1 for a free axis as in config.pbtxt."""
    return f"[{', '.join(map(str, shape))}]"


def _tensor(entry: Mapping[str, Any]) -> TensorMetadata:
    datatype = str(entry["data_type"]).removeprefix("TYPE_")
    return TensorMetadata(
        name=str(entry["name"]),
        datatype="BYTES" if datatype == "STRING" else datatype,
        shape=tuple(int(axis) for axis in entry["dims"]),
        label_filename=entry.get("label_filename") or None,
        optional=bool(entry.get("optional", False)),
    )


def _image(parameters: Mapping[str, Any]) -> ImageSpec | None:
    parameter = parameters.get(IMAGE_PREPROCESSING)
    return None if parameter is None else ImageSpec.from_json(parameter["string_value"])
