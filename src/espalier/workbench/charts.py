"""Line and dot charts as SVG text: no library, no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 280, 48, 12, 12, 40
Point = tuple[float, float]


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


def chart(series: Sequence[Series], x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str]) -> str:
    """A chart of `series` with axes from x[0] to x[1] and y[0] to y[1], named by `labels`. A range without width gets
    one."""
    (x0, x1), (y0, y1) = _wide(x), _wide(y)

    def at(px: float, py: float) -> tuple[float, float]:
        across = LEFT + (px - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return round(across, 2), round(HEIGHT - BOTTOM - (py - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 2)

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(labels[1])} by {escape(labels[0])}">']
    for k in range(5):
        value_x, value_y = x0 + (x1 - x0) * k / 4, y0 + (y1 - y0) * k / 4
        (tick, bottom), (left, level) = at(value_x, y0), at(x0, value_y)
        out.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{level}" y2="{level}"/>')
        out.append(f'<text x="{tick}" y="{bottom + 16}" text-anchor="middle">{value_x:.3g}</text>')
        out.append(f'<text x="{left - 6}" y="{level + 4}" text-anchor="end">{value_y:.3g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(labels[0])}</text>')
    for s in series:
        for px, low, high in s.bars:
            (a, b), (_, c) = at(px, low), at(px, high)
            out.append(f'<line x1="{a}" x2="{a}" y1="{b}" y2="{c}" stroke="{s.color}" stroke-opacity="0.5"/>')
        if not s.dots:
            path = " ".join("{},{}".format(*at(*p)) for p in s.points)
            dash = ' stroke-dasharray="4 4"' if s.dashed else ""
            out.append(f'<polyline points="{path}" fill="none" stroke="{s.color}" stroke-width="2"{dash}/>')
        for p, size in zip(s.points, s.sizes, strict=True) if s.sizes else ():
            a, b = at(*p)
            out.append(f'<circle cx="{a}" cy="{b}" r="{size:.2f}" fill="{s.color}" fill-opacity="0.7"/>')
    named = "".join(f'<span style="color:{s.color}">{escape(s.name)}</span>' for s in series)
    return "".join([*out, "</svg>", f'<p class="legend">{named}</p>'])


def _wide(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if high > low else (low - 0.5, low + 0.5)
