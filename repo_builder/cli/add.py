"""``repo-builder add``."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from repo_builder.cli.output import (
    DEFAULT_REPOSITORY,
    DebugOption,
    JsonOption,
    RepositoryOption,
    Steps,
    human_size,
    note,
    print_json,
)
from repo_builder.cli.sample_options import InputFileOption, InputRangeOption, ShapeOption, read_samples, read_sizes
from repo_builder.cli.trt_options import describe_engine, describe_plans, takes_tensorrt_options
from repo_builder.errors import RepoBuilderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from repo_builder.add import Published
    from repo_builder.config.image import ImagePreprocessing
    from repo_builder.trt.options import TensorRTOptions


Number = TypeVar("Number", int, float)


class TargetName(str, Enum):
    auto = "auto"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class KindName(str, Enum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class LayoutName(str, Enum):
    NCHW = "NCHW"
    NHWC = "NHWC"


class ColorName(str, Enum):
    RGB = "RGB"
    BGR = "BGR"
    GRAY = "GRAY"


@takes_tensorrt_options
def add(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="the file's")] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    target: Annotated[TargetName, typer.Option(help="What to compile for.")] = TargetName.auto,
    build_in_container: Annotated[
        bool, typer.Option("--build-in-container", help="Compile in Triton's container: TensorRT is not needed here.")
    ] = False,
    container_image: Annotated[
        str, typer.Option(metavar="IMAGE", help="Which one.", show_default="the one serve would take")
    ] = "",
    max_batch_size: Annotated[
        int | None,
        typer.Option(help="Largest batch; 0: no batching.", show_default="8 if the model can be batched"),
    ] = None,
    preferred_batch_sizes: Annotated[str, typer.Option(metavar="N,N", help="Batch sizes worth waiting for.")] = "",
    max_queue_delay_us: Annotated[
        int | None, typer.Option(help="Longest wait for a batch to fill, microseconds.", show_default="0")
    ] = None,
    instance_count: Annotated[
        int | None, typer.Option(help="Copies of the model that run side by side.", show_default="1")
    ] = None,
    instance_kind: Annotated[KindName, typer.Option(help="Where they run.")] = KindName.auto,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names, one a line.")] = None,
    image: Annotated[
        str,
        typer.Option(
            metavar="PRESET",
            help="The model takes pictures: imagenet, inception, clip, efficientnet-lite, unit (0..1) or raw (0..255).",
        ),
    ] = "",
    resize: Annotated[str, typer.Option(metavar="N|HxW", help="Shorter side, or both, in pixels.")] = "",
    crop: Annotated[str, typer.Option(metavar="N|HxW", help="Centre crop in pixels; 0: none.")] = "",
    mean: Annotated[str, typer.Option(metavar="R,G,B", help="Subtracted from pixels of 0..1 (raw: 0..255).")] = "",
    std: Annotated[str, typer.Option(metavar="R,G,B", help="Then divided by.")] = "",
    layout: Annotated[LayoutName | None, typer.Option(help="Order of the axes.")] = None,
    color: Annotated[ColorName | None, typer.Option(help="Order of the channels.")] = None,
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="TensorRT: launch batches of 1, preferred and largest size whole; "
            "without batching every shape that comes, up to 64.",
        ),
    ] = False,
    cc_plan: Annotated[
        bool,
        typer.Option("--cc-plan", help="TensorRT: a plan for each type of GPU; run it on one after the other."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pbtxt", help="Any ModelConfig fields, merged over ours; may not contradict other options."
        ),
    ] = None,
    batching: Annotated[
        bool, typer.Option("--batching/--no-batching", help="Look for a batch axis and use it.")
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Hold the result to ONNX Runtime before publishing.")
    ] = True,
    rtol: Annotated[float, typer.Option(help="Relative tolerance of the verification.")] = 1e-3,
    atol: Annotated[
        float | None,
        typer.Option(help="Absolute tolerance.", show_default="1e-4 of each output's largest value"),
    ] = None,
    input_file: InputFileOption = None,
    input_range: InputRangeOption = None,
    shape: ShapeOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build again, also over a config.pbtxt edited by hand.")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  (read by main)
    *,
    tensorrt: TensorRTOptions,
) -> None:
    """Compile, configure, verify and publish an ONNX model as the next version in a model repository."""
    from repo_builder.add import BuildOptions, add_model
    from repo_builder.comparison import Tolerance
    from repo_builder.compilers.base import Target
    from repo_builder.compilers.container import ContainerOptions
    from repo_builder.config.build import ServingOptions

    if container_image and not build_in_container:
        raise UsageError("--container-image without --build-in-container: nothing is built in it", "give both")
    build = BuildOptions(
        target=Target(target.value),
        batching=batching,
        verify=verify,
        tolerance=Tolerance(rtol=rtol, atol=atol),
        samples=read_samples(input_file, input_range, shape),
        tensorrt=tensorrt,
        container=ContainerOptions(container_image or None) if build_in_container else None,
        cc_plan=cc_plan,
    )
    serving = ServingOptions(
        max_batch_size=max_batch_size,
        preferred_batch_sizes=_numbers("--preferred-batch-sizes", preferred_batch_sizes, int),
        max_queue_delay_us=max_queue_delay_us,
        instance_count=instance_count,
        instance_kind=instance_kind.value,
        labels=labels,
        image=_image(image, resize, crop, mean, std, layout, color),
        cuda_graphs=cuda_graphs,
        config=config,
    )
    if not verify:
        note("WARNING: --no-verify: nothing checks that this model runs, or that its answers are right")
    with Steps() as progress:
        published = add_model(
            model,
            name=name,
            repository=repository,
            build=build,
            serving=serving,
            force=force,
            progress=progress,
        )
    if json:
        print_json({**published.manifest, "folder": str(published.folder), "unchanged": published.unchanged})
    _say_what_was_made(published)
    if not published.unchanged and published.manifest["platform"] == "tensorrt_plan":
        _name_container(repository)
    _say_what_is_next(published.manifest, repository)


def _say_what_was_made(published: Published) -> None:
    manifest = published.manifest
    made = f"{published.name} version {published.version}"
    if published.unchanged:
        note(f"{made} is already made from this file with these options; nothing changed")
        return
    batch = manifest["max_batch_size"]
    note(f"published {made} in {published.folder} ({human_size(sum(manifest['files'].values()))})")
    note(f"  target    {manifest['target']} ({manifest['target_reason']})")
    if "engine" in manifest:
        note(f"  engine    {describe_engine(manifest['engine'])}")
    for line in describe_plans(manifest):
        note(f"  plan      {line}")
    note(f"  batching  {f'up to {batch}: ' if batch else 'none: '}{manifest['batching']['reason']}")
    note(f"  verified  {_verified(manifest['verification'], manifest['unverified'])}")
    for hint in published.hints:
        note(f"  note      {hint}")


def _say_what_is_next(manifest: Mapping[str, Any], repository: str) -> None:
    from repo_builder.servers.records import servers_of

    flag = "" if repository == DEFAULT_REPOSITORY else f" --repository {shlex.quote(repository)}"
    servers = servers_of(Path(repository))
    for server in servers:
        if server.poll_seconds:
            note(f"next: the server at {server.url} takes it up within {server.poll_seconds} s")
        else:
            note(f"the server at {server.url} loads models only at its start, so it has to be started again")
            note(f"next: repo-builder stop --http-port {server.http_port}, then repo-builder serve{flag}")
    if not servers:
        where = "on a machine with a GPU: " if _needs_other_machine(manifest) else ""
        note(f"next: {where}repo-builder serve{flag}")


def _needs_other_machine(manifest: Mapping[str, Any]) -> bool:
    """Whether it is a plan, and there is no GPU here that could run it."""
    from repo_builder.compilers.container import GPU_DEVICES

    return "engine" in manifest and not any(Path(device).exists() for device in GPU_DEVICES)


def _name_container(repository: str) -> None:
    """Say which container loads the repository's plans on this machine, and keep a .env of ours up to date."""
    from repo_builder.compatibility import find_plans
    from repo_builder.host import image_for_dotenv, write_image
    from repo_builder.repository import Repository

    try:
        chosen = image_for_dotenv(find_plans(Repository(repository)), Path())
    except RepoBuilderError as error:
        note(f"  container none: {error.message}; {error.hint}")
        return
    if chosen:
        image, doubt = chosen
        written = write_image(Path(), image, asked=False)
        where = f", now in {written}" if written else "; repo-builder doctor --write-env puts it into .env"
        note(f"  container {image}{f' ({doubt})' if doubt else ''}{where}")


def _verified(verification: Mapping[str, Any] | None, unverified: str | None) -> str:
    if verification is None:
        return f"NO: {unverified or '--no-verify'}"
    worst = max(verification["outputs"], key=lambda output: output["max_relative_error"])
    sizes = [size for size in verification["batch_sizes"] if size]
    at = f" at batch {', '.join(map(str, sizes))}" if sizes else ""
    start = f"NO: {unverified}; that one " if unverified else ""
    errors = (
        f"largest relative error {worst['max_relative_error']:.1e}, absolute {worst['max_absolute_error']:.1e} "
        f"(output {worst['name']!r})"
    )
    if not worst["max_absolute_error"]:
        return f"{start}equal to ONNX Runtime{at}: {errors}"
    share = worst["top1_agreement"]
    top1 = "" if share is None else f", same top-1 in {share:.0%}"
    return f"{start}agrees with ONNX Runtime{at}: {errors}, cosine error {worst['cosine_error']:.1e}{top1}"


def _numbers(flag: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{flag} {text}: not a list of numbers", "numbers with commas between, as in 1,2,3") from None


def _image(
    preset: str,
    resize: str,
    crop: str,
    mean: str,
    std: str,
    layout: LayoutName | None,
    color: ColorName | None,
) -> ImagePreprocessing | None:
    """The preset with what was overridden."""
    overrides = {"resize": resize, "crop": crop, "mean": mean, "std": std, "layout": layout, "color": color}
    given = [name for name, value in overrides.items() if value]
    if not preset:
        if given:
            raise UsageError(f"--{given[0]} needs a preset to change", "add --image imagenet, or another preset")
        return None
    from dataclasses import replace

    from repo_builder.config.image import image_preset

    spec = image_preset(preset)
    changes: dict[str, Any] = {"chosen": tuple(name for name in given if name in {"resize", "crop"})}
    if resize:
        sides = _one_or_two("--resize", resize)
        changes["resize"] = sides if len(sides) == 2 else sides[0]
    if crop:
        sides = _one_or_two("--crop", crop)
        changes["crop"] = (sides[0], sides[-1]) if any(sides) else None
    if mean:
        changes["mean"] = _numbers("--mean", mean, float)
    if std:
        changes["std"] = _numbers("--std", std, float)
    if layout:
        changes["layout"] = layout.value
    if color:
        changes["color"] = color.value
    if color is ColorName.GRAY and len(spec.mean) == 3 and not (mean or std):
        changes |= {"mean": (sum(spec.mean) / 3,), "std": (sum(spec.std) / 3,)}
    return replace(spec, **changes)


def _one_or_two(flag: str, text: str) -> tuple[int, ...]:
    sizes = read_sizes(flag, text)
    if len(sizes) > 2:
        raise UsageError(f"{flag} {text}: expected N or HEIGHTxWIDTH", "pixels, as in 224 or 224x320")
    return sizes
