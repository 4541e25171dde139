"""SVG: small charts as text, with axes that are linear, logarithmic or in nines. Pure.

Colours are classes, so that the page's style sheet decides them, in the dark too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 760, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 18, 16, 46

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: from data to a position between 0 and 1, with the values that are labelled."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    show: Callable[[float], str]
    bend: Callable[[float], float] = float

    def at(self, value: float) -> float:
        """Where a value lies, from 0 to 1; what is outside is put at the end."""
        low, high = self.bend(self.low), self.bend(self.high)
        place = (self.bend(min(self.high, max(self.low, value))) - low) / (high - low or 1.0)
        return min(1.0, max(0.0, place))


def linear(label: str, low: float, high: float, show: Callable[[float], str] = lambda x: f"{x:g}") -> Axis:
    """An axis with about five round ticks."""
    if high <= low:
        high = low + 1
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if (high - low) / (m * step) <= 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(label, low, high, [k * step for k in range(first, last + 1)], show)


def logarithmic(label: str, low: float, high: float, show: Callable[[float], str]) -> Axis:
    """An axis over powers of ten, with 2 and 5 between them where there is room; `low` above 0."""
    low = max(low, 1e-12)
    high = max(high, low * 2)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    parts = (1,) if last - first > 4 else (1, 2, 5)
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in parts]
    return Axis(label, low, high, [t for t in ticks if low <= t <= high], show, math.log10)


def nines(label: str, samples: int) -> Axis:
    """Percentiles, as far out as so many samples reach: each nine more takes as much room as the last."""
    most = max(10.0, float(samples))
    shares = (0, 50, 75, 90, 95, 99, 99.9, 99.99, 99.999, 99.9999)
    ticks = [1 / (1 - s / 100) for s in shares]
    return Axis(label, 1.0, most, [t for t in ticks if t <= most * 1.001], _percent, math.log10)


def _percent(tick: float) -> str:
    return f"{100 * (1 - 1 / tick):.6g}%"


@dataclass(slots=True)
class Chart:
    """A chart between two axes; things are drawn in the order in which they are added."""

    x: Axis
    y: Axis
    title: str
    _parts: list[str] = field(default_factory=list)

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A line through points, ascending in x."""
        if points:
            path = " L".join(f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in points)
            self._parts.append(f'<path class="line {kind}" d="M{path}"/>')

    def dots(self, points: Sequence[Point], kind: str, texts: Sequence[str] = ()) -> None:
        """A dot at each point, which may say something when pointed at."""
        for index, (x, y) in enumerate(points):
            title = f"<title>{escape(texts[index])}</title>" if texts else ""
            self._parts.append(
                f'<circle class="dot {kind}" cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="3.5">'
                f"{title}</circle>"
            )

    def bars(self, heights: Sequence[float], kind: str) -> None:
        """A bar over each whole number from 0, from the axis up."""
        zero = self._y(self.y.low)
        width = max(2.0, 0.7 * (self._x(1) - self._x(0)))
        for index, height in enumerate(heights):
            top = self._y(height)
            self._parts.append(
                f'<rect class="bar {kind}" x="{self._x(index) - width / 2:.1f}" y="{top:.1f}" '
                f'width="{width:.1f}" height="{max(0.0, zero - top):.1f}"/>'
            )

    def band(self, start: float, end: float) -> None:
        """A part of the x axis that stands out."""
        left, right = self._x(start), max(self._x(end), self._x(start) + 1.5)
        self._parts.append(
            f'<rect class="band" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
            f'height="{HEIGHT - _TOP - _BOTTOM}"/>'
        )

    def level(self, y: float, text: str) -> None:
        """A dashed line across, such as a limit."""
        if self.y.low <= y <= self.y.high:
            self._parts.append(
                f'<path class="level" d="M{_LEFT} {self._y(y):.1f} H{WIDTH - _RIGHT}"/>'
                f'<text class="mark" x="{WIDTH - _RIGHT - 4}" y="{self._y(y) - 4:.1f}" '
                f'text-anchor="end">{escape(text)}</text>'
            )

    def __str__(self) -> str:
        label = escape(self.title)
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
            f"{self._grid()}{''.join(self._parts)}</svg>"
        )

    def _grid(self) -> str:
        parts = []
        bottom, middle = HEIGHT - _BOTTOM, (HEIGHT - _BOTTOM + _TOP) / 2
        for tick in self.x.ticks:
            x = f"{self._x(tick):.1f}"
            parts.append(f'<path class="grid" d="M{x} {_TOP} V{bottom}"/>')
            parts.append(
                f'<text class="tick" x="{x}" y="{bottom + 16}" text-anchor="middle">'
                f"{escape(self.x.show(tick))}</text>"
            )
        for tick in self.y.ticks:
            y = self._y(tick)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f} H{WIDTH - _RIGHT}"/>')
            parts.append(
                f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
                f"{escape(self.y.show(tick))}</text>"
            )
        parts.append(
            f'<text class="axis" x="{(WIDTH + _LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{escape(self.x.label)}</text>"
            f'<text class="axis" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.label)}</text>"
        )
        return "".join(parts)

    def _x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * self.x.at(value)

    def _y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * self.y.at(value)
