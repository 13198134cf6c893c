"""The public client of one server."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy.typing as npt
from PIL import Image

from client.errors import (
    BadResponse,
    ClientError,
    ConnectionFailed,
    InferenceRejected,
    InputError,
    ModelNotReady,
    UnknownModel,
    UsageError,
)
from client.image import Picture
from client.latency import ServerStatistics
from client.metadata import ModelMetadata, TensorMetadata, format_shape
from client.pictures import PictureModel
from client.protocol import (
    Request,
    RequestedOutput,
    Response,
    Tensor,
    inference_outputs,
    inference_request,
    model_path,
)
from client.tensors import Array, as_tensor
from client.text import listed, one_line
from client.topk import Classification
from client.transport import MAX_S, HttpTransport, Transport, Url


@dataclass(frozen=True)
class ModelState:
    """One version of a model in the server's repository; ``state`` is ``READY`` when it can be used."""

    name: str
    version: str
    state: str
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.state == "READY"


class Client:
    """A client of one Triton server, over one connection that is kept open.

    ``url``: ``host:port`` or a whole URL; without one, the environment's ``TRITON_URL``, else
    http://localhost:8000.  ``timeout``: seconds to wait for each next piece of an answer, and for the
    connection, but for that at most 10.  Use it as a context manager, or call :meth:`close`; a closed client
    connects anew when used.

    Not thread-safe: give each thread (and each forked process) its own.  A connection that the server closed
    is replaced when it is next used.  An inference that was sent whole is never sent again, since a model may
    keep state: if it fails, repeating it is your decision.  Every method raises :class:`client.ClientError`.
    """

    def __init__(self, url: str | None = None, *, timeout: float = 30.0, transport: Transport | None = None) -> None:
        if not 0 < timeout <= MAX_S:
            message = f"the timeout must be more than 0 s and at most {MAX_S:,} s, not {timeout:g}"
            raise UsageError(message, "--timeout 30 waits 30 s")
        self._url = Url.from_environment() if url is None else Url.parse(url)
        self._transport = HttpTransport(self._url, timeout) if transport is None else transport
        self._known: dict[tuple[str, str], ModelMetadata] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    @property
    def url(self) -> str:
        """The server's address, whole: scheme, host, port and path prefix."""
        return str(self._url)

    @property
    def address(self) -> Url:
        """The same in its parts."""
        return self._url

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def ready(self) -> bool:
        """Whether the server is up and every model that it was told to load is ready; False if unreachable."""
        try:
            return self._transport.send(Request("GET", "/v2/health/ready")).status == 200
        except ConnectionFailed:
            return False

    def models(self) -> tuple[ModelState, ...]:
        """Every version of every model in the server's repository, loaded or not, in the order of names."""
        index = self._json(Request("POST", "/v2/repository/index"))
        try:
            states = [
                ModelState(
                    str(entry["name"]),
                    str(entry.get("version", "")),
                    str(entry.get("state", "UNAVAILABLE")),
                    str(entry.get("reason", "")),
                )
                for entry in index
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise BadResponse(f"the list of models of {self.url} can't be read: {error!r}") from None
        return tuple(sorted(states, key=lambda state: (state.name, state.version.zfill(20))))

    def default_model(self) -> str:
        """The name of the only model that is ready; an error that lists them when there are several."""
        states = self.models()
        ready = sorted({state.name for state in states if state.ready})
        if len(ready) == 1:
            return ready[0]
        if ready:
            raise UsageError(f"{self.url} serves several models: {listed(ready)}", "choose with --model NAME")
        failed = next((f": {_state(state)}" for state in states if state.reason), "")
        hint = None if states else "add one with repo-builder add MODEL.onnx"
        raise ModelNotReady(f"{self.url} has no model that is ready{failed}", hint)

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Ask the server about a model: its tensors, batching, labels and image preprocessing."""
        path = model_path(model, version)
        metadata, config = (self._json(Request("GET", path + resource), model, version) for resource in ("", "/config"))
        described = ModelMetadata.from_server(metadata, config, version)
        self._known[model, version] = described
        return described

    def configuration(self, model: str, version: str = "") -> dict[str, Any]:
        """The model's configuration as the server runs it: Triton's ModelConfig as JSON."""
        answer: dict[str, Any] = self._json(Request("GET", f"{model_path(model, version)}/config"), model, version)
        return answer

    def server_metadata(self) -> dict[str, Any]:
        """The server's name, version and extensions."""
        answer: dict[str, Any] = self._json(Request("GET", "/v2"))
        return answer

    def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] | None = None,
        version: str = "",
    ) -> dict[str, Array]:
        """Run one inference and return its outputs by name: those in ``outputs``, else all.

        Arrays have the batch axis if the model is batched, and exactly the model's dtypes (text becomes
        BYTES, float32 is rounded to BF16; BYTES come back as ``bytes`` in an object array, BF16 as
        ``ml_dtypes.bfloat16``).  Python lists and numbers take the dtype of the input.
        """
        known = self._known.get((model, version))
        try:
            tensors = check_inputs(known or self.metadata(model, version), inputs)
        except InputError:
            if known is None:
                raise
            # What was remembered may be of a version that has been replaced since.
            tensors = check_inputs(self.metadata(model, version), inputs)
        requested = [RequestedOutput(name) for name in outputs or ()]
        return inference_outputs(self.send(inference_request(model, version, tensors, requested), model, version))

    def classify(
        self, images: Iterable[Picture] | Picture, model: str | None = None, top: int = 5, version: str = ""
    ) -> list[list[Classification]]:
        """Classify pictures (paths, bytes of files or PIL images): the ``top`` best classes of each, in order.

        Without ``model`` the server's only ready one is used.  Pictures are sent in batches up to the
        model's maximum and prepared by the preprocessing in its configuration.
        """
        if top < 1:
            raise UsageError(f"top must be at least 1, not {top}", "top=1 is the best class alone")
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            images = [images]
        name = self.default_model() if model is None else model
        target = PictureModel.of(self.metadata(name, version))
        target.require_classes()
        results: list[list[Classification]] = []
        for batch in target.batches(images):
            response = self.send(target.request(batch.array, top), name, version)
            results += target.read_classes(response, len(batch.pictures), top)
        return results

    def statistics(self, model: str, version: str) -> ServerStatistics:
        """The server's counters for one version of a model, since it was loaded."""
        return ServerStatistics.from_server(self.raw_statistics(model, version))

    def raw_statistics(self, model: str, version: str) -> dict[str, Any]:
        """The server's own JSON of :meth:`statistics`, which also has every batch size that was run."""
        answer: dict[str, Any] = self._json(Request("GET", f"{model_path(model, version)}/stats"), model, version)
        return answer

    def send(self, request: Request, model: str = "", version: str = "") -> Response:
        """Send a request that was built before; ``model`` and ``version`` let an error name what is there."""
        response = self._transport.send(request)
        if response.status != 200:
            raise self._refusal(response, model, version)
        return response

    def _json(self, request: Request, model: str = "", version: str = "") -> Any:
        response = self.send(request, model, version)
        try:
            return json.loads(response.body)
        except ValueError:
            raise self._not_triton(response) from None

    def _refusal(self, response: Response, model: str, version: str) -> ClientError:
        try:
            message = str(json.loads(response.body)["error"])
        except (ValueError, KeyError, TypeError):
            return self._not_triton(response)
        no_number = version != "" and not version.isdecimal()  # Triton knows no such path
        # What its HTTP port never says of a path of ours, but its metrics port and other web servers do.
        if ((response.status, message) == (404, "Not Found") and not no_number) or response.status == 405:
            return self._not_triton(response)
        rejected = InferenceRejected(one_line(message.removeprefix("[request id: <id_unknown>] ")))
        if not model:
            return rejected
        try:
            states = self.models()
        except ClientError as error:
            return error if no_number else rejected
        return _missing(states, model, version) or rejected

    def _not_triton(self, response: Response) -> BadResponse:
        page = " with a web page" if "html" in response.headers.get("content-type", "") else ""
        target = response.headers.get("location")
        to = f" and redirects to {target}" if target else ""
        return BadResponse(
            f"{self.url} answers{page} (HTTP status {response.status}{to}), but not as Triton's HTTP port does"
        )


def check_inputs(model: ModelMetadata, inputs: Mapping[str, npt.ArrayLike]) -> list[Tensor]:
    """Match arrays with a model's inputs; :class:`InputError` says what was expected."""
    known = {tensor.name: tensor for tensor in model.inputs}
    for name in inputs:
        if name not in known:
            raise InputError(
                f"model {model.name!r} has no input {name!r}; it has {', '.join(known)}",
                "name the arrays as the model names its inputs",
            )
    missing = [tensor for tensor in model.inputs if tensor.name not in inputs and not tensor.optional]
    if missing:
        raise InputError(f"model {model.name!r} also needs {', '.join(map(str, missing))}", "give an array for each")
    return [Tensor(name, known[name].datatype, _check(model, known[name], inputs[name])) for name in inputs]


def _check(model: ModelMetadata, tensor: TensorMetadata, value: npt.ArrayLike) -> Array:
    wanted = model.full_shape(tensor)
    expected = f"input {tensor.name!r} takes {tensor.datatype} {format_shape(wanted)}"
    try:
        array = as_tensor(value, tensor.datatype)
    except InputError as error:
        raise InputError(f"{expected}, but {error.message}", error.hint) from None
    same_rank = array.ndim == len(wanted)
    if not same_rank or any(axis not in {-1, side} for axis, side in zip(wanted, array.shape, strict=True)):
        batch = f", the first is the batch of up to {model.max_batch_size}" if model.batched else ""
        free = f"-1 is a free axis{batch}; " if -1 in wanted else ""
        raise InputError(
            f"{expected}, but the array is {format_shape(array.shape)}",
            f"{free}np.reshape and np.transpose change the axes of an array",
        )
    if model.batched and len(array) == 0:
        # Triton itself refuses it for a reason that isn't true, waits for ever, or ends (division by zero).
        raise InputError(f"{expected}, but the batch is empty", "a batch has at least one item")
    if model.batched and len(array) > model.max_batch_size:
        raise InputError(
            f"{expected} in batches up to {model.max_batch_size}, but the array has {len(array)}",
            f"send at most {model.max_batch_size} at a time",
        )
    return array


_LIKE = 0.7
"""Least similarity of a name that may have been meant: that of yolo and yolov8n is 0.73, of nosuch and nobatch 0.62."""

_ADDED_SINCE = (
    "a server loads models at its start: if it was added since, restart it (repo-builder stop, then serve); "
    "else its log says more: repo-builder logs"
)


def _missing(states: Iterable[ModelState], model: str, version: str) -> ClientError | None:
    """Why ``model`` can't be used, by the server's own list; None if it can."""
    states = list(states)
    of_model = [state for state in states if state.name == model]
    if not of_model:
        names = sorted({state.name for state in states})
        close = difflib.get_close_matches(model, names, n=1, cutoff=_LIKE)
        hint = f"did you mean --model {close[0]}?" if close else None
        return UnknownModel(f"the server has no model {model!r}; it has {listed(names) or 'none'}", hint)
    if version:
        versions = [state.version for state in of_model if state.version]
        of_model = [state for state in of_model if state.version == version]
        if not of_model:
            hint = "without a version the newest that is ready is taken"
            return UnknownModel(f"model {model!r} has no version {version}; it has {listed(versions) or 'none'}", hint)
    if any(state.ready for state in of_model):
        return None
    state = of_model[-1]
    return ModelNotReady(f"model {_state(state)}", None if state.reason else _ADDED_SINCE)


def _state(state: ModelState) -> str:
    version = f" version {state.version}" if state.version else ""
    reason = f": {one_line(state.reason)}" if state.reason else ""
    return f"{state.name!r}{version} is {state.state}{reason}"
