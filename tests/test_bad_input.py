"""Bad input: one line that says what is wrong, one that says what to do, and a repository byte for byte as before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder import BuildOptions, Target, add_model
from tests import models
from tests.conftest import Cli, SmallDisk
from tests.models import FP32, identity, linear, model, node, save, weights, with_external_data
from tests.support import untouched, without_root_rights

Arguments = list[object]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good model and a repository that it was published in."""
    folder = tmp_path_factory.mktemp("workplace")
    good = save(linear(), folder / "good.onnx")
    add_model(good, name="net", repository=folder / "model_repository", build=BuildOptions(target=Target.ONNXRUNTIME))
    return folder


@pytest.fixture
def add(cli: Cli, workplace: Path, tmp_path: Path) -> Callable[..., tuple[str, str, int]]:
    """``repo-builder add`` in a copy of the workplace; gives message, hint and exit code of the refusal."""
    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)

    def refused(*arguments: object) -> tuple[str, str, int]:
        with untouched(tmp_path):
            result = cli("add", "--target", "onnxruntime", *arguments)
        return result.error, result.hint, result.code

    return refused


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = linear()
    change(proto)
    return proto


def set_type(number: int) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: setattr(proto.graph.input[0].type.tensor_type, "elem_type", number)


def no_tensor(kind: onnx.TypeProto) -> Callable[[onnx.ModelProto], object]:
    return lambda proto: proto.graph.output[0].type.CopyFrom(kind)


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])

MODELS: dict[str, tuple[onnx.ModelProto, str]] = {
    "unknown operator": (changed(lambda proto: setattr(proto.graph.node[0], "op_type", "MatMull")), "MatMull"),
    "unknown domain": (
        model(
            [node("Mix", ["x"], ["y"], domain="my.company")],
            {"x": (FP32, [1])},
            {"y": (FP32, [1])},
            domains={"my.company": 1},
        ),
        "ONNX Runtime has no operator 'my.company:Mix'",
    ),
    "domain without version": (
        changed(lambda proto: setattr(proto.graph.node[0], "domain", "my")),
        "no operator 'my:MatMul'",
    ),
    "unknown opset": (model([node("Relu", ["x"], ["y"])], {"x": (FP32, [1])}, {"y": (FP32, [1])}, opset=99), "opset"),
    "unknown IR version": (
        model([node("Relu", ["x"], ["y"])], {"x": (FP32, [1])}, {"y": (FP32, [1])}, ir_version=99),
        "its ir_version is 99",
    ),
    "complex64": (changed(set_type(TensorProto.COMPLEX64)), "COMPLEX64"),
    "float8": (changed(set_type(TensorProto.FLOAT8E4M3FN)), "FLOAT8E4M3FN"),
    "int4": (changed(set_type(TensorProto.INT4)), "INT4"),
    "sequence": (changed(no_tensor(helper.make_sequence_type_proto(FLOATS))), "only tensors"),
    "map": (changed(no_tensor(helper.make_map_type_proto(TensorProto.INT64, FLOATS))), "only tensors"),
    "input without rank": (identity(FP32, None, None), "states no shape"),
    "input nobody makes": (
        changed(lambda proto: proto.graph.node[0].input.__setitem__(0, "z")),
        "ONNX Runtime can't load",
    ),
    "node without output": (changed(lambda proto: proto.graph.node[0].ClearField("output")), "ONNX Runtime can't load"),
    "node without input": (changed(lambda proto: proto.graph.node[0].ClearField("input")), "ONNX Runtime can't load"),
    "weights of another size": (
        changed(lambda proto: setattr(proto.graph.initializer[0], "raw_data", b"1234")),
        "ONNX Runtime can't load",
    ),
    "no outputs": (changed(lambda proto: proto.graph.ClearField("output")), "the graph in bad.onnx has no outputs"),
    "no opset": (changed(lambda proto: proto.ClearField("opset_import")), "opset"),
    "too large an input": (identity(FP32, [1, 10**15], [1, 10**15]), "1000000000000000 elements"),
    "random numbers": (models.random_numbers(), "differs from run to run"),
    "nan": (models.not_a_number(), "is NaN"),
    "index": (models.lookup(), "can't run"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, add: Callable[..., tuple[str, str, int]], tmp_path: Path) -> None:
    proto, why = MODELS[name]
    save(proto, tmp_path / "bad.onnx")

    message, _, code = add("bad.onnx")

    assert why in message
    assert code == 1


class TestFiles:
    def test_that_are_not_there(self, add: Callable[..., tuple[str, str, int]]) -> None:
        assert add("nothing.onnx")[0] == "nothing.onnx does not exist"

    def test_that_are_folders(self, add: Callable[..., tuple[str, str, int]]) -> None:
        assert "is a folder" in add(".")[0]

    @pytest.mark.parametrize(
        ("data", "why"),
        [(b"", "is empty"), (b"PK\x03\x04...", "not an ONNX file"), (b"\x08\x08", "holds no ONNX graph")],
    )
    def test_that_are_no_models(
        self, data: bytes, why: str, add: Callable[..., tuple[str, str, int]], tmp_path: Path
    ) -> None:
        (tmp_path / "bad.onnx").write_bytes(data)

        assert why in add("bad.onnx")[0]

    def test_that_can_not_be_read(self, cli: Cli, tmp_path: Path) -> None:
        path = save(linear(), tmp_path / "source/bad.onnx")
        path.chmod(0)

        with untouched(tmp_path / "model_repository"), without_root_rights():
            result = cli("add", path)

        assert "can't be read: Permission denied" in result.error

    @pytest.mark.parametrize("flag", [[], ["--labels"], ["--config"], ["--timing-cache"]])
    def test_that_the_parser_finds_unreadable(
        self, flag: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """access(2), which the parser asks, tells of the rights that a process could have, not of those it has."""
        access = os.access
        monkeypatch.setattr("os.access", lambda path, mode: access(path, mode, effective_ids=True))
        closed = tmp_path / "bad.onnx"
        closed.write_bytes(b"...")
        closed.chmod(0)

        with without_root_rights():
            result = cli("add", *([__file__] if flag else []), *flag, "bad.onnx")

        assert (result.code, result.out) == (2, "")
        assert result.error == "'bad.onnx' can't be read: Permission denied"
        assert result.hint == "check its permissions"

    @pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "gone.bin", ""])
    def test_with_weights_elsewhere(
        self, location: str, add: Callable[..., tuple[str, str, int]], tmp_path: Path
    ) -> None:
        with_external_data(tmp_path / "bad", location)
        (tmp_path / "secret").write_bytes(bytes(48))

        message = add("bad/net.onnx")[0]

        assert "weights" in message


OPTIONS: dict[str, tuple[Arguments, str, int]] = {
    "name with /": (["--name", "a/b"], "'a/b' is not a model name", 2),
    "name ..": (["--name", ".."], "'..' is not a model name", 2),
    "long name": (["--name", "a" * 255], "'aaaaaaaaaaaaaaaaaaaa...' is not a model name: it is 255 characters", 2),
    "name with quotes": (["--name", 'a"b'], "is not a model name", 2),
    "name with a new line": (["--name", "a\nb"], r"'a\nb' is not a model name", 2),
    "negative batch": (["--max-batch-size", -1], "--max-batch-size -1", 2),
    "batch beyond int32": (["--max-batch-size", 2**31], "--max-batch-size 2147483648", 2),
    "batch that is no number": (["--max-batch-size", "many"], "'--max-batch-size'", 2),
    "batch beyond memory": (["--max-batch-size", 2**31 - 1], "too large to be verified", 1),
    "preferred beyond batch": (["--max-batch-size", 4, "--preferred-batch-sizes", "2,8"], "preferred_batch_size 8", 1),
    "preferred that is no number": (["--preferred-batch-sizes", "4,x"], "not a list of numbers", 2),
    "preferred 0": (["--preferred-batch-sizes", "0"], "--preferred-batch-sizes: 0", 2),
    "negative delay": (["--max-queue-delay-us", -1], "--max-queue-delay-us -1", 2),
    "endless delay": (["--max-queue-delay-us", 2**63], "--max-queue-delay-us 9223372036854775808 is no time", 2),
    "no instance": (["--instance-count", 0], "--instance-count 0", 2),
    "too many instances": (["--instance-count", 100000], "--instance-count 100000 is no number of copies", 2),
    "batching turned off": (["--no-batching", "--max-batch-size", 4], "--no-batching and a max_batch_size of 4", 2),
    "delay without batching": (["--no-batching", "--max-queue-delay-us", 4], "and --max-queue-delay-us contradict", 2),
    "sizes without batching": (
        ["--no-batching", "--preferred-batch-sizes", 4],
        "and --preferred-batch-sizes contra",
        2,
    ),
    "empty name": (["--name", ""], "'' is not a model name", 2),
    "config that contradicts": (["--config", "size.pbtxt", "--max-batch-size", 8], "8, but size.pbtxt says 4", 2),
    "unknown kind": (["--instance-kind", "tpu"], "tpu", 2),
    "unknown target": (["--target", "openvino"], "openvino", 2),
    "unknown option": (["--batch", 4], "--batch", 2),
    "two models": (["good.onnx"], "good.onnx", 2),
    "labels that are not there": (["--labels", "nothing.txt"], "nothing.txt can't be read", 2),
    "too few labels": (["--labels", "two.txt"], "2 labels for the 3 classes of output 'y'", 1),
    "no picture": (["--image", "imagenet"], "0 inputs of the model take pictures", 1),
    "unknown preset": (["--image", "imagnet"], "--image imagnet", 2),
    "override of no preset": (["--crop", "224"], "--crop needs a preset", 2),
    "crop that is no size": (["--image", "unit", "--crop", "a"], "--crop a: not a size", 2),
    "crop of three": (["--image", "unit", "--crop", "1x2x3"], "--crop 1x2x3", 2),
    "resize of 0": (["--image", "unit", "--resize", "0"], "--resize 0", 2),
    "std of 0": (["--image", "unit", "--std", "1,0,1"], "--std: 0", 2),
    "mean that is no number": (["--image", "unit", "--mean", "nan"], "--mean nan", 2),
    "config that is not there": (["--config", "nothing.pbtxt"], "nothing.pbtxt can't be read", 2),
    "config that is none": (["--config", "two.txt"], "two.txt: 1:1", 1),
    "config of another shape": (["--config", "dims.pbtxt"], "has dims [4] in the model, [5] in the config", 1),
    "config of another name": (["--config", "name.pbtxt"], "'other' is not the model's name 'good'", 1),
    "negative rtol": (["--rtol", -1], "--rtol -1", 2),
    "rtol that lets all pass": (["--rtol", "nan"], "--rtol nan", 2),
    "atol that lets all pass": (["--atol", "inf"], "--atol inf", 2),
    "input without file": (["--input", "x"], "--input x: expected NAME=FILE.npy", 2),
    "input without name": (["--input", "=x.npy"], "--input =x.npy: expected", 2),
    "input that the model lacks": (["--input", "z=x.npy"], "no input 'z'", 2),
    "input that is not there": (["--input", "x=nothing.npy"], "nothing.npy can't be read", 2),
    "input that is no array": (["--input", "x=two.txt"], "not a plain .npy array", 2),
    "input of another type": (["--input", "x=x.npy"], "holds float64; input 'x' is FP32", 2),
    "range without end": (["--input-range", "x=1"], "'1' is not LOW:HIGH", 2),
    "range of three": (["--input-range", "x=1:2:3"], "'1:2:3' is not LOW:HIGH", 2),
    "range of words": (["--input-range", "x=a:b"], "'a:b' is not LOW:HIGH", 2),
    "range upside down": (["--input-range", "x=2:1"], "--input-range x=2:1: no value lies between", 2),
    "endless range": (["--input-range", "x=0:inf"], "no value lies between", 2),
    "range of an input that the model lacks": (["--input-range", "z=0:1"], "no input 'z'", 2),
    "input twice": (["--input", "x=x.npy", "--input", "x=y.npy"], "--input x=... is given twice", 2),
    "range twice": (["--input-range", "x=0:1", "--input-range", "x=0:2"], "--input-range x=... is given twice", 2),
    "shape twice": (["--shape", "x=1x4", "--shape", "x=2x4"], "--shape x=... is given twice", 2),
    "input and range": (["--input", "x=x.npy", "--input-range", "x=0:1"], "--input x=... has its own values", 2),
    "shape of words": (["--shape", "x=1xa"], "--shape 1xa: not a size", 2),
    "negative shape": (["--shape", "x=-1x4"], "not a size", 2),
    "shape of nothing": (["--shape", "x=0x4"], "--shape x=0x4 has no elements", 2),
    "shape without sizes": (["--shape", "x="], "--shape x=: expected", 2),
    "shape of another rank": (["--shape", "x=4"], "shape 4 does not fit input x FP32", 2),
    "shape that does not fit": (["--shape", "x=1x5"], "shape 1x5 does not fit input x FP32 [batch, 4]", 2),
    "repository that is a file": (["--repository", "two.txt"], "two.txt is not a folder", 1),
    "repository below a file": (["--repository", "two.txt/models"], "can't write to two.txt/models", 1),
    "TensorRT's options": (["--fp16"], "TensorRT", 2),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, add: Callable[..., tuple[str, str, int]], tmp_path: Path) -> None:
    arguments, why, code = OPTIONS[name]
    (tmp_path / "two.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "dims.pbtxt").write_text('input [ { name: "x" dims: [ 5 ] } ]', encoding="utf-8")
    (tmp_path / "size.pbtxt").write_text("max_batch_size: 4", encoding="utf-8")
    (tmp_path / "name.pbtxt").write_text('name: "other"', encoding="utf-8")
    np.save(tmp_path / "x.npy", np.ones((1, 4)))

    message, _, exit_code = add("good.onnx", *arguments)

    assert why in message
    assert exit_code == code


def test_a_batch_for_a_model_that_has_none(add: Callable[..., tuple[str, str, int]], tmp_path: Path) -> None:
    save(models.mean_over_rows(), tmp_path / "bad.onnx")

    message, hint, _ = add("bad.onnx", "--max-batch-size", 4)

    assert "--max-batch-size 4: the model can't be batched: its first axis is no batch" in message
    assert hint == "drop the flag; --no-batching serves it as it is"


def test_nan_in_an_input_is_not_put_down_to_chance(add: Callable[..., tuple[str, str, int]], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 4), np.nan, np.float32))
    np.save(tmp_path / "small.npy", np.full((1, 4), -1, np.float32))
    save(models.not_a_number(), tmp_path / "root.onnx")

    assert add("good.onnx", "--input", "x=x.npy")[0] == "output 'y' of good.onnx is NaN, as is the file of input 'x'"
    assert "is NaN under ONNX Runtime on the inputs given" in add("root.onnx", "--input", "x=small.npy")[0]


def test_names_in_the_model_do_not_break_the_line(add: Callable[..., tuple[str, str, int]], tmp_path: Path) -> None:
    save(
        changed(lambda proto: setattr(proto.graph.node[0], "op_type", "Evil\n\x1b[31mhint: rm -rf /")),
        tmp_path / "bad.onnx",
    )

    message = add("bad.onnx")[0]

    assert r"Evil\n\x1b[31mhint: rm" in message


class TestPlaces:
    """The model is good; where it is to go is not."""

    def test_a_full_disk(self, cli: Cli, small_disk: SmallDisk, tmp_path: Path) -> None:
        disk = small_disk(512)
        proto = model([node("MatMul", ["x", "W"], ["y"])], {"x": (FP32, ["N", 400])}, {"y": (FP32, ["N", 400])})
        proto.graph.initializer.append(numpy_helper.from_array(weights(400, 400), "W"))
        save(proto, tmp_path / "large.onnx")
        save(linear(), tmp_path / "small.onnx")
        assert cli("add", "small.onnx", "--target", "onnxruntime", "-r", disk / "models").code == 0

        with untouched(disk):
            result = cli("add", "large.onnx", "--name", "small", "--target", "onnxruntime", "-r", disk / "models")

        assert result.error == f"the disk of {disk / 'models'} is full; nothing was changed"
        assert "free some space" in result.hint

    def test_a_folder_that_nobody_may_write_to(self, cli: Cli, workplace: Path, tmp_path: Path) -> None:
        shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
        repository = tmp_path / "model_repository"
        repository.chmod(0o555)

        with untouched(tmp_path), without_root_rights():
            result = cli("add", "good.onnx", "--target", "onnxruntime")

        assert "can't write to model_repository: Permission denied" in result.error

    def test_a_repository_whose_path_is_not_text(self, cli: Cli, workplace: Path, tmp_path: Path) -> None:
        shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)

        with untouched(tmp_path):
            result = cli("add", "good.onnx", "--target", "onnxruntime", "-r", os.fsdecode(b"models\xff"))

        assert "models\\udcff' is not UTF-8 text" in result.error

    def test_a_models_place_taken_by_a_file(self, cli: Cli, workplace: Path, tmp_path: Path) -> None:
        shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
        (tmp_path / "model_repository/good").write_text("mine")

        with untouched(tmp_path):
            result = cli("add", "good.onnx", "--target", "onnxruntime")

        assert "model_repository/good is in the way" in result.error
        assert "--name" in result.hint
