"""``python -m client.infer``: send pictures or arrays to a model, show its answers and where the time went."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in an import would show a traceback: see exit_code()

import logging
import warnings
from pathlib import Path
from typing import Annotated

import typer

from client.command import exit_code, run_app
from client.errors import UsageError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EPILOG = (
    "Preprocessing, shapes and labels come from the server.  In pictures the EXIF orientation is applied, the "
    "first frame taken, transparency laid over white.  Exit code: 0 all answered, 1 something failed, 2 misuse."
)


@app.command(epilog=_EPILOG)
def infer(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Pictures, or folders of them.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME[@VERSION]", help="Not needed if only one is ready.")
    ] = None,
    model_version: Annotated[
        str, typer.Option("--model-version", "-x", metavar="N", help="The newest without it.", show_default=False)
    ] = "",
    url: Annotated[
        str | None, typer.Option("--url", "-u", metavar="URL", help="Else $TRITON_URL, else http://localhost:8000.")
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long the server may be silent.")] = 30.0,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many of the best classes to show.")] = 5,
    batch: Annotated[
        int | None,
        typer.Option("--batch", "-b", metavar="N", min=1, help="Items a request; the model's maximum without it."),
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Send each request so many times.")] = 1,
    warmup: Annotated[int, typer.Option(metavar="N", min=0, help="Requests before the first that is timed.")] = 0,
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE.npy", help="An array for an input; repeatable."),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random values for inputs without --input.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of --random.")] = 0,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=1x3x224x224", help="Of a random input with free axes; repeatable."),
    ] = None,
    input_range: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LOW:HIGH", help="Of the values of a random input; repeatable."),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save outputs as .npy files, and show them instead of classes."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Classify pictures with a model on a Triton server, or run any model on arrays."""

    def command() -> int:
        from client.session import Options, run

        name, version = split_version(model, model_version)
        options = Options(
            files=tuple(files or ()),
            model=name,
            version=version,
            url=url,
            timeout=timeout,
            top=top,
            batch=batch,
            repeat=repeat,
            warmup=warmup,
            inputs=tuple(input_ or ()),
            random=random,
            seed=seed,
            shapes=tuple(shape or ()),
            ranges=tuple(input_range or ()),
            output_dir=output_dir,
        )
        return run(options, as_json=as_json)

    raise typer.Exit(exit_code(command, debug=debug))


def split_version(model: str | None, version: str) -> tuple[str | None, str]:
    """``NAME@VERSION`` in two; a name may itself have an ``@`` if no number follows it."""
    name, at, number = (model or "").rpartition("@")
    if not (at and name and number.isdecimal()):
        return model, version
    if version and version != number:
        raise UsageError(f"--model asks for version {number}, --model-version for {version}", "one of them is enough")
    return name, number


def main() -> None:
    """Run the command line; the one place that turns what went wrong into an exit code."""
    # Pillow warns of what it repairs or refuses; what matters of that is an error with the file's name.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    run_app(app, "python -m client.infer")


if __name__ == "__main__":
    main()
