"""A fake TensorRT: its plans have a real plan's head and say which GPU they are for; what runs is ONNX Runtime.

It lets everything around the builder be tested as on machines with different GPUs, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repo_builder.compilers.base import Artifact, Maker, Progress, Target
from repo_builder.compilers.onnxruntime import OnnxRuntimeCompiler
from repo_builder.onnx_model import OnnxModel
from repo_builder.trt.cuda import Gpu

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, "12.8", "570.86")
A10 = Gpu("NVIDIA A10", "8.6", 24 << 30, "12.8", "570.86")
RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", "8.6", 24 << 30, "12.8", "570.86")
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", "12.0", 32 << 30, "12.8", "570.86")


@dataclass
class FakeTensorRT:
    """Compiles for ``gpu``; ``largest`` is the batch that its engines take, ``built`` how many it made."""

    gpu: Gpu
    version: tuple[int, ...] = (10, 8, 0, 43)
    largest: int = 8
    target: Target = Target.TENSORRT
    built: int = 0

    @property
    def library(self) -> str:
        return f"TensorRT {'.'.join(map(str, self.version))}"

    def identity(self) -> Maker:
        return Maker(self.library, self.gpu)

    def compile(self, model: OnnxModel, folder: Path, *, progress: Progress, **options: Any) -> Artifact:
        artifact = OnnxRuntimeCompiler().compile(model, folder, progress=progress, **options)
        (folder / artifact.filename).unlink()
        self.built += 1
        head = b"ftrt" + bytes(20) + bytes(self.version)
        (folder / "model.plan").write_bytes(head + f"for {self.gpu.name}".encode())
        engine = {
            "library": self.library,
            "gpu": vars(self.gpu),
            "layers_by_precision": {},
            "timing_cache_hit": False,
            "build_seconds": 1.0,
        }
        return replace(
            artifact,
            platform="tensorrt_plan",
            filename="model.plan",
            max_batch_size=self.largest,
            tools={"TensorRT": self.library.removeprefix("TensorRT ")},
            gpu_only=True,
            details={"engine": engine},
        )
