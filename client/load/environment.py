"""What a run was: asked for, of which model, where."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from client.client import Client
from client.errors import ClientError
from client.load.result import Environment, Model
from client.load.server_statistics import Batching
from client.load.server_usage import Whereabouts, model_files
from client.metadata import ModelMetadata


def describe_model(model: ModelMetadata, config: Mapping[str, Any], where: Whereabouts) -> Model:
    """The model, with hashes of the configuration that it is served with and of its files."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return Model(
        name=model.name,
        version=model.version,
        platform=str(config.get("platform") or config.get("backend") or "unknown"),
        config_sha256=hashlib.sha256(text.encode()).hexdigest(),
        batching=Batching.of(config),
        image=model.image is not None,
        files_sha256=model_files(where.process, model.name, model.version),
    )


def describe_environment(client: Client, where: Whereabouts) -> Environment:
    """This machine, and the server's own name for itself."""
    try:
        described = client.server_metadata()
        server = f"{described.get('name', 'unknown')} {described.get('version', '')}".strip()
    except ClientError:
        server = "unknown"
    return Environment(
        client_version=_version(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        cpu=_cpu(),
        cpus=os.cpu_count() or 1,
        hostname=platform.node(),
        server=server,
        server_unseen=where.unseen,
    )


def _version() -> str:
    try:
        return packages.version("repo-builder")
    except packages.PackageNotFoundError:
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
