"""Plots as inline SVG: what a report needs and no more, readable at 320 pixels and on paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 480
HEIGHT: Final = 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 34, 12, 50
_WIDEST_BAR: Final = 64.0
COLOURS: Final = 6  # of the style sheet's classes c0, c1, ...

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """Points joined by a line; a None breaks it."""

    name: str
    points: Sequence[tuple[float, float | None]]
    dashed: bool = False
    colour: int = 0


@dataclass(frozen=True)
class Axis:
    """Its label and ticks: positions in the units of the data, with their texts."""

    label: str
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def scale(self, start: float, end: float) -> Scale:
        """Map the range of the ticks to pixels from ``start`` to ``end``."""
        transform: Scale = math.log10 if self.logarithmic else float
        low, high = transform(self.ticks[0][0]), transform(self.ticks[-1][0])
        return lambda value: start + (transform(value) - low) / ((high - low) or 1.0) * (end - start)


def linear_axis(label: str, most: float, least: float = 0.0) -> Axis:
    """Round ticks from ``least`` to at least ``most``."""
    step = _round_step((most - least) / 4 or 1.0)
    first = math.floor(least / step)
    last = max(math.ceil(most / step - 1e-9), first + 1)
    return Axis(label, [(index * step, _number(index * step)) for index in range(first, last + 1)])


def log_axis(label: str, least: float, most: float) -> Axis:
    """Ticks at 1, 2 and 5 of each decade, at decades alone where there are many."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    factors = (1, 2, 5) if high - low <= 2 else (1,)
    values = [factor * 10.0**power for power in range(low, high + 1) for factor in factors]
    first = max((value for value in values if value <= least), default=values[0])
    last = min((value for value in values if value >= most), default=values[-1])
    if first == last:
        last = first * 10
        values.append(last)
    return Axis(label, [(value, _number(value)) for value in sorted(set(values)) if first <= value <= last], True)


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, *, dots: bool = False) -> str:
    """A figure of lines with a legend."""
    to_x, to_y = x.scale(_LEFT, WIDTH - _RIGHT), y.scale(HEIGHT - _BOTTOM, _TOP)
    lowest = y.ticks[0][0]
    parts = [_frame(x, y, to_x, to_y)]
    for line in series:
        style = f"c{line.colour % COLOURS}{' dashed' if line.dashed else ''}"
        for run in _runs(line.points):
            points = [(to_x(at), to_y(max(value, lowest))) for at, value in run]
            parts.append(f'<polyline class="line {style}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
            if dots or len(points) == 1:
                parts += [f'<circle class="dot {style}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    keys = [(line.name, line.colour, line.dashed) for line in series] if len(series) > 1 else []
    return _figure(title, "".join(parts), keys)


def bar_chart(title: str, bars: Sequence[tuple[str, float]], x_label: str, y_label: str) -> str:
    """A figure of bars, one a category."""
    y = linear_axis(y_label, max((value for _, value in bars), default=1.0) or 1.0)
    to_y = y.scale(HEIGHT - _BOTTOM, _TOP)
    slot = (WIDTH - _LEFT - _RIGHT) / max(len(bars), 1)
    width = min(slot * 0.7, _WIDEST_BAR)
    every = max(1, math.ceil(len(bars) / 12))
    ticks = [(index + 0.5, name) for index, (name, _) in enumerate(bars) if index % every == 0]
    parts = [_frame(Axis(x_label, ticks), y, lambda at: _LEFT + at * slot, to_y, vertical=False)]
    for index, (name, value) in enumerate(bars):
        top, left = to_y(value), _LEFT + (index + 0.5) * slot - width / 2
        text = f"<title>{escape(name)}: {_number(value)}</title>"
        size = f'width="{width:.1f}" height="{HEIGHT - _BOTTOM - top:.1f}"'
        parts.append(f'<rect class="bar c0" x="{left:.1f}" y="{top:.1f}" {size}>{text}</rect>')
    return _figure(title, "".join(parts), [])


def stacked_bar(parts: Sequence[tuple[str, float]]) -> str:
    """One bar of parts of a whole, in order; its legend is the table beside it."""
    total = sum(value for _, value in parts) or 1.0
    shapes, at = [], 0.0
    for index, (name, value) in enumerate(parts):
        width = max(value, 0.0) / total * WIDTH
        shapes.append(
            f'<rect class="bar c{index % COLOURS}{" light" if index >= COLOURS else ""}" x="{at:.2f}" y="0" '
            f'width="{width:.2f}" height="26"><title>{escape(name)}</title></rect>'
        )
        at += width
    return f'<svg class="split" viewBox="0 0 {WIDTH} 26" role="img" aria-label="parts">{"".join(shapes)}</svg>'


def _frame(x: Axis, y: Axis, to_x: Scale, to_y: Scale, *, vertical: bool = True) -> str:
    """Grid, ticks and labels."""
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value, text in y.ticks:
        at = to_y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{at + 4:.1f}">{escape(text)}</text>')
    for value, text in x.ticks:
        at = to_x(value)
        if vertical:
            parts.append(f'<line class="grid" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="middle" x="{at:.1f}" y="{bottom + 17}">{escape(text)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="middle label" x="{middle}" y="{HEIGHT - 8}">{escape(x.label)}</text>')
    turn = f'transform="rotate(-90 15 {(_TOP + bottom) / 2})"'
    parts.append(f'<text class="middle label" x="15" y="{(_TOP + bottom) / 2}" {turn}>{escape(y.label)}</text>')
    return "".join(parts)


def _figure(title: str, inside: str, keys: Sequence[tuple[str, int, bool]]) -> str:
    legend = "".join(
        f'<li><svg viewBox="0 0 22 8" class="key"><line class="line c{colour % COLOURS}{" dashed" if dashed else ""}" '
        f'x1="1" y1="4" x2="21" y2="4"/></svg>{escape(name)}</li>'
        for name, colour, dashed in keys
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{inside}</svg>'
        f"{f'<ul class=legend>{legend}</ul>' if legend else ''}</figure>"
    )


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Stretches of points without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((at, value))
    return [run for run in runs if run]


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{round(value, 9):g}"
