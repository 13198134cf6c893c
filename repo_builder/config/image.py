"""How a picture becomes the input of a model: stored with the model, used by every client."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

from repo_builder.errors import ConfigError, UsageError
from repo_builder.model import TensorSpec

PARAMETER = "image_preprocessing"
"""The key under ``parameters`` of config.pbtxt that holds the JSON."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """Decode, resize, crop, then ``(value * scale - mean) / std`` for each channel.

    ``resize`` is the length of the shorter side in pixels, aspect kept, or (height, width); ``crop`` is
    (height, width) around the centre; ``mean`` and ``std`` are in units of ``value * scale``.  ``chosen`` names those
    of resize and crop that were picked for the model at hand: they are not fitted to its input.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    color: str = "RGB"
    layout: str = "NCHW"
    scale: float = 1 / 255
    chosen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for flag, size in (("--resize", self.resize), ("--crop", self.crop)):
            sides = size if isinstance(size, tuple) else (size,)
            if size is not None and not all(side and side > 0 for side in sides):
                raise UsageError(f"{flag} {_by(size)} is not a size", "pixels, 1 or more")
        for flag, numbers in (("--mean", self.mean), ("--std", self.std)):
            if not all(math.isfinite(number) for number in numbers):
                raise UsageError(f"{flag} {','.join(map(str, numbers))} is not a number", "one for each channel")
        if 0 in self.std:
            raise UsageError("--std: 0 can't be divided by", "1 leaves the pixels as they are")

    def to_json(self, input_name: str) -> str:
        fields = {
            "input": input_name,
            "resize": self.resize,
            "interpolation": self.interpolation,
            "crop": self.crop,
            "color": self.color,
            "layout": self.layout,
            "scale": self.scale,
            "mean": self.mean,
            "std": self.std,
        }
        return json.dumps(fields, ensure_ascii=False)


_IMAGENET = ImagePreprocessing(256, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

PRESETS = {
    # torchvision's ImageClassification preset of its classification weights
    "imagenet": _IMAGENET,
    # pixels from -1 to 1: TensorFlow's "inception" scaling (Inception, MobileNet, ViT)
    "inception": replace(_IMAGENET, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    # OpenAI's CLIP image encoders
    "clip": replace(
        _IMAGENET,
        resize=224,
        interpolation="bicubic",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    # EfficientNet-Lite: mean 127 and deviation 128 on 0..255; see examples/README.md for the proof
    "efficientnet-lite": ImagePreprocessing(
        256, (224, 224), (127 / 255,) * 3, (128 / 255,) * 3, interpolation="bicubic"
    ),
    # pixels from 0 to 1, and from 0 to 255
    "unit": replace(_IMAGENET, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    "raw": replace(_IMAGENET, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0),
}


def image_preset(name: str) -> ImagePreprocessing:
    """The preset of that name; raises UsageError with the names there are."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UsageError(f"--image {name}: there is no such preset", "presets: " + ", ".join(PRESETS)) from None


def fit_to_input(image: ImagePreprocessing, inputs: tuple[TensorSpec, ...]) -> tuple[ImagePreprocessing, TensorSpec]:
    """Find the input that takes the picture and hold the preprocessing to its channels, height and width.

    The input's own fixed height and width replace a preset's crop of another size, with the shorter side scaled
    by the same factor, so that a preset fits a model exported for 240 or 299 pixels.  What was chosen stays.

    Raises:
        ConfigError: no input takes pictures, or several do, or the channels or a chosen size disagree.
    """
    candidates = [tensor for tensor in inputs if len(tensor.dims) == 4] or [t for t in inputs if len(t.dims) == 3]
    if len(candidates) != 1:
        listed = "; ".join(map(str, inputs))
        raise ConfigError(f"--image: {len(candidates)} inputs of the model take pictures ({listed})", "drop --image")
    tensor = candidates[0]
    channels, height, width = _image_axes(tensor.dims[-3:], image.layout)
    wanted = 1 if image.color == "GRAY" else 3
    if channels not in {-1, wanted}:
        raise ConfigError(
            f"--image: input {tensor} has {channels} channels in layout {image.layout}; {image.color} has {wanted}",
            "choose with --layout NCHW|NHWC and --color RGB|BGR|GRAY",
        )
    for label, numbers in (("--mean", image.mean), ("--std", image.std)):
        if len(numbers) not in {1, wanted}:
            raise ConfigError(f"{label} has {len(numbers)} values for {wanted} channels", f"give 1 or {wanted} values")
    if height > 0 and width > 0 and _output_size(image) != (height, width):
        image = _resized(image, height, width)
    return replace(image, mean=_per_channel(image.mean, wanted), std=_per_channel(image.std, wanted)), tensor


def _image_axes(dims: tuple[int, ...], layout: str) -> tuple[int, int, int]:
    return (dims[0], dims[1], dims[2]) if layout == "NCHW" else (dims[2], dims[0], dims[1])


def _output_size(image: ImagePreprocessing) -> tuple[int, int] | None:
    return image.crop or (image.resize if isinstance(image.resize, tuple) else None)


def _resized(image: ImagePreprocessing, height: int, width: int) -> ImagePreprocessing:
    if "crop" in image.chosen and (image.crop or "resize" in image.chosen):
        asked = f"--crop {_by(image.crop)}" if image.crop else f"--resize {_by(image.resize)} without a crop"
        mend = f"--crop {height}x{width}, or drop it"
        raise ConfigError(f"{asked}: the input takes pictures of {height}x{width} pixels", mend)
    if "resize" in image.chosen:
        return replace(image, crop=(height, width))
    if isinstance(image.resize, int) and image.crop:
        side = round(image.resize * min(height, width) / min(image.crop))
        return replace(image, resize=side, crop=(height, width))
    return replace(image, resize=(height, width), crop=None)


def _by(size: int | tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _per_channel(numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return numbers * channels if len(numbers) == 1 else numbers
