"""What is sent: requests built once, as the bytes that go over the wire."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.client import check_inputs
from client.errors import InputError, UsageError
from client.image import Picture
from client.inputs import find_pictures, parse_range, random_arrays, read_arrays
from client.metadata import ModelMetadata
from client.pictures import PictureModel
from client.protocol import Request, http_head, inference_request
from client.tensors import Array
from client.transport import Url

VARIANTS: Final = 8
MAX_BYTES: Final = 256 * 2**20
"""All variants together; each worker process holds them."""


@dataclass(frozen=True)
class LoadData:
    """What requests are made of: pictures, or arrays from files, and random values for the rest.

    ``variants`` different requests are sent in turn, so that a cache can't answer for the model.  An array with
    more rows than a batch is cut into batches; pictures are sent in turn.
    """

    pictures: tuple[Path, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, str] = field(default_factory=dict)
    variants: int = VARIANTS


@dataclass(frozen=True)
class Bodies:
    """Requests as bytes, each of ``batch`` items."""

    requests: tuple[bytes, ...] = field(repr=False)
    batch: int
    source: str


def build(model: ModelMetadata, url: Url, data: LoadData, batch: int | None, seed: int) -> Bodies:
    """Build the requests for ``model``; raises a ClientError that says what is missing or doesn't fit."""
    if batch is not None and batch > max(model.max_batch_size, 1):
        most = f"takes batches up to {model.max_batch_size}" if model.batched else "has no batch axis"
        raise UsageError(f"--batch {batch}: model {model.name!r} {most}")
    made = _of_pictures(model, data, batch or 1) if data.pictures else _of_arrays(model, data, batch, seed)
    wires: list[bytes] = []
    size = 0
    for request in made:
        wires.append(http_head(request, url.netloc, url.prefix) + request.body)
        size += len(wires[-1])
        if len(wires) >= data.variants or size + len(wires[-1]) > MAX_BYTES:
            break
    source = "pictures" if data.pictures else "arrays" if data.inputs else "random"
    return Bodies(tuple(wires), _batch(model, data, batch), source)


def _batch(model: ModelMetadata, data: LoadData, batch: int | None) -> int:
    if batch is not None or not model.batched or not data.inputs:
        return batch or 1
    return len(next(iter(read_arrays(model, data.inputs).values())))


def _of_pictures(model: ModelMetadata, data: LoadData, batch: int) -> Iterator[Request]:
    if data.inputs:
        raise UsageError("pictures can't go together with --input: a request has one or the other")
    target = PictureModel.of(model)

    def refuse(_: Picture, error: InputError) -> None:
        raise error

    found = list(itertools.islice(find_pictures(data.pictures, refuse), data.variants * batch))
    filled = itertools.islice(itertools.cycle(found), max(batch, len(found) // batch * batch))
    for prepared in target.batches(filled, batch):
        if len(prepared.pictures) < batch:
            raise InputError("the pictures differ in shape, so they can't fill a batch", "--batch 1")
        yield target.request(prepared.array, 0)


def _of_arrays(model: ModelMetadata, data: LoadData, batch: int | None, seed: int) -> Iterator[Request]:
    given = read_arrays(model, data.inputs)
    rows = min((len(array) for array in given.values()), default=0) if model.batched else 0
    if given and batch is not None and rows < batch:
        raise UsageError(f"--batch {batch}: the arrays have {rows} rows")
    ranges = {name: parse_range(text) for name, text in data.ranges.items()}
    turns = rows // batch if given and batch is not None else data.variants
    for turn in range(turns):
        part = given if batch is None or not given else _rows(given, turn * batch, batch)
        arrays = {**part, **random_arrays(model, part, data.shapes, batch, seed + turn, ranges)}
        yield inference_request(model.name, model.version, check_inputs(model, arrays))
        if len(part) == len(arrays) and batch is None:
            return  # nothing about it is random


def _rows(arrays: Mapping[str, Array], start: int, count: int) -> dict[str, Array]:
    return {name: array[start : start + count] for name, array in arrays.items()}
