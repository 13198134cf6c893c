"""``repo-builder compile`` and ``repo-builder inspect``: plans without a repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repo_builder.cli.output import DebugOption, JsonOption, Steps, human_size, note, print_json, say
from repo_builder.cli.trt_options import PlanTarget, describe_engine, takes_tensorrt_options

if TYPE_CHECKING:
    from repo_builder.trt.options import TensorRTOptions


@takes_tensorrt_options
def compile_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", "--saveEngine", metavar="FILE", help="The plan.")] = Path(
        "model.plan"
    ),
    target: Annotated[PlanTarget, typer.Option(help="What to compile for; auto: what is installed.")] = PlanTarget.auto,
    max_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Largest batch where no shapes are given.", show_default="8")
    ] = None,
    benchmark: Annotated[bool, typer.Option("--benchmark", help="Measure the engine as trtexec does.")] = False,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  (read by main)
    *,
    tensorrt: TensorRTOptions,
) -> None:
    """Compile an ONNX model to a TensorRT plan, and nothing else: what trtexec --saveEngine does."""
    from dataclasses import asdict

    from repo_builder.compilers.base import Target
    from repo_builder.plans import benchmark_plan, compile_plan, require_gpu_to_measure

    if benchmark:
        require_gpu_to_measure()
    with Steps() as progress:
        compiled = compile_plan(
            model,
            output,
            target=Target(target.value),
            options=tensorrt,
            max_batch_size=max_batch_size,
            progress=progress,
        )
        if benchmark:
            progress("measuring")
            performance = benchmark_plan(output, version_compatible=tensorrt.version_compatible)
    if json:
        facts = {**asdict(compiled), "path": str(compiled.path)}
        print_json({**facts, "performance": asdict(performance)} if benchmark else facts)
    note(f"{compiled.path} ({human_size(compiled.bytes)}): {describe_engine(compiled.engine)}")
    for hint in compiled.hints:
        note(f"note: {hint}")
    if benchmark and not json:
        from repo_builder.trt.benchmark import format_summary

        typer.echo(format_summary(performance))


def inspect_command(
    plan: Annotated[Path, typer.Argument(metavar="MODEL.plan", help="The plan.", show_default=False)],
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="LIB.so", help="Custom layers that it needs.", show_default=False)
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Run the TensorRT that a plan built so brings along.")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  (read by main)
) -> None:
    """Print what is in a TensorRT plan: version, tensors, profiles, layers by precision, memory."""
    from repo_builder.compilers.base import Target
    from repo_builder.plans import inspect_plan
    from repo_builder.trt.library import LIBRARY_NAMES

    facts = inspect_plan(plan, tuple(plugin or ()), version_compatible=version_compatible)
    if json:
        print_json(facts)
        return
    say(f"plan      {LIBRARY_NAMES[Target(facts['target'])]} {facts['version']}, {human_size(facts['bytes'])}")
    if facts["source"] == "manifest":
        note(f"note: {facts['not_opened']}; this is what the manifest beside it says")
    elif facts["source"] == "header":
        note(f"note: {facts['not_opened']}; all else can only be told on a GPU that runs it")
        return
    _print_details(facts)


def _print_details(facts: dict[str, Any]) -> None:
    gpu = facts["gpu"]
    say(f"gpu       {gpu['name']}, compute capability {gpu['compute_capability']}" if gpu else "gpu       none")
    for role in ("inputs", "outputs"):
        for tensor in facts[role]:
            say(f"{role[:-1]:<9} {tensor}")
    for index, profile in enumerate(facts["profiles"]):
        for name, smallest in profile["min"].items():
            sizes = (smallest, profile["opt"][name], profile["max"][name])
            say(f"profile {index} {name}: min {sizes[0]}, opt {sizes[1]}, max {sizes[2]}")
    layers = facts["layers_by_precision"]
    counts = ", ".join(f"{count} {precision}" for precision, count in layers.items())
    say(f"layers    {counts or 'not told'}")
    if facts["device_memory_bytes"]:
        say(f"memory    {human_size(facts['device_memory_bytes'])} of scratch for each context")
