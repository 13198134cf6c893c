"""The client against an in-memory server; tests/integration/test_infer.py has the real one."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import client
from client import (
    BadResponse,
    Classification,
    Client,
    ClientError,
    ConnectionFailed,
    InferenceRejected,
    InputError,
    ModelNotReady,
    UnknownModel,
    UsageError,
)
from client.protocol import Response
from tests.client.fakes import FakeTransport

READY = {"name": "net", "version": "1", "state": "READY"}
BROKEN = {"name": "bad", "version": "2", "state": "UNAVAILABLE", "reason": "Internal: no such file\n\nAt:\n  x.py"}


def config(**changes: Any) -> dict[str, Any]:
    return {
        "name": "net",
        "max_batch_size": 2,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}],
        **changes,
    }


def server(**answers: Any) -> FakeTransport:
    """An in-memory server with the model ``net``; keyword arguments replace its answers."""
    paths = {
        "index": "/v2/repository/index",
        "metadata": "/v2/models/net",
        "config": "/v2/models/net/config",
        "infer": "/v2/models/net/infer",
    }
    defaults = {"index": [READY], "metadata": {"name": "net", "versions": ["1"]}, "config": config()}
    return FakeTransport({paths[key]: value for key, value in {**defaults, **answers}.items()})


def tensor_answer(name: str, array: np.ndarray[Any, Any], datatype: str = "FP32") -> Response:
    data = array.tobytes()
    entry = {
        "name": name,
        "datatype": datatype,
        "shape": array.shape,
        "parameters": {"binary_data_size": len(data)},
    }
    header = json.dumps({"outputs": [entry]}).encode()
    return Response(200, {"inference-header-content-length": str(len(header))}, header + data)


class TestInfer:
    def test_outputs_by_name(self) -> None:
        expected = np.array([[1, 2, 3]], np.float32)
        transport = server(infer=tensor_answer("y", expected))
        with Client(transport=transport) as triton:
            outputs = triton.infer("net", {"x": [[4, 5, 6]]}, outputs=["y"])
        assert np.array_equal(outputs["y"], expected)
        assert transport.requests[-1].body.endswith(np.array([4, 5, 6], np.float32).tobytes())
        assert transport.closed

    def test_description_is_asked_for_once(self) -> None:
        transport = server(infer=tensor_answer("y", np.zeros((1, 3), np.float32)))
        triton = Client(transport=transport)
        for _ in range(3):
            triton.infer("net", {"x": np.zeros((1, 3), np.float32)})
        assert [request.path for request in transport.requests[:2]] == ["/v2/models/net", "/v2/models/net/config"]
        assert len(transport.requests) == 5

    def test_description_is_asked_for_again_when_the_model_was_replaced(self) -> None:
        transport = server(infer=tensor_answer("y", np.zeros((1, 3), np.float32)))
        triton = Client(transport=transport)
        triton.metadata("net")
        wider = config(input=[{"name": "x", "data_type": "TYPE_FP32", "dims": [5]}])
        transport.answers["/v2/models/net/config"] = wider
        triton.infer("net", {"x": np.zeros((1, 5), np.float32)})
        with pytest.raises(InputError):
            triton.infer("net", {"x": np.zeros((1, 3), np.float32)})

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, r"also needs x \(FP32 \[3\]\)"),
            ({"z": np.zeros(3, np.float32)}, "has no input 'z'; it has x"),
            ({"x": np.zeros(3, np.float32)}, r"takes FP32 \[-1, 3\], but the array is \[3\]"),
            ({"x": np.zeros((1, 4), np.float32)}, r"takes FP32 \[-1, 3\], but the array is \[1, 4\]"),
            ({"x": np.zeros((1, 3))}, r"takes FP32 \[-1, 3\], but the array is float64 \[1, 3\]"),
            ({"x": np.zeros((3, 3), np.float32)}, "in batches up to 2, but the array has 3"),
            ({"x": np.zeros((0, 3), np.float32)}, r"takes FP32 \[-1, 3\], but the batch is empty"),
            ({"x": []}, r"takes FP32 \[-1, 3\], but the array is \[0\]"),
            ({"x": np.array([["1", "2", "3"]])}, r"takes FP32 \[-1, 3\], but the array is text \[1, 3\]"),
            ({"x": [["one", 2, 3]]}, "takes FP32 .* but the values can't be FP32: could not convert"),
        ],
    )
    def test_arrays_that_do_not_fit(self, inputs: dict[str, Any], message: str) -> None:
        transport = server()
        with pytest.raises(InputError, match=message) as caught:
            Client(transport=transport).infer("net", inputs)
        assert caught.value.hint
        assert not any(request.path.endswith("/infer") for request in transport.requests)


class TestErrors:
    def test_rejected_with_the_servers_message(self) -> None:
        refusal = Response(400, {}, b'{"error": "[request id: <id_unknown>] too cold"}')
        with pytest.raises(InferenceRejected, match=r"^too cold$"):
            Client(transport=server(infer=refusal)).infer("net", {"x": [[1, 2, 3]]})

    def test_unknown_model(self) -> None:
        with pytest.raises(UnknownModel, match="no model 'cat'; it has bad, net"):
            Client(transport=server(index=[READY, BROKEN])).metadata("cat")
        with pytest.raises(UnknownModel, match="no model 'cat'; it has none"):
            Client(transport=server(index=[])).metadata("cat")

    def test_unknown_version(self) -> None:
        index = [dict(READY, version=version) for version in ("10", "2")]
        for version in ("7", "x", "-1", "1.0"):
            transport = server(index=index)
            if not version.isdecimal():  # Triton has no such path, and says so in the words of any web server
                transport.answers[f"/v2/models/net/versions/{version}"] = Response(404, {}, b'{"error":"Not Found"}')
            with pytest.raises(UnknownModel, match=f"'net' has no version {version}; it has 2, 10$"):
                Client(transport=transport).metadata("net", version)

    def test_unknown_version_where_no_triton_is(self) -> None:
        elsewhere = Response(404, {}, b'{"error":"Not Found"}')
        transport = FakeTransport(dict.fromkeys(["/v2/models/net/versions/x", "/v2/repository/index"], elsewhere))
        with pytest.raises(BadResponse, match="HTTP status 404"):
            Client(transport=transport).metadata("net", "x")

    @pytest.mark.parametrize(
        ("name", "given", "hint"),
        [
            ("resnet50", "resnet5O", "did you mean --model resnet50?"),
            ("yolov8n", "yolo", "did you mean --model yolov8n?"),
            ("nobatch", "nosuch", UnknownModel.usual_hint),
        ],
    )
    def test_name_that_is_almost_right(self, name: str, given: str, hint: str | None) -> None:
        with pytest.raises(UnknownModel) as caught:
            Client(transport=server(index=[READY, dict(READY, name=name)])).metadata(given)
        assert caught.value.hint == hint

    def test_many_models_are_no_page_of_names(self) -> None:
        many = [dict(READY, name=f"model_{number:03}") for number in range(500)]
        with pytest.raises(UsageError, match=r"model_019 and 480 more$"):
            Client(transport=server(index=many)).default_model()

    def test_model_that_is_not_ready(self) -> None:
        with pytest.raises(ModelNotReady, match=r"^model 'bad' version 2 is UNAVAILABLE: Internal: no such file$"):
            Client(transport=server(index=[READY, BROKEN])).metadata("bad")

    def test_message_is_kept_when_the_list_of_models_is_not_to_be_had(self) -> None:
        with pytest.raises(InferenceRejected, match="unknown model"):
            Client(transport=FakeTransport({})).metadata("cat")

    @pytest.mark.parametrize(
        ("answer", "what"),
        [
            (
                Response(200, {"content-type": "text/html; charset=utf-8"}, b"<html>"),
                "with a web page (HTTP status 200)",
            ),
            (Response(404, {}, b"nginx"), "(HTTP status 404)"),
            (Response(404, {}, b"[]"), "(HTTP status 404)"),
            (Response(404, {}, b'{"error": "Not Found"}'), "(HTTP status 404)"),
            (Response(405, {}, b'{"error":"Method Not Allowed"}'), "(HTTP status 405)"),
            (Response(301, {"location": "https://box/v2"}, b""), "(HTTP status 301 and redirects to https://box/v2)"),
        ],
    )
    def test_what_is_no_triton(self, answer: Response, what: str) -> None:
        with pytest.raises(BadResponse) as caught:
            Client(transport=server(index=answer)).models()
        assert f"answers {what}, but not as Triton's HTTP port does" in caught.value.message
        assert "--url" in str(caught.value.hint)

    @pytest.mark.parametrize("index", [{}, 3, ["x"], [{}]])
    def test_list_of_models_that_cannot_be_read(self, index: Any) -> None:
        with pytest.raises(ClientError):
            Client(transport=server(index=index)).default_model()

    def test_timeout_must_be_positive_and_end(self) -> None:
        for timeout in (0.0, -1.0, float("nan"), float("inf"), 1e300):
            with pytest.raises(UsageError, match="timeout"):
                Client(timeout=timeout)


class TestModels:
    def test_models_in_order(self) -> None:
        index = [dict(READY, version="10"), dict(READY, version="9"), BROKEN, {"name": "asleep"}]
        states = Client(transport=server(index=index)).models()
        assert [(s.name, s.version, s.ready) for s in states] == [
            ("asleep", "", False), ("bad", "2", False), ("net", "9", True), ("net", "10", True)
        ]  # fmt: skip

    def test_default_model(self) -> None:
        both = [READY, dict(READY, version="2"), BROKEN]
        assert Client(transport=server(index=both)).default_model() == "net"

    def test_several_models(self) -> None:
        several = [READY, dict(READY, name="other")]
        with pytest.raises(UsageError, match="several models: net, other") as caught:
            Client(transport=server(index=several)).default_model()
        assert caught.value.hint == "choose with --model NAME"

    def test_no_model_that_is_ready(self) -> None:
        with pytest.raises(ModelNotReady, match=r"'bad' version 2 is UNAVAILABLE: Internal: no such file$"):
            Client(transport=server(index=[BROKEN])).default_model()

    def test_ready(self) -> None:
        def ready(answer: object) -> bool:
            return Client(transport=FakeTransport({"/v2/health/ready": answer})).ready()

        assert ready(Response(200, {}, b""))
        assert not ready(Response(400, {}, b""))
        assert not ready(ConnectionFailed("nothing there"))


def image_config(**changes: Any) -> dict[str, Any]:
    spec = {"input": "x", "resize": [1, 1], "layout": "NHWC", "scale": 1.0}
    return config(
        **{
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1, 1, 3]}],
            "parameters": {"image_preprocessing": {"string_value": json.dumps(spec)}},
            **changes,
        }
    )


class TestClassify:
    def test_raw_scores_without_labels(self) -> None:
        answer = tensor_answer("y", np.array([[0.1, 0.7, 0.2]], np.float32))
        transport = server(config=image_config(), infer=answer)
        transport.answers["/v2/models/net/versions/1/infer"] = answer
        ((first, second),) = Client(transport=transport).classify(Image.new("RGB", (3, 3), "red"), top=2)
        assert (first.index, second.index) == (1, 2)
        assert first == Classification(1, float(np.float32(0.7)), None)
        assert b"classification" not in transport.requests[-1].body

    def test_batches_up_to_the_maximum(self) -> None:
        def sizes(count: int) -> list[int]:
            scores = Response(400, {}, b'{"error": "stop"}')
            transport = server(config=image_config(), infer=scores)
            sent: list[int] = []

            def send(request: Any) -> Response:
                if not request.path.endswith("/infer"):
                    return FakeTransport.send(transport, request)
                length = int(request.headers["Inference-Header-Content-Length"])
                sent.append(json.loads(request.body[:length])["inputs"][0]["shape"][0])
                return tensor_answer("y", np.zeros((sent[-1], 3), np.float32))

            transport.send = send  # type: ignore[method-assign]
            pictures = [Image.new("RGB", (2, 2))] * count
            assert len(Client(transport=transport).classify(pictures)) == count
            return sent

        assert sizes(5) == [2, 2, 1]
        assert sizes(0) == []

    def test_model_without_preprocessing(self) -> None:
        with pytest.raises(UsageError, match="doesn't say how pictures are prepared") as caught:
            Client(transport=server()).classify([])
        assert "repo-builder add" in str(caught.value.hint)

    def test_model_that_needs_more_than_a_picture(self) -> None:
        two = [*image_config()["input"], {"name": "mask", "data_type": "TYPE_BOOL", "dims": [2]}]
        with pytest.raises(UsageError, match=r"more than a picture: mask \(BOOL \[2\]\)"):
            Client(transport=server(config=image_config(input=two))).classify([])

    def test_picture_that_becomes_another_shape(self) -> None:
        wide = [{"name": "x", "data_type": "TYPE_FP32", "dims": [2, 2, 3]}]
        with pytest.raises(InputError, match=r"becomes \[1, 1, 3\], but the input takes FP32 \[2, 2, 3\]"):
            Client(transport=server(config=image_config(input=wide))).classify([Image.new("RGB", (2, 2))])

    @pytest.mark.parametrize("dims", [[3, 2], [-1, 3], [1]])
    def test_output_that_is_no_list_of_classes(self, dims: list[int]) -> None:
        output = [{"name": "y", "data_type": "TYPE_FP32", "dims": dims}]
        transport = server(config=image_config(output=output))
        with pytest.raises(UsageError, match="no output that is a list of classes"):
            Client(transport=transport).classify([Image.new("RGB", (2, 2))])
        assert not any(request.path.endswith("/infer") for request in transport.requests)


class TestPackage:
    def test_every_public_name_can_be_imported_and_seen(self) -> None:
        assert list(client.__all__) == sorted(client.__all__)
        for name in client.__all__:
            assert getattr(client, name).__name__ == name
            assert name in dir(client)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            client.nothing  # noqa: B018

    def test_every_error_is_in_the_tree(self) -> None:
        from client import errors

        for error in vars(errors).values():
            if isinstance(error, type) and issubclass(error, Exception):
                assert issubclass(error, ClientError)
                assert error.__name__ in str(errors.__doc__)
                assert error.__name__ in client.__all__

    @pytest.mark.parametrize("path", sorted(Path(client.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
    def test_every_error_carries_a_hint(self, path: Path) -> None:
        from client import errors

        needy = {name for name, kind in vars(errors).items() if getattr(kind, "usual_hint", "not an error") is None}
        assert {"InputError", "UsageError"} <= needy
        without = [
            f"line {node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in needy
            and len(node.args) + len(node.keywords) < 2
        ]
        assert without == []

    def test_import_is_cheap_and_needs_nothing_of_repo_builder(self) -> None:
        code = (
            "import sys, client; assert not {'numpy', 'tritonclient', 'gevent'} & set(sys.modules); "
            "import client.session, client.infer; "
            "print(sorted({m.split('.')[0] for m in sys.modules} & {'repo_builder', 'onnx'}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"
