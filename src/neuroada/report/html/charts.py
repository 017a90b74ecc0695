"""Figures as numbers: where lines, marks and cells lie. `figures.html` draws them, in the colours of the page.

Coordinates are those of an SVG that is WIDTH wide, about as wide as a phone, so that text needs no scaling there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 380.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 364.0, 10.0, 196.0
MOST_POINTS = 200
"""Of a line; more of them become means of neighbours. A choice: half a pixel each on a phone."""

MOST_DOTS = 20
BINS = 48
DECADES = 4
"""Widest histogram: what is smaller than a ten-thousandth of the largest value counts into its first bin."""

LETTER = 6.6
"""Width of a letter of 11 pixels, on average in a wide font."""

Point = tuple[float, float]
Tick = tuple[float, str]


@dataclass(frozen=True)
class Series:
    """Points to draw as one line, in the colour of this number."""

    name: str
    colour: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Line:
    """path: of an SVG. dots: x, y and what they say."""

    name: str
    colour: int
    path: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """Lines over two axes."""

    title: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """Of a heat map; `strength` in [0, 1] is how much of its colour it has."""

    x: float
    y: float
    strength: float
    title: str
    text: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Layers downwards, projections to the right, or what else `by` says."""

    title: str
    cells: list[Cell]
    cell_width: float
    cell_height: float
    rows: list[Tick]
    columns: list[Tick]
    left: float
    bottom: float
    height: float
    ends: tuple[str, str]
    by: str = "layer and projection"


@dataclass(frozen=True)
class Mark:
    """A score with its interval; `filled` after training."""

    y: float
    x: float
    low: float
    high: float
    colour: int
    filled: bool
    title: str


@dataclass(frozen=True)
class Intervals:
    """Scores with their intervals, a row each test."""

    title: str
    height: float
    rows: list[Tick]
    x_ticks: list[Tick]
    left: float
    marks: list[Mark]


@dataclass(frozen=True)
class Scale:
    """Values from low to high onto coordinates from start to end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate, to a tenth."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, most: int) -> list[Tick]:
        """Coordinates and texts of round values."""
        return [(self(value), number_text(value)) for value in round_values(self.low, self.high, most)]


def line_chart(title: str, x_label: str, series: Iterable[Series]) -> Chart | None:
    """Lines over steps; None where there is at most one step to draw. Values that are not finite leave gaps."""
    series = [each for each in series if any(_drawable(y) for _, y in each.points)]
    drawn = [(x, y) for each in series for x, y in each.points if _drawable(y)]
    if len({x for x, _ in drawn}) < 2:
        return None
    x = _scale([point[0] for point in drawn], LEFT, RIGHT, pad=0.0)
    y = _scale([point[1] for point in drawn], BOTTOM, TOP, pad=0.05)
    lines = [_line(each, x, y) for each in series]
    return Chart(title, x_label, x.ticks(5), y.ticks(6), lines, _gaps_text(series))


def histogram(title: str, x_label: str, samples: Sequence[tuple[str, int, np.ndarray]]) -> Chart | None:
    """Shares of positive values by logarithm, each sample (name, colour, values) a line in steps."""
    logs = [np.log10(values[np.isfinite(values) & (values > 0)], dtype=np.float64) for _, _, values in samples]
    there = [each for each in logs if len(each)]
    if not there:
        return None
    high = max(float(each.max()) for each in there)
    least = min(float(each.min()) for each in there)
    low = max(least, high - DECADES)
    low, high = (low, high) if high - low > 0.1 else (low - 0.05, high + 0.05)
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(np.clip(each, low, high), edges)[0] for each in logs]
    shares = [100 * count / max(1, len(values)) for count, (_, _, values) in zip(counts, samples, strict=True)]
    x, y = Scale(low, high, LEFT, RIGHT), Scale(0.0, 1.05 * max(float(each.max()) for each in shares), BOTTOM, TOP)
    lines = [
        Line(name, colour, _stairs(edges, share, x, y), [])
        for (name, colour, _), share in zip(samples, shares, strict=True)
    ]
    y_ticks = [(place, f"{text}\N{NO-BREAK SPACE}%") for place, text in y.ticks(4)]
    note = "smaller ones count into the first bin" if least < low else ""
    return Chart(title, x_label, _decade_ticks(x), y_ticks, lines, note)


def heat_map(
    title: str, values: dict[tuple[int | None, str], float], labels: dict[str, str], ends: tuple[float, float]
) -> HeatMap | None:
    """Values by layer and projection, no colour for the first of the ends and full colour for the second.

    labels: of projections, in their order.
    """
    if not values:
        return None
    layers = sorted({layer for layer, _ in values}, key=lambda layer: (layer is None, layer))
    names = [name for name in labels if any(key[1] == name for key in values)]
    longest = max(len(labels[name]) for name in names)
    left = max(30.0, min(140.0, 0.7 * LETTER * len(labels[names[0]]) - 6))
    width = min(60.0, (RIGHT - left) / len(names))
    height = 14.0 if len(layers) <= 16 else 9.0
    bottom = TOP + height * len(layers)
    cells = [
        Cell(
            round(left + width * names.index(name), 1),
            round(TOP + height * layers.index(layer), 1),
            _strength(value, *ends),
            f"{_layer_text(layer)}, {labels[name]}: {value:.3g}",
        )
        for (layer, name), value in values.items()
    ]
    every = 1 if height > LETTER * 2 else 5
    rows = [
        (round(TOP + height * (number + 0.5), 1), "–" if layer is None else str(layer))
        for number, layer in enumerate(layers)
        if layer is None or number % every == 0
    ]
    columns = [(round(left + width * (number + 0.5), 1), labels[name]) for number, name in enumerate(names)]
    tall = round(bottom + 0.7 * LETTER * longest + 14, 1)
    return HeatMap(
        title, cells, round(width, 1), height, rows, columns, left, bottom, tall, (f"{ends[0]:.3g}", f"{ends[1]:.3g}")
    )


def intervals(
    title: str, scores: Sequence[tuple[str, Sequence[tuple[str, int, bool, float, float, float]]]]
) -> Intervals:
    """For each test (name, marks), a mark being (text, colour, filled, value, low, high); values in percent."""
    spans = [end for _, marks in scores for mark in marks for end in mark[3:] if _drawable(end)]
    left = max(40.0, min(150.0, LETTER * max((len(name) for name, _ in scores), default=0) + 8))
    x = _scale([*spans, 0.0] if min(spans, default=0.0) < 20 else spans, left, RIGHT - 6, pad=0.03)
    rows, placed, y = [], [], TOP
    for name, marks in scores:
        step = 9.0
        rows.append((round(y + step * len(marks) / 2, 1), name))
        for number, (text, colour, filled, value, low, high) in enumerate(marks):
            if all(map(_drawable, (value, low, high))):
                place = round(y + step * (number + 0.5), 1)
                placed.append(Mark(place, x(value), x(low), x(high), colour, filled, text))
        y += step * len(marks) + 9
    return Intervals(title, round(y + 18, 1), rows, x.ticks(5), left, placed)


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most MOST_POINTS of them: means of neighbours where there are more."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return points
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def round_values(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten, from low to high."""
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(unit * factor for factor in (1, 2, 5, 10, 20) if unit * factor * most >= high - low)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number_text(value: float) -> str:
    """As short as it can be."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _strength(value: float, low: float, high: float) -> float:
    if not _drawable(value):
        return 0.0
    return round((value - low) / (high - low), 3) if high > low else 1.0


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < 1e100


def _scale(values: Sequence[float], start: float, end: float, pad: float) -> Scale:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        around = 0.05 * abs(low) or 1.0
        low, high = low - around, high + around
    room = pad * (high - low)
    return Scale(low - room, high + room, start, end)


def _line(series: Series, x: Scale, y: Scale) -> Line:
    points, parts, pen = thinned(series.points), [], "M"
    for place, value in points:
        if _drawable(value):
            parts.append(f"{pen}{x(place)},{y(value)}")
        pen = "L" if _drawable(value) else "M"
    dots = [
        (x(place), y(value), f"{series.name}, {number_text(place)}: {value:.4g}")
        for place, value in points
        if len(points) <= MOST_DOTS and _drawable(value)
    ]
    return Line(series.name, series.colour, "".join(parts), dots)


def _gaps_text(series: Sequence[Series]) -> str:
    missing = sum(not _drawable(y) for each in series for _, y in each.points)
    size = math.ceil(max(len(each.points) for each in series) / MOST_POINTS)
    parts = [f"{missing:,} values are not finite and are left out"] if missing else []
    return "; ".join(parts + ([f"each point is the mean of up to {size:,} records"] if size > 1 else []))


def _stairs(edges: np.ndarray, shares: np.ndarray, x: Scale, y: Scale) -> str:
    steps = "".join(f"V{y(float(share))}H{x(float(edge))}" for share, edge in zip(shares, edges[1:], strict=True))
    return f"M{x(float(edges[0]))},{y(0.0)}{steps}V{y(0.0)}"


def _decade_ticks(x: Scale) -> list[Tick]:
    factors = (1, 2, 5) if x.high - x.low <= 2 else (1,)
    decades = range(math.floor(x.low), math.ceil(x.high) + 1)
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    return [(x(math.log10(value)), f"{value:g}") for value in values if x.low <= math.log10(value) <= x.high]


def _layer_text(layer: int | None) -> str:
    return "outside blocks" if layer is None else f"layer {layer}"
