"""Two results side by side: what changed, and what of that is more than noise."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from client.errors import InputError
from client.load.result import FORMAT, load_name
from client.text import printable

QUANTILES: Final = ("p50", "p90", "p99")
WRITES_ONE: Final = "python -m client.bench MODEL --output FILE.json writes a result"

_NORMAL_95: Final = 1.96


@dataclass(frozen=True)
class Saved:
    """A document of ``python -m client.bench --output``, and what it is called beside others."""

    path: Path
    document: dict[str, Any]
    label: str

    @property
    def model(self) -> str:
        model = self.document["model"]
        return f"{model['name']}, version {model['version']}"


@dataclass(frozen=True)
class Change:
    """One number of two runs: ``relative`` is its change, ``low`` and ``high`` that change's 95% interval.

    ``worse`` is how much of the change is for the worse: positive for a longer latency or a lower throughput.
    """

    metric: str
    unit: str
    before: float
    after: float
    low: float | None
    high: float | None
    higher_is_better: bool

    @property
    def relative(self) -> float:
        return self.after / self.before - 1 if self.before else 0.0

    @property
    def noise(self) -> bool:
        """Whether the interval holds no change at all, or there is none."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high

    @property
    def worse(self) -> float:
        return -self.relative if self.higher_is_better else self.relative

    @property
    def worse_at_least(self) -> float | None:
        """The least change for the worse in the interval; None without one."""
        if self.low is None or self.high is None:
            return None
        return -self.high if self.higher_is_better else self.low


@dataclass(frozen=True)
class LevelChange:
    """The same load in two runs."""

    load: str
    changes: tuple[Change, ...]
    invalid: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side; ``differences`` are what differs besides the results: reasons for care."""

    before: Saved
    after: Saved
    levels: tuple[LevelChange, ...]
    differences: tuple[str, ...]


def read_results(paths: Sequence[Path]) -> list[Saved]:
    """Load results; :class:`InputError` when one is none.

    They are called by their files' names; those of the same name by their folders, too, and the same file by its turn.
    """
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{path.name}" for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name} ({turn})" for turn, name in enumerate(names, 1)]
    return [_read_result(path, printable(name)) for path, name in zip(paths, names, strict=True)]


def _read_result(path: Path, label: str) -> Saved:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", WRITES_ONE) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}", WRITES_ONE) from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        reason = "not a result" if found is None else f"of the format {found!r}, and this reads {FORMAT!r}"
        raise InputError(f"{path} is {reason}", WRITES_ONE)
    return Saved(path, document, label)


def compare(before: Saved, after: Saved) -> Comparison:
    """Compare the loads that both runs have, in the order of the first; :class:`InputError` if there is none."""
    try:
        first, second = _by_load(before), _by_load(after)
        found = tuple(
            LevelChange(name, tuple(_changes(old, second[name])), _invalid((before, old), (after, second[name])))
            for name, old in first.items()
            if name in second
        )
        differences = tuple(_differences(before, after, first, second))
    except KeyError as error:
        raise InputError(f"{before.path} or {after.path} lacks {error}", WRITES_ONE) from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{before.path} or {after.path} is damaged: {error}", WRITES_ONE) from None
    if not found:
        raise InputError(
            f"{before.path} and {after.path} have no load in common",
            "measure both with the same --concurrency, --rate, --trace or --scenario",
        )
    return Comparison(before, after, found, differences)


def _by_load(saved: Saved) -> dict[str, dict[str, Any]]:
    """The levels of a run by their loads; of the same load, the second one is called so."""
    found: dict[str, dict[str, Any]] = {}
    for level in saved.document["levels"]:
        name = load_name(level["load"])
        names = itertools.chain([name], (f"{name} ({turn})" for turn in itertools.count(2)))
        found[next(name for name in names if name not in found)] = level
    return found


def _differences(before: Saved, after: Saved, first: Collection[str], second: Collection[str]) -> Iterator[str]:
    """What two runs with the loads ``first`` and ``second`` have not in common."""
    pairs = (
        ("the model's configurations", "model", ("config_sha256",)),
        ("the requests", "settings", ("requests_sha256",)),
        ("the ways of sending", "settings", ("protocol", "shared_memory", "compression")),
        ("the machines of the generators", "environment", ("cpu", "cpus", "hostname")),
        ("the servers", "environment", ("server",)),
    )
    for saved, own, other in ((before, first, second), (after, second, first)):
        yield from (f"only {saved.label} has {load}" for load in own if load not in other)
    if before.model != after.model:
        yield f"the models differ: {printable(before.model)}, and {printable(after.model)}"
    for what, part, names in pairs:
        if any(before.document[part].get(name) != after.document[part].get(name) for name in names):
            yield f"{what} differ"
    files = [saved.document["model"].get("files_sha256") or {} for saved in (before, after)]
    if all(files):
        changed = sorted(name for name in {*files[0], *files[1]} if files[0].get(name) != files[1].get(name))
        if changed:
            yield f"the model's files differ: {', '.join(map(printable, changed))}"
    scenarios = [(saved.document.get("scenario") or {}).get("name") for saved in (before, after)]
    if scenarios[0] != scenarios[1]:
        yield "the scenarios differ"


def slower(levels: Sequence[LevelChange], limit: float) -> list[str]:
    """Changes for the worse whose whole interval lies beyond ``limit`` (0.05: 5%), of loads that are valid."""
    return [
        f"{level.load}: {change.metric} {change.relative:+.1%}, by at least {change.worse_at_least:.1%}"
        for level in levels
        if not level.invalid
        for change in level.changes
        if change.worse_at_least is not None and change.worse_at_least > limit
    ]


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    pairs = old["throughput_requests_per_s"], new["throughput_requests_per_s"]
    yield _change("throughput", "requests/s", *pairs, higher_is_better=True)
    first, second = old["response_time"], new["response_time"]
    if not (first and second):
        return
    yield _change("mean", "ms", first["mean_ms"], second["mean_ms"])
    for name in QUANTILES:
        one, other = (
            next((entry for entry in latency["percentiles"] if entry["name"] == name), None)
            for latency in (first, second)
        )
        if one and other and one["supported"] and other["supported"]:
            yield _change(name, "ms", one["ms"], other["ms"])


def _change(
    metric: str, unit: str, old: dict[str, Any], new: dict[str, Any], *, higher_is_better: bool = False
) -> Change:
    """The interval of a ratio of two independent estimates, from those of their logarithms."""
    low = high = None
    before, after = float(old["value"]), float(new["value"])
    spreads = [_spread(entry) for entry in (old, new)]
    if before > 0 and after > 0 and None not in spreads:
        error = math.hypot(*(spread for spread in spreads if spread is not None))
        middle = math.log(after / before)
        low, high = math.expm1(middle - _NORMAL_95 * error), math.expm1(middle + _NORMAL_95 * error)
    return Change(metric, unit, before, after, low, high, higher_is_better)


def _spread(estimate: dict[str, Any]) -> float | None:
    """Standard error of the logarithm, from a 95% interval."""
    low, high = estimate["low"], estimate["high"]
    if not low or not high:
        return None
    return math.log(high / low) / (2 * _NORMAL_95)


def _invalid(*runs: tuple[Saved, dict[str, Any]]) -> tuple[str, ...]:
    return tuple(f"{saved.label}: {printable(reason)}" for saved, level in runs for reason in level["reasons"])
