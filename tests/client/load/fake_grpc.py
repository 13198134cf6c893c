"""A fake of Triton's gRPC front end on grpcio's own server, whose HTTP/2 is nobody's here."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.client.load.child import running

METHOD = "ModelInfer"


@dataclass(frozen=True)
class GrpcScript:
    """What the fake does."""

    answer_bytes: int = 4  # of an output that is FP32
    refuse_every: int = 0  # every so-manieth call gets INVALID_ARGUMENT
    fail_every: int = 0  # or INTERNAL
    wrong_every: int = 0  # or an answer that is no message of ModelInfer
    late_every: int = 0  # or is answered after two seconds
    restarts_at: float | None = None  # seconds after the first call: everything is closed, and opened again
    streams: int = 2**31 - 1  # calls on a connection at a time; one more ends the connection
    certificate: str | None = None  # a PEM file with its key: TLS is spoken


@contextlib.contextmanager
def fake_grpc(script: GrpcScript | None = None) -> Iterator[str]:
    """``host:port`` of a fake that lives as long as the block."""
    with running("tests.client.load.fake_grpc", asdict(script or GrpcScript())) as address:
        yield address


class _Fake:
    def __init__(self, script: dict[str, Any]) -> None:
        self.script = script
        self.numbers = itertools.count(1)
        self.called = threading.Event()

    def infer(self, request: bytes, context: Any) -> bytes:
        import grpc
        from tritonclient.grpc import service_pb2

        number = next(self.numbers)
        self.called.set()
        if self.is_turn("refuse", number):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused by the script:\n  ümläut")
        if self.is_turn("fail", number):
            context.abort(grpc.StatusCode.INTERNAL, "failed by the script")
        if self.is_turn("late", number):
            time.sleep(2)
        if self.is_turn("wrong", number):
            return b"nonsense"
        received = sum(map(len, service_pb2.ModelInferRequest.FromString(request).raw_input_contents))
        answer = service_pb2.ModelInferResponse(model_name="fake")
        size = self.script["answer_bytes"]
        answer.outputs.add(name="y", datatype="FP32", shape=[size // 4])
        answer.raw_output_contents.append(received.to_bytes(4, "little") * (size // 4))
        message: bytes = answer.SerializeToString()
        return message

    def is_turn(self, kind: str, number: int) -> bool:
        every = self.script[f"{kind}_every"]
        return bool(every) and number % every == 0

    def serve(self, port: int) -> tuple[Any, int]:
        import grpc
        import tritonclient.grpc  # noqa: F401  (or the first calls would wait for it)

        handler = grpc.unary_unary_rpc_method_handler(self.infer)
        options = {
            "grpc.max_receive_message_length": -1,
            "grpc.so_reuseport": 0,
            "grpc.max_concurrent_streams": self.script["streams"],
        }
        server = grpc.server(futures.ThreadPoolExecutor(16), options=list(options.items()))
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {METHOD: handler})]
        )
        address = f"127.0.0.1:{port}"
        if self.script["certificate"]:
            pem = Path(self.script["certificate"]).read_bytes()
            credentials = grpc.ssl_server_credentials([(pem, pem)])
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
        server.start()
        return server, port

    def run(self) -> None:
        server, port = self.serve(0)
        print(port, flush=True)  # noqa: T201
        if self.script["restarts_at"] is not None:
            self.called.wait()
            time.sleep(self.script["restarts_at"])
            server.stop(0).wait()
            time.sleep(0.1)
            server, _ = self.serve(port)
        server.wait_for_termination()


if __name__ == "__main__":
    _Fake(json.loads(sys.argv[1])).run()
