from __future__ import annotations

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from client.errors import BadResponse, InputError
from client.protocol import RequestedOutput, Response, Tensor, inference_outputs, inference_request, model_path
from client.tensors import as_tensor, numpy_dtype

DATATYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]


def answer(outputs: list[dict[str, Any]], *parts: bytes) -> Response:
    header = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    headers = {"inference-header-content-length": str(len(header))}
    return Response(200, headers, header + b"".join(parts))


def output(name: str, datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def sent(value: npt.ArrayLike, datatype: str) -> bytes:
    """The bytes of one tensor as a request carries them."""
    request = inference_request("m", "", [Tensor("x", datatype, as_tensor(value, datatype))])
    return request.body[int(request.headers["Inference-Header-Content-Length"]) :]


class TestTensors:
    @pytest.mark.parametrize("datatype", [*DATATYPES, "BF16"])
    @pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (1,)])
    def test_round_trip(self, datatype: str, shape: tuple[int, ...]) -> None:
        dtype = numpy_dtype(datatype)
        array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
        wire = sent(array, datatype)
        assert wire == array.tobytes()
        result = inference_outputs(answer([output("y", datatype, list(shape), len(wire))], wire))["y"]
        assert result.dtype == dtype
        assert result.shape == shape
        assert np.array_equal(result, array)
        result[...] = 0  # an array of its own, free to be changed

    def test_rows_are_sent_in_order_whatever_the_layout(self) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert sent(np.asfortranarray(array), "FP32") == array.tobytes()
        assert sent(array[:, ::2], "FP32") == array[:, ::2].tobytes()

    def test_big_endian_arrays_are_turned(self) -> None:
        array = np.array([1.5, -2.0], ">f4")
        assert sent(array, "FP32") == array.astype("<f4").tobytes()

    @pytest.mark.parametrize(
        "value",
        [
            np.array([["a", "ümlaut"], ["", "d\n"]]),
            np.array([["a", "ümlaut"], ["", "d\n"]], np.object_),
            [["a", "ümlaut"], ["", "d\n"]],
            np.array([[b"a", "ümlaut".encode()], [b"", b"d\n"]], np.object_),
        ],
    )
    def test_text(self, value: npt.ArrayLike) -> None:
        wire = sent(value, "BYTES")
        assert wire == b"".join(struct.pack("<I", len(s)) + s for s in (b"a", "ümlaut".encode(), b"", b"d\n"))
        result = inference_outputs(answer([output("y", "BYTES", [2, 2], len(wire))], wire))["y"]
        assert result.tolist() == [[b"a", "ümlaut".encode()], [b"", b"d\n"]]

    def test_float32_is_rounded_to_bf16(self) -> None:
        array = as_tensor(np.array([1.0, 1.005, 3.14159], np.float32), "BF16")
        assert array.dtype == ml_dtypes.bfloat16
        assert array.astype(np.float32).tolist() == [1.0, 1.0078125, 3.140625]

    @pytest.mark.parametrize(
        ("array", "datatype"),
        [
            (np.zeros(2, np.float64), "FP32"),
            (np.zeros(2, np.int32), "INT64"),
            (np.zeros(2, np.float64), "BF16"),
            (np.zeros(2), "BYTES"),
            (np.array(["1"]), "FP32"),
            (np.array([None]), "INT64"),
            (["one"], "FP32"),
            ([[1], [1, 2]], "INT64"),
            ([1e400, 2**70], "INT64"),
        ],
    )
    def test_nothing_else_is_cast(self, array: npt.ArrayLike, datatype: str) -> None:
        with pytest.raises(InputError):
            as_tensor(array, datatype)

    def test_python_numbers_take_the_datatype(self) -> None:
        assert as_tensor([[1, 2]], "FP16").dtype == np.float16
        assert as_tensor(3, "INT64").shape == ()


class TestRequests:
    def test_request(self) -> None:
        tensors = [Tensor("a", "FP32", np.ones((1, 2), np.float32)), Tensor("b", "BYTES", np.array([b"xy"], object))]
        request = inference_request("m/é", "3", tensors, [RequestedOutput("y"), RequestedOutput("z", classes=5)])
        length = int(request.headers["Inference-Header-Content-Length"])
        assert request.method == "POST"
        assert request.path == "/v2/models/m%2F%C3%A9/versions/3/infer"
        assert json.loads(request.body[:length]) == {
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
                {"name": "b", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
            ],
            "outputs": [
                {"name": "y", "parameters": {"binary_data": True}},
                {"name": "z", "parameters": {"binary_data": True, "classification": 5}},
            ],
        }
        assert request.body[length:] == np.ones(2, np.float32).tobytes() + b"\x02\x00\x00\x00xy"

    def test_all_outputs_are_asked_for_in_binary(self) -> None:
        request = inference_request("m", "", [])
        assert json.loads(request.body)["parameters"] == {"binary_data_output": True}
        assert "outputs" not in json.loads(request.body)

    def test_model_path(self) -> None:
        assert model_path("a b/../c") == "/v2/models/a%20b%2F..%2Fc"
        assert model_path("\udcff", "ü") == "/v2/models/%FF/versions/%C3%BC"


class TestAnswers:
    def test_several_outputs(self) -> None:
        one, two = np.arange(3, dtype=np.int16), np.arange(2, dtype=np.float64)
        response = answer(
            [output("one", "INT16", [3], 6), output("none", "FP32", [0], 0), output("two", "FP64", [2], 16)],
            one.tobytes(),
            two.tobytes(),
        )
        outputs = inference_outputs(response)
        assert list(outputs) == ["one", "none", "two"]
        assert np.array_equal(outputs["one"], one)
        assert np.array_equal(outputs["two"], two)

    def test_tensors_may_come_as_json(self) -> None:
        body = b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}'
        assert inference_outputs(Response(200, {}, body))["y"].tolist() == [1.0, 2.0]

    @pytest.mark.parametrize(
        "response",
        [
            Response(200, {}, b""),
            Response(200, {}, b"<html>"),
            Response(200, {}, b"\xff"),
            Response(200, {}, b"[]"),
            Response(200, {}, b'{"outputs": [1]}'),
            Response(200, {"inference-header-content-length": "x"}, b'{"outputs": []}'),
            answer([output("y", "FP32", [2], 8)], b"1234"),
            answer([output("y", "FP32", [3], 8)], b"12345678"),
            answer([output("y", "FP32", [-1], 4)], b"1234"),
            answer([output("y", "FP32", [2], -8)], b"12345678"),
            answer([output("y", "FP128", [1], 16)], bytes(16)),
            answer([output("y", "BYTES", [1], 3)], b"\x01\x00\x00"),
            answer([output("y", "BYTES", [1], 5)], b"\x02\x00\x00\x00x"),
            answer([output("y", "BYTES", [2], 5)], b"\x01\x00\x00\x00x"),
        ],
    )
    def test_what_is_not_sound_is_a_bad_response(self, response: Response) -> None:
        with pytest.raises(BadResponse):
            inference_outputs(response)
