"""Trained models from PyPI packages go through add, serve and an inference equal to ONNX Runtime's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import repo_builder
from client import Client
from repo_builder.onnx_model import read_model
from repo_builder.runtime import open_session
from repo_builder.samples import SampleOptions, Sampler, index_ranges
from repo_builder.servers.local import LocalServer
from repo_builder.verify import Reference

from .real_models import Batching, RealModel, fetch, load_models

MODELS = load_models()
TRAITS = {"several-inputs", "int64", "dynamic-image-size", "fixed-batch", "scalar-input", "several-outputs"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    repository = tmp_path_factory.mktemp("real") / "models"
    for model in MODELS:
        command = [sys.executable, "-m", "repo_builder", "add", str(fetch(model)), "--name", model.id]
        subprocess.run([*command, "--repository", str(repository), *model.add], check=True)
    with repo_builder.serve(repository) as running:
        yield running


def test_the_models_cover_what_users_bring() -> None:
    assert len(MODELS) >= 10
    assert {feature.value for model in MODELS for feature in model.features} >= TRAITS


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_real_model_answers_as_onnx_runtime(server: LocalServer, model: RealModel) -> None:
    spec = read_model(fetch(model)).spec
    source = open_session(spec.path)
    with Client(server.url) as client:
        metadata = client.metadata(model.id)
        batched = metadata.max_batch_size > 0
        assert batched == (model.batching in {Batching.FREE, Batching.PROVABLE})
        for arrays in _requests(model, batched=batched):
            expected = source.run(arrays)
            ranks = {tensor.name: len(metadata.full_shape(tensor)) for tensor in metadata.inputs}
            answer = client.infer(model.id, {name: _as_sent(array, ranks[name]) for name, array in arrays.items()})
            for output in source.outputs:
                got = answer[output.name].reshape(expected[output.name].shape)
                np.testing.assert_allclose(got, expected[output.name], rtol=1e-3, atol=1e-5)


def _as_sent(array: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
    """Triton writes what is a scalar in every row as dims [1]: one axis more than ONNX has."""
    return array if array.ndim == rank else array[..., None]


def _requests(model: RealModel, *, batched: bool) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Two requests with other numbers than `add` verified with, or the rows that the list itself gives."""
    if model.samples:
        for number in range(len(next(iter(model.samples.values())))):
            yield {name: np.array([rows[number]], object) for name, rows in model.samples.items()}
        return
    onnx_model = read_model(fetch(model))
    sampler = Sampler(onnx_model.spec.inputs, replace(_options(model), seed=1), index_ranges(onnx_model.proto))
    reference = Reference(onnx_model.spec, open_session(onnx_model.spec.path), sampler, batch_axis=batched)
    for number in range(2):
        yield reference.row(number)[0]


def _options(model: RealModel) -> SampleOptions:
    """The flags of the list as options."""
    flags = [(flag, *value.rpartition("=")[::2]) for flag, value in zip(model.add[::2], model.add[1::2], strict=True)]
    ranges = {name: tuple(map(float, value.split(":"))) for flag, name, value in flags if flag == "--input-range"}
    shapes = {name: tuple(map(int, value.split("x"))) for flag, name, value in flags if flag == "--shape"}
    return SampleOptions(ranges=ranges, shapes=shapes)  # type: ignore[arg-type]
