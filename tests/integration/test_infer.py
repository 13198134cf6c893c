"""``python -m client.infer`` and ``client.Client`` against the real tritonserver."""

from __future__ import annotations

import functools
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import repo_builder
from client import Client, ConnectionFailed, InferenceRejected, InputError, ModelNotReady, UnknownModel
from client.image import ImageSpec, load_image
from repo_builder.servers.local import LocalServer
from tests.client.command import Done, command
from tests.client.fakes import fake_server, stay_silent
from tests.support import steady_port

LABELS = ("red", "green", 'blue: a "primary"', "yellow", "cyan", "grey")
COLORS = {"red.png": (250, 10, 10), "green.jpg": (10, 250, 10), "sub/yellow.gif": (250, 250, 10)}
WEIGHTS = np.array([[8, -4, -4], [-4, 8, -4], [-4, -4, 8], [3, 3, -6], [-6, 3, 3], [0, 0, 0]], np.float32).T
EVERY_DATATYPE = ("FP16", "BF16", "FP64", "INT8", "UINT64", "BOOL", "STRING")
ONNX_NAMES = {"FP16": "FLOAT16", "BF16": "BFLOAT16", "FP64": "DOUBLE"}
SPEC = {"input": "image", "resize": 8, "crop": [8, 8], "scale": 1 / 255}


def tensor(kind: str, name: str, datatype: str, dims: Sequence[int], extra: str = "") -> str:
    return f"{kind} [{{ name: {json.dumps(name)} data_type: TYPE_{datatype} dims: {list(dims)} {extra} }}]\n"


def add(
    repository: Path,
    name: str,
    max_batch_size: int,
    config: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str]]],
    outputs: dict[str, tuple[int, Sequence[int | str]]],
    constants: Sequence[onnx.TensorProto] = (),
) -> None:
    """Write one model with a config.pbtxt by hand, as a stranger would."""
    takes = [helper.make_tensor_value_info(name, *type_shape) for name, type_shape in inputs.items()]
    gives = [helper.make_tensor_value_info(name, *type_shape) for name, type_shape in outputs.items()]
    graph = helper.make_graph(nodes, "graph", takes, gives, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    head = f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {max_batch_size}\n'
    (repository / name / "config.pbtxt").write_text(head + config)


def add_colors(
    repository: Path,
    name: str,
    *,
    max_batch_size: int = 4,
    layout: str = "NCHW",
    datatype: str = "FP32",
    output: str = "FP32",
    labels: bool = True,
) -> None:
    """A classifier of flat colors: the mean of each channel, a linear layer, softmax."""
    types = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16, "UINT8": TensorProto.UINT8}
    item = [3, 8, 8] if layout == "NCHW" else [8, 8, 3]
    batch: list[int | str] = ["N"] if max_batch_size else [1]
    dims = item if max_batch_size else [1, *item]
    spec = SPEC | {"layout": layout} | ({"scale": 1.0} if datatype == "UINT8" else {})
    scale = 1 / 255 if datatype == "UINT8" else 1.0
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Gemm", ["mean", "weights"], ["logits"], alpha=scale),
        helper.make_node("Softmax", ["logits"], ["float_scores"]),
        helper.make_node("Cast", ["float_scores"], ["scores"], to=types[output]),
    ]
    preprocessing = json.dumps(json.dumps(spec))
    config = (
        tensor("input", "image", datatype, dims)
        + tensor(
            "output",
            "scores",
            output,
            [6] if max_batch_size else [1, 6],
            'label_filename: "labels.txt"' if labels else "",
        )
        + f'parameters {{ key: "image_preprocessing" value {{ string_value: {preprocessing} }} }}\n'
    )
    add(
        repository, name, max_batch_size, config, nodes,
        {"image": (types[datatype], [*batch, *item])}, {"scores": (types[output], [*batch, 6])},
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )  # fmt: skip
    if labels:
        (repository / name / "labels.txt").write_text("\n".join(LABELS) + "\n")


def write_repository(repository: Path) -> None:
    add_colors(repository, "colors")
    add_colors(repository, "colors_fp16", output="FP16")
    add_colors(repository, "colors_single", max_batch_size=0)
    add_colors(repository, "colors_uint8", layout="NHWC", datatype="UINT8", labels=False)
    preprocessing = json.dumps(json.dumps(SPEC))
    add(
        repository, "picture_to_picture", 4,
        tensor("input", "image", "FP32", [3, 8, 8]) + tensor("output", "../../mask:0", "FP32", [3, 8, 8])
        + f'parameters {{ key: "image_preprocessing" value {{ string_value: {preprocessing} }} }}\n',
        [helper.make_node("Neg", ["image"], ["../../mask:0"])],
        {"image": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"../../mask:0": (TensorProto.FLOAT, ["N", 3, 8, 8])},
    )  # fmt: skip
    add(
        repository, "two_inputs", 4,
        tensor("input", "a", "FP32", [4]) + tensor("input", "n", "INT64", [-1])
        + tensor("output", "a2", "FP32", [4]) + tensor("output", "n2", "INT64", [-1]),
        [helper.make_node("Add", ["a", "a"], ["a2"]), helper.make_node("Add", ["n", "n"], ["n2"])],
        {"a": (TensorProto.FLOAT, ["N", 4]), "n": (TensorProto.INT64, ["N", "M"])},
        {"a2": (TensorProto.FLOAT, ["N", 4]), "n2": (TensorProto.INT64, ["N", "M"])},
    )  # fmt: skip
    add(
        repository, "text", 4,
        tensor("input", "text", "STRING", [-1]) + tensor("input", "flag", "BOOL", [2])
        + tensor("output", "same", "STRING", [-1]) + tensor("output", "opposite", "BOOL", [2]),
        [helper.make_node("Identity", ["text"], ["same"]), helper.make_node("Not", ["flag"], ["opposite"])],
        {"text": (TensorProto.STRING, ["N", "M"]), "flag": (TensorProto.BOOL, ["N", 2])},
        {"same": (TensorProto.STRING, ["N", "M"]), "opposite": (TensorProto.BOOL, ["N", 2])},
    )  # fmt: skip
    add(
        repository, "lookup", 0,
        tensor("input", "index", "INT64", [-1]) + tensor("output", "row", "FP32", [-1, 2]),
        [helper.make_node("Gather", ["table", "index"], ["row"])],
        {"index": (TensorProto.INT64, ["N"])}, {"row": (TensorProto.FLOAT, ["N", 2])},
        [numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "table")],
    )  # fmt: skip
    add(
        repository, "bfloat16", 4,
        tensor("input", "x", "BF16", [3]) + tensor("output", "y", "FP32", [3]) + tensor("output", "z", "BF16", [3]),
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT), helper.make_node("Identity", ["x"], ["z"])],
        {"x": (TensorProto.BFLOAT16, ["N", 3])},
        {"y": (TensorProto.FLOAT, ["N", 3]), "z": (TensorProto.BFLOAT16, ["N", 3])},
    )  # fmt: skip
    for datatype in EVERY_DATATYPE:
        onnx_type = getattr(TensorProto, ONNX_NAMES.get(datatype, datatype))
        shapes: list[tuple[str, list[int], str, list[int | str]]] = [
            ("row", [3], "", ["N", 3]), ("scalar", [1], "reshape { shape: [] }", ["N"])
        ]  # fmt: skip
        for name, dims, more, shape in shapes:
            add(
                repository, f"{name}_{datatype.lower()}", 4,
                tensor("input", "x", datatype, dims, more) + tensor("output", "y", datatype, dims, more),
                [helper.make_node("Identity", ["x"], ["y"])],
                {"x": (onnx_type, shape)}, {"y": (onnx_type, shape)},
            )  # fmt: skip
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    (repository / "broken" / "config.pbtxt").write_text(
        'name: "broken"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 0\n'
        + tensor("input", "x", "FP32", [1]) + tensor("output", "y", "FP32", [1])
    )  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("infer") / "models"
    write_repository(root)
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[LocalServer]:
    with repo_builder.serve(repository) as running:
        yield running


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, color in COLORS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), color).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRITON_URL", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def environment(server: LocalServer) -> dict[str, str]:
    return {**os.environ, "TRITON_URL": server.url}


def infer(server: LocalServer | None, *arguments: object) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        if server is not None:
            patch.setenv("TRITON_URL", server.url)
        return command("infer", *arguments)


def infer_json(server: LocalServer, *arguments: object) -> dict[str, Any]:
    done = infer(server, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(done: Done, code: int) -> str:
    """What an error says, after checking that it is told as every error must be: in one line, then a hint."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("model ")]
    assert [line.partition(" ")[0] for line in lines] == ["error:", "", "hint:"], done.stderr
    assert not lines[0].startswith("error: unexpected")
    return done.stderr


class TestClassify:
    def test_without_any_flag_where_one_model_is_served(self, repository: Path, pictures: Path) -> None:
        with repo_builder.serve(repository, models=["colors"]) as alone:
            done = infer(alone, pictures / "red.png")
            assert done.returncode == 0, done.stderr
            assert done.stderr == f"model colors, version 1, at {alone.url}\n"
            title, header, best, *rest = done.stdout.splitlines()
            assert title == str(pictures / "red.png")
            assert header.split() == ["score", "class", "label"]
            assert best.split()[1:] == ["0", "red"]
            stages = [line.split("  ")[0].strip() for line in rest if line.startswith("  ")]
            assert {"preprocess", "request", "postprocess"} <= {line.split()[0] for line in rest if line.strip()}
            assert stages
            with Client(alone.url) as triton:
                assert triton.ready()
                assert triton.default_model() == "colors"

    def test_several_models_are_listed(self, server: LocalServer, pictures: Path) -> None:
        error = refused(infer(server, pictures / "red.png"), 2)
        assert "several models: bfloat16, colors, colors_fp16, colors_single, colors_uint8, lookup, " in error
        assert "hint: choose with --model NAME" in error

    @pytest.mark.parametrize("model", ["colors", "colors@1", "colors_fp16", "colors_single", "colors_uint8"])
    def test_every_way_to_the_classes_gives_the_same(self, server: LocalServer, pictures: Path, model: str) -> None:
        document = infer_json(server, pictures, "--model", model, "--top", 3)
        assert document["version"] == "1"
        best = {}
        for result in document["results"]:
            assert len(result["classes"]) == 3
            scores = [entry["score"] for entry in result["classes"]]
            assert scores == sorted(scores, reverse=True)
            best[Path(result["file"]).name] = result["classes"][0]
        assert {name: entry["index"] for name, entry in best.items()} == {"red.png": 0, "green.jpg": 1, "yellow.gif": 3}
        labelled = model in {"colors", "colors@1", "colors_single"}
        assert best["yellow.gif"]["label"] == ("yellow" if labelled else None)

    def test_scores_are_those_of_the_network(self, server: LocalServer, pictures: Path) -> None:
        with Client(server.url) as triton:
            ((*classes,),) = triton.classify(pictures / "green.jpg", "colors", top=6)
        mean = load_image(pictures / "green.jpg", ImageSpec.from_json(json.dumps(SPEC))).mean(axis=(1, 2))
        logits = mean @ WEIGHTS
        expected = np.exp(logits) / np.exp(logits).sum()
        for entry in classes:
            assert entry.score == pytest.approx(expected[entry.index], abs=2e-6)  # the server writes 6 decimals
            assert entry.label == LABELS[entry.index]

    def test_batches(self, server: LocalServer, pictures: Path) -> None:
        many = [pictures / "red.png", pictures / "green.jpg"] * 5
        with Client(server.url) as triton:
            for flags, requests in (((), 3), (("--batch", 3), 4), (("--batch", 1), 10), (("--batch", 99), 3)):
                before = triton.statistics("colors", "1")
                document = infer_json(server, *many, "--model", "colors", *flags)
                window = triton.statistics("colors", "1") - before
                assert (window.requests, window.inferences) == (requests, 10)
                assert document["latency"]["requests"] == requests
                assert [r["classes"][0]["label"] for r in document["results"]] == ["red", "green"] * 5

    def test_bad_files_do_not_spoil_the_good_ones(self, server: LocalServer, pictures: Path, tmp_path: Path) -> None:
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "cut.png").write_bytes((pictures / "red.png").read_bytes()[:60])
        (tmp_path / "none").mkdir()
        files = [tmp_path / "empty.jpg", pictures / "red.png", tmp_path / "cut.png", tmp_path / "missing.jpg",
                 tmp_path / "none", pictures / "green.jpg"]  # fmt: skip
        done = infer(server, *files, "--model", "colors")
        assert done.returncode == 1
        assert done.stdout.count("score  class  label") == 2
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 4
        for name in (
            "empty.jpg is empty",
            "cut.png: the picture is broken",
            "missing.jpg: No such file",
            "none is a folder",
        ):
            assert any(name in line for line in errors)
        hints = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
        assert len(hints) == 3  # each once, though two files are broken

        document = json.loads(infer(server, *files, "--model", "colors", "--json").stdout)
        assert sum("error" in result and "hint" in result for result in document["results"]) == 4
        assert sum("classes" in result for result in document["results"]) == 2

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("missing.jpg", "missing.jpg: No such file or directory"),
            ("cut.png", "cut.png: the picture is broken"),
            ("array.npy", "array.npy is not a JPEG, PNG"),
            ("none", "none is a folder without pictures"),
        ],
    )
    def test_only_bad_files(self, server: LocalServer, pictures: Path, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / "cut.png").write_bytes((pictures / "red.png").read_bytes()[:60])
        np.save(tmp_path / "array.npy", np.zeros(3))
        (tmp_path / "none").mkdir()
        assert message in refused(infer(server, tmp_path / name, "--model", "colors"), 1)

    def test_output_that_is_no_list_of_classes(self, server: LocalServer, pictures: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = infer(server, pictures, "--model", "picture_to_picture", "--output-dir", out)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("../../mask:0  FP32      [3, 8, 8]  ") == 3
        assert sorted(path.name for path in out.iterdir()) == [
            "green..._.._mask_0.npy", "red..._.._mask_0.npy", "yellow..._.._mask_0.npy"
        ]  # fmt: skip
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        expected = -load_image(pictures / "red.png", ImageSpec.from_json(json.dumps(SPEC)))
        np.testing.assert_array_equal(np.load(out / "red..._.._mask_0.npy"), expected)

    def test_model_that_does_not_take_pictures(self, server: LocalServer, pictures: Path) -> None:
        error = refused(infer(server, pictures / "red.png", "--model", "two_inputs"), 2)
        assert "hint: add it with its preprocessing, such as repo-builder add" in error


class TestArrays:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        np.save(tmp_path / "a.npy", np.arange(8, dtype=np.float32).reshape(2, 4))
        np.save(tmp_path / "n.npy", np.arange(6, dtype=np.int64).reshape(2, 3))
        np.save(tmp_path / "a_item.npy", np.arange(4, dtype=np.float32))
        np.save(tmp_path / "n_item.npy", np.arange(3, dtype=np.int64))
        return tmp_path

    def test_outputs(self, server: LocalServer, files: Path) -> None:
        done = infer(server, "--model", "two_inputs", "--input", f"a={files}/a.npy", "--input", f"n={files}/n.npy")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[:3] == [
            "  output  datatype  shape   values",
            "  a2      FP32      [2, 4]  0, 2, 4, 6, 8, 10, ... 2 more",
            "  n2      INT64     [2, 3]  0, 2, 4, 6, 8, 10",
        ]

    def test_batch_axis_may_be_left_out(self, server: LocalServer, files: Path) -> None:
        items = ("--input", f"a={files}/a_item.npy", "--input", f"n={files}/n_item.npy")
        document = infer_json(server, "--model", "two_inputs", *items)
        assert [output["shape"] for output in document["results"][0]["outputs"]] == [[1, 4], [1, 3]]

    def test_random(self, server: LocalServer, tmp_path: Path) -> None:
        flags = ("--model", "text", "--random", "--shape", "text=3", "--batch", 2, "--output-dir", tmp_path)
        first = infer_json(server, *flags)
        same, opposite = first["results"][0]["outputs"]
        assert (same["datatype"], same["shape"]) == ("BYTES", [2, 3])
        assert (opposite["datatype"], opposite["shape"]) == ("BOOL", [2, 2])
        assert np.load(tmp_path / "same.npy", allow_pickle=False).shape == (2, 3)
        assert infer_json(server, *flags)["results"] == first["results"]
        assert infer_json(server, *flags, "--seed", 5)["results"] != first["results"]

    def test_random_beside_given(self, server: LocalServer, files: Path) -> None:
        flags = ("--model", "two_inputs", "--input", f"n={files}/n.npy", "--random")
        outputs = infer_json(server, *flags)["results"][0]["outputs"]
        assert outputs[0]["shape"] == [2, 4]
        assert outputs[1]["first_values"] == [0, 2, 4, 6, 8, 10]

    @pytest.mark.parametrize(
        ("flags", "code", "message"),
        [
            ([], 2, "needs a (FP32 [4]), n (INT64 [-1])"),
            (["--input", "a=a.npy"], 2, "needs n (INT64 [-1])"),
            (["--input", "b=a.npy"], 2, "has no input 'b'; it has a, n"),
            (["--input", "a"], 2, "is not NAME=VALUE"),
            (["--random"], 2, "--shape n=SIZE"),
            (["--shape", "n=3"], 2, "--shape is for random values"),
            (["--input-range", "n=0:3"], 2, "--input-range is for random values"),
            (["--random", "--shape", "n=1", "--input-range", "n=0:x"], 2, "'0:x' is not a range"),
            (["--random", "--shape", "n=1", "--input-range", "n=0:1.5"], 2, "takes whole numbers"),
            (["--random", "--shape", "n=0x3"], 1, "takes INT64 [-1, -1], but the batch is empty"),
            (["--random", "--shape", "n=x"], 2, "'x' is not a shape"),
            (["--random", "--shape", "n"], 2, "--shape 'n' is not NAME=VALUE"),
            (["--input", "a=a.npy", "--batch", "2"], 2, "--batch is for pictures"),
            (["x.jpg", "--random"], 2, "pictures can't go together"),
            (["--input", "a=gone.npy", "--random", "--shape", "n=1"], 1, "gone.npy: No such file"),
            (["--input", "a=n.npy", "--random", "--shape", "n=1"], 1, "[-1, 4], but the array is int64 [2, 3]"),
            (["--input", "a=wide.npy", "--random", "--shape", "n=1"], 1, "takes FP32 [-1, 4], but the array is [2, 5]"),
            (["--input", "a=pickle.npy", "--random", "--shape", "n=1"], 1, "holds Python objects"),
            (["--random", "--shape", "n=1", "--batch", "5"], 1, "in batches up to 4"),
        ],
    )  # fmt: skip
    def test_misuse_is_one_line(
        self, server: LocalServer, files: Path, flags: list[str], code: int, message: str
    ) -> None:
        np.save(files / "wide.npy", np.zeros((2, 5), np.float32))
        np.save(files / "pickle.npy", np.array([{}], object), allow_pickle=True)
        placed = [flag.replace("=", f"={files}/", 1) if flag.endswith(".npy") else flag for flag in flags]
        assert message in refused(infer(server, "--model", "two_inputs", *placed), code)

    @pytest.mark.parametrize(
        "flags",
        ["--top 0", "--repeat 0", "--repeat x", "--batch 0", "--warmup -1", "--seed -1", "--timeout 0", "--timeout nan",
         "--nonsense", "--model", "--url grpc://x", "--input image", "--random", "--shape x"],
    )  # fmt: skip
    def test_flags_that_can_not_be_right(self, flags: str) -> None:
        refused(infer(None, "x.jpg", *flags.split()), 2)

    @pytest.mark.parametrize("datatype", EVERY_DATATYPE)
    def test_every_datatype_there_and_back(self, server: LocalServer, tmp_path: Path, datatype: str) -> None:
        values = {"BOOL": [True, False, True], "STRING": ["ü", "", "a b"]}.get(datatype, [0, 1, 100])
        given = np.array([values, values])
        if datatype in {"FP16", "FP64", "INT8", "UINT64"}:
            given = given.astype(np.dtype({"FP16": "e", "FP64": "d", "INT8": "b", "UINT64": "Q"}[datatype]))
        elif datatype == "BF16":
            given = given.astype(np.float32)
        for model, array in (("row", given), ("scalar", given[:, :1]), ("scalar", given[0, 0])):
            np.save(tmp_path / "x.npy", array)
            flags = ("--model", f"{model}_{datatype.lower()}", "--output-dir", tmp_path / "out")
            infer_json(server, *flags, "--input", f"x={tmp_path}/x.npy")
            saved = np.load(tmp_path / "out" / "y.npy", allow_pickle=False)
            assert saved.shape == (array.shape or (1, 1))
            if datatype == "STRING":
                saved = np.char.decode(saved, "utf-8")
            assert np.array_equal(saved.reshape(array.shape), array)
            if datatype != "STRING":
                assert saved.dtype == array.dtype
            document = infer_json(server, *flags, "--random", "--batch", 3)
            (output,) = document["results"][0]["outputs"]
            assert output["shape"][0] == 3
            assert output["datatype"] == datatype.replace("STRING", "BYTES")

    def test_numpys_own_dtype_is_sent_with_a_word(self, server: LocalServer, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.asfortranarray(np.arange(8.0).reshape(2, 4)))
        np.save(tmp_path / "n.npy", np.arange(6, dtype=">i4").reshape(2, 3))
        files = ("--input", f"a={tmp_path}/a.npy", "--input", f"n={tmp_path}/n.npy")
        done = infer(server, "--model", "two_inputs", *files)
        assert done.returncode == 0, done.stderr
        assert f"\ninput 'a': float64 of {tmp_path}/a.npy is sent as FP32\n" in done.stderr
        assert f"\ninput 'n': int32 of {tmp_path}/n.npy is sent as INT64\n" in done.stderr
        assert "FP32      [2, 4]  0, 2, 4, 6, 8, 10, ... 2 more" in done.stdout
        assert "INT64     [2, 3]  0, 2, 4, 6, 8, 10" in done.stdout

    def test_range_of_random_values(self, server: LocalServer) -> None:
        flags = ("--model", "lookup", "--random", "--shape", "index=50")
        error = refused(infer(server, *flags), 1)
        assert "indices element out of data bounds" in error
        assert "hint: --input-range NAME=LOW:HIGH" in error
        (row,) = infer_json(server, *flags, "--input-range", "index=0:2")["results"][0]["outputs"]
        assert row["shape"] == [50, 2]

    def test_batch_of_none(self, server: LocalServer, tmp_path: Path) -> None:
        """The real server ends when scalars come in a batch of none, so nothing of the kind may be sent."""
        for model, shape in (("colors", (0, 3, 8, 8)), ("scalar_fp64", (0, 1)), ("row_string", (0, 3))):
            array: np.ndarray[Any, Any] = np.zeros(
                shape, {"scalar_fp64": np.float64, "row_string": np.str_}.get(model, np.float32)
            )
            np.save(tmp_path / "x.npy", array)
            name = "image" if model == "colors" else "x"
            error = refused(infer(server, "--model", model, "--input", f"{name}={tmp_path}/x.npy"), 1)
            assert "but the batch is empty" in error
        with Client(server.url) as triton:
            assert triton.ready()
            # Axes that are no batch may be empty.
            assert triton.infer("lookup", {"index": np.zeros(0, np.int64)})["row"].shape == (0, 2)


class TestLatency:
    def test_repeat(self, server: LocalServer, pictures: Path) -> None:
        with Client(server.url) as triton:
            before = triton.statistics("colors", "1")
            flags = ("--model", "colors", "--repeat", 20, "--warmup", 3)
            latency = infer_json(server, pictures, *flags)["latency"]
            assert (triton.statistics("colors", "1") - before).requests == 23
        assert (latency["requests"], latency["items"]) == (20, 60)
        times = latency["request_ms"]
        assert times["min"] <= times["p50"] <= times["p90"] <= times["p95"] <= times["p99"] <= times["max"]
        assert times["unsupported"] == ["p90", "p95", "p99"]
        assert latency["items_per_second"] == pytest.approx(60 / (times["mean"] * 20 / 1000))
        assert latency["server_requests_of_other_clients"] == 0
        server_ms = latency["server_mean_ms"]
        assert set(server_ms) == {"queue", "compute_input", "compute_infer", "compute_output", "network_and_rest"}
        assert sum(server_ms.values()) == pytest.approx(times["mean"])
        assert server_ms["compute_infer"] > 0

    def test_people_see_the_same(self, server: LocalServer, pictures: Path) -> None:
        done = infer(server, pictures / "red.png", "--model", "colors", "--repeat", 8)
        text = done.stdout.split("latency of ")[1]
        assert text.startswith("8 requests with 8 pictures\n")
        assert "pictures/s, one request at a time" in text
        assert "p90 takes 44, p95 takes 90, p99 takes 459" in text


class TestErrors:
    def test_unknown_model(self, server: LocalServer) -> None:
        assert "has no model 'cat'; it has bfloat16, broken, colors, " in refused(infer(server, "--model", "cat"), 1)
        with Client(server.url) as triton, pytest.raises(UnknownModel):
            triton.infer("cat", {})

    def test_unknown_version(self, server: LocalServer) -> None:
        assert "'colors' has no version 7; it has 1" in refused(infer(server, "--model", "colors@7"), 1)
        for version in ("x", "-1", "99999999999999999999"):
            error = refused(infer(server, "x.jpg", "--model", "colors", "--model-version", version), 1)
            assert f"error: model 'colors' has no version {version}; it has 1\n" in error
        assert "--model asks for version 7" in refused(infer(server, "--model", "colors@7", "--model-version", 1), 2)

    def test_model_that_is_not_ready(self, server: LocalServer) -> None:
        assert "'broken' version 1 is UNAVAILABLE: " in refused(infer(server, "--model", "broken", "--random"), 1)
        with Client(server.url) as triton, pytest.raises(ModelNotReady):
            triton.metadata("broken")

    def test_refusal_of_the_model_keeps_its_message(self, server: LocalServer, tmp_path: Path) -> None:
        np.save(tmp_path / "index.npy", np.array([99], np.int64))
        error = refused(infer(server, "--model", "lookup", "--input", f"index={tmp_path}/index.npy"), 1)
        assert "99" in error
        with Client(server.url) as triton:
            with pytest.raises(InferenceRejected, match="99"):
                triton.infer("lookup", {"index": [99]})
            assert triton.infer("lookup", {"index": [2, 0]})["row"].tolist() == [[4, 5], [0, 1]]

    def test_nothing_listens(self) -> None:
        error = refused(infer(None, "x.jpg", "--url", "127.0.0.1:9"), 1)
        assert "no server answers at http://127.0.0.1:9: Connection refused" in error
        assert "--url" in error

    def test_silent_server(self) -> None:
        with fake_server(stay_silent) as silent:
            error = refused(infer(None, "x.jpg", "--url", silent.url, "--timeout", 0.2), 1)
        assert f"{silent.url} gave no answer within 0.2 s" in error

    def test_another_server(self, server: LocalServer) -> None:
        error = refused(infer(None, "x.jpg", "--url", f"{server.url}/somewhere"), 1)
        assert f"{server.url}/somewhere answers (HTTP status 404), but not as Triton's HTTP port does" in error
        assert "hint: check --url: " in error

    @pytest.mark.parametrize("flags", [(), ("--model", "colors"), ("--model", "colors@1")])
    def test_metrics_port(self, server: LocalServer, flags: tuple[str, ...]) -> None:
        error = refused(infer(None, "x.jpg", "--url", server.metrics_url.removesuffix("/metrics"), *flags), 1)
        assert "but not as Triton's HTTP port does" in error
        assert "hint: check --url: Triton's HTTP port is 8000 by default, not 8001 (gRPC) or 8002 (metrics)" in error

    def test_grpc_port(self, server: LocalServer) -> None:
        error = refused(infer(None, "x.jpg", "--url", server.grpc_url), 1)
        assert "speaks HTTP/2 (as a gRPC port does), not plain HTTP" in error
        assert "hint: check --url: " in error

    def test_https_where_there_is_none(self, server: LocalServer) -> None:
        for url in (server.url, server.metrics_url.removesuffix("/metrics"), f"http://{server.grpc_url}"):
            secure = url.replace("http://", "https://")
            error = refused(infer(None, "x.jpg", "--url", secure), 1)
            assert f"no secure connection to {secure}: what answers speaks no TLS" in error
            assert f"hint: without TLS it is --url {url}\n" in error

    def test_a_web_server(self, tmp_path: Path) -> None:
        class Web(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Web, directory=str(tmp_path))) as web:
            threading.Thread(target=web.serve_forever, daemon=True).start()
            error = refused(infer(None, "x.jpg", "--url", f"127.0.0.1:{web.server_port}", "--model", "colors"), 1)
            web.shutdown()
        assert "answers with a web page (HTTP status 404), but not as Triton's HTTP port does" in error
        assert "hint: check --url: " in error

    def test_debug_shows_the_traceback(self) -> None:
        done = infer(None, "x.jpg", "--url", "127.0.0.1:9", "--debug")
        assert done.returncode == 1
        assert "Traceback" in done.stderr


class TestProcess:
    def test_terminal(self, server: LocalServer, pictures: Path) -> None:
        line = [sys.executable, "-m", "client.infer", str(pictures / "red.png"), "--model", "colors"]
        for setting, colored in ({}, True), ({"NO_COLOR": "1"}, False):
            ours, theirs = pty.openpty()
            env = environment(server) | {"TERM": "xterm-256color", **setting}
            with subprocess.Popen(line, stdout=theirs, stderr=subprocess.PIPE, env=env) as process:
                os.close(theirs)
                shown = b""
                while chunk := _read(ours):
                    shown += chunk
                os.close(ours)
                assert process.wait(30) == 0
            assert b"red" in shown
            assert (b"\x1b[32m" in shown) is colored

    def test_interrupt(self, server: LocalServer, pictures: Path) -> None:
        flags = ["--model", "colors", "--repeat", "10000000"]
        line = [sys.executable, "-m", "client.infer", str(pictures / "red.png"), *flags]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(server)) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith(b"model colors")
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=10)
        assert process.returncode == 130
        assert b"Traceback" not in rest

    def test_reader_that_leaves_early(self, server: LocalServer, pictures: Path) -> None:
        files = " ".join([str(pictures / "red.png")] * 200)
        line = f"{sys.executable} -m client.infer {files} --model colors | head -n 1"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment(server), check=False)
        assert done.stdout == f"{pictures / 'red.png'}\n"
        assert done.stderr == f"model colors, version 1, at {server.url}\n"

    def test_help_names_every_flag(self) -> None:
        done = infer(None, "--help")
        assert done.returncode == 0
        for flag in (
            "--model", "--url", "--top", "--batch", "--repeat", "--warmup", "--json", "--timeout", "--output-dir",
            "--input", "--random", "--seed", "--shape", "--debug",
        ):  # fmt: skip
            assert flag in done.stdout


class TestClient:
    def test_text_and_booleans(self, server: LocalServer) -> None:
        with Client(server.url) as triton:
            text = np.array([["a", "ü", ""], ["b\n", "\x00", "long" * 1000]])
            outputs = triton.infer("text", {"text": text, "flag": [[True, False], [False, False]]})
            assert outputs["opposite"].tolist() == [[False, True], [True, True]]
            assert [s.decode() for s in outputs["same"].reshape(-1)] == text.reshape(-1).tolist()
            assert list(triton.infer("text", {"text": [["x"]], "flag": [[True, True]]}, outputs=["same"])) == ["same"]

    def test_bfloat16(self, server: LocalServer) -> None:
        with Client(server.url) as triton:
            outputs = triton.infer("bfloat16", {"x": np.array([[1.0, 2.5, 1.005]], np.float32)})
        assert outputs["y"].tolist() == [[1.0, 2.5, 1.0078125]]
        assert outputs["z"].dtype.name == "bfloat16"
        assert outputs["z"].astype(np.float32).tolist() == outputs["y"].tolist()
        (y, z) = infer_json(server, "--model", "bfloat16", "--random")["results"][0]["outputs"]
        assert y["first_values"] == z["first_values"]

    def test_large_and_empty_tensors(self, server: LocalServer) -> None:
        with Client(server.url) as triton:
            a = np.ones((4, 4), np.float32)
            n = np.arange(4_000_000, dtype=np.int64).reshape(4, -1)
            outputs = triton.infer("two_inputs", {"a": a, "n": n})
            assert np.array_equal(outputs["n2"], n * 2)
            assert triton.infer("two_inputs", {"a": a, "n": n[:, :0]})["n2"].shape == (4, 0)

    def test_metadata(self, server: LocalServer) -> None:
        with Client(server.url) as triton:
            colors = triton.metadata("colors")
            assert (colors.version, colors.max_batch_size) == ("1", 4)
            assert colors.image == ImageSpec.from_json(json.dumps(SPEC))
            assert colors.outputs[0].label_filename == "labels.txt"
            states = {state.name: state for state in triton.models()}
            assert states["colors"].ready
            assert not states["broken"].ready
            assert states["broken"].reason

    def test_server_that_was_started_again(self, repository: Path) -> None:
        arrays: dict[str, npt.ArrayLike] = {"a": np.ones((1, 4), np.float32), "n": np.ones((1, 2), np.int64)}
        port = steady_port()
        with repo_builder.serve(repository, models=["two_inputs"], http_port=port) as first:
            triton = Client(first.url)
            triton.infer("two_inputs", arrays)
        with pytest.raises(ConnectionFailed, match="Connection refused"):
            triton.infer("two_inputs", arrays)
        with repo_builder.serve(repository, models=["two_inputs"], http_port=port):
            triton.infer("two_inputs", arrays)
        with repo_builder.serve(repository, models=["two_inputs"], http_port=port), triton:
            # The connection is still that to the server before.
            assert triton.infer("two_inputs", arrays)["a2"].tolist() == [[2, 2, 2, 2]]

    def test_arrays_that_do_not_fit_are_not_sent(self, server: LocalServer) -> None:
        with Client(server.url) as triton:
            before = triton.statistics("colors", "1")
            with pytest.raises(InputError, match=r"takes FP32 \[-1, 3, 8, 8\]"):
                triton.infer("colors", {"image": np.zeros((1, 3, 8, 9), np.float32)})
            assert (triton.statistics("colors", "1") - before).requests == 0

    def test_picture_as_path_bytes_and_image(self, server: LocalServer, pictures: Path) -> None:
        path = pictures / "red.png"
        with Client(server.url) as triton, Image.open(path) as image:
            same = triton.classify([path, str(path), path.read_bytes(), image], "colors", top=2)
        assert len(same) == 4
        assert all(result == same[0] for result in same)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux ends a pseudo-terminal so when its other side closes
        return b""
