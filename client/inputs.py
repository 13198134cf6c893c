"""What the command line names, as pictures and arrays: files, folders, ``NAME=FILE.npy`` and random values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np

from client.errors import InputError, UsageError
from client.image import SUFFIXES
from client.metadata import ModelMetadata, TensorMetadata, format_shape
from client.tensors import BF16, BYTES, Array, numpy_dtype
from client.text import listed

MAX_RANDOM_BYTES: Final = 2**30


def find_pictures(paths: Iterable[Path], on_error: Callable[[Path, InputError], None]) -> Iterator[Path]:
    """Files as they are given; of folders every picture below, in the order of names.

    In folders only files with a picture's suffix count, and hidden ones (of macOS, say) don't.  A folder
    without any goes to ``on_error``.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
        if not found:
            message = f"{path} is a folder without pictures ({', '.join(sorted(SUFFIXES))})"
            on_error(path, InputError(message, "name the files themselves if they have other names"))
        yield from found


def parse_assignments(arguments: Sequence[str], option: str, example: str = "NAME=VALUE") -> dict[str, str]:
    """``NAME=VALUE`` of a repeatable option; the name ends at the first ``=``."""
    pairs: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{option} {argument!r} is not NAME=VALUE", f"such as {option} {example}")
        if name in pairs:
            raise UsageError(f"{option} names {name!r} twice", f"give {option} {name}=... once")
        pairs[name] = value
    return pairs


def parse_shape(text: str) -> tuple[int, ...]:
    """``1x3x224x224``; commas do as well."""
    try:
        shape = tuple(int(side) for side in text.replace(",", "x").split("x"))
    except ValueError:
        shape = (-1,)
    if min(shape) < 0:
        raise UsageError(f"{text!r} is not a shape", "such as --shape NAME=1x3x224x224")
    return shape


def parse_range(text: str) -> tuple[float, float]:
    """``LOW:HIGH``."""
    low, _, high = text.partition(":")
    try:
        limits = (float(low), float(high))
    except ValueError:
        limits = (1.0, 0.0)
    if not -float("inf") < limits[0] <= limits[1] < float("inf"):
        raise UsageError(f"{text!r} is not a range LOW:HIGH", "such as --input-range NAME=-1:1")
    return limits


def read_arrays(
    model: ModelMetadata, files: Mapping[str, str], note: Callable[[str], None] | None = None
) -> dict[str, Array]:
    """Load ``.npy`` files for the inputs they name and give each the batch axis and the dtype of its input.

    A dtype is changed among floats and among integers, where every value fits; ``note`` is told of it.
    """
    known = {tensor.name: tensor for tensor in model.inputs}
    arrays = {}
    for name, file in files.items():
        if name not in known:
            raise _no_input(model, name, "--input")
        given = _read(Path(file))
        array = _converted(given, known[name].datatype, file)
        if note is not None and array.dtype != given.dtype and given.dtype.kind != "V":
            note(f"input {name!r}: {given.dtype.name} of {file} is sent as {known[name].datatype}")
        arrays[name] = with_batch_axis(model, known[name], array)
    return arrays


def with_batch_axis(model: ModelMetadata, tensor: TensorMetadata, array: Array) -> Array:
    """``array`` as on the wire: one item becomes a batch of one; anything else is left to the check.

    A scalar, whose config must say ``dims: [1]``, may be given as one too, and a batch of them as a list.
    """
    wanted = model.full_shape(tensor)
    if tensor.shape == (1,) and array.ndim < len(wanted):
        return array.reshape(-1, 1) if model.batched else array.reshape(-1)
    missing = array.ndim == len(wanted) - 1 and (model.batched or wanted[0] in {1, -1})
    return array[np.newaxis] if missing else array


def random_arrays(
    model: ModelMetadata,
    given: Mapping[str, Array],
    shapes: Mapping[str, str],
    batch: int | None,
    seed: int,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Array]:
    """Random values for every required input that isn't in ``given``.

    Numbers lie in the input's range of ``ranges`` (of integers the high end is part), else floats in [0, 1) and
    integers in 0..9; booleans and short strings are drawn evenly.  ``shapes`` settles free axes.  The batch
    size is ``batch``, else that of ``given``, else 1.
    """
    known = {tensor.name for tensor in model.inputs}
    ranges = ranges or {}
    for option, names in (("--shape", shapes), ("--input-range", ranges)):
        for name in names:
            if name not in known:
                raise _no_input(model, name, option)
            if name in given:
                raise UsageError(f"{option} {name} has no use: --input gives its values", f"leave out {option} {name}")
    if not model.batched and batch not in {None, 1}:
        raise UsageError(f"--batch {batch}: model {model.name!r} has no batch axis", "--batch 1")
    random = [
        tensor for tensor in model.inputs if tensor.name not in given and (not tensor.optional or tensor.name in shapes)
    ]
    if free := [tensor for tensor in random if -1 in tensor.shape and tensor.name not in shapes]:
        raise UsageError(
            f"model {model.name!r} has free axes: {', '.join(map(str, free))}", " ".join(map(_shape_flag, free))
        )
    generator = np.random.default_rng(seed)
    size = batch or next((len(array) for array in given.values() if model.batched and array.ndim), None)
    arrays = {}
    for tensor in random:
        shape = _random_shape(model, tensor, shapes.get(tensor.name), size)
        arrays[tensor.name] = _random(tensor, shape, generator, ranges.get(tensor.name))
    return arrays


def _no_input(model: ModelMetadata, name: str, option: str) -> UsageError:
    names = [tensor.name for tensor in model.inputs]
    return UsageError(f"model {model.name!r} has no input {name!r}; it has {listed(names)}", f"{option} {names[0]}=...")


def _read(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            # A pickle runs code of its maker's when it is loaded, so object arrays are refused.
            array = np.load(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "check the path after --input NAME=") from error
    except (ValueError, EOFError, MemoryError, BadZipFile) as error:
        if str(error).startswith("Object arrays"):
            raise InputError(
                f"{path} holds Python objects",
                "save text as a NumPy string array: np.save(FILE, np.array(['a', 'b']))",
            ) from error
        if path.suffix.lower() in SUFFIXES:
            hint = f"a picture goes without --input: python -m client.infer {path}"
        else:
            hint = "np.save(FILE, array) writes one"
        why = "" if "pickle" in str(error) else f": {error}"
        raise InputError(f"{path} is not a sound .npy file{why}", hint) from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an .npz archive", "save each array as a .npy file of its own")
    return array


def _converted(array: Array, datatype: str, file: str) -> Array:
    """``array`` in the dtype of ``datatype`` if both are floats, or integers, and it can hold every value.

    Other arrays come back as they are, for :func:`client.tensors.as_tensor` to take or to refuse.
    """
    wanted = numpy_dtype(datatype)
    if datatype == BF16 and array.dtype == np.dtype("V2"):
        return array.view(wanted)  # a .npy file keeps the bytes of bfloat16, but not its name
    floats = array.dtype.kind == "f" and (wanted.kind == "f" or datatype == BF16)
    if array.dtype.newbyteorder("=") == wanted or not (floats or (array.dtype.kind in "iu" and wanted.kind in "iu")):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(wanted)
    if floats:
        fits = bool((np.isfinite(result) == np.isfinite(array)).all())
    else:
        limits = np.iinfo(wanted)
        fits = array.size == 0 or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)
    if fits:
        return result
    raise InputError(
        f"{file} is {array.dtype.name} with values from {array.min()} to {array.max()}: more than {datatype} can hold",
        f"np.clip, or divide, before the cast to {wanted}",
    )


def _shape_flag(tensor: TensorMetadata) -> str:
    return f"--shape {tensor.name}={'x'.join('SIZE' if axis == -1 else str(axis) for axis in tensor.shape)}"


def _random_shape(model: ModelMetadata, tensor: TensorMetadata, shape: str | None, size: int | None) -> tuple[int, ...]:
    """The shape of a random input on the wire; a batch is of ``size`` items where that is settled."""
    wanted = model.full_shape(tensor)
    own = f"{tensor.datatype} {format_shape(tensor.shape)}"
    if shape is None:
        return (size or 1, *tensor.shape) if model.batched else tensor.shape
    asked = parse_shape(shape)
    if len(asked) == len(wanted) - 1 and (model.batched or wanted[0] in {1, -1}):
        asked = (size or 1 if model.batched else 1, *asked)
    if len(asked) != len(wanted) or any(axis not in {-1, side} for axis, side in zip(wanted, asked, strict=True)):
        fixed = f"its shape is fixed: leave --shape {tensor.name} out"
        raise UsageError(
            f"--shape {tensor.name}={shape} doesn't fit input {tensor.name!r}: {own}",
            f"-1 is a free axis: {_shape_flag(tensor)}" if -1 in tensor.shape else fixed,
        )
    if model.batched and size not in {None, asked[0]}:
        raise UsageError(
            f"--shape {tensor.name}={shape} is a batch of {asked[0]}, and this one is to have {size}",
            f"--shape {tensor.name}={'x'.join(map(str, asked[1:]))} leaves it open",
        )
    return asked


def _random(
    tensor: TensorMetadata,
    shape: tuple[int, ...],
    generator: np.random.Generator,
    limits: tuple[float, float] | None,
) -> Array:
    dtype = numpy_dtype(tensor.datatype)
    if int(np.prod(shape, dtype=np.float64)) * dtype.itemsize > MAX_RANDOM_BYTES:
        message = f"a random {tensor.name!r} of {format_shape(shape)} is larger than 1 GiB"
        raise UsageError(message, f"make it smaller with --shape {tensor.name}=... or --batch")
    if limits and tensor.datatype in {BYTES, "BOOL"}:
        message = f"--input-range {tensor.name} has no use: the input is {tensor.datatype}"
        raise UsageError(message, f"leave out --input-range {tensor.name}")
    if tensor.datatype == BYTES:
        words = np.array(["tiger", "cup", "rocket", "a longer text, with spaces"], dtype=np.object_)
        return generator.choice(words, shape)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        low, high = limits or (0, 9)
        known = np.iinfo(dtype)
        if low != int(low) or high != int(high) or low < known.min or high > known.max:
            message = f"--input-range {tensor.name} takes whole numbers that {tensor.datatype} can hold"
            raise UsageError(message, f"such as --input-range {tensor.name}=0:9")
        return generator.integers(int(low), int(high), shape, dtype=dtype, endpoint=True)
    if limits:
        with np.errstate(over="ignore"):
            fit = np.isfinite(np.array(limits).astype(dtype)).all() and np.isfinite(limits[1] - limits[0])
        if not fit:
            message = f"--input-range {tensor.name} is more than {tensor.datatype} can hold"
            raise UsageError(message, f"such as --input-range {tensor.name}=-1:1")
        return generator.uniform(*limits, shape).astype(dtype)
    return generator.random(shape, np.float32).astype(dtype)
