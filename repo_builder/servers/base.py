"""How a server is started, and the states of its models, whatever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path


@dataclass(frozen=True)
class ServerOptions:
    """How a server is started.  A port of 0 means any free one."""

    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    host: str = "127.0.0.1"
    models: tuple[str, ...] = ()  # none: all of the repository
    poll_seconds: int | None = None  # take up new versions every so often; None: never
    log_verbose: int = 0
    log_file: Path | None = None  # None: one in the user's state folder
    timeout_s: float = 600.0  # until every model is loaded or refused


class ModelState(str, Enum):
    """A version's state, in the words of Triton's repository index."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class ModelStatus:
    """One model version as the server has it; ``cause`` and ``hint`` say why it is unavailable, or not for long."""

    name: str
    version: int | None  # None: the server could not read the model at all
    state: ModelState
    cause: str | None = None
    hint: str | None = None

    @property
    def ready(self) -> bool:
        return self.state is ModelState.READY
