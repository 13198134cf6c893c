"""The gate of ``add``: an artifact at every batch size and shape that it says it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.comparison import Tolerance, compare
from repo_builder.compilers.base import Artifact, Target
from repo_builder.errors import ModelError, VerificationError
from repo_builder.model import ModelSpec
from repo_builder.near_ties import with_scores
from repo_builder.onnx_model import OnnxModel, bring_external_data
from repo_builder.passes.quantised import output_steps
from repo_builder.runtime import Session, open_session
from repo_builder.samples import SampleOptions, Sampler
from repo_builder.staging import link_or_copy
from repo_builder.trt.options import Shapes, shape_text
from repo_builder.trt.profiles import find_profile
from repo_builder.verify import Reference, Verification, verify

if TYPE_CHECKING:
    import onnx


def check_artifact(
    artifact: Artifact,
    reference: Reference,
    spec: ModelSpec,
    samples: SampleOptions,
    ranges: Mapping[str, int],
    batch_sizes: tuple[int, ...],
    tolerance: Tolerance,
) -> Verification | None:
    """Hold ``artifact`` to ``reference``, and to the same source at the ends of the artifact's profiles.

    Args:
        artifact: what was built.
        reference: the source under ONNX Runtime.
        spec: the source's inputs.
        samples: what is known of the inputs; with files for them only their own shapes can be checked.
        ranges: inputs that are indices, as :func:`repo_builder.samples.index_ranges` found them.
        batch_sizes: to be checked at the shapes of ``reference``; (0,) without a batch axis.
        tolerance: the default stands for what the artifact's precision allows.

    Returns:
        None when nothing here can run the artifact.

    Raises:
        VerificationError: an output is outside the tolerance, or no profile takes the inputs.
    """
    _refuse_outside(artifact, reference, batch_sizes)
    limits = artifact.tolerance
    if tolerance != Tolerance():
        limits = dataclasses.replace(tolerance, flips=limits.flips)
    result = verify(artifact.run, reference, batch_sizes, limits, samples.seed) if artifact.run else None
    for shapes in [] if samples.files else _other_shapes(artifact, spec, batched=batch_sizes != (0,)):
        options = dataclasses.replace(samples, shapes={**samples.shapes, **shapes})
        corner = _open(reference, spec, Sampler(spec.inputs, options, ranges), shapes)
        if artifact.run and result:
            result = result.merged(verify(artifact.run, corner, batch_sizes, limits, samples.seed))
    return result


def _refuse_outside(artifact: Artifact, reference: Reference, batch_sizes: tuple[int, ...]) -> None:
    """Raise VerificationError for inputs that no profile takes: an engine that can't run here would not say so."""
    names = {tensor.name for tensor in artifact.inputs}
    inputs = {name: array for name, array in reference.row(0)[0].items() if name in names}
    values = {name: tuple(inputs[name].ravel().tolist()) for name in artifact.shape_tensors & inputs.keys()}
    for size in batch_sizes if artifact.profiles else ():
        shapes = {name: (size, *array.shape[1:]) if size else array.shape for name, array in inputs.items()}
        asked = {**shapes, **values}
        if find_profile(artifact.profiles, asked) is None:
            ranges = (
                ", ".join(
                    f"{name}:{shape_text(profile.min[name])} to {shape_text(profile.max[name])}" for name in profile.min
                )
                for profile in artifact.profiles
            )
            raise VerificationError(
                f"no profile of the engine takes {_listed(asked)}; it takes {' or '.join(ranges)}",
                "--shape, --input or --input-range with what it takes; "
                "or a wider range by --min-shapes, --opt-shapes and --max-shapes",
            )


def _listed(shapes: Shapes) -> str:
    return ", ".join(f"{name}:{shape_text(shape)}" for name, shape in shapes.items())


def open_source(model: OnnxModel, folder: Path, target: Target) -> Session:
    """The source under ONNX Runtime, by way of a file in ``folder`` where its graph is not the file's.

    ONNX Runtime as ``target`` serves the source as it computes it here, 8-bit kernels and all.  An engine is held to
    what the graph says, and what its nodes choose is looked for.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: ONNX Runtime can't load it.
    """
    if target is Target.ONNXRUNTIME:
        return _open_graph(model, model.proto, folder, int8_kernels=True)
    proto, choices = with_scores(model.proto)
    try:
        session = _open_graph(model, proto, folder, int8_kernels=False)
    except ModelError:
        if not choices:
            raise
        session, choices = _open_graph(model, model.proto, folder, int8_kernels=False), {}  # names the user's file
    count = len(model.proto.graph.output)
    outputs, rankings = session.outputs[:count], session.outputs[count:]
    steps = output_steps(model.proto)
    return dataclasses.replace(session, outputs=outputs, choices=choices, rankings=rankings, steps=steps)


def _open_graph(model: OnnxModel, proto: onnx.ModelProto, folder: Path, *, int8_kernels: bool) -> Session:
    if proto is model.proto and not model.changed:
        return open_session(model.spec.path, int8_kernels=int8_kernels)
    candidate = folder / "source.onnx"  # sizes of 0 made free: ONNX Runtime refuses the file itself
    try:
        _write_graph(model, proto, candidate)
        return open_session(candidate, int8_kernels=int8_kernels)
    finally:
        candidate.unlink(missing_ok=True)


def _write_graph(model: OnnxModel, proto: onnx.ModelProto, path: Path) -> None:
    """Write ``proto`` with the model's external data beside it: no links, which ONNX Runtime may refuse to follow."""
    import onnx
    from google.protobuf.message import EncodeError

    try:
        bring_external_data(model.spec, path.parent, lambda file, target: link_or_copy(file.resolve(), target))
        onnx.save(proto, path)
    except (OSError, ValueError, EncodeError) as error:  # the latter two where it is more than protobuf's 2 GiB
        why = f"{path} can't be written: {getattr(error, 'strerror', None) or error}"
        raise ModelError(why, "make room there; verify works in a temporary folder, another by TMPDIR") from None


def describe_int8_kernels(path: Path, proto: onnx.ModelProto, reference: Reference) -> tuple[str, ...]:
    """A sentence where ONNX Runtime's 8-bit kernels are far from what the graph ``proto`` at ``path`` says.

    ``reference`` is the source with these kernels.
    """
    if not any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        return ()
    inputs, outputs = reference.row(0)
    exact = open_session(path, int8_kernels=False).run(inputs)
    reports = [compare(name, outputs[name], exact[name], Tolerance(rtol=1e-2, scale=1e-2)) for name in outputs]
    return tuple(
        f"output {report.name!r} is off by up to {report.max_absolute_error:.3g} from what the graph says, by ONNX "
        "Runtime's 8-bit kernels on this CPU: without VNNI sums of large products saturate, and don't where the model "
        "is quantised with reduce_range=True"
        for report in reports
        if report.mismatched
    )


def known_shapes(samples: SampleOptions, shapes: Shapes) -> SampleOptions:
    """``samples`` with the shapes that an engine is tuned for, where the user gave no others."""
    added = {name: shape for name, shape in shapes.items() if name not in samples.files}
    return dataclasses.replace(samples, shapes={**added, **samples.shapes})


def _open(reference: Reference, spec: ModelSpec, sampler: Sampler, shapes: Shapes) -> Reference:
    """The same source at other shapes; raises ModelError where it does not take what an engine was built for."""
    try:
        return Reference(spec, reference.session, sampler, batch_axis=reference.batch_axis)
    except ModelError as error:
        raise ModelError(
            f"the engine was to take {_listed(shapes)}, and the model does not: {error.message}",
            "--min-shapes, --opt-shapes and --max-shapes with sizes that the model takes",
        ) from None


def _other_shapes(artifact: Artifact, spec: ModelSpec, *, batched: bool) -> list[Shapes]:
    """The ends of the profiles that differ from the first one's optimum in more than the batch."""
    names = {tensor.name for tensor in spec.inputs} - artifact.shape_tensors

    def without_batch(shapes: Shapes) -> dict[str, tuple[int, ...]]:
        return {name: shape[1:] if batched else shape for name, shape in shapes.items() if name in names}

    seen = [without_batch(artifact.profiles[0].opt)] if artifact.profiles else []
    corners: list[Shapes] = []
    for profile in artifact.profiles:
        for shapes in (profile.min, profile.opt, profile.max):
            if without_batch(shapes) not in seen:
                seen.append(without_batch(shapes))
                corners.append({name: shape for name, shape in shapes.items() if name in names})
    return corners
