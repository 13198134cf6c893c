"""A model on a running server as something to be verified: the gate's inputs over HTTP, alone and all at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from repo_builder.compilers.base import Artifact
from repo_builder.errors import ServerError, UsageError
from repo_builder.runtime import RunError

if TYPE_CHECKING:
    import numpy.typing as npt

    from client import ModelMetadata
    from repo_builder.model import TensorSpec
    from repo_builder.runtime import Arrays

MOST_AT_ONCE = 32
"""Requests on their way together, each over a connection of its own."""

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
                self._metadata = self._client.metadata(name, self._version)
            self.max_batch_size = self._metadata.max_batch_size
            self._refuse_another_model()
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

        inputs = {spec.name: _for_wire(self._metadata, spec, arrays[spec.name]) for spec in self._artifact.inputs}
        with _told_as_ours():
            try:
                answers = client.infer(self._name, inputs, version=self._version)
            except (InferenceRejected, InputError) as error:
                raise RunError(error.message) from None
        return {spec.name: _from_wire(spec, answers[spec.name]) for spec in self._artifact.outputs}

    def _executions(self) -> dict[int, int]:
        """How often the model has run, by batch size."""
        with _told_as_ours():
            statistics = self._client.raw_statistics(self._name, self._version)
        batches = statistics["model_stats"][0].get("batch_stats", [])
        return {int(entry["batch_size"]): int(entry["compute_infer"]["count"]) for entry in batches}

    def _refuse_another_model(self) -> None:
        there = {tensor.name for tensor in (*self._metadata.inputs, *self._metadata.outputs)}
        ours = {tensor.name for tensor in (*self._artifact.inputs, *self._artifact.outputs)}
        if there != ours:
            raise ServerError(
                f"{self._name!r} on {self.url} has the tensors {', '.join(sorted(there))}; version {self._version} of "
                f"the repository has {', '.join(sorted(ours))}",
                "name the repository that this server serves: --repository DIR",
            )


@contextmanager
def _told_as_ours() -> Iterator[None]:
    from client import ClientError

    try:
        yield
    except ClientError as error:
        if error.exit_code == UsageError.exit_code:
            raise UsageError(error.message, error.hint) from None
        raise ServerError(error.message, error.hint or "repo-builder status lists the servers that run here") from None


def _for_wire(metadata: ModelMetadata, spec: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``array`` in the served input's type (an engine's may be INT32 or FP16), a scalar as Triton's [1].

    Raises:
        RunError: integers do not fit.
    """
    import numpy as np

    wanted = spec.dtype.numpy_dtype()
    converted = array.astype(wanted, copy=False)
    if array.dtype.kind in "iu" and wanted.kind in "iu" and not np.array_equal(converted, array):
        raise RunError(f"input {spec.name!r} has values that do not fit {spec.dtype.value}, which the model takes")
    tensor = next(tensor for tensor in metadata.inputs if tensor.name == spec.name)
    return converted[..., None] if array.ndim + 1 == len(metadata.full_shape(tensor)) else converted


def _from_wire(spec: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An answer as the artifact itself gives it: text as ``str``, a scalar without Triton's axis."""
    import numpy as np

    if array.dtype == object:
        array = np.array([value.decode("utf-8", "replace") for value in array.ravel()], object).reshape(array.shape)
    return array[..., 0] if spec.shape is not None and array.ndim == len(spec.shape) + 1 else array
