# SPDX-License-Identifier: Apache-2.0
"""The figures for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from tapmirror.compare import EndpointFigures, Figures, Nature, Outcome
from tapmirror.report.words import (
    KINDS,
    OUTCOMES,
    clean,
    count,
    duration,
    limits_of,
    milliseconds,
    nature,
    percent,
    rtt,
    slower,
)

COLOURS: Final = {Outcome.PASS: "bold green", Outcome.FAIL: "bold red", Outcome.UNDECIDED: "bold yellow"}
ENDPOINTS: Final = 20


def terminal(figures: Figures, width: int = 120, colour: bool = False) -> str:
    """Text; with escape sequences of colour only if asked for."""
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="256" if colour else None, legacy_windows=False
    )
    for part in parts(figures):
        console.print(part)
    return out.getvalue()


def parts(figures: Figures) -> Iterator[RenderableType]:
    """What is shown, one after the other."""
    verdict = figures.verdict
    yield Text(f"{figures.tap}: {clean(figures.shadow)} against production", "bold")
    yield Text.assemble((OUTCOMES[verdict.outcome], COLOURS[verdict.outcome]), "  ", clean(verdict.reason))
    yield Text(
        f"{count(figures.paired)} of {count(figures.requests)} requests compared in {duration(figures.seconds)}, "
        f"level {figures.level}"
    )
    if verdict.checks:
        table = Table("limit", *[_right(name) for name in ("shadow", "certain", "at most")], "")
        for check in verdict.checks:
            table.add_row(check.name, *limits_of(check), Text(check.outcome.value, COLOURS[check.outcome]))
        yield table
    yield _endpoints(figures)
    fields = _fields(figures)
    if fields is not None:
        yield fields
    noise = sorted({field.path for each in figures.endpoints for field in each.fields if field.nature is Nature.NOISE})
    if noise:
        yield Text(f"taken for noise: {', '.join(map(clean, noise[:20]))}", "dim")
    for reason, number in [*figures.unpaired.items(), *figures.failures.items()]:
        yield Text(f"{clean(reason)}: {count(number)} requests")
    for note in figures.notes:
        yield Text(clean(note))
    yield Text(rtt(figures), "dim")


def _endpoints(figures: Figures) -> Table:
    table = Table(
        "endpoint", *[_right(name) for name in ("requests", "errors", "", "p50", "", "p99", "", "", "differing")]
    )
    table.add_row("", "", *["production", "shadow"] * 3, "", "", style="dim")
    for endpoint in [figures.all, *figures.endpoints[:ENDPOINTS]]:
        table.add_row(*_cells(endpoint))
    if len(figures.endpoints) > ENDPOINTS:
        table.add_row(f"{len(figures.endpoints) - ENDPOINTS} more", *[""] * 9)
    return table


def _cells(endpoint: EndpointFigures) -> Iterator[RenderableType]:
    one, other = endpoint.production, endpoint.shadow
    yield Text(clean(endpoint.name))
    yield count(endpoint.pairs)
    yield percent(one.error_rate)
    worse = (endpoint.error_diff.low or 0) > 0
    yield Text(percent(other.error_rate), "red" if worse else "")
    yield milliseconds(one.last["p50"])
    yield milliseconds(other.last["p50"])
    yield milliseconds(one.last["p99"])
    yield milliseconds(other.last["p99"])
    yield Text(slower(endpoint), "red" if (endpoint.p99_ratio.low or 0) > 1 else "")
    yield Text(percent(endpoint.diff_rate.value), "red" if endpoint.differing else "")


def _fields(figures: Figures) -> Table | None:
    table = Table("endpoint", "field", "difference", _right("share"), "production", "shadow")
    for endpoint in figures.endpoints[:ENDPOINTS]:
        for field in endpoint.fields:
            if field.nature is Nature.NOISE:
                continue
            kind = KINDS.get(field.kind, field.kind)
            early = " (too early to tell)" if field.nature is Nature.WAITING else ""
            sample = field.samples[0] if field.samples else None
            table.add_row(
                Text(clean(endpoint.name)),
                Text(clean(field.path)),
                f"{kind}, {nature(field)}{early}",
                percent(field.raw),
                Text(clean(sample.one)[:80] if sample else ""),
                Text(clean(sample.other)[:80] if sample else ""),
            )
    return table if table.rows else None


def _right(name: str) -> Column:
    return Column(name, justify="right")
