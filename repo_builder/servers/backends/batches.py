"""What the models of every backend do with the requests that Triton's scheduler hands over together.

Those that fit each other run as one batch.  When that fails each of them is tried alone, so one bad request can't fail
its neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import triton_python_backend_utils as pb_utils

from .dlpack import Array, bfloat16_tensor
from .loading import Port


class RequestError(Exception):
    """A request can't be answered because of what it contains."""


class Pending(NamedTuple):
    """A request taken out of Triton's objects: its place in the call, its tensors, the outputs it asks for."""

    place: int
    inputs: Mapping[str, Any]
    outputs: frozenset[str]
    batch: int  # its length along the batch axis, if there is one


class BatchModel(ABC):
    """One model instance (the interface is Triton's); ``batching`` says whether the first axis is the batch."""

    batching: bool
    outputs: Mapping[str, Port]

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        return auto_complete_model_config

    @abstractmethod
    def read(self, place: int, request: Any) -> Pending:
        """Take a request out of Triton's objects."""

    @abstractmethod
    def key_of(self, pending: Pending) -> Hashable:
        """What requests must have in common to run as one batch."""

    @abstractmethod
    def run(self, group: list[Pending], names: list[str]) -> dict[str, Array]:
        """Return the outputs called ``names`` for the requests of ``group``, joined along the batch axis.

        Their values need be there only after :meth:`wait`: responses are made meanwhile, which copy none.
        """

    def wait(self) -> None:  # noqa: B027  (ONNX Runtime waits itself)
        """Wait until the arrays that ``run`` returned have their values and its inputs have been read."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer ``requests``, those of the same key together."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[Hashable, list[Pending]] = {}
        for place, request in enumerate(requests):
            try:
                pending = self.read(place, request)
            except Exception as error:
                responses[place] = failure(error)
                continue
            groups.setdefault(self.key_of(pending) if self.batching else place, []).append(pending)
        for group in groups.values():
            for pending, response in zip(group, self.answer(group), strict=True):
                responses[pending.place] = response
        raise_common_failure(responses)
        return responses

    def answer(self, group: list[Pending]) -> Iterable[Any]:
        """Return the responses to ``group`` in its order, from one run if it succeeds."""
        try:
            return self.answer_together(group)
        except Exception as error:
            if len(group) == 1:
                return [failure(error)]
        return [response for pending in group for response in self.answer([pending])]

    def answer_together(self, group: list[Pending]) -> list[Any]:
        wanted = frozenset().union(*(pending.outputs for pending in group))
        results = self.run(group, [name for name in self.outputs if name in wanted])
        try:
            return self.responses(group, results)
        finally:
            self.wait()

    def responses(self, group: list[Pending], results: Mapping[str, Array]) -> list[Any]:
        """Return each request's part of ``results``."""
        pieces = [slice(None)]
        if self.batching:
            ends = [0, *accumulate(pending.batch for pending in group)]
            check_batch(results, ends[-1])
            pieces = [slice(*bounds) for bounds in pairwise(ends)]
        responses = []
        for pending, piece in zip(group, pieces, strict=True):
            asked = [(self.outputs[name], array) for name, array in results.items() if name in pending.outputs]
            responses.append(pb_utils.InferenceResponse([to_tensor(port, array, piece) for port, array in asked]))
        return responses


def failure(error: Exception) -> Any:
    """Return the response that tells the client what is wrong with its request."""
    known = isinstance(error, RequestError) or "INVALID_ARGUMENT" in str(error)  # which is ONNX Runtime's word
    code = pb_utils.TritonError.INVALID_ARG if known else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code))


def raise_common_failure(responses: Sequence[Any]) -> None:
    """Raise what every request failed with, if that is no fault of theirs.

    Triton counts as failed, and logs, only what ``execute`` raises, and that is for all of its requests.
    """
    errors = [response.error() for response in responses if response.has_error()]
    said = {(error.code(), error.message()) for error in errors}
    if len(errors) == len(responses) and len(said) == 1 and errors[0].code() == pb_utils.TritonError.INTERNAL:
        raise pb_utils.TritonModelException(errors[0].message())


def check_batch(results: Mapping[str, Array], batch: int) -> None:
    for name, array in results.items():
        if array.ndim == 0 or array.shape[0] != batch:
            raise RequestError(
                f"output {name!r} has shape {list(array.shape)} for a batch of {batch}: its first axis is not the "
                "batch, so the model needs max_batch_size: 0"
            )


def to_tensor(port: Port, array: Array, piece: slice) -> Any:
    part = array.reshape(port.dims) if array.ndim == 0 else array[piece]
    if port.datatype == "TYPE_BF16":
        return bfloat16_tensor(port.name, part)
    return pb_utils.Tensor(port.name, part)
