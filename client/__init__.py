"""A client for models on a Triton Inference Server, pictures first.

::

    from client import Client

    with Client("localhost:8000") as client:
        print(client.classify(["cat.jpg"])[0][0].label)

Commands: ``python -m client.infer``, ``python -m client.bench``, ``python -m client.compare``.
Names are imported when they are first used: ``import client`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.client import Client, ModelState
    from client.errors import (
        BadResponse,
        ClientError,
        ConnectionFailed,
        InferenceRejected,
        InputError,
        MetadataError,
        ModelNotReady,
        RequestTimeout,
        UnknownModel,
        UsageError,
    )
    from client.image import ImageSpec, load_image
    from client.load.bodies import LoadData
    from client.load.delivery import Compression, Delivery, Protocol, SharedMemory
    from client.load.result import RunResult
    from client.load.run import run_load
    from client.metadata import ModelMetadata, TensorMetadata
    from client.tls import Tls
    from client.topk import Classification

_MODULES = {
    "BadResponse": "errors",
    "Classification": "topk",
    "Client": "client",
    "ClientError": "errors",
    "Compression": "load.delivery",
    "ConnectionFailed": "errors",
    "Delivery": "load.delivery",
    "ImageSpec": "image",
    "InferenceRejected": "errors",
    "InputError": "errors",
    "LoadData": "load.bodies",
    "MetadataError": "errors",
    "ModelMetadata": "metadata",
    "ModelNotReady": "errors",
    "ModelState": "client",
    "Protocol": "load.delivery",
    "RequestTimeout": "errors",
    "RunResult": "load.result",
    "SharedMemory": "load.delivery",
    "TensorMetadata": "metadata",
    "Tls": "tls",
    "UnknownModel": "errors",
    "UsageError": "errors",
    "load_image": "image",
    "run_load": "load.run",
}

__all__ = [
    "BadResponse",
    "Classification",
    "Client",
    "ClientError",
    "Compression",
    "ConnectionFailed",
    "Delivery",
    "ImageSpec",
    "InferenceRejected",
    "InputError",
    "LoadData",
    "MetadataError",
    "ModelMetadata",
    "ModelNotReady",
    "ModelState",
    "Protocol",
    "RequestTimeout",
    "RunResult",
    "SharedMemory",
    "TensorMetadata",
    "Tls",
    "UnknownModel",
    "UsageError",
    "load_image",
    "run_load",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
