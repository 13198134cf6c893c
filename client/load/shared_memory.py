"""System shared memory: tensors that a server on the same machine reads and writes where they are.

Each different request has a region for its inputs, and each request in flight one for its outputs, so that no answer
is written over another.  Each region is a file of its own in /dev/shm: tritonserver 2.51 refuses a second region of
the same file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final
from urllib.parse import quote

from client.client import Client
from client.errors import ClientError, InferenceRejected
from client.load.raw_tensors import tensor_bytes
from client.load.records import Slots
from client.metadata import ModelMetadata
from client.protocol import Request, Tensor, inference_outputs, inference_request

_ALIGNMENT: Final = 64
_FOLDER: Final = "/dev/shm"  # noqa: S108  (where Linux has what shm_open opens)


@dataclass(frozen=True)
class Place:
    """Where a tensor is: bytes ``offset`` to ``offset + size`` of a region that the server knows by name."""

    region: str
    offset: int
    size: int


@dataclass(frozen=True)
class Regions:
    """What is in shared memory: the inputs of each request by name, and the outputs as slot 0 has them."""

    inputs: tuple[Mapping[str, Place], ...]
    outputs: Mapping[str, Place]
    slots: Slots


@contextlib.contextmanager
def share(client: Client, model: ModelMetadata, requests: Sequence[Sequence[Tensor]], slots: int) -> Iterator[Regions]:
    """Put the inputs of ``requests`` into shared memory with room for the outputs of ``slots`` requests in flight.

    The server knows the regions as long as the block lasts; then they and the file are gone.  How large outputs
    are is found out by sending each of the requests once, the ordinary way.
    """
    sizes = _output_sizes(client, model, requests)
    name = f"client-bench-{secrets.token_hex(6)}"
    inputs: list[dict[str, Place]] = []
    with contextlib.ExitStack() as held:
        for number, tensors in enumerate(requests):
            data = {tensor.name: tensor_bytes(tensor.datatype, tensor.array) for tensor in tensors}
            region = f"{name}-input-{number}"
            places, size = _lay_out(region, {key: len(value) for key, value in data.items()})
            held.enter_context(_region(client, region, size, {places[key].offset: data[key] for key in data}))
            inputs.append(places)
        outputs, size = _lay_out(Slots.region(name, 0), sizes)
        for slot in range(slots):
            held.enter_context(_region(client, Slots.region(name, slot), size))
        yield Regions(tuple(inputs), outputs, Slots(name, _FOLDER))


def _output_sizes(client: Client, model: ModelMetadata, requests: Sequence[Sequence[Tensor]]) -> dict[str, int]:
    """The most bytes that each output took, over the requests that the model doesn't refuse."""
    datatypes = {tensor.name: tensor.datatype for tensor in model.outputs}
    sizes: dict[str, int] = {}
    refusal: InferenceRejected | None = None
    for tensors in requests:
        try:
            response = client.send(inference_request(model.name, model.version, tensors), model.name, model.version)
        except InferenceRejected as error:
            refusal = error
            continue
        for name, array in inference_outputs(response).items():
            sizes[name] = max(sizes.get(name, 0), len(tensor_bytes(datatypes[name], array)))
    if refusal is not None and not sizes:
        raise refusal
    return sizes


def _lay_out(region: str, sizes: Mapping[str, int]) -> tuple[dict[str, Place], int]:
    """Places of tensors one after the other, and the region's size."""
    places, end = {}, 0
    for name, size in sizes.items():
        places[name] = Place(region, end, size)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return places, max(1, end)


@contextlib.contextmanager
def _region(client: Client, name: str, size: int, contents: Mapping[int, bytes] | None = None) -> Iterator[None]:
    """A region of ``size`` bytes with ``contents`` by offset; the server knows it as long as the block lasts."""
    try:
        # Multiprocessing's tracker removes the file even if this process is killed.
        memory = SharedMemory(name, create=True, size=size)
    except OSError as error:
        raise _no_memory(size, error) from error
    try:
        memory.close()
        with Path(_FOLDER, name).open("r+b") as file:
            try:
                # Otherwise memory is taken when it is written, and who finds none then is killed: the server.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise _no_memory(size, error) from error
            for offset, data in (contents or {}).items():
                file.seek(offset)
                file.write(data)
        _register(client, name, size)
        try:
            yield
        finally:
            with contextlib.suppress(ClientError):  # a server that is gone knows no regions
                client.send(Request("POST", f"/v2/systemsharedmemory/region/{quote(name)}/unregister"))
    finally:
        memory.unlink()


def _no_memory(size: int, error: OSError) -> ClientError:
    reason = "not so much is free" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return ClientError(
        f"{size / 2**20:,.1f} MiB of shared memory can't be had in /dev/shm: {reason}",
        "fewer --connections, a lower --concurrency or a smaller --batch takes less",
    )


def _register(client: Client, name: str, size: int) -> None:
    body = json.dumps({"key": f"/{name}", "offset": 0, "byte_size": size}).encode()
    try:
        client.send(Request("POST", f"/v2/systemsharedmemory/region/{quote(name)}/register", body))
    except InferenceRejected as error:
        raise ClientError(
            f"{client.url} can't use this machine's shared memory: {error.message}",
            "--shared-memory system takes a server on this machine; one in a container shares /dev/shm with --ipc=host",
        ) from error
