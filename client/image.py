"""Pictures to arrays, by the preprocessing that a model's configuration carries.

Resize, centre crop and their roundings are torchvision's (``transforms.Resize``, ``CenterCrop`` on a PIL
image), because that is what most published checkpoints were evaluated with.
"""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from client.errors import InputError, MetadataError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

MAX_PIXELS: Final = 178_956_970
"""Largest picture that is decoded, 512 MiB as RGB: where Pillow itself stops (``2 * MAX_IMAGE_PIXELS``)."""

Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image"
Pixels: TypeAlias = npt.NDArray[np.float32]

_BROKEN: Final = "a broken file has to be copied again from where it came, or left out"
_EXIF_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Interpolation(str, Enum):
    """How a picture is resized; all but ``NEAREST`` are antialiased, as Pillow does it."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Color(str, Enum):
    """Channels and their order."""

    RGB = "RGB"
    BGR = "BGR"
    GRAY = "GRAY"

    @property
    def channels(self) -> int:
        return 1 if self is Color.GRAY else 3


class Layout(str, Enum):
    """Order of the axes, named with the batch axis that :func:`load_image` leaves out."""

    NCHW = "NCHW"
    NHWC = "NHWC"


@dataclass(frozen=True)
class ImageSpec:
    """What is done to a picture before it is the tensor ``input``.

    ``resize``: the shortest side in pixels (aspect kept), an exact ``(height, width)``, or None.
    ``crop``: the centre ``(height, width)``, padded with black where the picture is smaller, or None.
    A value v of 0 to 255 becomes ``(v * scale - mean) / std``; ``mean`` and ``std`` have one entry a channel,
    in the order of ``color``.
    """

    input: str
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = Interpolation.BILINEAR
    crop: tuple[int, int] | None = None
    color: Color = Color.RGB
    layout: Layout = Layout.NCHW
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def from_json(cls, text: str) -> ImageSpec:
        """Read the JSON object of a model's ``image_preprocessing`` parameter.

        Only ``input`` must be there.  Raises :class:`MetadataError` on anything that isn't understood, so
        that no picture is ever prepared by half of its rules.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise MetadataError(f"image_preprocessing is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise MetadataError("image_preprocessing is not a JSON object")
        unknown = sorted(fields.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise MetadataError(f"image_preprocessing has the unknown key {unknown[0]!r}")
        if not isinstance(fields.get("input"), str) or not fields["input"]:
            raise MetadataError("image_preprocessing doesn't name its input")
        color = _member(Color, fields, "color", Color.RGB)
        resize = fields.get("resize")
        return cls(
            input=fields["input"],
            resize=resize if resize is None or _is_size(resize) else _height_width(fields, "resize"),
            interpolation=_member(Interpolation, fields, "interpolation", Interpolation.BILINEAR),
            crop=None if fields.get("crop") is None else _height_width(fields, "crop"),
            color=color,
            layout=_member(Layout, fields, "layout", Layout.NCHW),
            scale=_numbers([fields.get("scale", 1 / 255)], 1, "scale")[0],
            mean=_numbers(fields.get("mean", [0.0] * color.channels), color.channels, "mean"),
            std=_numbers(fields.get("std", [1.0] * color.channels), color.channels, "std", zero=False),
        )


def load_image(source: Picture, spec: ImageSpec) -> Pixels:
    """Decode a picture and prepare it as ``spec`` says.

    ``source`` is a path, the bytes of a file, or a PIL image.  Returns float32 without a batch axis:
    ``(channels, height, width)`` for NCHW, ``(height, width, channels)`` for NHWC.

    EXIF orientation is applied, the first frame is taken, transparency is laid over white, 16-bit samples are
    scaled to 8 bits, CMYK is converted by the plain formula (no colour profile, as torchvision does).
    Raises :class:`InputError`, naming the file, when it is missing, unreadable, broken, of another format or
    beyond :data:`MAX_PIXELS`.
    """
    name = "picture" if isinstance(source, bytes | Image.Image) else os.fspath(source)
    if isinstance(source, Image.Image):
        return _prepare(_decode(source, name), spec, name)
    with _open(source, name) as image:
        decoded = _decode(image, name)
    return _prepare(decoded, spec, name)


def to_dtype(pixels: Pixels, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Cast prepared pixels to an input's datatype: integers are rounded and clipped to their range."""
    target = np.dtype(dtype)
    if target.kind not in "iu":
        return pixels.astype(target, copy=False)
    limits = np.iinfo(target)
    # float64 holds every limit up to 53 bits; beyond that no pixel reaches it.
    return np.clip(np.rint(pixels.astype(np.float64)), limits.min, limits.max).astype(target)


def _open(source: str | os.PathLike[str] | bytes, name: str) -> Image.Image:
    file: io.BytesIO | Path = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
    if isinstance(file, Path) and file.is_dir():
        raise InputError(f"{name} is a folder, not a picture", "name the files in it")
    try:
        # Only named formats: some of Pillow's others start programs (EPS) or have no limits.
        return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, "has too many pixels") from None
    except UnidentifiedImageError:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size == 0:
            raise InputError(f"{name} is empty", _BROKEN) from None
        hint = "a picture in another format has to be saved as JPEG or PNG first"
        if name.endswith(".npy"):
            hint = "arrays go with --input NAME=FILE.npy"
        raise InputError(f"{name} is not a JPEG, PNG, WebP, GIF, BMP or TIFF picture", hint) from None
    except Exception as error:  # a header can break a decoder as well as the data can
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{name}: {error.strerror}", "a FILE is a picture or a folder of pictures") from error
        raise InputError(f"{name}: the picture is broken: {error}", _BROKEN) from error


def _too_large(name: str, what: str) -> InputError:
    return InputError(f"{name} {what}; the limit is {MAX_PIXELS:,}", "make the picture smaller before sending it")


def _check_size(size: tuple[int, int], name: str, verb: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{verb} {width} x {height} = {width * height:,} pixels")


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Decode, flatten to mode ``L`` or ``RGB``, and turn as the EXIF orientation says."""
    _check_size(image.size, name, "is")
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise InputError(f"{name} has 32-bit samples, whose range is unknown", "save it with 8 or 16 bits")
    try:
        image.load()
        flat = _flatten(image)
    # Pillow's decoders raise whatever they trip over in a broken file, struct.error and IndexError too.
    except Exception as error:
        raise InputError(f"{name}: the picture is broken: {error}", _BROKEN) from error
    try:
        method = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken EXIF data doesn't make a sound picture unreadable
        method = None
    return flat if method is None else flat.transpose(method)


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode in {"L", "RGB"} and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, rounded; Pillow's own conversion would clip at 255."""
    samples = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((samples + 128) // 257).astype(np.uint8))


def _prepare(image: Image.Image, spec: ImageSpec, name: str) -> Pixels:
    mode = "L" if spec.color is Color.GRAY else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    width, height = size = _resized(image.size, spec.resize)
    _check_size(size, name, "would be resized to")
    if size != image.size:
        image = image.resize(size, Image.Resampling[spec.interpolation.name])
    if spec.crop is not None:
        crop_height, crop_width = spec.crop
        left, top = _crop_start(width, crop_width), _crop_start(height, crop_height)
        image = image.crop((left, top, left + crop_width, top + crop_height))
    return _normalise(np.asarray(image), spec)


def _resized(size: tuple[int, int], resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) after the resize; torchvision's ``_compute_resized_output_size``."""
    width, height = size
    if resize is None:
        return size
    if not isinstance(resize, int):
        return resize[1], resize[0]
    long = int(resize * max(size) / min(size))
    return (resize, long) if width <= height else (long, resize)


def _crop_start(length: int, crop: int) -> int:
    """Where a centre crop begins; negative when it is padded (torchvision's ``center_crop``).

    torchvision rounds half to even when it cuts and pads the smaller half first when it grows.
    """
    return round((length - crop) / 2) if crop <= length else -((crop - length) // 2)


def _normalise(values: npt.NDArray[np.uint8], spec: ImageSpec) -> Pixels:
    channels = spec.color.channels
    values = values.reshape(*values.shape[:2], channels)
    if spec.color is Color.BGR:
        values = values[:, :, ::-1]
    # A sample has 256 values, so the arithmetic is done once a value, in float64, and looked up a pixel.
    scaled = np.arange(256, dtype=np.float64)[:, None] * spec.scale
    table = ((scaled - np.asarray(spec.mean)) / np.asarray(spec.std)).astype(np.float32)
    nchw = spec.layout is Layout.NCHW
    result = np.empty((channels, *values.shape[:2]) if nchw else values.shape, np.float32)
    for channel in range(channels):
        target = result[channel] if nchw else result[:, :, channel]
        # mode: "raise" would go through a buffer, which makes it six times slower; no uint8 is out of range.
        np.take(table[:, channel], values[:, :, channel], out=target, mode="clip")
    return result


_Member = TypeVar("_Member", bound=Enum)


def _member(kind: type[_Member], fields: dict[str, Any], key: str, default: _Member) -> _Member:
    try:
        return kind(fields.get(key, default))
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise MetadataError(f"image_preprocessing: {key} {fields[key]!r} is none of {known}") from None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_PIXELS


def _height_width(fields: dict[str, Any], key: str) -> tuple[int, int]:
    value = fields[key]
    if isinstance(value, list) and len(value) == 2 and all(_is_size(side) for side in value):
        return value[0], value[1]
    raise MetadataError(f"image_preprocessing: {key} {value!r} is no size in pixels")


def _numbers(values: Any, count: int, key: str, *, zero: bool = True) -> tuple[float, ...]:
    """``count`` finite numbers; a single one stands for every channel."""
    numbers = values if isinstance(values, list) else [values]
    sound = all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and (zero or v != 0)
        for v in numbers
    )
    if not sound or len(numbers) not in {1, count}:
        raise MetadataError(f"image_preprocessing: {key} {values!r} is not {count} finite numbers")
    return tuple(float(v) for v in numbers) * (count // len(numbers))
