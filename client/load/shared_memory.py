"""Shared memory: tensors that a server on the same machine reads and writes where they are.

Each different request has a region for its inputs, and each request in flight one for its outputs, so that no answer
is written over another.  Each region of system shared memory is a file of its own in /dev/shm: tritonserver 2.51
refuses a second region of the same file.  Each of CUDA shared memory is an allocation of its own, made by this process,
that the server and the workers open.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final
from urllib.parse import quote

from client.client import Client
from client.errors import ClientError, InferenceRejected
from client.load.delivery import SharedMemory as Kind
from client.load.device_memory import device_memory, require_device
from client.load.raw_tensors import tensor_bytes
from client.load.records import DeviceRegions, Slots
from client.metadata import ModelMetadata
from client.protocol import Request, Tensor, inference_outputs, inference_request

_ALIGNMENT: Final = 256  # as cudaMalloc aligns
_FOLDER: Final = "/dev/shm"  # noqa: S108  (where Linux has what shm_open opens)
_REFUSED: Final = {
    Kind.SYSTEM: (
        "this machine's shared memory",
        "--shared-memory system takes a server on this machine; one in a container shares /dev/shm with --ipc=host",
    ),
    Kind.CUDA: (
        "the memory of this machine's GPU",
        (
            "Triton says no more when it has no GPU, sees another one, is on another machine, or in a container "
            "without --pid=host: its log has CUDA's reason; --shared-memory system needs no GPU"
        ),
    ),
}


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
def share(
    client: Client, model: ModelMetadata, requests: Sequence[Sequence[Tensor]], slots: int, kind: Kind
) -> Iterator[Regions]:
    """Put the inputs of ``requests`` into shared memory with room for the outputs of ``slots`` requests in flight.

    The server knows the regions as long as the block lasts; then they and their memory are gone.  How large outputs
    are is found out by sending each of the requests once, the ordinary way.
    """
    device = require_device() if kind is Kind.CUDA else None
    make = partial(_system_region, client) if device is None else partial(_cuda_region, client, device)
    sizes = _output_sizes(client, model, requests)
    name = f"client-bench-{os.getpid()}-{secrets.token_hex(6)}"
    inputs: list[dict[str, Place]] = []
    with contextlib.ExitStack() as held:
        for number, tensors in enumerate(requests):
            data = {tensor.name: tensor_bytes(tensor.datatype, tensor.array) for tensor in tensors}
            region = f"{name}-input-{number}"
            places, size = _lay_out(region, {key: len(value) for key, value in data.items()})
            contents = {places[key].offset: data[key] for key in data}
            held.enter_context(make(region, size, contents))
            inputs.append(places)
        outputs, size = _lay_out(Slots.region(name, 0), sizes)
        keys = [held.enter_context(make(Slots.region(name, slot), size, {})) for slot in range(slots)]
        where = _FOLDER if device is None else DeviceRegions(device, size, tuple(keys))
        yield Regions(tuple(inputs), outputs, Slots(name, where))


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
def _system_region(client: Client, name: str, size: int, contents: Mapping[int, bytes]) -> Iterator[bytes]:
    """The file of a region of ``size`` bytes with ``contents`` by offset, which the server knows during the block."""
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
            for offset, data in contents.items():
                file.seek(offset)
                file.write(data)
        with _registered(client, Kind.SYSTEM, name, {"key": f"/{name}", "offset": 0, "byte_size": size}):
            yield name.encode()
    finally:
        memory.unlink()


def _no_memory(size: int, error: OSError) -> ClientError:
    reason = "not so much is free" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return ClientError(
        f"{size / 2**20:,.1f} MiB of shared memory can't be had in /dev/shm: {reason}",
        "fewer --connections, a lower --concurrency or a smaller --batch takes less",
    )


@contextlib.contextmanager
def _cuda_region(client: Client, device: int, name: str, size: int, contents: Mapping[int, bytes]) -> Iterator[bytes]:
    """The same in the memory of GPU ``device``: the handle that opens it."""
    with device_memory(size, contents) as handle:
        raw = {"b64": base64.b64encode(handle).decode()}
        with _registered(client, Kind.CUDA, name, {"raw_handle": raw, "device_id": device, "byte_size": size}):
            yield handle


@contextlib.contextmanager
def _registered(client: Client, kind: Kind, name: str, body: Mapping[str, object]) -> Iterator[None]:
    """Let the server know a region as long as the block lasts."""
    path = f"/v2/{kind.value}sharedmemory/region/{quote(name)}"
    try:
        client.send(Request("POST", f"{path}/register", json.dumps(body).encode()))
    except InferenceRejected as error:
        memory, hint = _REFUSED[kind]
        raise ClientError(f"{client.url} can't use {memory}: {error.message}", hint) from error
    try:
        yield
    finally:
        with contextlib.suppress(ClientError):  # a server that is gone knows no regions
            client.send(Request("POST", f"{path}/unregister"))
