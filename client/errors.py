"""Every error this package raises on purpose.

::

    ClientError                      exit code 1
    ├── UsageError                   exit code 2: an option or argument can't be right
    ├── InputError                   a picture, an array or its file can't be read or doesn't fit the model
    ├── ConnectionFailed             nothing answers at the URL, or the connection broke
    ├── RequestTimeout               the server was silent for longer than the timeout
    ├── BadResponse                  what answers at the URL doesn't speak the inference protocol
    ├── InferenceRejected            the server refused the request; its own message is kept
    ├── UnknownModel                 the server has no such model or version; says which there are
    ├── ModelNotReady                the server has the model but hasn't loaded it; says why when it knows
    └── MetadataError                the model's own description can't be used (such as its preprocessing)

A message is one line that says what happened; a hint names the flag or the command that mends it.  Errors whose
mend hangs on nothing but their kind have it here.
"""

# ruff: noqa: N818  (named for what happened, as httpx and requests name theirs)
from __future__ import annotations

from typing import ClassVar


class ClientError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is the message, without the hint."""

    exit_code: ClassVar[int] = 1
    usual_hint: ClassVar[str | None] = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint


class UsageError(ClientError):
    """An option or argument can't be right, whatever the server says."""

    exit_code = 2


class InputError(ClientError):
    """A picture, an array or the file that holds it can't be read or doesn't fit the model."""


class ConnectionFailed(ClientError):
    """Nothing answers at the URL, or the connection broke before the answer was complete."""

    usual_hint = "repo-builder status shows the servers that run here; --url says where another one is"


class RequestTimeout(ClientError):
    """The server was silent for longer than the timeout."""

    usual_hint = "--timeout SECONDS waits longer"


class BadResponse(ClientError):
    """What answers at the URL doesn't speak Triton's HTTP inference protocol."""

    usual_hint = (
        "check --url: Triton's HTTP port is 8000 by default, not 8001 (gRPC) or 8002 (metrics); "
        "a path belongs to it only behind a proxy"
    )


class InferenceRejected(ClientError):
    """The server refused the request; the message is the server's."""

    usual_hint = "these are the server's own words; its log has more: repo-builder logs"


class UnknownModel(ClientError):
    """The server has no such model or version."""

    usual_hint = "choose with --model NAME[@VERSION]"


class ModelNotReady(ClientError):
    """The server has the model in its repository but hasn't loaded it."""

    usual_hint = "the server's log says more: repo-builder logs"


class MetadataError(ClientError):
    """The model's own description on the server can't be used."""

    usual_hint = "mend the model's config.pbtxt, or add it again with repo-builder add MODEL.onnx --image PRESET"
