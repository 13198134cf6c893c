"""The real tritonserver on every configuration that `add` refuses, and on those that it does not."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from repo_builder.errors import ServerError
from repo_builder.servers.base import ServerOptions
from repo_builder.servers.local import LocalServer, start
from tests.config.configurations import ENDS_THE_SERVER, NAME_AND_PLATFORM, REFUSED, SERVED
from tests.servers.repositories import write_identity

OPTIONS = ServerOptions(http_port=0, grpc_port=0, metrics_port=0)
PATIENCE_S = 5.0


def publish(root: Path, name: str, text: str) -> None:
    folder = write_identity(root, name)
    (folder / "config.pbtxt").write_text(NAME_AND_PLATFORM.format(name=name) + text, encoding="utf-8")


def answers(server: LocalServer, name: str) -> bool:
    """Whether the model gives a batch of two back."""
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    address = server.url.removeprefix("http://")
    with triton.InferenceServerClient(address, network_timeout=PATIENCE_S) as client:
        tensor = triton.InferInput("x", rows.shape, "FP32")
        tensor.set_data_from_numpy(rows)
        try:
            return bool((client.infer(name, [tensor]).as_numpy("y") == rows).all())
        except (InferenceServerException, HTTPException, OSError):
            return False


def served(folder: Path, texts: dict[str, str]) -> set[str]:
    """The names of those that a server loads and that answer.

    A failing warmup now and then takes the server with it; then each half of them gets a server of its own.
    """
    root = Path(tempfile.mkdtemp(dir=folder))
    for name, text in texts.items():
        publish(root, name, text)
    try:
        with start(root, OPTIONS) as server, ThreadPoolExecutor(8) as threads:  # some never answer
            ready = [status.name for status in server.models if status.ready]
            answered = threads.map(lambda name: answers(server, name), ready)
            return {name for name, good in zip(ready, answered, strict=True) if good}
    except ServerError:
        entries = list(texts.items())
        halves = entries[: len(entries) // 2], entries[len(entries) // 2 :]
        return set().union(*(served(folder, dict(half)) for half in halves)) if len(entries) > 1 else set()


@pytest.mark.parametrize("warmup", [False, True])
def test_what_is_refused_is_not_served_and_what_is_not_is(tmp_path: Path, warmup: bool) -> None:
    texts = {f"refused_{name}": text for name, (text, _) in REFUSED.items()}
    texts |= {f"served_{name}": text for name, text in SERVED.items()}
    texts = {name: text for name, text in texts.items() if ("model_warmup" in text) is warmup}

    assert served(tmp_path, texts) == {name for name in texts if name.startswith("served_")}


def outlived(root: Path, name: str) -> bool:
    """Whether the server starts with the model, and still answers after a request to it."""
    try:
        with start(root, OPTIONS) as server:
            answers(server, name)
            return answers(server, "good")
    except ServerError:
        return False


@pytest.mark.parametrize("name", [*ENDS_THE_SERVER, "decoupled"])
def test_what_ends_the_server(name: str, tmp_path: Path) -> None:
    publish(tmp_path, "good", SERVED["plain"])
    publish(tmp_path, "other", {**REFUSED, **ENDS_THE_SERVER}[name][0])

    assert outlived(tmp_path, "other") == (name not in ENDS_THE_SERVER)
