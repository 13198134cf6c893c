"""What a host and its worker in a container hand each other: JSON and arrays, in a folder that both see.

``request-N.json`` is answered by ``answer-N.json``; what the worker has to say meanwhile is appended to ``progress``,
a line each.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder import errors
from repo_builder.comparison import Tolerance
from repo_builder.compilers.base import Artifact, Maker
from repo_builder.errors import RepoBuilderError
from repo_builder.model import DataType, ModelSpec, TensorSpec
from repo_builder.runtime import RunError
from repo_builder.trt.cuda import Gpu
from repo_builder.trt.options import TensorRTOptions, read_profiles
from repo_builder.verify import Runner

if TYPE_CHECKING:
    from repo_builder.runtime import Arrays

PROGRESS = "progress"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def request_path(folder: Path, number: int) -> Path:
    return folder / f"request-{number}.json"


def answer_path(folder: Path, number: int) -> Path:
    return folder / f"answer-{number}.json"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file that appears whole, for someone waits for it; dataclasses must be dicts already."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(data, default=_plain), encoding="utf-8")
    new.replace(path)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return sorted(value) if isinstance(value, frozenset) else str(value)


def describe_artifact(artifact: Artifact) -> dict[str, Any]:
    """Everything but ``run`` and ``close``; ``runs`` says whether there is a ``run``."""
    fields = asdict(replace(artifact, run=None))
    del fields["run"], fields["close"]
    return {**fields, "runs": artifact.run is not None}


def read_artifact(data: Mapping[str, Any], run: Runner) -> Artifact:
    fields = dict(data)
    runs = fields.pop("runs")
    return Artifact(
        **{
            **fields,
            "inputs": _tensors(data["inputs"]),
            "outputs": _tensors(data["outputs"]),
            "run": run if runs else None,
            "tolerance": Tolerance(**data["tolerance"]),
            "profiles": read_profiles(data["profiles"]),
            "shape_tensors": frozenset(data["shape_tensors"]),
            "hints": tuple(data["hints"]),
        }
    )


def read_maker(data: Mapping[str, Any]) -> Maker:
    return Maker(data["library"], Gpu(**data["gpu"]) if data["gpu"] else None)


def read_options(data: Mapping[str, Any]) -> TensorRTOptions:
    cache = data["timing_cache"]
    return TensorRTOptions(
        **{
            **data,
            "profiles": read_profiles(data["profiles"]),
            "compute_capabilities": tuple(data["compute_capabilities"]),
            "plugins": tuple(map(Path, data["plugins"])),
            "timing_cache": Path(cache) if cache else None,
        }
    )


def read_spec(data: Mapping[str, Any], path: Path) -> ModelSpec:
    """The spec of a model that is now at ``path``."""
    return ModelSpec(
        path,
        _tensors(data["inputs"]),
        _tensors(data["outputs"]),
        tuple(map(Path, data["external_files"])),
        data["ir_version"],
        data["opset"],
    )


def _tensors(data: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            entry["name"],
            DataType[entry["dtype"]],
            None if entry["shape"] is None else tuple(entry["shape"]),
        )
        for entry in data
    )


def describe_error(error: Exception) -> dict[str, Any] | None:
    """An error that the host is to raise again; None for one that is a mistake of ours."""
    if isinstance(error, RepoBuilderError):
        return {"error": type(error).__name__, "arguments": [error.message, error.hint]}
    if isinstance(error, RunError):
        return {"error": "RunError", "arguments": [str(error)]}
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return {"error": "OSError", "arguments": [error.errno, error.strerror]}
    return None


def read_error(data: Mapping[str, Any]) -> Exception:
    kinds: dict[str, type[Exception]] = {"RunError": RunError, "OSError": OSError}
    kind = kinds.get(data["error"]) or getattr(errors, data["error"])
    # A package that lacks in the container is none that the host could install.
    made: Exception = (errors.CompileError if kind is errors.MissingExtraError else kind)(*data["arguments"])
    return made


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write ``path``, an NPZ of the values, and beside it their names and dtypes, which NPZ can't hold all."""
    import numpy as np

    bare = [array.view(np.uint16) if array.dtype.name == "bfloat16" else array for array in arrays.values()]
    np.savez(path, *bare)
    dtypes = [[name, array.dtype.name] for name, array in arrays.items()]
    path.with_suffix(".json").write_text(json.dumps(dtypes), encoding="utf-8")


def load_arrays(path: Path) -> Arrays:
    import numpy as np

    dtypes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    arrays: Arrays = {}
    with np.load(path, allow_pickle=False) as bare:
        for index, (name, dtype) in enumerate(dtypes):
            array = bare[f"arr_{index}"]
            arrays[name] = array.view(DataType.BF16.numpy_dtype()) if dtype == "bfloat16" else array
    return arrays
