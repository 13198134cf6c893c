"""Every error this package raises on purpose.

::

    RepoBuilderError                 exit code 1
    ├── UsageError                   exit code 2: an option or argument can't be right
    ├── ModelError                   the ONNX file can't be read, understood or served
    ├── ConfigError                  the config.pbtxt contradicts the model or itself
    ├── CompileError                 the target's compiler refused the model
    ├── VerificationError            the artifact's numbers are not the source's
    ├── RepositoryError              the model repository can't be read or changed
    ├── MissingExtraError            a package of an optional extra is not installed
    └── ServerError                  a server can't start, load its models or be found

A message is one line that says what happened; a hint names the flag or the command that mends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator


class RepoBuilderError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is the message, without the hint."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(RepoBuilderError):
    """An option or argument can't be right, whatever the model is."""

    exit_code = 2


class ModelError(RepoBuilderError):
    """The ONNX file can't be read, understood or served by Triton."""


class ConfigError(RepoBuilderError):
    """The model configuration contradicts the artifact or itself."""


class CompileError(RepoBuilderError):
    """The target's compiler refused the model."""


@contextlib.contextmanager
def told_with(notes: Iterable[str]) -> Iterator[None]:
    """Add ``notes``, what was made of the model before, to what the compiler says of it."""
    try:
        yield
    except CompileError as error:
        error.message = "; ".join((error.message, *notes))
        error.args = (error.message,)
        raise


class VerificationError(RepoBuilderError):
    """The artifact's outputs are not those of ONNX Runtime on the source."""


class RepositoryError(RepoBuilderError):
    """The model repository can't be read or changed."""


class MissingExtraError(RepoBuilderError):
    """A package of an optional extra is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"{package} is not installed", f"pip install 'repo-builder[{extra}]'")


class ServerError(RepoBuilderError):
    """A server can't start, can't load its models or can't be found."""
