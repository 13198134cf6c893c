"""The TensorRT that is installed: which it is, what it can do, and how its enums map to ours."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

from repo_builder.compilers.base import Target
from repo_builder.errors import CompileError, MissingExtraError
from repo_builder.model import DataType

LIBRARY_NAMES = {Target.TENSORRT: "TensorRT", Target.TENSORRT_RTX: "TensorRT-RTX"}

_MODULES = {Target.TENSORRT: ("tensorrt", "tensorrt"), Target.TENSORRT_RTX: ("tensorrt_rtx", "rtx")}

_NAMES = {
    "FLOAT": DataType.FP32,
    "HALF": DataType.FP16,
    "BF16": DataType.BF16,
    "INT8": DataType.INT8,
    "INT32": DataType.INT32,
    "INT64": DataType.INT64,
    "BOOL": DataType.BOOL,
    "UINT8": DataType.UINT8,
}


@dataclass(frozen=True)
class Library:
    """One of the two TensorRT libraries, loaded.

    Their APIs differ by version too: what is there is asked with ``hasattr``, never told from a number.
    """

    module: Any
    target: Target

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def name(self) -> str:
        return LIBRARY_NAMES[self.target]

    @property
    def has_precision_flags(self) -> bool:
        """Whether the builder chooses precisions itself when allowed to; else the graph decides."""
        return hasattr(self.module.BuilderFlag, "FP16")

    def data_type(self, dtype: Any) -> DataType | None:
        """Our name for a ``tensorrt.DataType``, None where Triton has no such type."""
        return _NAMES.get(dtype.name)


@cache
def load_library(target: Target) -> Library:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        MissingExtraError: it is not installed.
        CompileError: it is installed but does not load.
    """
    name, extra = _MODULES[target]
    try:
        return Library(importlib.import_module(name), target)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise MissingExtraError(extra, name.replace("_", "-")) from None
        raise _unloadable(name, error) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise _unloadable(name, error) from None


def _unloadable(name: str, error: Exception) -> CompileError:
    return CompileError(
        f"the package {name} is installed but does not load: {' '.join(str(error).split())}",
        "its libraries must be installed with it, or lie in a folder of LD_LIBRARY_PATH",
    )


def is_installed(target: Target) -> bool:
    """Whether the library's package is there, without importing it."""
    return importlib.util.find_spec(_MODULES[target][0]) is not None
