"""What one may ask of TensorRT's builder, and trtexec's spelling of shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repo_builder.errors import UsageError
from repo_builder.model import DataType

Shapes = Mapping[str, tuple[int, ...]]
"""Whole shapes, the batch axis too, by input name; for a shape tensor the values instead."""

MIB = 1 << 20

LARGEST = 2**31 - 1
"""Of an axis, and of a shape tensor's values: TensorRT 8.6 has 32 bits for them."""

NOT_IN_FINGERPRINT = {"fingerprint": False}
"""Metadata of an option that does not change what is built."""

QUANTISED_FOR_TENSORRT = (
    "quantise it with onnxruntime.quantization.quantize_static(..., quant_format=QuantFormat.QDQ, "
    "extra_options={'ActivationSymmetric': True}): TensorRT takes no zero points but 0"
)


@dataclass(frozen=True)
class Profile:
    """The shapes an engine takes: any between ``min`` and ``max``, tuned for ``opt``."""

    min: Shapes = field(default_factory=dict)
    opt: Shapes = field(default_factory=dict)
    max: Shapes = field(default_factory=dict)


def shape_text(shape: Sequence[int]) -> str:
    """A shape as trtexec writes it."""
    return "x".join(map(str, shape)) or "scalar"


def read_profiles(data: Iterable[Mapping[str, Mapping[str, Iterable[int]]]]) -> tuple[Profile, ...]:
    """Profiles out of the JSON that :func:`dataclasses.asdict` made of them."""
    return tuple(
        Profile(**{corner: {name: tuple(shape) for name, shape in shapes.items()} for corner, shapes in entry.items()})
        for entry in data
    )


@dataclass(frozen=True)
class TensorRTOptions:
    """How an engine is built.

    Attributes:
        fp16: allow FP16; ``bf16`` the same for BF16.  Where the library always takes the precision from the graph,
            the graph is converted (:mod:`repo_builder.passes.precision`).
        strict: compute in exactly the precision of the converted graph instead of letting the builder choose.
        tf32: let FP32 matrix products run in TF32 on GPUs that have it, as TensorRT does by itself.
        half_inputs: FP32 inputs become FP16 or BF16; ``half_outputs`` the same for outputs.
        profiles: ranges of shapes; inputs that they leave out get theirs from the model and the batch size.
        memory_pools: MiB by pool; names as in ``tensorrt.MemoryPoolType``, in lower case, such as ``workspace``.
        compute_capabilities: of the GPUs that an RTX engine is for, such as ``8.6``; none: all it can.
        hardware_compatibility: ``none``, ``ampere_plus`` or ``same_compute_capability``.
        plugins: libraries with custom layers.
        tactic_sources: trtexec's syntax, such as ``-CUBLAS,-CUDNN``.
        timing_cache: the file that remembers measured tactics; None: one per user, version and GPU.
        verbose: everything TensorRT says goes to the log file.
    """

    fp16: bool = False
    bf16: bool = False
    strict: bool = False
    tf32: bool = True
    half_inputs: bool = False
    half_outputs: bool = False
    profiles: tuple[Profile, ...] = ()
    memory_pools: Mapping[str, float] = field(default_factory=dict)
    builder_optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str = ""
    compute_capabilities: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    sparsity: bool = False
    tactic_sources: str = ""
    strip_weights: bool = False
    refit: bool = False
    timing_cache: Path | None = field(default=None, metadata=NOT_IN_FINGERPRINT)
    verbose: bool = field(default=False, metadata=NOT_IN_FINGERPRINT)

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16 and self.strict:
            raise UsageError("--strict with both --fp16 and --bf16: a graph has one precision", "drop one of the two")
        if (self.half_inputs or self.half_outputs) and not self.half:
            raise UsageError("half-precision inputs or outputs need --fp16 or --bf16", "add --fp16")
        for profile in self.profiles:
            _refuse_no_range(profile)
        for text in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", text):
                raise UsageError(f"--compute-capability {text}: not a compute capability", "as in 8.6,8.9")
        for name, size in self.memory_pools.items():
            if not 0 <= size * MIB < 1 << 63:
                why = "is negative" if size < 0 else "is more than any memory holds"
                raise UsageError(f"--mem-pool-size {name}:{size}: it {why}", "a size in MiB, as in workspace:4096")

    @property
    def half(self) -> DataType | None:
        """The half precision that was asked for; of both, FP16 is the one a graph is converted to."""
        if self.fp16:
            return DataType.FP16
        return DataType.BF16 if self.bf16 else None


def _refuse_no_range(profile: Profile) -> None:
    """Raise UsageError for what is no range of shapes, whatever the model is."""
    if not profile.min.keys() == profile.opt.keys() == profile.max.keys():
        raise UsageError(f"{profile}: min, opt and max name different inputs", "give each input in all three")
    for name, best in profile.opt.items():
        low, high = profile.min[name], profile.max[name]
        for shape in (low, best, high):
            if any(not 0 <= size <= LARGEST for size in shape):
                raise UsageError(
                    f"shape {name}:{shape_text(shape)} has a size that no tensor has",
                    f"--min-shapes, --opt-shapes and --max-shapes take sizes up to {LARGEST}",
                )
        if any(not a <= b <= c for a, b, c in zip(low, best, high, strict=False)):
            raise UsageError(
                f"shapes of {name}: {shape_text(low)} (min), {shape_text(best)} (opt), {shape_text(high)} (max) "
                "do not ascend",
                "every axis needs min <= opt <= max",
            )


_SHAPE = re.compile(r"\s*(?P<name>[^,].*?):(?P<dims>scalar|-?\d{1,99}(?:x-?\d{1,99})*)[\s'\"]*(?:,|$)")


def parse_shapes(flag: str, text: str) -> dict[str, tuple[int, ...]]:
    """Read ``input:1x3x224x224,mask:1x128``; raises UsageError.

    Names may hold colons; ``scalar`` is the shape of a tensor without axes.  Quotes that no shell took off are dropped.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    position = 0
    while position < len(text):
        match = _SHAPE.match(text, position)
        sizes = match["dims"].split("x") if match and match["dims"] != "scalar" else []
        name = match["name"].strip(" '\"") if match else ""
        if not match or not name or any(int(size) < 0 for size in sizes) or name in shapes:
            raise UsageError(
                f"{flag} {text}: can't be read from {text[position:]!r}",
                "name:1x3x224x224, several with commas between, each once",
            )
        shapes[name] = tuple(int(size) for size in sizes)
        position = match.end()
    return shapes


def parse_profiles(minima: Sequence[str], optima: Sequence[str], maxima: Sequence[str]) -> tuple[Profile, ...]:
    """The profiles of ``--min-shapes``, ``--opt-shapes`` and ``--max-shapes``, each given once a profile.

    As with trtexec a missing one is taken from the others: opt from max, then max from opt, and min from opt.
    """
    count = max(len(minima), len(optima), len(maxima))
    for flag, given in (("--min-shapes", minima), ("--opt-shapes", optima), ("--max-shapes", maxima)):
        if given and len(given) != count:
            raise UsageError(f"{flag} is given {len(given)} times, others {count} times", "each once a profile")
    profiles = []
    for index in range(count):
        low = parse_shapes("--min-shapes", minima[index]) if minima else {}
        best = parse_shapes("--opt-shapes", optima[index]) if optima else {}
        high = parse_shapes("--max-shapes", maxima[index]) if maxima else {}
        best = {**low, **high, **best}
        profiles.append(Profile({**best, **low}, best, {**best, **high}))
    return tuple(profiles)
