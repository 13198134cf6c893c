"""How requests get to the server: by which protocol, where their tensors are, compressed or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from client.errors import UsageError
from client.tls import Tls


class Protocol(str, Enum):
    """What carries requests."""

    HTTP = "http"
    GRPC = "grpc"


class SharedMemory(str, Enum):
    """Where tensors are, if not in requests and answers."""

    NONE = "none"
    SYSTEM = "system"
    CUDA = "cuda"


class Compression(str, Enum):
    """What HTTP bodies are compressed with."""

    NONE = "none"
    GZIP = "gzip"
    DEFLATE = "deflate"


@dataclass(frozen=True)
class Delivery:
    """How requests get to the server.

    Everything besides inferences (metadata, statistics, shared memory) goes over HTTP whatever ``protocol`` is.
    ``grpc_url`` is where gRPC is spoken, else a port of the HTTP server's host: that on the command line of its process
    if that can be seen, else 8001.  Request bodies are compressed when they are built; answers are decompressed only to
    be checked.

    Raises UsageError for what can't go together.
    """

    protocol: Protocol = Protocol.HTTP
    shared_memory: SharedMemory = SharedMemory.NONE
    compression: Compression = Compression.NONE
    grpc_url: str | None = None
    tls: Tls = field(default_factory=Tls)

    def __post_init__(self) -> None:
        if self.grpc_url is not None and self.protocol is not Protocol.GRPC:
            raise UsageError("--grpc-url is for --protocol grpc", "--protocol grpc")
        if self.compression is not Compression.NONE and self.protocol is Protocol.GRPC:
            raise UsageError("--compression is for HTTP", "--protocol http")
        if self.compression is not Compression.NONE and self.shared_memory is not SharedMemory.NONE:
            raise UsageError(
                "--compression has nothing to do when tensors are in shared memory", "--shared-memory none"
            )
