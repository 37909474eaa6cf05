# SPDX-License-Identifier: Apache-2.0
"""Pictures as SVG, to stand in a page: no script, no style of their own, colours by class.

Coordinates are those of a phone (400 wide); on a wider screen the picture is scaled up, or stands beside another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from tapmirror.compare.figures import Bin, PointFigures, SideFigures
from tapmirror.compare.verdict import Check, Outcome
from tapmirror.report.words import count, duration, limits_of, milliseconds, percent, times

WIDTH: Final = 400
LEFT: Final = 44
RIGHT: Final = 392
SPARSE: Final = 0.1
"""Part of the usual number of requests below which a point (the last one) has no quantiles worth a line."""
_CLASSES: Final = ("p", "s")
_NAMES: Final = ("production", "shadow")


def distribution(bins: Sequence[Bin]) -> str:
    """Both distributions over one logarithmic axis: production's upwards, the shadow's downwards."""
    if not bins:
        return ""
    totals = [max(1, sum(each.production for each in bins)), max(1, sum(each.shadow for each in bins))]
    shares = [[each.production / totals[0] for each in bins], [each.shadow / totals[1] for each in bins]]
    most = max(max(shares[0]), max(shares[1]), 1e-9)
    low, high = bins[0].low, bins[-1].high
    width = (RIGHT - 8) / len(bins)
    middle, room = 84.0, 72.0
    parts = []
    for n, each in enumerate(bins):
        x = 8 + n * width
        up, down = shares[0][n] / most * room, shares[1][n] / most * room
        title = (
            f"{milliseconds(each.low)} to {milliseconds(each.high)}: production {percent(shares[0][n])}, "
            f"shadow {percent(shares[1][n])}"
        )
        parts.append(
            f"<g><title>{escape(title)}</title>"
            f'<rect class="hit" x="{x:.1f}" y="8" width="{width:.1f}" height="152"/>'
            f'<rect class="p" x="{x + 0.5:.1f}" y="{middle - up:.1f}" width="{width - 1:.1f}" height="{up:.1f}"/>'
            f'<rect class="s" x="{x + 0.5:.1f}" y="{middle + 1:.1f}" width="{width - 1:.1f}" height="{down:.1f}"/></g>'
        )
    for tick in _ticks(low, high):
        x = 8 + (math.log(tick) - math.log(low)) / (math.log(high) - math.log(low)) * (RIGHT - 8)
        anchor = "end" if x > RIGHT - 24 else "start" if x < 30 else "middle"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="160"/>')
        parts.append(f'<text x="{x:.1f}" y="175" text-anchor="{anchor}">{milliseconds(tick)}</text>')
    return _svg(180, "Times to the last byte: production above the line, the shadow below", parts)


def quantile_marks(one: SideFigures, other: SideFigures) -> str:
    """p50, p90 and p99 of both as bars side by side."""
    most = max(*one.last.values(), *other.last.values(), 1e-9)
    parts = []
    for n, name in enumerate(("p50", "p90", "p99")):
        y = 6 + n * 40
        parts.append(f'<text x="0" y="{y + 20}">{name}</text>')
        for k, value in enumerate((one.last[name], other.last[name])):
            width = max(1.0, value / most * (RIGHT - LEFT - 64))
            top = y + k * 16
            parts.append(
                f'<rect class="{_CLASSES[k]}" x="{LEFT - 10}" y="{top}" width="{width:.1f}" height="13" rx="2"/>'
                f'<text class="value" x="{LEFT - 4 + width:.1f}" y="{top + 11}">{milliseconds(value)}</text>'
            )
    return _svg(122, "p50, p90 and p99 of the time to the last byte", parts)


def timeline(line: Sequence[PointFigures], width: float) -> str:
    """p50 and p99 of both over time, on a logarithmic axis."""
    usual = sorted(point.requests for point in line)[len(line) // 2] if line else 0
    line = [point for point in line if point.requests >= usual * SPARSE]
    if len(line) < 2:
        return ""
    values = [value for point in line for pair in (point.p50, point.p99) for value in pair if value > 0]
    if not values:
        return ""
    low, high = min(values) / 1.15, max(values) * 1.15
    top, bottom = 10.0, 140.0
    span = line[-1].at or 1.0

    def place(at: float, value: float) -> tuple[float, float]:
        share = (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))
        return LEFT + at / span * (RIGHT - LEFT), bottom - share * (bottom - top)

    parts = []
    for tick in _ticks(low, high):
        _, y = place(0, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{milliseconds(tick)}</text>')
    for kind in ("p50", "p99"):
        for side in (0, 1):
            runs: list[list[str]] = [[]]
            for point in line:
                value = getattr(point, kind)[side]
                if value > 0:
                    x, y = place(point.at, value)
                    runs[-1].append(f"{x:.1f},{y:.1f}")
                elif runs[-1]:
                    runs.append([])
            for run in filter(None, runs):
                parts.append(f'<polyline class="line {_CLASSES[side]} {kind}" points="{" ".join(run)}"/>')
    for point in line:
        if point.errors[1] > point.errors[0]:
            x, _ = place(point.at, low)
            more = point.errors[1] - point.errors[0]
            parts.append(
                f"<g><title>{duration(point.at)}: {count(more)} more errors at the shadow</title>"
                f'<rect class="bad" x="{x - 1.5:.1f}" y="{bottom + 2}" width="3" height="6"/></g>'
            )
    for share in (0.0, 0.5, 1.0):
        x = LEFT + share * (RIGHT - LEFT)
        anchor = ("start", "middle", "end")[round(share * 2)]
        label = duration(share * span) if share else "0"
        parts.append(f'<text x="{x:.1f}" y="163" text-anchor="{anchor}">{label}</text>')
    return _svg(168, f"p50 and p99 of both over time, {duration(width)} a point; red: more errors at the shadow", parts)


def interval(check: Check) -> str:
    """An estimate with its interval, and the limit as a line to cross."""
    show = times if check.name == "p99 ratio" else percent
    neutral = 1.0 if check.name == "p99 ratio" else 0.0
    far = max(abs(check.limit - neutral) * 2, abs(check.estimate - neutral) * 1.3, 1e-6)
    low, high = neutral - far * 0.6, neutral + far * 1.2

    def place(value: float) -> float:
        return 6 + min(1.0, max(0.0, (value - low) / (high - low))) * (WIDTH - 12)

    a, b, limit = place(check.low), place(check.high), place(check.limit)
    state = {Outcome.PASS: "good", Outcome.FAIL: "bad", Outcome.UNDECIDED: "open"}[check.outcome]
    estimate, around, most = limits_of(check)
    parts = [
        f"<title>{escape(f'{estimate} ({around}), limit {most}')}</title>",
        f'<rect class="over" x="{limit:.1f}" y="4" width="{WIDTH - 6 - limit:.1f}" height="26"/>',
        f'<line class="axis" x1="6" x2="{WIDTH - 6}" y1="17" y2="17"/>',
        f'<line class="grid" x1="{place(neutral):.1f}" x2="{place(neutral):.1f}" y1="6" y2="28"/>',
        f'<rect class="{state} soft" x="{a:.1f}" y="10" width="{max(2.0, b - a):.1f}" height="14" rx="4"/>',
        f'<circle class="{state}" cx="{place(check.estimate):.1f}" cy="17" r="5"/>',
        f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="3" y2="31"/>',
        f'<text x="{place(neutral):.1f}" y="44" text-anchor="middle">{show(neutral)}</text>',
        f'<text class="strong" x="{limit:.1f}" y="44" text-anchor="middle">limit {most}</text>',
    ]
    if abs(place(neutral) - limit) < 70:
        parts.pop(-2)
    return _svg(48, f"{check.name}: {estimate}, interval {around}, limit {most}", parts)


def statuses(one: SideFigures, other: SideFigures) -> str:
    """The status mix of both, one bar above the other; each part at least wide enough to be seen."""
    parts = []
    for n, side in enumerate((one, other)):
        total = sum(side.statuses.values()) or 1
        y = 4 + n * 34
        parts.append(f'<text x="0" y="{y + 16}">{_NAMES[n]}</text>')
        x, room = 66.0, RIGHT - 66.0
        widths = {code: max(3.0, number / total * room) for code, number in side.statuses.items()}
        scale = room / max(room, sum(widths.values()))
        for code, number in side.statuses.items():
            width = widths[code] * scale
            title = f"{_NAMES[n]}: {code}: {number:,} ({percent(number / total)})"
            parts.append(
                f'<g><title>{escape(title)}</title><rect class="st{escape(code[:1])}" x="{x:.1f}" y="{y}" '
                f'width="{max(1.0, width - 1):.1f}" height="24"/>'
            )
            if width > 34:
                parts.append(
                    f'<text class="on" x="{x + width / 2:.1f}" y="{y + 16}" text-anchor="middle">{escape(code)}</text>'
                )
            parts.append("</g>")
            x += width
    return _svg(68, "Status codes of both", parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers of a logarithmic axis: 1, 2, 5 and so on, at most six."""
    if not 0 < low < high < math.inf:
        return []
    found = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if low <= value <= high:
                found.append(value)
    if len(found) > 6:
        found = [value for value in found if f"{value:e}".startswith("1.0")] or found
    return found[:: max(1, math.ceil(len(found) / 6))]


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    name = escape(label, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
