"""Line and dot charts as SVG text: no library, no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 280, 48, 12, 12, 40
BLUE, GREY, GREEN = "#2563a8", "#8a8f98", "#3a8a4d"
Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]
"""Place and text of each tick of an axis."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points joined by a line, or as dots; `bars` are (x, low, high); `sizes` are radii of the dots in pixels."""

    name: str
    points: Sequence[Point]
    color: str
    dashed: bool = False
    dots: bool = False
    sizes: Sequence[float] = ()
    bars: Sequence[tuple[float, float, float]] = ()


def estimates(
    name: str, figures: Sequence[tuple[float, Mapping[str, Any]]], color: str, *, radius: float, dots: bool = False
) -> Series:
    """The series of (x, estimate), with intervals as bars; estimates without a value are left out."""
    points, bars = [], []
    for x, figure in figures:
        if figure["value"] is None:
            continue
        points.append((x, figure["value"]))
        if figure["low"] is not None:
            bars.append((x, figure["low"], figure["high"]))
    return Series(name, points, color, dots=dots, sizes=[radius] * len(points), bars=bars)


def reliability_points(
    bins: Sequence[Mapping[str, Any]], predicted: str, observed: str
) -> tuple[list[Point], list[float]]:
    """The points of a reliability diagram and the radii of their dots; `predicted` and `observed` are keys of the bins.

    A dot's area grows with the count `n` of its bin, the largest has a radius of 8 pixels; empty bins have none.
    """
    most = max(each["n"] for each in bins)
    points, sizes = [], []
    for each in bins:
        if each["n"]:
            points.append((each[predicted], each[observed]))
            sizes.append(2 + 6 * (each["n"] / most) ** 0.5)
    return points, sizes


def whole_ticks(last: int) -> Ticks:
    """At most nine ticks at whole numbers from 1 to `last`."""
    step = max(1, -(-last // 8))
    return [(float(n), str(n)) for n in range(1, last + 1, step)]


@dataclass(frozen=True, slots=True)
class _Axes:
    """The ranges of a chart, and where a point of them stands in pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> Point:
        (x0, x1), (y0, y1) = self.x, self.y
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return round(across, 2), round(down, 2)


def chart(
    series: Sequence[Series],
    x: tuple[float, float],
    y: tuple[float, float],
    labels: tuple[str, str],
    x_ticks: Ticks | None = None,
) -> str:
    """A chart of `series` with axes from x[0] to x[1] and y[0] to y[1], named by `labels`.

    A range of width 0 is widened. x_ticks: ticks of the x axis, if they are not to be five evenly spaced numbers.
    """
    axes = _Axes(_wide(x), _wide(y))
    across, up = map(escape, labels)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{up} by {across}">']
    parts += _grid(axes, x_ticks or _ticks(axes.x))
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{across}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(8 {middle}) rotate(-90)" text-anchor="middle">{up}</text>')
    for each in series:
        parts += _drawn(each, axes)
    legend = "".join(f'<span style="color:{each.color}">{escape(each.name)}</span>' for each in series)
    return "".join([*parts, "</svg>", f'<p class="legend">{legend}</p>'])


def _wide(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _ticks(span: tuple[float, float]) -> Ticks:
    """Five evenly spaced ticks over a range."""
    low, high = span
    ticks = []
    for number in range(5):
        place = low + (high - low) * number / 4
        ticks.append((place, f"{place:.3g}"))
    return ticks


def _grid(axes: _Axes, x_ticks: Ticks) -> list[str]:
    """Horizontal lines and the texts of both axes."""
    parts = []
    for value, text in _ticks(axes.y):
        left, level = axes.at(axes.x[0], value)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{level}" y2="{level}"/>')
        parts.append(f'<text x="{left - 6}" y="{level + 4}" text-anchor="end">{text}</text>')
    for value, text in x_ticks:
        across, bottom = axes.at(value, axes.y[0])
        parts.append(f'<text x="{across}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    return parts


def _drawn(series: Series, axes: _Axes) -> list[str]:
    """Bars first, so that lines and dots lie above them."""
    parts = []
    for x, low, high in series.bars:
        (across, bottom), (_, top) = axes.at(x, low), axes.at(x, high)
        line = f'<line x1="{across}" x2="{across}" y1="{bottom}" y2="{top}"'
        parts.append(f'{line} stroke="{series.color}" stroke-opacity="0.5"/>')
    if not series.dots:
        path = " ".join("{},{}".format(*axes.at(*point)) for point in series.points)
        dash = ' stroke-dasharray="4 4"' if series.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{series.color}" stroke-width="2"{dash}/>')
    if series.sizes:
        for point, size in zip(series.points, series.sizes, strict=True):
            across, down = axes.at(*point)
            dot = f'<circle cx="{across}" cy="{down}" r="{size:.2f}"'
            parts.append(f'{dot} fill="{series.color}" fill-opacity="0.7"/>')
    return parts
