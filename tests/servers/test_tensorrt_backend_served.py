"""The backend ``tensorrt`` in the real server's own stub, on a fake GPU.

Its answers come when the stream is waited for, after the responses are made: what Triton takes has to be what is there
then, for every type that Triton hands over in a way of its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

import repo_builder
from client import Client
from repo_builder.config.build import INPUTS_TO_HOST

MODEL = """
import json, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from repo_builder.servers.backends import tensorrt
from tests.servers.fake_gpu import EchoEngine, FakeCuda, fake_tensorrt

class Engine(EchoEngine):
    kind, dtype = {kind!r}, {dtype!r}

cuda = FakeCuda()
sys.modules["cuda.bindings.runtime"] = cuda
sys.modules["tensorrt"] = fake_tensorrt(cuda, [(0, 200_000)], 8, Engine)

class TritonPythonModel(tensorrt.TritonPythonModel):
    def initialize(self, args):
        Path(args["model_repository"], "1", "model.plan").write_bytes(b"good")
        config = json.dumps({{**json.loads(args["model_config"]), "default_model_filename": "model.plan"}})
        super().initialize({{**args, "model_instance_kind": "GPU", "model_config": config}})
"""
TYPES: dict[str, tuple[str, str, npt.DTypeLike]] = {
    "FP32": ("FLOAT", "float32", np.float32),
    "BF16": ("BF16", "uint16", ml_dtypes.bfloat16),
    "BOOL": ("BOOL", "bool", np.bool_),
}


def publish(root: Path, datatype: str) -> None:
    """A Python model that is the backend, since Triton starts none of its GPU instances without a GPU."""
    kind, dtype, _ = TYPES[datatype]
    ports = [f'{{ name: "{name}" data_type: TYPE_{datatype} dims: [ -1 ] }}' for name in "xyz"]
    (root / datatype / "1").mkdir(parents=True)
    source = MODEL.format(root=str(Path(__file__).parents[2]), kind=kind, dtype=dtype)
    (root / datatype / "1" / "model.py").write_text(source)
    (root / datatype / "config.pbtxt").write_text(
        f'backend: "python" max_batch_size: 8 input [ {ports[0]} ] output [ {ports[1]}, {ports[2]} ] '
        "instance_group { kind: KIND_CPU } dynamic_batching { max_queue_delay_microseconds: 2000 } "
        f'parameters {{ key: "{INPUTS_TO_HOST}" value {{ string_value: "no" }} }}'
    )


def test_triton_takes_what_is_there_when_the_gpu_is_done(tmp_path: Path) -> None:
    for datatype in TYPES:
        publish(tmp_path / "models", datatype)
    with repo_builder.serve(tmp_path / "models") as server:

        def ask(number: int) -> None:
            datatype = list(TYPES)[number % 3]
            rows, width = 1 + number % 2, (3, 0, 3, 1000, 150_000)[number % 5]
            values = np.random.default_rng(number).integers(0, 2 if datatype == "BOOL" else 100, (rows, width))
            array = values.astype(TYPES[datatype][2])
            with Client(server.url) as client:
                answers = client.infer(datatype, {"x": array})
            for name in "yz":
                assert answers[name].dtype == array.dtype
                np.testing.assert_array_equal(answers[name], array)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(ask, range(30)))
