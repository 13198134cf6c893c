"""The part of a build that needs TensorRT, as a process of its own: what runs in a container.

    python -m repo_builder.compilers.worker FOLDER

Answers the requests that appear in FOLDER (see :mod:`repo_builder.compilers.exchange`) until it is killed:
``identify``, ``compile``, and then ``run`` as often as the gate asks.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repo_builder.compilers.base import Artifact, Target
from repo_builder.compilers.exchange import (
    PROGRESS,
    answer_path,
    describe_artifact,
    describe_error,
    load_arrays,
    read_options,
    read_spec,
    request_path,
    save_arrays,
    write_json,
)
from repo_builder.compilers.tensorrt import TensorRTCompiler
from repo_builder.onnx_model import OnnxModel

WATCH_S = 0.02


class Worker:
    """Does what is asked; keeps the artifact that it made, to run it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._artifact: Artifact | None = None

    def serve(self) -> None:
        """Answer requests in their order, without end; what is a mistake of ours ends it with a traceback."""
        for number in itertools.count():
            path = request_path(self._folder, number)
            while not path.exists():
                time.sleep(WATCH_S)
            try:
                answer = self._do(json.loads(path.read_text(encoding="utf-8")))
            except Exception as error:
                described = describe_error(error)
                if described is None:
                    raise
                answer = described
            write_json(answer_path(self._folder, number), answer)

    def _do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request["do"] == "run":
            return self._run(Path(request["inputs"]), Path(request["outputs"]))
        compiler = TensorRTCompiler.open(Target(request["target"]), read_options(request["options"]))
        if request["do"] == "identify":
            return asdict(compiler.identity())
        return self._compile(compiler, request)

    def _compile(self, compiler: TensorRTCompiler, request: Mapping[str, Any]) -> dict[str, Any]:
        import onnx

        path = Path(request["model"])
        model = OnnxModel(onnx.load(path, load_external_data=False), read_spec(request["spec"], path))
        path.unlink()
        self._artifact = compiler.compile(
            model,
            path.parent,
            batchable=request["batchable"],
            max_batch_size=request["max_batch_size"],
            progress=self._tell,
        )
        return describe_artifact(self._artifact)

    def _run(self, inputs: Path, outputs: Path) -> dict[str, Any]:
        assert self._artifact is not None  # noqa: S101
        assert self._artifact.run is not None  # noqa: S101
        save_arrays(outputs, self._artifact.run(load_arrays(inputs)))
        return {}

    def _tell(self, line: str) -> None:
        with (self._folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


if __name__ == "__main__":
    Worker(Path(sys.argv[1])).serve()
