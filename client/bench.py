"""``python -m client.bench``: put a model under load and measure what can be trusted."""

# ruff: noqa: E402
from __future__ import annotations

import signal

_ENDING = {signal.SIGINT, signal.SIGTERM}

if __name__ == "__main__":  # Ctrl-C in an import would show a traceback, or be lost: it waits for bench()
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from client.command import report_error, run_app
from client.infer import split_version
from client.load.delivery import Compression, Delivery, Protocol, SharedMemory
from client.tls import Tls

if TYPE_CHECKING:
    from client.load.result import RunResult

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EPILOG = (
    "Response time counts from when a request was due, so a stall of the server is in it; service time counts from "
    "when it was sent.  Exit code: 0 VALID, 1 INVALID or failed, 2 misuse, 99 a --fail-if was met, 130 Ctrl-C before "
    "anything was measured, 143 SIGTERM."
)


@app.command(epilog=_EPILOG)
def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="[NAME[@VERSION]]", help="Not needed if only one is ready.")
    ] = None,
    pictures: Annotated[
        list[Path] | None, typer.Argument(metavar="[PICTURE]...", help="Pictures, or folders of them, to send.")
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help="The same.")] = None,
    model_version: Annotated[str, typer.Option("--model-version", "-x", metavar="N", show_default=False)] = "",
    url: Annotated[
        str | None, typer.Option("--url", "-u", metavar="URL", help="Else $TRITON_URL, else http://localhost:8000.")
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "--concurrency", "--concurrency-range", metavar="LEVELS", help="Requests in flight: 8, 1,2,4 or 1:64:x2."
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", "--request-rate-range", metavar="LEVELS", help="Requests a second, answered or not: 100:500:100."
        ),
    ] = None,
    poisson: Annotated[bool, typer.Option("--poisson", help="Random gaps between them, not even ones.")] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Send at these times: seconds, one a line.")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="MLPerf's single-stream, multi-stream, server or offline, of 600s a level."),
    ] = None,
    target_latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="That p99 has to keep in --scenario server.")
    ] = None,
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of each level; 10s without --requests.", show_default=False)
    ] = None,
    requests: Annotated[int | None, typer.Option("--requests", "-n", min=1, help="At most so many a level.")] = None,
    warmup: Annotated[str, typer.Option(metavar="TIME|N", help="Before each level, not measured.")] = "1s",
    batch: Annotated[
        int | None, typer.Option("--batch", "-b", min=1, metavar="N", help="Items a request.", show_default="1")
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE.npy", help="Values of an input; else random ones. Repeatable."),
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="NAME=3x224x224", help="Of a random input with free axes.")
    ] = None,
    input_range: Annotated[
        list[str] | None, typer.Option(metavar="NAME=LOW:HIGH", help="Of the values of a random input.")
    ] = None,
    variants: Annotated[int, typer.Option(metavar="N", help="Different requests to send in turn.")] = 8,
    protocol: Annotated[
        Protocol, typer.Option("--protocol", "-i", case_sensitive=False, help="Of inferences; all else goes over HTTP.")
    ] = Protocol.HTTP,
    grpc_url: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Else the port that the server at --url was started with, or 8001."),
    ] = None,
    shared_memory: Annotated[
        SharedMemory, typer.Option(help="Where tensors are, if not in requests: the server is on this machine.")
    ] = SharedMemory.NONE,
    compression: Annotated[Compression, typer.Option(help="Of HTTP bodies.")] = Compression.NONE,
    ca_file: Annotated[
        Path | None, typer.Option("--cacert", metavar="FILE.pem", help="Certificates to trust for https://.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", "-k", help="Trust any certificate.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of random inputs and of --poisson.")] = 0,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one answer.", min=0.001)] = 30.0,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=256, help="Processes.", show_default="by the cores")
    ] = None,
    connections: Annotated[
        int, typer.Option(metavar="N", min=1, max=20_000, help="The most that --rate has in flight.")
    ] = 512,
    percentile: Annotated[
        float | None, typer.Option(metavar="P", help="That the run must be able to claim.", show_default="99")
    ] = None,
    fail_if: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help="'p99>20ms', 'errors>0.1%'...; exit code 99.")
    ] = None,
    floor: Annotated[bool, typer.Option(help="Measure the generator itself afterwards.")] = True,
    metrics_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Triton's metrics, for GPU use; found by itself where possible.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="Save all; schema: client/load/run.schema.json."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", "-f", metavar="FILE.csv", help="Save perf_analyzer's columns.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Save a report to look at.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write --output's document to stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Put a model under load and measure it: latency, throughput, batches, and whether to believe them."""
    result: RunResult | None = None
    terminated = _terminate_as_interrupted()
    try:
        from client.load.interrupts import Interrupts
        from client.load.session import Options, measure, present

        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if model and model_option:
            # perf_analyzer's -m leaves the whole of the arguments to pictures.
            pictures, model = [Path(model), *(pictures or [])], None
        name, version = split_version(model or model_option, model_version)
        options = Options(
            model=name,
            version=version,
            pictures=tuple(pictures or ()),
            url=url,
            concurrency=concurrency,
            rate=rate,
            poisson=poisson,
            trace=trace,
            duration=duration,
            requests=requests,
            warmup=warmup,
            batch=batch,
            inputs=tuple(input_ or ()),
            shapes=tuple(shape or ()),
            ranges=tuple(input_range or ()),
            variants=variants,
            delivery=Delivery(protocol, shared_memory, compression, grpc_url, Tls(ca_file, insecure)),
            seed=seed,
            timeout=timeout,
            workers=workers,
            connections=connections,
            percentile=percentile,
            scenario=scenario,
            target_latency=target_latency,
            metrics_url=metrics_url,
            fail_if=tuple(fail_if or ()),
            floor=floor,
            output=output,
            csv=csv,
            html=html,
        )
        with Interrupts() as interrupts:
            result = measure(options, interrupts, quiet=quiet)
            code = present(options, result, interrupts, as_json=as_json)
    except KeyboardInterrupt:
        typer.echo("interrupted" if result else "interrupted, nothing measured", err=True)
        code = 128 + signal.SIGINT
    except Exception as error:
        if debug:
            traceback.print_exc()
        code = report_error(error)
    raise typer.Exit(128 + signal.SIGTERM if terminated.is_set() else code)


def _terminate_as_interrupted() -> threading.Event:
    """Have SIGTERM do what Ctrl-C does: what was measured is saved, and regions of shared memory end.

    The event is set when it came.
    """
    came = threading.Event()

    def interrupt(_: int, frame: FrameType | None) -> None:
        came.set()
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, interrupt)
    return came


def main() -> None:
    """Run the command line."""
    run_app(app, "python -m client.bench")


if __name__ == "__main__":
    try:
        main()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # all is said
