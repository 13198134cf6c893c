"""The options that say what is known of a model's inputs, for every command that runs one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repo_builder.errors import UsageError

if TYPE_CHECKING:
    from repo_builder.samples import SampleOptions

InputFileOption = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME=FILE.npy", help="An input to verify with; repeatable."),
]
InputRangeOption = Annotated[
    list[str] | None,
    typer.Option("--input-range", metavar="NAME=LOW:HIGH", help="Random values between these; repeatable."),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1x3x64x64", help="Shape of an input with free axes; repeatable."),
]


def _pairs(flag: str, texts: list[str] | None, form: str) -> dict[str, str]:
    """Split each ``NAME=VALUE`` at the last '=', since tensor names may hold one."""
    pairs: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.rpartition("=")
        if not equals or not name or not value:
            raise UsageError(f"{flag} {text}: expected {form}", "NAME is an input of the model")
        if name in pairs:
            raise UsageError(f"{flag} {name}=... is given twice", "drop one of the two")
        pairs[name] = value
    return pairs


def read_samples(files: list[str] | None, ranges: list[str] | None, shapes: list[str] | None) -> SampleOptions:
    """What the three options say; raises UsageError."""
    from repo_builder.samples import SampleOptions

    bounds = {}
    for name, value in _pairs("--input-range", ranges, "NAME=LOW:HIGH").items():
        try:
            low, high = (_number(bound) for bound in value.split(":"))
        except ValueError:
            raise UsageError(
                f"--input-range {name}={value}: {value!r} is not LOW:HIGH", "two numbers, as in ids=0:30521"
            ) from None
        bounds[name] = (low, high)
    sizes = {name: read_sizes("--shape", value) for name, value in _pairs("--shape", shapes, "NAME=1x3x64x64").items()}
    for name, shape in sizes.items():
        if 0 in shape:
            raise UsageError(f"--shape {name}={'x'.join(map(str, shape))} has no elements", "sizes of 1 or more")
    paths = {name: Path(value) for name, value in _pairs("--input", files, "NAME=FILE.npy").items()}
    return SampleOptions(paths, bounds, sizes)


def _number(text: str) -> float:
    """A whole number exactly: the bounds of 64-bit integers are more than a float can hold."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def read_sizes(flag: str, text: str) -> tuple[int, ...]:
    """``224`` or ``1x3x224x224``; raises UsageError."""
    try:
        sizes = tuple(int(part) for part in text.split("x"))
    except ValueError:
        sizes = (-1,)
    if min(sizes) < 0:
        raise UsageError(f"{flag} {text}: not a size", "whole numbers with x between, as in 1x3x224x224")
    return sizes
