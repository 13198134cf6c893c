"""Build, check and serve Triton model repositories.

>>> import repo_builder
>>> published = repo_builder.add_model("resnet50.onnx")                   # doctest: +SKIP
>>> with repo_builder.serve("model_repository") as server:                # doctest: +SKIP
...     print(server.url)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# From 1.29 on ONNX Runtime, when it is imported, makes a device id in ~/.cache/Microsoft and reports to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, by servers that are started from here too

if TYPE_CHECKING:
    from repo_builder.add import Published, add_model
    from repo_builder.build import BuildOptions
    from repo_builder.comparison import Tolerance
    from repo_builder.compilers.base import Target
    from repo_builder.config.build import ServingOptions
    from repo_builder.config.image import ImagePreprocessing, image_preset
    from repo_builder.errors import RepoBuilderError
    from repo_builder.recheck import Rechecked, verify_model
    from repo_builder.repository import Repository
    from repo_builder.samples import SampleOptions
    from repo_builder.servers.local import serve

_HOMES = {
    "BuildOptions": "build",
    "ImagePreprocessing": "config.image",
    "Published": "add",
    "Rechecked": "recheck",
    "RepoBuilderError": "errors",
    "Repository": "repository",
    "SampleOptions": "samples",
    "ServingOptions": "config.build",
    "Target": "compilers.base",
    "Tolerance": "comparison",
    "add_model": "add",
    "image_preset": "config.image",
    "serve": "servers.local",
    "verify_model": "recheck",
}

__all__ = [
    "BuildOptions",
    "ImagePreprocessing",
    "Published",
    "Rechecked",
    "RepoBuilderError",
    "Repository",
    "SampleOptions",
    "ServingOptions",
    "Target",
    "Tolerance",
    "add_model",
    "image_preset",
    "serve",
    "verify_model",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: the command line must start quickly."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
