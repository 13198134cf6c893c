"""The onnxruntime backend, inside the real tritonserver, spoken to with NVIDIA's own client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from repo_builder.servers import local
from repo_builder.servers.installation import Installation, RunDirectory, make_run_directory
from repo_builder.servers.local import LocalServer, serve
from tests.servers.repositories import (
    ONE_INSTANCE,
    VECTOR,
    VECTOR_CONFIG,
    Array,
    Tensor,
    constant,
    execution_counts,
    infer,
    write_identity,
    write_model,
)

TYPES = {
    "BOOL": (TensorProto.BOOL, np.array([[True, False, True]])),
    "UINT8": (TensorProto.UINT8, np.array([[0, 7, 255]], np.uint8)),
    "UINT16": (TensorProto.UINT16, np.array([[0, 7, 2**16 - 1]], np.uint16)),
    "UINT32": (TensorProto.UINT32, np.array([[0, 7, 2**32 - 1]], np.uint32)),
    "UINT64": (TensorProto.UINT64, np.array([[0, 7, 2**64 - 1]], np.uint64)),
    "INT8": (TensorProto.INT8, np.array([[-128, 7, 127]], np.int8)),
    "INT16": (TensorProto.INT16, np.array([[-(2**15), 7, 2**15 - 1]], np.int16)),
    "INT32": (TensorProto.INT32, np.array([[-(2**31), 7, 2**31 - 1]], np.int32)),
    "INT64": (TensorProto.INT64, np.array([[-(2**63), 7, 2**63 - 1]], np.int64)),
    "FP16": (TensorProto.FLOAT16, np.array([[1.5, -np.inf, 65504]], np.float16)),
    "FP32": (TensorProto.FLOAT, np.array([[1.5, np.nan, 3e38]], np.float32)),
    "FP64": (TensorProto.DOUBLE, np.array([[1.5, -0.0, 1e308]], np.float64)),
    "STRING": (TensorProto.STRING, np.array([["", "naïve ☕", "a\x00b"]], np.object_)),
}
DYNAMIC = "dynamic_batching { max_queue_delay_microseconds: 100000 }\n"


def config(max_batch_size: int, inputs: dict[str, str], outputs: dict[str, str], more: str = "") -> str:
    """Return config.pbtxt fields; a tensor is written as "TYPE dims", such as "FP32 4, 4"."""
    lines = [f"max_batch_size: {max_batch_size}"]
    for role, tensors in (("input", inputs), ("output", outputs)):
        for name, text in tensors.items():
            datatype, _, dims = text.partition(" ")
            lines.append(f'{role} [{{ name: "{name}" data_type: TYPE_{datatype} {dims} }}]')
    return "\n".join([*lines, more or ONE_INSTANCE])


def write_every_type(repository: Path) -> None:
    inputs: list[Tensor] = [(f"in_{name}", onnx_type, ["N", 3]) for name, (onnx_type, _) in TYPES.items()]
    outputs: list[Tensor] = [(f"out_{name}", onnx_type, ["N", 3]) for name, (onnx_type, _) in TYPES.items()]
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in TYPES]
    fields = config(
        4, {f"in_{name}": f"{name} dims: [3]" for name in TYPES}, {f"out_{name}": f"{name} dims: [3]" for name in TYPES}
    )
    write_model(repository, "every_type", nodes, inputs, outputs, fields)


def write_bfloat16(repository: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
    ]
    inputs: list[Tensor] = [("x", TensorProto.BFLOAT16, ["N", 2])]
    outputs: list[Tensor] = [("y", TensorProto.BFLOAT16, ["N", 2]), ("wide", TensorProto.FLOAT, ["N", 2])]
    fields = config(
        8, {"x": "BF16 dims: [2]"}, {"y": "BF16 dims: [2]", "wide": "FP32 dims: [2]"}, ONE_INSTANCE + DYNAMIC
    )
    write_model(repository, "bfloat16", nodes, inputs, outputs, fields)


def write_bfloat16_scalars(repository: Path) -> None:
    """Two scalars, one of them beside the bfloat16 that makes values take another way into ONNX Runtime."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Gather", ["table", "index"], ["row"])]
    inputs: list[Tensor] = [("x", TensorProto.BFLOAT16, []), ("index", TensorProto.INT64, [])]
    outputs: list[Tensor] = [("y", TensorProto.BFLOAT16, []), ("row", TensorProto.FLOAT, [2])]
    fields = config(
        0, {"x": "BF16 dims: [1]", "index": "INT64 dims: [1]"}, {"y": "BF16 dims: [1]", "row": "FP32 dims: [2]"}
    )
    table = constant("table", np.arange(6, dtype=np.float32).reshape(3, 2))
    write_model(repository, "bfloat16_scalars", nodes, inputs, outputs, fields, [table])


def write_lookup(repository: Path) -> None:
    """A table of three rows: an index beyond it fails when the model runs, not before."""
    nodes = [helper.make_node("Gather", ["table", "index"], ["row"])]
    inputs: list[Tensor] = [("index", TensorProto.INT64, ["N", 1])]
    outputs: list[Tensor] = [("row", TensorProto.FLOAT, ["N", 1, 2])]
    fields = config(8, {"index": "INT64 dims: [1]"}, {"row": "FP32 dims: [1, 2]"}, ONE_INSTANCE + DYNAMIC)
    table = constant("table", np.arange(6, dtype=np.float32).reshape(3, 2))
    write_model(repository, "lookup", nodes, inputs, outputs, fields, [table])


def write_any_length(repository: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0)]
    inputs: list[Tensor] = [("x", TensorProto.FLOAT, ["N", "L"])]
    outputs: list[Tensor] = [("y", TensorProto.FLOAT, ["N", "L"]), ("sum", TensorProto.FLOAT, ["N"])]
    fields = config(
        8,
        {"x": "FP32 dims: [-1]"},
        {"y": "FP32 dims: [-1]", "sum": "FP32 dims: [1] reshape { shape: [] }"},
        ONE_INSTANCE + DYNAMIC,
    )
    write_model(repository, "any_length", nodes, inputs, outputs, fields, [constant("axes", np.array([1]))])


def write_unbatched(repository: Path) -> None:
    """No batch axis, two inputs of unlike rank and type, one of them a scalar with a default, two outputs."""
    nodes = [
        helper.make_node("Mul", ["matrix", "factor"], ["scaled"]),
        helper.make_node("ReduceMax", ["scaled"], ["largest"], keepdims=0),
    ]
    inputs: list[Tensor] = [("matrix", TensorProto.FLOAT, [2, "W"]), ("factor", TensorProto.FLOAT, [])]
    outputs: list[Tensor] = [("scaled", TensorProto.FLOAT, [2, "W"]), ("largest", TensorProto.FLOAT, [])]
    fields = config(
        0,
        {"matrix": "FP32 dims: [2, -1]", "factor": "FP32 dims: [1] optional: true"},
        {"scaled": "FP32 dims: [2, -1]", "largest": "FP32 dims: [1]"},
    )
    default = constant("factor", np.array(10, np.float32))
    write_model(repository, "unbatched", nodes, inputs, outputs, fields, [default])


def write_rows_of_four(repository: Path) -> None:
    """Other lengths than multiples of four fail when the model runs, and ONNX Runtime blames no argument for it."""
    nodes = [helper.make_node("Reshape", ["x", "rows"], ["y"])]
    inputs: list[Tensor] = [("x", TensorProto.FLOAT, ["N", "L"])]
    outputs: list[Tensor] = [("y", TensorProto.FLOAT, ["N", "M", 4])]
    fields = config(8, {"x": "FP32 dims: [-1]"}, {"y": "FP32 dims: [-1, 4]"}, ONE_INSTANCE + DYNAMIC)
    write_model(repository, "rows_of_four", nodes, inputs, outputs, fields, [constant("rows", np.array([0, -1, 4]))])


def write_reshaped(repository: Path) -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])]
    inputs: list[Tensor] = [("x", TensorProto.FLOAT, ["N", 2, 3])]
    outputs: list[Tensor] = [("y", TensorProto.FLOAT, ["N", 3, 2])]
    fields = config(
        8, {"x": "FP32 dims: [6] reshape { shape: [2, 3] }"}, {"y": "FP32 dims: [6] reshape { shape: [3, 2] }"}
    )
    write_model(repository, "reshaped", nodes, inputs, outputs, fields)


def write_mixes_batch(repository: Path) -> None:
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)]
    fields = config(8, {"x": "FP32 dims: [4]"}, {"y": "FP32 dims: [4]"})
    outputs: list[Tensor] = [("y", TensorProto.FLOAT, ["M", 4])]
    write_model(repository, "mixes_batch", nodes, VECTOR, outputs, fields)


def write_tuned(repository: Path) -> None:
    """Every parameter of NVIDIA's backend, and the model file under another name in a folder."""
    parameters = {
        "intra_op_thread_count": "1",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "1",
        "enable_mem_pattern": "false",
        "memory.enable_memory_arena_shrinkage": "cpu:0",
        "session.use_device_allocator_for_initializers": "1",
    }
    more = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in parameters.items()
    )
    more += 'default_model_filename: "folder"\noptimization { graph { level: 1 } }\n' + ONE_INSTANCE
    folder = write_identity(repository, "tuned", VECTOR_CONFIG + more)
    (folder / "1/folder").mkdir()
    (folder / "1/model.onnx").rename(folder / "1/folder/model.onnx")


def write_warmed_up(repository: Path) -> None:
    sample = 'model_warmup [{{ name: "{0}" batch_size: 8 inputs {{ key: "x" value {{ {1} }} }} }}]\n'
    vector = "data_type: TYPE_FP32 dims: [4] "
    more = sample.format("zeros", vector + "zero_data: true")
    more += sample.format("noise", vector + "random_data: true")
    more += sample.format("file", vector + 'input_data_file: "x.bin"')
    folder = write_identity(repository, "warmed_up", VECTOR_CONFIG + ONE_INSTANCE + more)
    (folder / "warmup").mkdir()
    (folder / "warmup/x.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    repository = tmp_path_factory.mktemp("a repository with 'quotes', spaces and ümlauts")
    for write in (
        write_every_type,
        write_bfloat16,
        write_bfloat16_scalars,
        write_lookup,
        write_any_length,
        write_unbatched,
        write_rows_of_four,
        write_reshaped,
        write_mixes_batch,
        write_tuned,
        write_warmed_up,
    ):
        write(repository)
    write_identity(repository, "joined", VECTOR_CONFIG + ONE_INSTANCE + DYNAMIC)
    write_identity(repository, "twice", VECTOR_CONFIG + "instance_group [{ count: 2 kind: KIND_CPU }]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "make_run_directory", make_run_directory_with_modules)
        with serve(repository) as running:
            yield running


def make_run_directory_with_modules(installation: Installation, shm_prefix: str) -> RunDirectory:
    """Put modules that Triton's stub could take for the backend's into the working directory, its first place."""
    directory = make_run_directory(installation, shm_prefix)
    for name in ("model", "batches", "dlpack"):
        (directory.path / f"{name}.py").write_text("raise ImportError('this is not the backend')\n")
    return directory


def at_once(url: str, model: str, requests: list[dict[str, Array]]) -> list[dict[str, Array] | Exception]:
    """Send ``requests`` at the same time; return what each got, in order."""

    def send(arrays: dict[str, Array]) -> dict[str, Array] | Exception:
        try:
            return infer(url, model, arrays)
        except InferenceServerException as error:
            return error  # type: ignore[no-any-return]

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(send, requests))


def test_every_model_is_ready(server: LocalServer) -> None:
    """Other modules of the same names notwithstanding."""
    assert {status.name: status.cause for status in server.models if not status.ready} == {}


def test_every_type_comes_back_as_it_went(server: LocalServer) -> None:
    sent = {f"in_{name}": np.concatenate([array, array]) for name, (_, array) in TYPES.items()}
    received = infer(server.url, "every_type", sent)
    for name, (_, array) in TYPES.items():
        result = received[f"out_{name}"]
        if name == "STRING":
            result = np.array([[text.decode() for text in row] for row in result], np.object_)
        assert result.dtype == array.dtype
        np.testing.assert_array_equal(result, np.concatenate([array, array]), err_msg=name)


def test_bfloat16_alone_and_joined(server: LocalServer) -> None:
    requests = [{"x": np.array([[number, -2.5]], ml_dtypes.bfloat16)} for number in range(6)]
    for sent, received in zip(requests, at_once(server.url, "bfloat16", requests), strict=True):
        assert isinstance(received, dict)
        np.testing.assert_array_equal(received["y"].astype(np.float32), sent["x"].astype(np.float32))
        np.testing.assert_array_equal(received["wide"], sent["x"].astype(np.float32))
    requests_seen, executions = execution_counts(server.url, "bfloat16")
    assert executions < requests_seen


def test_scalars_beside_bfloat16_stay_scalars(server: LocalServer) -> None:
    x = np.array([-2.5], ml_dtypes.bfloat16)
    received = infer(server.url, "bfloat16_scalars", {"x": x, "index": np.array([1])})
    np.testing.assert_array_equal(received["y"].astype(np.float32), [-2.5])
    assert received["row"].shape == (2,)  # of an index [1], [1, 2]
    np.testing.assert_array_equal(received["row"], [2, 3])


def test_concurrent_requests_share_executions(server: LocalServer) -> None:
    requests = [{"x": np.full((1 + number % 2, 4), number, np.float32)} for number in range(24)]
    for sent, received in zip(requests, at_once(server.url, "joined", requests), strict=True):
        assert isinstance(received, dict)
        np.testing.assert_array_equal(received["y"], sent["x"])
    samples, executions = execution_counts(server.url, "joined")
    assert samples == 36
    assert executions < 24


def test_a_failing_request_leaves_its_batch_alone(server: LocalServer) -> None:
    before = execution_counts(server.url, "lookup")[1]
    requests = [{"index": np.array([[index]])} for index in (0, 1, 99, 2, -99, 1)]
    results = at_once(server.url, "lookup", requests)
    assert execution_counts(server.url, "lookup")[1] - before < len(requests), "the requests were not joined"
    for request, result in zip(requests, results, strict=True):
        index = int(request["index"][0, 0])
        if abs(index) == 99:
            assert isinstance(result, InferenceServerException)
            assert f"idx={index} must be within" in str(result)
        else:
            assert isinstance(result, dict)
            np.testing.assert_array_equal(result["row"], [[[2 * index, 2 * index + 1]]])


def test_requests_of_unlike_shape_at_once(server: LocalServer) -> None:
    requests = [{"x": np.ones((rows, length), np.float32)} for rows in (1, 3) for length in (0, 1, 5, 300)]
    for sent, received in zip(requests, at_once(server.url, "any_length", requests), strict=True):
        assert isinstance(received, dict)
        assert received["y"].shape == sent["x"].shape
        np.testing.assert_array_equal(received["y"], -sent["x"])
        assert received["sum"].shape == (len(sent["x"]), 1)
        np.testing.assert_array_equal(received["sum"][:, 0], sent["x"].sum(axis=1))


def test_scalars_and_optional_inputs_without_a_batch(server: LocalServer) -> None:
    matrix = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    given = infer(server.url, "unbatched", {"matrix": matrix, "factor": np.array([2], np.float32)})
    np.testing.assert_array_equal(given["scaled"], matrix * 2)
    np.testing.assert_array_equal(given["largest"], [12])
    left_out = infer(server.url, "unbatched", {"matrix": matrix})
    np.testing.assert_array_equal(left_out["largest"], [60])


def test_shapes_of_the_client_and_of_the_model_differ_by_reshape(server: LocalServer) -> None:
    array = np.arange(12, dtype=np.float32).reshape(2, 6)
    received = infer(server.url, "reshaped", {"x": array})["y"]
    np.testing.assert_array_equal(received, array.reshape(2, 2, 3).transpose(0, 2, 1).reshape(2, 6))


def test_only_the_requested_outputs_are_returned(server: LocalServer) -> None:
    array = np.ones((2, 3), np.float32)
    assert list(infer(server.url, "any_length", {"x": array}, ["sum"])) == ["sum"]
    assert sorted(infer(server.url, "any_length", {"x": array})) == ["sum", "y"]


def test_an_output_that_is_no_batch_is_an_error(server: LocalServer) -> None:
    with pytest.raises(InferenceServerException, match=r"'y' has shape \[6, 4\] for a batch of 3.*max_batch_size: 0"):
        infer(server.url, "mixes_batch", {"x": np.ones((3, 4), np.float32)})


def test_bytes_that_are_no_text_fail_alone(server: LocalServer) -> None:
    sent = {f"in_{name}": array for name, (_, array) in TYPES.items()}
    broken = np.array([[b"ok", b"\xff\xfe", b""]], np.object_)
    with pytest.raises(InferenceServerException, match="input 'in_STRING' has a string that is not UTF-8"):
        infer(server.url, "every_type", sent | {"in_STRING": broken})
    assert infer(server.url, "every_type", sent)["out_STRING"][0, 0] == b""


def counts(url: str, model: str) -> tuple[int, int]:
    """How many requests Triton counts as answered and as failed."""
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        statistics = client.get_inference_statistics(model)["model_stats"][0]["inference_stats"]
    return statistics["success"]["count"], statistics["fail"]["count"]


def test_failures_of_the_model_count_as_failures(server: LocalServer) -> None:
    """Where they are all that Triton handed over; requests that are wrong are the client's failures."""
    good, bad = {"x": np.ones((1, 8), np.float32)}, {"x": np.ones((1, 3), np.float32)}
    with pytest.raises(InferenceServerException, match=r"\[500\].*The input tensor cannot be reshaped"):
        infer(server.url, "rows_of_four", bad)
    assert counts(server.url, "rows_of_four") == (0, 1)
    assert all(
        isinstance(result, InferenceServerException) for result in at_once(server.url, "rows_of_four", [bad] * 3)
    )
    assert counts(server.url, "rows_of_four") == (0, 4)
    first, failed, last = at_once(server.url, "rows_of_four", [good, bad, good])
    assert isinstance(first, dict)
    assert isinstance(failed, InferenceServerException)
    assert isinstance(last, dict)
    before = counts(server.url, "lookup")[1]
    with pytest.raises(InferenceServerException, match=r"\[400\].*idx=99 must be within"):
        infer(server.url, "lookup", {"index": np.array([[99]])})
    assert counts(server.url, "lookup")[1] == before


def test_two_instances_are_two_processes(server: LocalServer) -> None:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    stubs = [line for line in lines if b"python_backend_stub" in line and str(server.repository).encode() in line]
    assert sum(b"\0twice_" in stub for stub in stubs) == 2
    assert sum(b"\0joined_" in stub for stub in stubs) == 1


def test_system_shared_memory_in_and_out(server: LocalServer) -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    name = f"/repo_builder_test_{server.http_port}"
    region = shm.create_shared_memory_region("both", name, 2 * array.nbytes)
    try:
        shm.set_shared_memory_region(region, [array])
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            client.register_system_shared_memory("both", name, 2 * array.nbytes)
            tensor = triton.InferInput("x", [2, 4], "FP32")
            tensor.set_shared_memory("both", array.nbytes)
            output = triton.InferRequestedOutput("y")
            output.set_shared_memory("both", array.nbytes, offset=array.nbytes)
            client.infer("joined", [tensor], outputs=[output])
            client.unregister_system_shared_memory("both")
        received = shm.get_contents_as_numpy(region, np.float32, [2, 4], offset=array.nbytes)
        np.testing.assert_array_equal(received, array)
    finally:
        shm.destroy_shared_memory_region(region)


def test_sizes_in_a_row(server: LocalServer) -> None:
    """Buffers grow and shrink between requests: nothing of a larger one shows in the next."""
    for first, second in pairwise([8, 1, 5, 8, 2]):
        for rows in (first, second):
            array = np.random.default_rng(rows).random((rows, 4), np.float32)
            np.testing.assert_array_equal(infer(server.url, "tuned", {"x": array})["y"], array)
