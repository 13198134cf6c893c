"""From pictures to the requests of one model, and from its answers to classes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from client.errors import BadResponse, InputError, UsageError
from client.image import ImageSpec, Picture, load_image, to_dtype
from client.metadata import ModelMetadata, TensorMetadata, format_shape
from client.protocol import Request, RequestedOutput, Response, Tensor, inference_outputs, inference_request
from client.tensors import BF16, BYTES, Array, numpy_dtype
from client.topk import Classification, parse_classifications, top_k

MAX_REQUEST_BYTES: Final = 60 * 2**20
"""Tensor bytes that a batch is kept under: recent servers refuse a body over 64 MiB unless told otherwise."""

_NO_CLASSES: Final = {"BOOL", BYTES}
_NO_EXTENSION: Final = {"FP16", BF16}  # Triton: "class result not available for output due to unsupported type"


@dataclass(frozen=True)
class Batch:
    """Pictures of one request: ``array`` has a batch axis; ``preprocess_ns`` is what decoding them took."""

    pictures: tuple[Picture, ...]
    array: Array
    preprocess_ns: int


@dataclass(frozen=True)
class PictureModel:
    """A model that takes pictures, and the output that holds its classes, if it has one."""

    metadata: ModelMetadata
    spec: ImageSpec
    input: TensorMetadata
    classes: TensorMetadata | None

    @classmethod
    def of(cls, model: ModelMetadata) -> PictureModel:
        """Raise :class:`UsageError` if the model doesn't say how a picture becomes its input."""
        if model.image is None:
            raise UsageError(
                f"model {model.name!r} doesn't say how pictures are prepared for it",
                "add it with its preprocessing, such as repo-builder add MODEL.onnx --image imagenet, "
                "or send arrays with --input NAME=FILE.npy",
            )
        others = [t for t in model.inputs if t.name != model.image.input and not t.optional]
        if others:
            raise UsageError(
                f"model {model.name!r} needs more than a picture: {', '.join(map(str, others))}",
                "send every input with --input NAME=FILE.npy",
            )
        (tensor,) = (t for t in model.inputs if t.name == model.image.input)
        return cls(model, model.image, tensor, _class_output(model))

    def batches(
        self,
        pictures: Iterable[Picture],
        limit: int | None = None,
        on_error: Callable[[Picture, InputError], None] | None = None,
    ) -> Iterator[Batch]:
        """Prepare pictures, holding one batch in memory at a time.

        A batch has at most ``limit`` pictures, the model's maximum, and :data:`MAX_REQUEST_BYTES`; it ends
        early where the shape changes.  A bad picture goes to ``on_error``, or is raised without one.
        """
        most = self.metadata.max_batch_size or 1
        most = most if limit is None else min(limit, most)
        names: list[Picture] = []
        arrays: list[Array] = []
        spent = 0
        for picture in pictures:
            start = time.perf_counter_ns()
            try:
                array = self._prepare(picture)
            except InputError as error:
                if on_error is None:
                    raise
                on_error(picture, error)
                continue
            took = time.perf_counter_ns() - start
            full = len(arrays) >= most or array.nbytes * (len(arrays) + 1) > MAX_REQUEST_BYTES
            if arrays and (full or array.shape != arrays[0].shape):
                yield _stack(names, arrays, spent)
                names, arrays, spent = [], [], 0
            names.append(picture)
            arrays.append(array)
            spent += took
        if arrays:
            yield _stack(names, arrays, spent)

    def request(self, array: Array, top: int) -> Request:
        """The request of a batch, for the ``top`` classes of each item; for all raw outputs if ``top`` is 0."""
        outputs = []
        if top:
            outputs = [RequestedOutput(self.require_classes().name, top if self._uses_extension else 0)]
        return inference_request(self.metadata.name, self.metadata.version, [self.tensor(array)], outputs)

    def tensor(self, array: Array) -> Tensor:
        """A batch as the model's input."""
        sent = array if len(self.metadata.full_shape(self.input)) == array.ndim else array[0]
        return Tensor(self.input.name, self.input.datatype, sent)

    def read_classes(self, response: Response, count: int, top: int) -> list[list[Classification]]:
        """The best classes of each of ``count`` items of an answer to :meth:`request`."""
        name = self.require_classes().name
        try:
            rows = inference_outputs(response)[name].reshape(count, -1)
        except (KeyError, ValueError) as error:
            raise BadResponse(f"the answer has no {name!r} of {count} pictures: {error}") from None
        if self._uses_extension:
            return [parse_classifications(row) for row in rows]
        return [top_k(row, top) for row in rows]

    def require_classes(self) -> TensorMetadata:
        """The output that holds the classes, or :class:`UsageError`."""
        if self.classes is None:
            raise UsageError(
                f"model {self.metadata.name!r} has no output that is a list of classes: "
                f"{', '.join(map(str, self.metadata.outputs))}",
                "python -m client.infer shows such outputs as they are, and --output-dir saves them",
            )
        return self.classes

    @property
    def _uses_extension(self) -> bool:
        """Only the server has the labels, so it is asked for classes wherever it has labels and can."""
        output = self.classes
        return output is not None and output.label_filename is not None and output.datatype not in _NO_EXTENSION

    def _prepare(self, picture: Picture) -> Array:
        """A picture as one item of the input, checked against the shape that the model takes."""
        pixels = to_dtype(load_image(picture, self.spec), numpy_dtype(self.input.datatype))
        wanted = self.input.shape
        if not self.metadata.batched and len(wanted) == pixels.ndim + 1 and wanted[0] in {1, -1}:
            wanted = wanted[1:]
        fits = len(wanted) == pixels.ndim and all(
            axis in {-1, side} for axis, side in zip(wanted, pixels.shape, strict=True)
        )
        if not fits:
            name = f"{os.fspath(picture)}: " if isinstance(picture, str | os.PathLike) else ""
            raise InputError(
                f"{name}the picture becomes {format_shape(pixels.shape)}, "
                f"but the input takes {self.input.datatype} {format_shape(self.input.shape)}",
                "image_preprocessing in the model's config.pbtxt ends in another shape: add it again with --resize, "
                "--crop or --layout",
            )
        return pixels


def _stack(pictures: list[Picture], arrays: list[Array], spent_ns: int) -> Batch:
    start = time.perf_counter_ns()
    array = np.stack(arrays)
    return Batch(tuple(pictures), array, spent_ns + time.perf_counter_ns() - start)


def _class_output(model: ModelMetadata) -> TensorMetadata | None:
    """The output that holds one score a class: the labelled one, else the only one."""
    labelled = [output for output in model.outputs if output.label_filename]
    candidates = labelled or list(model.outputs)
    if len(candidates) != 1 or candidates[0].datatype in _NO_CLASSES:
        return None
    shape = candidates[0].shape
    if not model.batched and len(shape) > 1 and shape[0] in {1, -1}:
        shape = shape[1:]
    axes = [axis for axis in shape if axis != 1]
    return candidates[0] if len(axes) == 1 or (labelled and not axes) else None
