"""Custom layers: the libraries they are in, loaded where engines are built and read, and published with the plan."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from repo_builder.compilers.base import Target
from repo_builder.errors import UsageError
from repo_builder.trt.library import Library

FOLDER = "plugins"
"""Where a version keeps them, beside its plan."""

_LINKED = {Target.TENSORRT: "nvinfer", Target.TENSORRT_RTX: "tensorrt_rtx"}

_HINT = "a shared library with TensorRT plugins, and all it links to"


def load_plugins(library: Library, logger: Any, plugins: Iterable[Path]) -> tuple[Path, ...]:
    """Make custom layers known: TensorRT's own and those of the user's libraries.

    Returns those of the libraries that brought none.  That is no error: they may be what others need, or a copy of
    what is loaded already, so that TensorRT has their layers.

    Raises:
        UsageError: a library is not there, does not load, or TensorRT finds no layers in the list that it exports.
    """
    if hasattr(library.module, "init_libnvinfer_plugins"):
        library.module.init_libnvinfer_plugins(logger, "")
    idle = []
    for path in plugins:
        try:
            if not _brings_layers(library, path.resolve()):
                idle.append(path)
        except OSError as error:
            reason = " ".join(str(error).split()).removeprefix(f"{path.resolve()}: ")
            linked = (
                f"link it to the library that has this symbol: -l{_LINKED[library.target]} for {library.name}'s own"
            )
            hint = linked if "undefined symbol" in reason else _HINT
            raise UsageError(f"--plugin {path} can't be loaded: {reason}", hint) from None
    return tuple(idle)


@cache
def _brings_layers(library: Library, path: Path) -> bool:
    """Load a library for good: most register their layers themselves, others export a list for the registry to read.

    Source: IPluginRegistry::loadLibrary in TensorRT's NvInferRuntimeCommon.h.
    """
    registry = library.module.get_plugin_registry()
    before = _count_creators(registry)
    loaded = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    exports = any(hasattr(loaded, name) for name in ("getCreators", "getPluginCreators"))
    if exports and _count_creators(registry) == before and registry.load_library(str(path)) is None:
        raise UsageError(f"--plugin {path}: {library.name} {library.version} finds no layers in it", _HINT)
    return exports or _count_creators(registry) > before


def describe_idle(library: Library, idle: Iterable[Path]) -> tuple[str, ...]:
    """A sentence on each of the libraries that brought no layers."""
    has = f"brings no layers that {library.name} does not have without it"
    return tuple(f"--plugin {path} {has}: leave it out, unless others need it" for path in idle)


def _count_creators(registry: Any) -> int:
    listed = getattr(registry, "all_creators", None)  # since TensorRT 10
    return len(registry.plugin_creator_list if listed is None else listed)


def copy_plugins(plugins: Iterable[Path], folder: Path) -> tuple[str, ...]:
    """Put them into the version's ``folder``, for the servers; return their paths in it.

    Raises:
        UsageError: two have the same name.
    """
    copied: list[str] = []
    for path in plugins:
        name = f"{FOLDER}/{path.name}"
        if name in copied:
            raise UsageError(f"--plugin {path}: another of the libraries is called {path.name}, too", "rename one")
        (folder / FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
        copied.append(name)
    return tuple(copied)


def published_plugins(folder: Path, manifest: Mapping[str, Any]) -> tuple[Path, ...]:
    """The libraries that the plan of a version needs; empty where none are noted."""
    noted = (manifest.get("engine") or {}).get("plugins") or ()
    return tuple(folder / FOLDER / Path(str(entry)).name for entry in noted)
