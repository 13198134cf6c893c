"""Answers that were sampled, read as a client would."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence

from client.errors import BadResponse, ClientError
from client.load.raw_tensors import array_from_bytes
from client.load.records import Sample
from client.load.shared_memory import Place
from client.protocol import HEADER_LENGTH, Response, inference_outputs
from client.tensors import Array

_ANY_FORMAT = zlib.MAX_WBITS | 32  # gzip or zlib, as the data says


def wrong_answers(samples: Sequence[Sample], *, grpc: bool, places: Mapping[str, Place]) -> tuple[int, str]:
    """How many can't be read, and what the first one's trouble is; ``places`` are of outputs in shared memory."""
    problems = []
    names: set[str] | None = None
    for sample in samples:
        try:
            found = set(read_answer(sample, grpc=grpc, places=places))
        except ClientError as error:
            problems.append(error.message)
            continue
        names = names or found
        if found != names:
            problems.append(f"outputs {sorted(found)} after {sorted(names)}")
    return len(problems), problems[0] if problems else ""


def read_answer(sample: Sample, *, grpc: bool, places: Mapping[str, Place]) -> dict[str, Array]:
    """The outputs of an answer by name; BadResponse when it isn't sound."""
    if sample.problem:
        raise BadResponse(sample.problem)
    if grpc:
        from client.load.grpc_messages import read_grpc_answer

        outputs = read_grpc_answer(sample.body)
    elif sample.outputs is None:
        headers = {HEADER_LENGTH.lower(): str(sample.header_length)} if sample.header_length >= 0 else {}
        return inference_outputs(Response(200, headers, _plain(sample)))
    else:
        outputs = _of_json(sample.body)
    if sample.outputs is None:
        return {name: array_from_bytes(datatype, shape, data) for name, datatype, shape, data in outputs}
    arrays = {}
    for name, datatype, shape, _ in outputs:
        if name not in places:
            raise BadResponse(f"the server's answer has the output {name!r}, which it had not before the run")
        place = places[name]
        data = sample.outputs[place.offset : place.offset + place.size]
        arrays[name] = array_from_bytes(datatype, shape, data, exact=False)
    return arrays


def _plain(sample: Sample) -> bytes:
    if not sample.encoding:
        return sample.body
    try:
        return zlib.decompress(sample.body, _ANY_FORMAT)
    except zlib.error as error:
        raise BadResponse(f"the server's answer is not {sample.encoding}: {error}") from None


def _of_json(body: bytes) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    try:
        entries = json.loads(body)["outputs"]
        return [(str(e["name"]), str(e["datatype"]), tuple(map(int, e["shape"])), b"") for e in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise BadResponse(f"the server's answer can't be read: {error!r}") from None
