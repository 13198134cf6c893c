"""Seeded inputs to run a model on: random where nothing is known, the user's files and ranges where given."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.errors import UsageError
from repo_builder.model import Axis, DataType, ModelSpec, TensorSpec
from repo_builder.onnx_model import constant_integers
from repo_builder.runtime import RunError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from repo_builder.runtime import Arrays

FREE_SIZES = ((224, 16), (64, 64), (32, 128), (512, 512), (8, 8), (1, 1))
"""Sizes to try for free axes that the user gave no shape for: (of inputs with four axes or more, of others).

The first is a picture's usual side and a short sentence; the model decides which one it takes."""

MOST_ELEMENTS, MOST_GUESSED = 2**27, 2**24
"""Of one input whose size is known, and of one whose free axes got a size from above (224 five times is too much)."""


@dataclass(frozen=True)
class SampleOptions:
    """What the user knows of the inputs.  Keys are input names.

    ``files`` hold .npy arrays, with or without the batch axis; ``ranges`` are inclusive bounds (low, high);
    ``shapes`` are whole shapes, the batch axis too.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0

    @property
    def has_shapes(self) -> bool:
        """Whether whole inputs are given, or their shapes: their first axes then say how many rows there are."""
        return bool(self.shapes or self.files)


class Sampler:
    """Makes the inputs of a model, one row of a batch at a time.

    Raises:
        UsageError: an option names no input, or contradicts the model.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], options: SampleOptions, ranges: Mapping[str, int]) -> None:
        self.inputs = inputs
        self._options = options
        self._index_ranges = ranges
        names = {spec.name for spec in inputs}
        for flag, given in (
            ("--input", options.files),
            ("--input-range", options.ranges),
            ("--shape", options.shapes),
        ):
            for name in given:
                if name not in names:
                    raise UsageError(
                        f"{flag} {name}=...: the model has no input {name!r}",
                        "its inputs: " + ", ".join(sorted(names)),
                    )
        for name, (low, high) in options.ranges.items():
            _check_range(self._spec(name), low, high)
        for flag, given, has in (
            ("--shape", options.shapes, "its own shape"),
            ("--input-range", options.ranges, "its own values"),
        ):
            for name in sorted(options.files.keys() & given.keys()):
                raise UsageError(f"{flag} {name}=...: --input {name}=... has {has}", "drop one of the two")
        self._arrays = {name: _load(name, path, self._spec(name)) for name, path in options.files.items()}
        self._symbols = self._known_symbols()

    @property
    def kind(self) -> str:
        """What the inputs are, as errors call them."""
        if not self._arrays:
            return "random inputs"
        given = {spec.name for spec in self.inputs} <= self._arrays.keys()
        return "the inputs given" if given else "inputs given and random ones"

    def sample(self, row: int, free_sizes: tuple[int, int], *, batch_axis: bool) -> Arrays:
        """Row number ``row``: with ``batch_axis`` each array's first axis is 1, else it is like any other.

        Raises:
            RunError: an input would be too large to be made.
        """
        return {spec.name: self._array(spec, row, free_sizes, batch_axis=batch_axis) for spec in self.inputs}

    def _spec(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def _known_symbols(self) -> dict[str, int]:
        """Sizes of named free axes, as the user's shapes and files tell them."""
        known: dict[str, int] = {}
        for spec in self.inputs:
            shape = self._given_shape(spec)
            if shape is None or spec.shape is None:
                continue
            for axis, size in zip(spec.shape, shape, strict=True):
                if isinstance(axis, str):
                    known.setdefault(axis, size)
        return known

    def _given_shape(self, spec: TensorSpec) -> tuple[int, ...] | None:
        shape: tuple[int, ...] | None = self._options.shapes.get(spec.name)
        if shape is None and spec.name in self._arrays:
            shape = self._arrays[spec.name].shape
        if shape is not None and spec.shape is not None and not _fits(shape, spec.shape):
            raise UsageError(
                f"shape {'x'.join(map(str, shape))} does not fit input {spec}",
                "give every axis, the batch axis too, as in --shape " + _example_shape(spec),
            )
        return shape

    def _array(self, spec: TensorSpec, row: int, free_sizes: tuple[int, int], *, batch_axis: bool) -> npt.NDArray[Any]:
        if spec.name in self._arrays:
            array = self._arrays[spec.name]
            if not batch_axis:
                return array
            start = row % max(len(array), 1)
            return array[start : start + 1]
        given = self._given_shape(spec)
        free = free_sizes[0] if len(spec.shape or ()) >= 4 else free_sizes[1]
        shape = list(given or (self._size(axis, free) for axis in spec.shape or ()))
        if batch_axis and shape:
            shape[0] = 1
        guessed = given is None and any(not isinstance(axis, int) for axis in (spec.shape or ())[1:])
        if math.prod(shape) > (MOST_GUESSED if guessed else MOST_ELEMENTS):
            raise RunError(f"input {spec.name!r} of shape {shape} has {math.prod(shape)} elements")
        return self._random(spec, tuple(shape), row)

    def _size(self, axis: Axis, free: int) -> int:
        if isinstance(axis, int):
            return axis
        return self._symbols.get(axis, free) if axis is not None else free

    def _random(self, spec: TensorSpec, shape: tuple[int, ...], row: int) -> npt.NDArray[Any]:
        import numpy as np

        rng = np.random.default_rng([self._options.seed, row, zlib.crc32(spec.name.encode())])
        dtype = spec.dtype.numpy_dtype()
        low, high = self._options.ranges.get(spec.name, (None, None))
        if spec.dtype is DataType.STRING:
            words: npt.NDArray[Any] = rng.integers(0, 1000, shape).astype(str).astype(object)
            return words
        if spec.dtype.is_float:
            values = rng.standard_normal(shape) if low is None or high is None else rng.uniform(low, high, shape)
            return np.asarray(values).astype(dtype)
        if low is None or high is None:
            if spec.name not in self._index_ranges and _is_mask(spec):
                return _padding(shape, rng).astype(dtype)
            low, high = self._integer_range(spec)
        first, last = math.ceil(low), math.floor(high)
        return np.asarray(rng.integers(first, last, shape, dtype=np.dtype(spec.dtype.numpy), endpoint=True))

    def _integer_range(self, spec: TensorSpec) -> tuple[int, int]:
        """The whole range of 8-bit types (pictures, quantised values), valid indices for others, else 0 and 1."""
        limits = _integer_limits(spec.dtype)
        if spec.name in self._index_ranges:
            return 0, min(self._index_ranges[spec.name] - 1, limits[1])
        return limits if spec.dtype in {DataType.UINT8, DataType.INT8} else (0, 1)


def _is_mask(spec: TensorSpec) -> bool:
    """Whether an input says which of a sentence's tokens are there, as tokenizers' ``attention_mask`` does."""
    whole = spec.dtype in {DataType.INT32, DataType.INT64, DataType.BOOL}
    return whole and "mask" in spec.name.lower() and len(spec.shape or ()) == 2


def _padding(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Ones, one at least, and zeros behind them, along the last axis: sentences of any length, padded.

    Zeros before a sentence would leave causal attention tokens that see none, of which each runtime makes its own.
    """
    import numpy as np

    length = shape[-1]
    ones = rng.integers(min(1, length), length, (*shape[:-1], 1), endpoint=True)
    return np.arange(length) < ones


def index_ranges(proto: onnx.ModelProto) -> dict[str, int]:
    """Inputs that are indices (of Gather into weights, of OneHot; a Cast between or not), and how many there are.

    ``proto`` is a model that ONNX Runtime has loaded: its nodes have the inputs they should.
    """
    import onnx

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    origin = {value.name: value.name for value in proto.graph.input}
    found: dict[str, int] = {}
    for node in proto.graph.node:
        size = None
        if node.op_type == "Constant":
            constants[node.output[0]] = next((a.t for a in node.attribute if a.name == "value"), onnx.TensorProto())
        elif node.op_type == "Cast" and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in constants:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            index, size = node.input[1], constants[node.input[0]].dims[axis]
        elif node.op_type == "OneHot" and node.input[1] in constants:
            index, size = node.input[0], next(iter(constant_integers(constants[node.input[1]])), None)
        if size is not None and size > 0 and index in origin:
            found[origin[index]] = min(size, found.get(origin[index], size))
    return found


def flags_for(spec: ModelSpec) -> str:
    """The flags that give a model's own inputs meaning, filled in with their names."""
    names = [tensor.name for tensor in spec.inputs]
    flags = [f"--input {name}=FILE.npy" for name in names[:2]] + [
        f"--input-range {name}=LOW:HIGH" for name in names[:2]
    ]
    if any(isinstance(axis, str) or axis is None for tensor in spec.inputs for axis in (tensor.shape or ())[1:]):
        flags += [f"--shape {_example_shape(tensor)}" for tensor in spec.inputs[:1]]
    return ", ".join(flags) + (", ..." if len(names) > 2 else "")


def _example_shape(spec: TensorSpec) -> str:
    axes = [1 if index == 0 else 64 for index in range(len(spec.shape or ()))]
    sizes = [axis if isinstance(axis, int) else default for axis, default in zip(spec.shape or (), axes, strict=True)]
    return f"{spec.name}={'x'.join(map(str, sizes))}"


def _check_range(spec: TensorSpec, low: float, high: float) -> None:
    """Raise UsageError unless random values of the input's type can lie between ``low`` and ``high``."""
    import numpy as np

    start = f"--input-range {spec.name}={low}:{high}: "
    if spec.dtype is DataType.STRING:
        raise UsageError(f"{start}input {spec.name!r} is text", f"give its text: --input {spec.name}=FILE.npy")
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"{start}no value lies between these", "the lower of two numbers first, as in ids=0:30521")
    least: float
    most: float
    if spec.dtype.is_float:
        widest = "float32" if spec.dtype is DataType.BF16 else spec.dtype.numpy
        most = float(np.finfo(widest).max) / 2  # the distance of two bounds has to be a number too
        least = -most
    else:
        least, most = _integer_limits(spec.dtype)
    if low < least or high > most:
        raise UsageError(f"{start}values of type {spec.dtype.value} do not go so far", f"{least} to {most}")
    if not spec.dtype.is_float and math.ceil(low) > math.floor(high):
        raise UsageError(f"{start}no whole number lies between these", f"input {spec.name!r} is {spec.dtype.value}")


def _integer_limits(dtype: DataType) -> tuple[int, int]:
    import numpy as np

    if dtype is DataType.BOOL:
        return 0, 1
    limits = np.iinfo(dtype.numpy)
    return int(limits.min), int(limits.max)


def _fits(shape: tuple[int, ...], axes: tuple[Axis, ...]) -> bool:
    return len(shape) == len(axes) and all(
        size == axis or (size >= 0 and not isinstance(axis, int)) or (index == 0 and axis == 1)
        for index, (size, axis) in enumerate(zip(shape, axes, strict=True))
    )


def _load(name: str, path: Path, spec: TensorSpec) -> npt.NDArray[np.generic]:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        why = f"--input {name}={path} can't be read: {error.strerror or error}"
        raise UsageError(why, "check the path and its permissions") from None
    except (ValueError, EOFError):
        raise UsageError(
            f"--input {name}={path} is not a plain .npy array",
            "save it with numpy.save, without object dtype",
        ) from None
    if not isinstance(array, np.ndarray):
        raise UsageError(f"--input {name}={path} is an archive of arrays", "save the one array with numpy.save")
    array = _as_type(array, spec, f"--input {name}={path}")
    rank = len(spec.shape) if spec.shape is not None else array.ndim
    if array.ndim not in {rank, rank - 1}:
        raise UsageError(
            f"--input {name}={path} has {array.ndim} axes; input {spec} has {rank}", "the batch axis may be left out"
        )
    rows = array if array.ndim == rank else array[None]
    if rank and not len(rows):
        raise UsageError(f"--input {name}={path} of shape {list(array.shape)} has no rows", "save one row at least")
    if spec.shape is not None and not _fits(rows.shape, spec.shape):
        raise UsageError(
            f"--input {name}={path} of shape {list(array.shape)} does not fit input {spec}",
            "save it in that shape; the batch axis may be left out",
        )
    return rows


def _as_type(array: npt.NDArray[Any], spec: TensorSpec, given: str) -> npt.NDArray[Any]:
    """What ``numpy.load`` read as the type it stands for: .npy files know neither text in UTF-8 nor bfloat16."""
    import numpy as np

    dtype = spec.dtype.numpy_dtype()
    if spec.dtype is DataType.STRING:
        try:
            return (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(str)).astype(object)
        except UnicodeDecodeError:
            raise UsageError(f"{given} holds bytes that are not UTF-8 text", "decode them before saving") from None
    if spec.dtype is DataType.BF16 and array.dtype == np.dtype("V2"):
        return array.view(dtype)
    if array.dtype != dtype:
        hint = f"save it with .astype({spec.dtype.numpy!r})"
        raise UsageError(f"{given} holds {array.dtype}; input {spec.name!r} is {spec.dtype.value}", hint)
    return array
