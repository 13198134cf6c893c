"""Every network that the onnx package ships goes through add, serve and an inference equal to ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import repo_builder
from client import Client
from repo_builder.runtime import open_session
from repo_builder.servers.local import LocalServer

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    repository = tmp_path_factory.mktemp("light") / "models"
    for path in LIGHT:
        # two rows are enough to see batching; vgg19 on eight takes seconds
        repo_builder.add_model(path, repository=repository, serving=repo_builder.ServingOptions(max_batch_size=2))
    with repo_builder.serve(repository) as running:
        yield running


def test_there_are_light_models() -> None:
    assert len(LIGHT) >= 9


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_light_model_answers_as_onnx_runtime(server: LocalServer, path: Path) -> None:
    source = open_session(path)
    (tensor,) = source.inputs
    rng = np.random.default_rng(7)
    rows = [rng.standard_normal(tensor.dims).astype(np.float32) for _ in range(2)]
    expected = [source.run({tensor.name: row}) for row in rows]
    with Client(server.url) as client:
        answer = client.infer(path.stem, {tensor.name: np.concatenate(rows)})
    for output in source.outputs:
        want = np.concatenate([outputs[output.name] for outputs in expected])
        np.testing.assert_allclose(answer[output.name], want, rtol=1e-3, atol=1e-6)
