"""A model on a running server as something to be verified: the gate's inputs over HTTP, alone and all at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repo_builder.compilers.base import Artifact, Target
from repo_builder.errors import ServerError, UsageError
from repo_builder.model import refit
from repo_builder.runtime import RunError

if TYPE_CHECKING:
    import numpy.typing as npt

    from repo_builder.model import TensorSpec
    from repo_builder.runtime import Arrays

MOST_AT_ONCE = 32
"""Requests on their way together, each over a connection of its own."""

_WHICH_REPOSITORY = "name the repository that this server serves: --repository DIR"

_BACKENDS = {target.platform: target.value for target in Target if target.platform}
"""Of the platforms that Triton has names for."""

TIMEOUT_S = 300.0
"""A first request may wait for an engine's lazy loading, and the batches of a gate are large."""


class ServedModel:
    """One version of a model on the server at ``url``.

    ``max_batch_size`` is the server's; ``joined`` the largest batch that it has made of requests of one row.

    Raises:
        UsageError: ``url`` is no URL.
        ServerError: nothing answers there, or the model there is not the one that ``artifact`` describes.
    """

    def __init__(self, url: str, name: str, version: int, artifact: Artifact) -> None:
        from client import Client

        self._name, self._version, self._artifact = name, str(version), artifact
        self.joined = 0
        with _told_as_ours():
            self._client = Client(url, timeout=TIMEOUT_S)
        self.url = self._client.url
        try:
            with _told_as_ours():
                metadata = self._client.metadata(name, self._version)
                config = self._client.configuration(name, self._version)
            self.max_batch_size = metadata.max_batch_size
            self._refuse_another_model({tensor.name for tensor in (*metadata.inputs, *metadata.outputs)})
            self._refuse_another_backend(config)
            tensors = (*artifact.inputs, *artifact.outputs)
            self._layouts = {tensor.name: _Layout.read(config, tensor) for tensor in tensors}
        except BaseException:
            self.close()
            raise

    def run(self, arrays: Arrays) -> Arrays:
        """All rows in one request; raises RunError when the server refuses it, ServerError without an answer."""
        return self._infer(self._client, arrays)

    def run_rows(self, arrays: Arrays) -> Arrays:
        """Every row in a request of its own, up to :data:`MOST_AT_ONCE` of them together; raises as :meth:`run`."""
        import numpy as np

        from client import Client

        count = len(next(iter(arrays.values())))
        workers = min(count, MOST_AT_ONCE)
        before = self._executions()

        def work(first: int) -> list[Arrays]:
            with Client(self.url, timeout=TIMEOUT_S) as client:
                rows = range(first, count, workers)
                return [self._infer(client, {name: array[n : n + 1] for name, array in arrays.items()}) for n in rows]

        with ThreadPoolExecutor(workers) as pool:
            lanes = list(pool.map(work, range(workers)))
        after = self._executions()
        self.joined = max((size for size, runs in after.items() if runs > before.get(size, 0)), default=self.joined)
        answers = [lanes[number % workers][number // workers] for number in range(count)]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def close(self) -> None:
        self._client.close()

    def _infer(self, client: Any, arrays: Arrays) -> Arrays:
        from client import InferenceRejected, InputError

        inputs = {
            spec.name: _for_wire(self._layouts[spec.name], spec, arrays[spec.name]) for spec in self._artifact.inputs
        }
        with _told_as_ours():
            try:
                answers = client.infer(self._name, inputs, version=self._version)
            except (InferenceRejected, InputError) as error:
                raise RunError(error.message) from None
        return {spec.name: _from_wire(self._layouts[spec.name], answers[spec.name]) for spec in self._artifact.outputs}

    def _executions(self) -> dict[int, int]:
        """How often the model has run, by batch size."""
        with _told_as_ours():
            statistics = self._client.raw_statistics(self._name, self._version)
        batches = statistics["model_stats"][0].get("batch_stats", [])
        return {int(entry["batch_size"]): int(entry["compute_infer"]["count"]) for entry in batches}

    def _refuse_another_backend(self, config: Mapping[str, Any]) -> None:
        """Raise ServerError where what runs there is not what this version was made for."""
        platform, backend = str(config.get("platform") or ""), str(config.get("backend") or "")
        there = _BACKENDS.get(platform, backend)
        ours = _BACKENDS.get(self._artifact.platform, self._artifact.backend)
        if there and there != ours:
            raise ServerError(
                f"{self._name!r} on {self.url} is served by the backend {there}; version {self._version} of the "
                f"repository is for {ours}",
                _WHICH_REPOSITORY,
            )

    def _refuse_another_model(self, there: set[str]) -> None:
        """Raise ServerError where the tensors ``there`` are not this version's."""
        ours = {tensor.name for tensor in (*self._artifact.inputs, *self._artifact.outputs)}
        if there != ours:
            raise ServerError(
                f"{self._name!r} on {self.url} has the tensors {', '.join(sorted(there))}; version {self._version} of "
                f"the repository has {', '.join(sorted(ours))}",
                _WHICH_REPOSITORY,
            )


@contextmanager
def _told_as_ours() -> Iterator[None]:
    from client import ClientError, UnknownModel

    try:
        yield
    except ClientError as error:
        hint = (error.hint or "repo-builder status lists the servers that run here").replace("--url", "--served")
        if isinstance(error, UnknownModel):
            hint = _WHICH_REPOSITORY
        told = UsageError if error.exit_code == UsageError.exit_code else ServerError
        raise told(error.message, hint) from None


@dataclass(frozen=True)
class _Layout:
    """A tensor's dims with the batch axis, -1 where free: as requests have them, and behind Triton's ``reshape``."""

    wire: tuple[int, ...]
    model: tuple[int, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any], spec: TensorSpec) -> _Layout:
        """That of the tensor of ``spec``, by the server's configuration."""
        entry = next(entry for entry in (*config["input"], *config["output"]) if entry["name"] == spec.name)
        batch = (-1,) if config.get("max_batch_size") else ()
        dims = tuple(map(int, entry["dims"]))
        inside = tuple(map(int, entry["reshape"].get("shape", ()))) if "reshape" in entry else dims
        if spec.shape == ():  # without batching Triton has no word for it
            inside = ()
        return cls((*batch, *dims), (*batch, *inside))


def _reshaped(array: npt.NDArray[Any], have: tuple[int, ...], want: tuple[int, ...]) -> npt.NDArray[Any]:
    """``array`` of the dims ``have`` as ``want`` has them, free sizes in their order; as it is where it has others."""
    if have == want or array.ndim != len(have):
        return array
    shape = refit(array.shape, have, want)
    return array.reshape(shape) if math.prod(shape) == array.size else array


def _for_wire(layout: _Layout, spec: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``array`` in the served input's type (an engine's may be INT32 or FP16), and as requests have it.

    Raises:
        RunError: integers do not fit.
    """
    import numpy as np

    wanted = spec.dtype.numpy_dtype()
    converted = array.astype(wanted, copy=False)
    if array.dtype.kind in "iu" and wanted.kind in "iu" and not np.array_equal(converted, array):
        raise RunError(f"input {spec.name!r} has values that do not fit {spec.dtype.value}, which the model takes")
    return _reshaped(converted, layout.model, layout.wire)


def _from_wire(layout: _Layout, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An answer as the artifact itself gives it: text as ``str``, before Triton's ``reshape``."""
    import numpy as np

    if array.dtype == object:
        array = np.array([value.decode("utf-8", "replace") for value in array.ravel()], object).reshape(array.shape)
    return _reshaped(array, layout.wire, layout.model)
