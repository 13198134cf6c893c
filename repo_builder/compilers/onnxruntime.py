"""ONNX Runtime as a target: the ONNX file itself, served by Triton's onnxruntime backend."""

from __future__ import annotations

import shutil
from pathlib import Path

from repo_builder.compilers.base import Artifact, Maker, Progress, Target
from repo_builder.onnx_model import OnnxModel
from repo_builder.runtime import open_session, runtime_version


class OnnxRuntimeCompiler:
    """Copies the file byte for byte unless a pass changed its graph."""

    target = Target.ONNXRUNTIME

    def identity(self) -> Maker:
        return Maker("onnxruntime")

    def compile(
        self,
        model: OnnxModel,
        folder: Path,
        *,
        batchable: bool,
        max_batch_size: int,  # noqa: ARG002  (it takes any)
        progress: Progress,
    ) -> Artifact:
        """See :class:`repo_builder.compilers.base.Compiler`."""
        import onnx

        path = folder / self.target.filename
        if model.changed:
            onnx.save(model.proto, path)
        else:
            shutil.copyfile(model.spec.path, path)
        progress("loading it into ONNX Runtime")
        session = open_session(path)
        return Artifact(
            platform=self.target.platform,
            filename=path.name,
            inputs=session.inputs,
            outputs=session.outputs,
            max_batch_size=None if batchable else 0,
            run=session.run,
            tools={"onnxruntime": runtime_version(), "onnx": onnx.__version__},
        )
