"""What is sent: the tensors of different requests, made once."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.client import check_inputs
from client.errors import InputError, UsageError
from client.image import Picture
from client.inputs import find_pictures, parse_range, random_arrays, read_arrays
from client.load.raw_tensors import tensor_bytes
from client.metadata import ModelMetadata
from client.pictures import PictureModel
from client.protocol import Tensor
from client.tensors import Array

VARIANTS: Final = 8
MAX_VARIANTS: Final = 10_000
MAX_BYTES: Final = 256 * 2**20
"""All variants together; each worker process holds them."""


@dataclass(frozen=True)
class LoadData:
    """What requests are made of: pictures, or arrays from files, and random values for the rest.

    ``variants`` different requests are sent in turn, so that a cache can't answer for the model.  An array with
    more rows than a batch is cut into batches; pictures are sent in turn.  UsageError for a number that can't be.
    """

    pictures: tuple[Path, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, str] = field(default_factory=dict)
    variants: int = VARIANTS

    def __post_init__(self) -> None:
        if not 1 <= self.variants <= MAX_VARIANTS:
            raise UsageError(f"--variants {self.variants} can't be", f"--variants takes 1 to {MAX_VARIANTS:,}")


@dataclass(frozen=True)
class Inputs:
    """The tensors of different requests, each of ``batch`` items."""

    requests: tuple[tuple[Tensor, ...], ...] = field(repr=False)
    batch: int
    source: str

    @property
    def sha256(self) -> str:
        """Of all names, types, shapes and contents: what is sent, however it is."""
        digest = hashlib.sha256()
        for tensor in itertools.chain.from_iterable(self.requests):
            digest.update(repr((tensor.name, tensor.datatype, tensor.array.shape)).encode())
            digest.update(tensor_bytes(tensor.datatype, tensor.array))
        return digest.hexdigest()


@dataclass(frozen=True)
class Bodies:
    """The same as bytes: over HTTP whole requests, over gRPC messages."""

    requests: tuple[bytes, ...] = field(repr=False)
    batch: int
    source: str
    sha256: str


def make_inputs(model: ModelMetadata, data: LoadData, batch: int | None, seed: int) -> Inputs:
    """Make the tensors for ``model``; raises a ClientError that says what is missing or doesn't fit."""
    if batch is not None and batch > max(model.max_batch_size, 1):
        most = f"takes batches up to {model.max_batch_size}" if model.batched else "has no batch axis"
        raise UsageError(f"--batch {batch}: model {model.name!r} {most}", f"--batch {max(model.max_batch_size, 1)}")
    made = _of_pictures(model, data, batch or 1) if data.pictures else _of_arrays(model, data, batch, seed)
    requests: list[tuple[Tensor, ...]] = []
    size = 0
    for tensors in made:
        requests.append(tuple(tensors))
        last = sum(tensor.array.nbytes for tensor in tensors)
        size += last
        if len(requests) >= data.variants or size + last > MAX_BYTES:
            break
    source = "pictures" if data.pictures else "arrays" if data.inputs else "random"
    items = len(requests[0][0].array) if model.batched and requests[0] else 1
    return Inputs(tuple(requests), items, source)


def _of_pictures(model: ModelMetadata, data: LoadData, batch: int) -> Iterator[list[Tensor]]:
    for flag, given in (("--input", data.inputs), ("--shape", data.shapes), ("--input-range", data.ranges)):
        if given:
            raise UsageError(f"pictures can't go together with {flag}", "a request has one or the other: leave one out")
    target = PictureModel.of(model)

    def refuse(_: Picture, error: InputError) -> None:
        raise error

    found = list(itertools.islice(find_pictures(data.pictures, refuse), data.variants * batch))
    filled = itertools.islice(itertools.cycle(found), max(batch, len(found) // batch * batch))
    for prepared in target.batches(filled, batch):
        if len(prepared.pictures) < batch:
            raise InputError("the pictures differ in shape, so they can't fill a batch", "--batch 1")
        yield [target.tensor(prepared.array)]


def _of_arrays(model: ModelMetadata, data: LoadData, batch: int | None, seed: int) -> Iterator[list[Tensor]]:
    given = read_arrays(model, data.inputs)
    rows = min((len(array) for array in given.values()), default=0) if model.batched else 0
    if given and batch is not None and rows < batch:
        raise UsageError(f"--batch {batch}: the arrays have {rows} rows", f"--batch {max(rows, 1)} or longer arrays")
    ranges = {name: parse_range(text) for name, text in data.ranges.items()}
    turns = rows // batch if given and batch is not None else data.variants
    for turn in range(turns):
        part = given if batch is None or not given else _rows(given, turn * batch, batch)
        arrays = {**part, **random_arrays(model, part, data.shapes, batch, seed + turn, ranges)}
        yield check_inputs(model, arrays)
        if len(part) == len(arrays) and batch is None:
            return  # nothing about it is random


def _rows(arrays: Mapping[str, Array], start: int, count: int) -> dict[str, Array]:
    return {name: array[start : start + count] for name, array in arrays.items()}
