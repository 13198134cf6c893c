"""Whole repositories as they should be, file for file.  ``UPDATE_GOLDEN=1 pytest tests/test_golden.py`` writes them.

Models themselves are not kept: each published one is compared with its source.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from repo_builder import BuildOptions, SampleOptions, ServingOptions, Target, add_model, image_preset
from repo_builder.model import DataType
from repo_builder.onnx_model import read_model
from tests import models
from tests.models import FP32, INT64, STRING, linear, model, node, save, weights

GOLDEN = Path(__file__).parent / "golden"
BUILD = BuildOptions(target=Target.ONNXRUNTIME)


def classifier(folder: Path, repository: Path) -> None:
    """Two versions: labels come with the second."""
    path = save(linear(), folder / "net.onnx")
    (folder / "labels.txt").write_text('tench\n"quoted" \\ ü\n 3rd \n\n', encoding="utf-8")
    options = ServingOptions(max_batch_size=4, preferred_batch_sizes=(2, 4), max_queue_delay_us=100, instance_count=2)
    add_model(path, repository=repository, build=BUILD, serving=options)
    add_model(
        path,
        repository=repository,
        build=BUILD,
        serving=ServingOptions(labels=folder / "labels.txt", instance_kind="cpu"),
    )


def picture(folder: Path, repository: Path) -> None:
    """Fixed batch made free, preprocessing stored, the user's own fields merged in."""
    proto = models.picture(299, 299)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    extra = folder / "extra.pbtxt"
    extra.write_text(
        "version_policy { all { } }\n"
        "optimization { graph { level: 1 } }\n"
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
        'input [ { name: "image" format: FORMAT_NCHW } ]\n',
        encoding="utf-8",
    )
    add_model(
        save(proto, folder / "picture.onnx"),
        repository=repository,
        build=BUILD,
        serving=ServingOptions(image=image_preset("imagenet"), config=extra),
    )


def unbatched(folder: Path, repository: Path) -> None:
    """No batch axis, every kind of input, external data, and a warmup that zeros do not fit."""
    proto = model(
        [
            node("Mul", ["ids", "hundred"], ["scaled"]),
            node("Sub", ["scaled", "offset"], ["index"]),
            node("Gather", ["table", "index"], ["rows"]),
            node("Mul", ["rows", "factor"], ["y"]),
            node("Identity", ["text in"], ["text out"]),
        ],
        {"ids": (INT64, [5]), "factor": (FP32, []), "text in": (STRING, [2])},
        {"y": (FP32, [5, "k"]), "text out": (STRING, [2])},
        {"hundred": np.array(100), "offset": np.array(500), "table": weights(10, 3)},
    )
    table = proto.graph.initializer[2]
    (folder / "weights").mkdir()
    (folder / "weights/table.bin").write_bytes(table.raw_data)
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    table.external_data.add(key="location", value="weights/table.bin")
    np.save(folder / "text.npy", np.array(["grüß", ""]))
    samples = SampleOptions(files={"text in": folder / "text.npy"}, ranges={"ids": (5, 5), "factor": (2, 2)})
    add_model(
        save(proto, folder / "lookup.onnx"),
        name="look-up_1.0",
        repository=repository,
        build=replace(BUILD, samples=samples),
    )


def unverified(folder: Path, repository: Path) -> None:
    """Nothing is run: the shapes are the file's, and there is no warmup."""
    proto = model(
        [node("Cast", ["x"], ["y"], to=DataType.BF16.onnx)],
        {"x": (DataType.FP16, ["N"])},
        {"y": (DataType.BF16, ["N"])},
    )
    add_model(save(proto, folder / "cast.onnx"), repository=repository, build=replace(BUILD, verify=False))


@pytest.mark.parametrize("make", [classifier, picture, unbatched, unverified], ids=lambda make: make.__name__)
def test_tree(make: Callable[[Path, Path], None], tmp_path: Path) -> None:
    source, repository, golden = tmp_path / "source", tmp_path / "models", GOLDEN / make.__name__
    source.mkdir()

    make(source, repository)

    tree = {path: text for path, text in rendered(repository).items() if not path.endswith(".onnx")}
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.rmtree(golden, ignore_errors=True)
        for name, text in tree.items():
            (golden / name).parent.mkdir(parents=True, exist_ok=True)
            (golden / name).write_text(text, encoding="utf-8")
    expected = {
        str(path.relative_to(golden)): path.read_text(encoding="utf-8") for path in golden.rglob("*") if path.is_file()
    }
    assert tree.keys() == expected.keys()
    for name, text in tree.items():
        assert text == expected[name], name


def rendered(repository: Path) -> dict[str, str]:
    """Every file as text: manifests without what differs from run to run, other data as hexadecimal numbers."""
    files = {}
    for path in sorted(repository.rglob("*")):
        name = str(path.relative_to(repository))
        if path.name == "manifest.json":
            files[name] = (
                json.dumps(settled(json.loads(path.read_text(encoding="utf-8"))), indent=2, ensure_ascii=False) + "\n"
            )
        elif path.suffix in {".pbtxt", ".txt"}:
            files[name] = path.read_text(encoding="utf-8")
        elif path.is_file():
            files[name + ("" if path.suffix == ".onnx" else ".hex")] = path.read_bytes().hex(" ", 4) + "\n"
    return files


def settled(manifest: dict[str, Any]) -> dict[str, Any]:
    """``manifest`` with a word for every figure that depends on the machine, the clock or installed versions."""
    for field in ("created", "seconds", "fingerprint"):
        assert manifest[field]
        manifest[field] = "*"
    manifest["tools"] = dict.fromkeys(manifest["tools"], "*")
    manifest["target_reason"] = "*"
    assert manifest["options"].keys() == {"build", "serving"}  # each new option would be in every tree
    manifest["options"] = "*"
    for output in (manifest["verification"] or {"outputs": []})["outputs"]:
        for field in ("max_absolute_error", "max_relative_error", "cosine_error"):
            assert 0 <= output[field] < 1e-5
            output[field] = "*"
    text = re.sub(r"\b[0-9a-f]{64}\b", "*", json.dumps(manifest))
    return dict(json.loads(text))


def test_published_models_are_the_sources_byte_for_byte_unless_changed(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for make in (classifier, picture, unbatched):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder, repository)

    source = (tmp_path / "classifier/net.onnx").read_bytes()
    assert (repository / "net/1/model.onnx").read_bytes() == (repository / "net/2/model.onnx").read_bytes() == source
    assert (repository / "look-up_1.0/1/weights/table.bin").read_bytes() == weights(10, 3).tobytes()
    freed = read_model(repository / "picture/1/model.onnx").spec
    assert [tensor.shape for tensor in freed.inputs] == [("batch", 3, 299, 299)]
    assert [tensor.shape for tensor in freed.outputs] == [("batch", 5)]
