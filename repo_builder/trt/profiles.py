"""The ranges of shapes that an engine is built for: from the user where given, else from model and batch size."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repo_builder.errors import CompileError, UsageError
from repo_builder.model import TensorSpec
from repo_builder.trt.options import LARGEST, Profile, Shapes, shape_text

if TYPE_CHECKING:
    import onnx

_PICTURE, _SEQUENCE = (128, 224, 512), (1, 64, 512)
"""What the hint shows for free axes: of inputs that have several in four axes or more, and of others."""


@dataclass(frozen=True)
class NetworkInput:
    """An input of the network; free axes are -1.  A shape tensor's profile holds values instead of sizes.

    ``names`` are those of the axes, "" where there is none; TensorRT holds axes of one name to be equal.
    """

    name: str
    dims: tuple[int, ...]
    shape_tensor: bool = False
    names: tuple[str, ...] = ()

    @property
    def values(self) -> int:
        """How many a shape tensor holds: its sizes are fixed."""
        return math.prod(self.dims)

    @property
    def needs_range(self) -> bool:
        return self.shape_tensor or -1 in self.dims

    @property
    def is_picture(self) -> bool:
        return len(self.dims) >= 4 and self.dims[1:].count(-1) > 1


def inputs_of(tensors: Iterable[TensorSpec], *, batchable: bool) -> list[NetworkInput]:
    """The inputs of a network as the model states them; which are shape tensors only the network tells.

    With ``batchable`` a batch that is fixed at 1 counts as free: ``add`` frees it where it can.
    """
    return [
        NetworkInput(
            tensor.name,
            (-1, *tensor.dims[1:]) if batchable else tensor.dims,
            names=tuple(axis if isinstance(axis, str) else "" for axis in tensor.shape or ()),
        )
        for tensor in tensors
    ]


def refuse_incomplete(
    inputs: Sequence[NetworkInput], given: Sequence[Profile], *, batchable: bool, max_batch_size: int
) -> None:
    """Raise where ``given`` can't be completed to the ranges of all ``inputs``.

    Raises:
        UsageError: a profile names no input; the batch is too large for any.
        CompileError: an input has a free axis that nothing is said about.
    """
    if max_batch_size > LARGEST:
        raise UsageError(f"--max-batch-size {max_batch_size} is a size that no tensor has", f"{LARGEST} at most")
    known = {tensor.name for tensor in inputs}
    for profile in given:
        for name in profile.opt:  # it names all that the other two do
            if name not in known:
                hint = "its inputs: " + ", ".join(sorted(known))
                raise UsageError(f"--min-shapes, --opt-shapes, --max-shapes: the model has no input {name!r}", hint)
    missing = [
        tensor
        for tensor in inputs
        if tensor.needs_range
        and not all(tensor.name in profile.opt for profile in given or [Profile()])
        and (tensor.shape_tensor or -1 in tensor.dims[1 if batchable else 0 :])
    ]
    if missing:
        raise _missing_range(missing, inputs, given[0] if given else Profile(), max_batch_size)


def plan_profiles(
    inputs: Sequence[NetworkInput], given: Sequence[Profile], *, batchable: bool, max_batch_size: int
) -> tuple[Profile, ...]:
    """Complete ``given``, or one profile when none is given, for every input that needs a range.

    Without a word of the user a batch axis goes from 1 to ``max_batch_size`` and is tuned for the latter.

    Raises:
        UsageError: a profile contradicts the model, or see :func:`refuse_incomplete`.
        CompileError: an input has a free axis that nothing is said about.
    """
    refuse_incomplete(inputs, given, batchable=batchable, max_batch_size=max_batch_size)
    batches = (1, max_batch_size, max_batch_size)
    planned = []
    for profile in given or [Profile()]:
        corners: list[dict[str, tuple[int, ...]]] = [{}, {}, {}]
        for tensor in inputs:
            default = [(batch, *tensor.dims[1:]) for batch in batches]
            ranges = _checked(tensor, profile) if tensor.name in profile.opt else default
            for corner, shape in zip(corners, ranges if tensor.needs_range else (), strict=False):
                corner[tensor.name] = shape
        planned.append(Profile(*corners))
    return tuple(planned)


def free_unequal_axes(source: onnx.ModelProto, given: Sequence[Profile], max_batch_size: int) -> onnx.ModelProto:
    """The graph without the names of inputs' axes that are not equal: ``?``, and names whose axes differ by ``given``.

    TensorRT takes axes of one name as equal, and refuses a profile that contradicts that.  They have to go before the
    graph is parsed: cleared in the network they break the build of RTX 1.7.
    """
    corners = [corner for p in given for corner in ((p.min, 1), (p.opt, max_batch_size), (p.max, max_batch_size))]
    ranges: dict[str, set[tuple[int, ...]]] = {}
    for value in source.graph.input:
        shapes = [shapes.get(value.name, (batch,)) for shapes, batch in corners]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            ranges.setdefault(dim.dim_param, set()).add(tuple(shape[axis] for shape in shapes if axis < len(shape)))
    unequal = {name for name, sizes in ranges.items() if name and (name == "?" or len(sizes) > 1)}
    if not unequal:
        return source
    proto = deepcopy(source)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in unequal:
                dim.Clear()
    return proto


def largest_batch(inputs: Sequence[NetworkInput], profiles: Sequence[Profile]) -> int:
    """The largest batch that every profile takes on every input."""
    batched = [tensor for tensor in inputs if tensor.dims and not tensor.shape_tensor]
    return min((p.max.get(tensor.name, tensor.dims)[0] for p in profiles for tensor in batched), default=0)


def find_profile(profiles: Sequence[Profile], asked: Shapes) -> int | None:
    """The first of ``profiles`` that takes the shapes ``asked``, of shape tensors the values; None where none does."""

    def takes(profile: Profile, name: str, sizes: tuple[int, ...]) -> bool:
        low, high = profile.min[name], profile.max[name]
        return len(sizes) == len(low) and all(a <= n <= b for a, n, b in zip(low, sizes, high, strict=True))

    for index, profile in enumerate(profiles):
        if all(takes(profile, name, sizes) for name, sizes in asked.items() if name in profile.min):
            return index
    return None


def refuse_other_than_one_row(inputs: Sequence[NetworkInput], profiles: Sequence[Profile]) -> None:
    """Raise UsageError for a profile that takes no batch of 1: Triton's single requests would fail."""
    for profile in profiles:
        for tensor in inputs:
            if not tensor.dims or tensor.shape_tensor or tensor.name not in profile.min:
                continue
            low, high = profile.min[tensor.name], profile.max[tensor.name]
            if not low[0] <= 1 <= high[0]:
                end, flag, shape = (
                    ("smallest", "--min-shapes", low) if low[0] > 1 else ("largest", "--max-shapes", high)
                )
                raise UsageError(
                    f"the {end} shape is {tensor.name}:{shape_text(shape)}, so a request of one row would fail",
                    f"{flag} {tensor.name}:{shape_text((1, *shape[1:]))}, or serve without batching: --no-batching",
                )


def _checked(tensor: NetworkInput, profile: Profile) -> list[tuple[int, ...]]:
    shapes = [corner[tensor.name] for corner in (profile.min, profile.opt, profile.max)]
    for shape in shapes:
        if tensor.shape_tensor and len(shape) != tensor.values:
            raise UsageError(
                f"{tensor.name}:{shape_text(shape)} does not fit the input {tensor.name!r}, whose values are a shape: "
                f"it has {tensor.values}",
                f"--min-shapes, --opt-shapes and --max-shapes give its values, as in {tensor.name}:"
                + shape_text((1,) * tensor.values),
            )
        fits = len(shape) == len(tensor.dims) and all(
            dim in {size, -1} for size, dim in zip(shape, tensor.dims, strict=True)
        )
        if not fits and not tensor.shape_tensor:
            hint = "every axis is to be given, the batch axis too; -1 here means free"
            if -1 not in tensor.dims:
                hint = "its sizes are fixed: leave its shapes out; add, unlike compile, frees a batch of 1 where it can"
            raise UsageError(
                f"shape {tensor.name}:{shape_text(shape)} does not fit the model's input {list(tensor.dims)}", hint
            )
    return shapes


def _missing_range(
    missing: Sequence[NetworkInput], inputs: Sequence[NetworkInput], given: Profile, max_batch_size: int
) -> CompileError:
    """The error that shows the flags to give, with what ``given`` has, since a flag again is for the next profile."""
    shapes = _example_shapes([t for t in inputs if t in missing or t.name in given.opt], given, max_batch_size)
    corners = [
        ",".join(f"{name}:{shape_text([sizes[corner] for sizes in axes])}" for name, axes in shapes.items())
        for corner in range(3)
    ]
    flags = map(shlex.join, zip(("--min-shapes", "--opt-shapes", "--max-shapes"), corners, strict=True))
    free = ", ".join(f"{tensor.name!r} {list(tensor.dims)}" for tensor in missing if not tensor.shape_tensor)
    if free and not any(-1 in tensor.dims[1:] for tensor in missing):
        free += ", of which the first is no batch"
    values = ", ".join(repr(tensor.name) for tensor in missing if tensor.shape_tensor)
    asked = (f"the free axes of {free}" if free else "", f"the values of {values}, which are a shape" if values else "")
    return CompileError(
        f"TensorRT needs a range for {' and '.join(filter(None, asked))}", "with your own sizes: " + " ".join(flags)
    )


def _example_shapes(
    inputs: Sequence[NetworkInput], given: Profile, max_batch_size: int
) -> dict[str, list[tuple[int, ...]]]:
    """By input, for each axis its min, opt and max: of axes of one name the same, as given, else as pictures have."""
    batch = max(max_batch_size, 1)
    named: dict[str, tuple[int, ...]] = {}
    shapes: dict[str, list[tuple[int, ...]]] = {tensor.name: [] for tensor in inputs}
    for tensor in sorted(inputs, key=lambda tensor: (tensor.name not in given.opt, not tensor.is_picture)):
        if tensor.name in given.opt:
            corners = (corner[tensor.name] for corner in (given.min, given.opt, given.max))
            shapes[tensor.name] = list(zip(*corners, strict=False))
            named |= {name: sizes for name, sizes in zip(tensor.names, shapes[tensor.name], strict=False) if name}
            continue
        usual = _PICTURE if tensor.is_picture else _SEQUENCE
        if tensor.shape_tensor:
            shapes[tensor.name] = [usual] * tensor.values
        for index, dim in enumerate(() if tensor.shape_tensor else tensor.dims):
            sizes = (dim,) * 3 if dim != -1 else usual if index else (1, batch, batch)
            name = tensor.names[index] if dim == -1 and tensor.names else ""
            shapes[tensor.name].append(named.setdefault(name, sizes) if name else sizes)
    return shapes
