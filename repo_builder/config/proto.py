"""Triton's ModelConfig message and protobuf's own text parser."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from repo_builder.errors import ConfigError

ModelConfig = Any
"""An ``inference.ModelConfig`` message; protobuf generates its class at run time."""


@cache
def messages() -> Any:
    """The module generated from Triton's model_config.proto, as tritonclient ships it.

    It is loaded by itself: importing ``tritonclient.grpc``, the package it lies in, needs gRPC and 0.2 s.
    """
    import tritonclient

    name = "tritonclient.grpc.model_config_pb2"
    if name in sys.modules:
        return sys.modules[name]
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("repo_builder._model_config_pb2", path)
    if spec is None or spec.loader is None:  # pragma: no cover
        raise ConfigError(
            f"tritonclient is incomplete: {path} is missing", "pip install --force-reinstall tritonclient"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def new_config(**fields: object) -> ModelConfig:
    return messages().ModelConfig(**fields)


def enum_name(message: Any, field: str) -> str:
    """The name of an enum field's value, or its number where the enum has none: proto3 lets any through."""
    number = getattr(message, field)
    value = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number.get(number)
    return str(number) if value is None else str(value.name)


def parse_config(text: str, where: str) -> ModelConfig:
    """Parse config.pbtxt text; ``where`` names it in errors.

    Raises:
        ConfigError: not a ModelConfig, with the line and column of the first mistake.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, new_config())
    except text_format.ParseError as error:
        reason = str(error).replace('"inference.ModelConfig"', "ModelConfig")
        raise ConfigError(f"{where}: {reason}", "field names: Triton's model_configuration.md") from None


def read_config(path: Path) -> ModelConfig:
    """Read a config.pbtxt; raises ConfigError when it can't be read or parsed."""
    return parse_config(_read_text(path), str(path))


def stated_max_batch_size(path: Path) -> int | None:
    """What a config.pbtxt says of max_batch_size, None if nothing: a message does not tell that from 0.

    Raises:
        ConfigError: the file can't be read or parsed.
    """
    from google.protobuf import text_format

    read_config(path)
    unset = -(2**31)
    size = int(text_format.Merge(_read_text(path), new_config(max_batch_size=unset)).max_batch_size)
    return None if size == unset else size


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}", "check the path and its permissions") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", "write it as text, like Triton's config.pbtxt") from None
