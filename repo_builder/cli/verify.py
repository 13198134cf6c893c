"""``repo-builder verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repo_builder.cli.models import ModelArgument
from repo_builder.cli.output import (
    DEFAULT_REPOSITORY,
    DebugOption,
    JsonOption,
    RepositoryOption,
    Steps,
    note,
    print_json,
    printable,
    table,
)
from repo_builder.cli.sample_options import InputFileOption, InputRangeOption, ShapeOption, read_samples

if TYPE_CHECKING:
    from repo_builder.comparison import OutputReport, Tolerance
    from repo_builder.recheck import Rechecked


def verify(
    model: ModelArgument,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL.onnx",
            help="The file it was made from, checked by its SHA-256.",
            show_default="the artifact, if it is that file",
        ),
    ] = None,
    served: Annotated[
        str, typer.Option(metavar="URL", help="Compare what a running server answers, over HTTP.", show_default=False)
    ] = "",
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance.", show_default="as published")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance.", show_default="as published")] = None,
    input_file: InputFileOption = None,
    input_range: InputRangeOption = None,
    shape: ShapeOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  (read by main)
) -> None:
    """Hold a published model, or a server's answers, to ONNX Runtime on the source once more."""
    from dataclasses import asdict

    from repo_builder.recheck import verify_model
    from repo_builder.repository import parse_reference

    name, version = parse_reference(model)
    told = bool(input_file or input_range or shape)
    with Steps() as progress:
        checked = verify_model(
            name,
            version,
            repository=repository,
            source=source,
            served=served or None,
            tolerance=_tolerance(rtol, atol),
            samples=read_samples(input_file, input_range, shape) if told else None,
            progress=progress,
        )
    if json:
        print_json(asdict(checked))
    else:
        _print(checked)
    for hint in checked.hints:
        note(f"note: {hint}")


def _tolerance(rtol: float | None, atol: float | None) -> Tolerance | None:
    """None where nothing was said; of two, the one that was left out is the default."""
    if rtol is None and atol is None:
        return None
    from repo_builder.comparison import Tolerance

    return Tolerance(atol=atol) if rtol is None else Tolerance(rtol=rtol, atol=atol)


def _print(checked: Rechecked) -> None:
    sizes = [size for size in checked.verification.batch_sizes if size]
    at = f" at batch {', '.join(map(str, sizes))}" if sizes else ""
    what = f"{checked.name}@{checked.version}"
    who = f"{what} on {checked.served}" if checked.served else f"{what} ({checked.target})"
    typer.echo(printable(f"{who} agrees with ONNX Runtime on {checked.source}{at}"))
    if checked.joined is not None and checked.joined > 1:
        typer.echo(f"requests of one row were joined into batches of up to {checked.joined}")
    header = ("OUTPUT", "MAX ABS", "RELATIVE", "COSINE", "SAME TOP-1", "OUTSIDE")
    table([_cells(report) for report in checked.verification.outputs], header)


def _cells(report: OutputReport) -> tuple[str, ...]:
    return (
        printable(report.name),
        f"{report.max_absolute_error:.1e}",
        f"{report.max_relative_error:.1e}",
        f"{report.cosine_error:.1e}",
        "-" if report.top1_agreement is None else f"{report.top1_agreement:.1%}",
        f"{report.mismatched} of {report.elements}",
    )
