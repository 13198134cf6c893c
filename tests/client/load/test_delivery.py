"""Ways of sending, against fakes: gRPC on grpcio's server, TLS, and servers that can't do what is asked."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from client import BadResponse, ClientError, ConnectionFailed, UsageError, run_load
from client.load.delivery import Compression, Delivery, Protocol, SharedMemory
from client.load.grpc_messages import grpc_request
from client.load.records import DueTimes, OpenLoop, Outcome, Phase, Setup
from client.load.result import Level, RunResult
from client.load.workers import Workers
from client.protocol import Tensor
from client.tls import Tls
from tests.client.load.fake_grpc import GrpcScript, fake_grpc
from tests.client.load.fake_server import Script, fake_server
from tests.client.load.test_run import kinds


def over_grpc(script: GrpcScript, tls: Tls | None = None, inputs: int = 4, **options: Any) -> RunResult:
    config = {"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [inputs]}]}
    scheme = "https" if script.certificate else "http"
    with fake_server(Script(config=config)) as url, fake_grpc(script) as grpc_url:
        delivery = Delivery(Protocol.GRPC, grpc_url=f"{scheme}://{grpc_url}", tls=tls or Tls())
        return run_load(url=url, delivery=delivery, **{"warmup_s": 0, "floor": False, **options})


def grpc_setup(address: str, timeout_s: float) -> Setup:
    """What a worker needs to send one small message."""
    host, _, port = address.partition(":")
    message = grpc_request("m", "1", [Tensor("x", "FP32", np.zeros(4, np.float32))])
    family = socket.AF_INET
    return Setup(family, (host, int(port)), (message,), round(timeout_s * 1e9), grpc=True, authority=address)


def level(result: RunResult) -> Level:
    (found,) = result.levels
    return found


class TestGrpc:
    def test_all_is_answered_and_understood(self) -> None:
        result = over_grpc(GrpcScript(), concurrency=4, requests=300, floor=True)
        found = level(result)
        assert (found.statistics.requests, found.statistics.errors) == (300, 0)
        assert (found.generator.wrong_answers, found.generator.connections) == (0, 1)
        assert result.floor is not None
        assert 0 < result.floor.p50_ms < 50
        assert (result.settings.protocol, result.settings.target[:17]) == ("grpc", "http://127.0.0.1:")

    @pytest.mark.parametrize(("inputs", "connections"), [(4, 3), (10_000, 13)])
    def test_small_requests_share_connections(self, inputs: int, connections: int) -> None:
        found = level(over_grpc(GrpcScript(), inputs=inputs, concurrency=13, requests=100, workers=1))
        assert (found.statistics.requests, found.statistics.errors) == (100, 0)
        assert found.generator.connections == connections

    @pytest.mark.parametrize("secure", [False, True])
    def test_a_server_that_limits_the_calls_on_a_connection(self, secure: bool, certificate: str, trusted: Tls) -> None:
        script = GrpcScript(streams=2, certificate=certificate if secure else None)
        found = level(over_grpc(script, trusted, concurrency=5, requests=5, workers=1))
        assert (found.statistics.requests, kinds(found)) == (5, {})
        assert found.generator.connections == 3

    def test_a_late_answer_fails_its_own_request(self) -> None:
        found = level(over_grpc(GrpcScript(late_every=50), concurrency=4, requests=100, timeout_s=1))
        assert kinds(found) == {"timeout": 2}
        assert found.statistics.requests == 100

    def test_a_connection_that_is_given_up_is_replaced_before_the_next_phase(self) -> None:
        with fake_grpc(GrpcScript(late_every=3)) as address, Workers(grpc_setup(address, timeout_s=1), 1) as workers:
            phases = [
                workers.run([Phase(OpenLoop(DueTimes(trace_ns=due), 2, 2), 10**9)]) for due in ((0,), (0, 0), (0,))
            ]
        assert [sorted(phase.store.status) for phase in phases] == [[0], [0, Outcome.TIMEOUT], [0]]
        assert [phase.ends[0].connections for phase in phases] == [1, 1, 1]

    def test_errors_keep_their_kinds(self) -> None:
        found = level(over_grpc(GrpcScript(refuse_every=10, fail_every=3), concurrency=1, requests=90))
        assert kinds(found) == {"server error": 27, "refused": 9}
        assert {kind.message for kind in found.statistics.kinds} == {
            "gRPC INVALID_ARGUMENT: refused by the script: ümläut",
            "gRPC INTERNAL: failed by the script",
        }

    def test_large_messages_both_ways(self) -> None:
        script = GrpcScript(answer_bytes=6_000_000)
        found = level(over_grpc(script, inputs=1_000_000, concurrency=2, requests=8))
        assert (found.statistics.requests, found.statistics.errors, found.generator.wrong_answers) == (8, 0, 0)

    def test_every_answer_that_is_no_inference_is_an_error(self) -> None:
        found = level(over_grpc(GrpcScript(wrong_every=5), requests=100))
        assert kinds(found) == {"answer not understood": 20}

    def test_a_server_that_comes_back(self) -> None:
        found = level(over_grpc(GrpcScript(restarts_at=0.2), rate=200, duration_s=1))
        assert found.statistics.requests + found.generator.unsent == 200
        assert 0 < found.statistics.errors < 180
        assert found.statistics.error_windows[-1].end_s < 0.95
        assert set(kinds(found)) <= {"no connection", "connection broke", "server error"}

    def test_http_where_grpc_was_expected(self) -> None:
        with fake_server() as url, pytest.raises(BadResponse, match="does not speak gRPC") as caught:
            run_load(url=url, delivery=Delivery(Protocol.GRPC, grpc_url=url), requests=10, warmup_s=0, floor=False)
        assert "--grpc-url" in str(caught.value.hint)

    def test_grpc_that_is_not_trusted_or_has_no_tls(self, certificate: str) -> None:
        with pytest.raises(ConnectionFailed, match=r"no secure connection to 127.0.0.1:\d+: self-signed|unable to get"):
            over_grpc(GrpcScript(certificate=certificate))
        with fake_server() as url, fake_grpc() as grpc_url, pytest.raises(BadResponse, match="not speak gRPC with TLS"):
            run_load(url=url, delivery=Delivery(Protocol.GRPC, grpc_url=f"https://{grpc_url}"))

    def test_nobody_there(self) -> None:
        with fake_server() as url, pytest.raises(ConnectionFailed) as caught:
            run_load(url=url, delivery=Delivery(Protocol.GRPC, grpc_url="127.0.0.1:9"))
        assert caught.value.message == "no server answers at 127.0.0.1:9: Connection refused"
        assert caught.value.hint is not None
        assert "--grpc-url" in caught.value.hint


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    return str(file)


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> Tls:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return Tls(tmp_path / "ca.pem")


class TestTls:
    @pytest.mark.parametrize("options", [{}, {"close_after": True}, {"pieces": 5}, {"chunked": True}])
    def test_ways_of_answering(self, certificate: str, trusted: Tls, options: dict[str, Any]) -> None:
        with fake_server(Script(certificate=certificate, **options)) as url:
            result = run_load(
                url=f"https://{url}", delivery=Delivery(tls=trusted), concurrency=2, requests=40, warmup_s=0
            )
        found = level(result)
        assert (found.statistics.requests, found.statistics.errors, found.generator.wrong_answers) == (40, 0, 0)
        assert result.floor is None

    def test_large_requests_arrive_whole(self, certificate: str, trusted: Tls) -> None:
        config = {"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [500_000]}]}
        with fake_server(Script(certificate=certificate, config=config)) as url:
            found = level(run_load(url=f"https://{url}", delivery=Delivery(tls=trusted), requests=20, warmup_s=0))
        assert (found.statistics.requests, found.statistics.errors) == (20, 0)

    def test_a_server_that_comes_back(self, certificate: str, trusted: Tls) -> None:
        script = Script(delays_s=(0.002,), dead=(0.2, 0.4), certificate=certificate)
        with fake_server(script) as url:
            delivery = Delivery(tls=trusted)
            found = level(run_load(url=f"https://{url}", delivery=delivery, rate=100, duration_s=1, warmup_s=0))
        assert found.statistics.requests + found.generator.unsent == 100
        assert 0 < found.statistics.errors < 90
        assert found.statistics.error_windows[-1].end_s < 0.95

    def test_a_stranger_is_not_trusted_unless_told_to(self, certificate: str) -> None:
        with fake_server(Script(certificate=certificate)) as url:
            with pytest.raises(ConnectionFailed, match="certificate"):
                run_load(url=f"https://{url}", requests=1)
            delivery = Delivery(tls=Tls(insecure=True))
            found = level(run_load(url=f"https://{url}", delivery=delivery, requests=20, warmup_s=0))
        assert found.statistics.errors == 0

    def test_grpc(self, certificate: str, trusted: Tls) -> None:
        found = level(over_grpc(GrpcScript(certificate=certificate), trusted, concurrency=2, requests=40))
        assert (found.statistics.requests, found.statistics.errors, found.generator.wrong_answers) == (40, 0, 0)

    def test_no_certificates(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"--cacert .*none.pem: No such file"):
            run_load(url="https://127.0.0.1", delivery=Delivery(tls=Tls(tmp_path / "none.pem")))


class TestMisuse:
    def test_a_server_that_does_not_see_our_memory(self) -> None:
        shared = Delivery(shared_memory=SharedMemory.SYSTEM)
        with fake_server(Script(shared_memory=False)) as url, pytest.raises(ClientError) as caught:
            run_load(url=url, delivery=shared)
        assert "can't use this machine's shared memory: Unable to open" in caught.value.message
        assert "--ipc=host" in str(caught.value.hint)
        assert not list(Path("/dev/shm").glob(f"client-bench-{os.getpid()}-*"))

    @pytest.mark.parametrize(
        "options",
        [
            {"compression": Compression.GZIP, "protocol": Protocol.GRPC},
            {"compression": Compression.GZIP, "shared_memory": SharedMemory.SYSTEM},
            {"grpc_url": "localhost:8001"},
        ],
    )
    def test_what_can_not_go_together(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            Delivery(**options)
