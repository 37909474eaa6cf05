# SPDX-License-Identifier: Apache-2.0
"""The figures for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from tapmirror.compare.figures import EndpointFigures, Figures
from tapmirror.compare.noise import Nature
from tapmirror.compare.verdict import Outcome
from tapmirror.compare.words import clean
from tapmirror.report.words import (
    COLUMNS,
    EARLY,
    KINDS,
    LIMITS,
    OUTCOMES,
    SIDES,
    cells,
    compared,
    limits_of,
    nature,
    noise,
    open_fields,
    percent,
    remarks,
    rtt,
    took,
)

COLOURS: Final = {Outcome.PASS: "bold green", Outcome.FAIL: "bold red", Outcome.UNDECIDED: "bold yellow"}
ENDPOINTS: Final = 20
WIDE: Final = 110
"""Columns from which on both sides have columns of their own."""
NARROW: Final = 70
"""Columns below which there is no table: names would have a few characters of them."""


def terminal(*found: Figures, width: int = 120, colour: bool = False) -> str:
    """Text; with escape sequences of colour only if asked for."""
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="256" if colour else None, legacy_windows=False
    )
    for number, figures in enumerate(found):
        if number:
            console.print()
        for part in parts(figures, width):
            console.print(part)
    return out.getvalue()


def parts(figures: Figures, width: int = WIDE) -> Iterator[RenderableType]:
    """What is shown, one after the other, on so many columns."""
    verdict = figures.verdict
    yield Text(clean(f"{figures.tap}: {figures.shadow} against production"), "bold")
    yield Text.assemble((OUTCOMES[verdict.outcome], COLOURS[verdict.outcome]), "  ", clean(verdict.reason))
    yield Text(clean(compared(figures)))
    if not figures.paired:
        yield Text("")
    elif width < NARROW:
        yield from _endpoint_lines(figures)
        yield from _narrow_fields(figures)
    else:
        yield from _limits(figures)
        if width >= WIDE:
            yield _endpoints(figures)
            yield from _fields(figures)
        else:
            yield _narrow_endpoints(figures)
            yield from _narrow_fields(figures)
    for line in noise(figures, 20):
        yield Text(clean(line), "dim")
    for remark in remarks(figures):
        yield Text(clean(remark))
    yield Text(rtt(figures), "dim")


def _limits(figures: Figures) -> Iterator[RenderableType]:
    if figures.verdict.checks:
        table = _table(LIMITS[0], *map(_right, LIMITS[1:-1]), LIMITS[-1])
        for check in figures.verdict.checks:
            table.add_row(check.name, *limits_of(check), Text(check.outcome.value, COLOURS[check.outcome]))
        yield table


def _endpoint_lines(figures: Figures) -> Iterator[RenderableType]:
    """What the tables say, without any."""
    yield Text("")
    for check in figures.verdict.checks:
        found, interval, most = limits_of(check)
        said = f"{check.name}: {found} (interval {interval}, at most {most}): "
        yield Text.assemble(said, (check.outcome.value, COLOURS[check.outcome]))
    yield Text("")
    for endpoint in [figures.all, *figures.endpoints[:ENDPOINTS]]:
        name, requests, errors, times, ratio, differ = _narrow_cells(endpoint)
        parts = (f"{requests} requests, errors ", errors, f", p99 {times}", f" ({ratio})" if ratio else "")
        yield name
        yield Padding(Text.assemble(*parts, f", {differ} differ" if endpoint.compared else ""), (0, 0, 0, 2))
    if len(figures.endpoints) > ENDPOINTS:
        yield Text(f"{len(figures.endpoints) - ENDPOINTS} more")
    yield Text("")


def _endpoints(figures: Figures) -> Table:
    table = _table(Column(COLUMNS[0], overflow="fold"), *map(_right, COLUMNS[1:]))
    table.add_row(*SIDES, style="dim")
    for endpoint in [figures.all, *figures.endpoints[:ENDPOINTS]]:
        table.add_row(*_cells(endpoint))
    if len(figures.endpoints) > ENDPOINTS:
        table.add_row(f"{len(figures.endpoints) - ENDPOINTS} more", *[""] * 9)
    return table


def _narrow_endpoints(figures: Figures) -> Table:
    """Of both sides what is said in one column, and no median."""
    columns = map(_right, ("requests", "errors", "p99", "", "differ"))
    table = _table(Column("endpoint", overflow="fold", ratio=1), *columns)
    table.expand = True
    for endpoint in [figures.all, *figures.endpoints[:ENDPOINTS]]:
        table.add_row(*_narrow_cells(endpoint))
    if len(figures.endpoints) > ENDPOINTS:
        table.add_row(f"{len(figures.endpoints) - ENDPOINTS} more", *[""] * 5)
    return table


def _narrow_cells(endpoint: EndpointFigures) -> tuple[Text, str, Text, str, str, str]:
    """Name, requests, errors and p99 of both, its change, and how many differ."""
    name, requests, *_, ratio, differ = cells(endpoint)
    one, other = endpoint.production, endpoint.shadow
    errors = f"{percent(one.error_rate).removesuffix(' %')} → {percent(other.error_rate)}"
    mine, its = took(one.last["p99"]), took(other.last["p99"])
    if mine[-3:] == its[-3:] and " " in mine:
        mine = mine.rpartition(" ")[0]
    worse = (endpoint.error_diff.low or 0) > 0
    return Text(clean(name)), requests, Text(errors, "red" if worse else ""), f"{mine} → {its}", ratio, differ


def _narrow_fields(figures: Figures) -> Iterator[RenderableType]:
    for endpoint in figures.endpoints[:ENDPOINTS]:
        for field in open_fields(endpoint):
            kind = KINDS.get(field.kind, field.kind)
            early = f" ({EARLY})" if field.nature is Nature.WAITING else ""
            said = f"{endpoint.name}  {field.path}: {kind} in {percent(field.raw)}, {nature(field)}{early}"
            yield Text(clean(said))
            for sample in field.samples[:1]:
                yield Text(f"    production  {clean(sample.one)[:200]}", "dim")
                yield Text(f"    shadow      {clean(sample.other)[:200]}", "dim")
    yield Text("")


def _cells(endpoint: EndpointFigures) -> Iterator[RenderableType]:
    """What is worse for certain in red."""
    name, *texts = cells(endpoint)
    yield Text(clean(name))
    bad = {3: (endpoint.error_diff.low or 0) > 0, 8: (endpoint.p99_ratio.low or 0) > 1, 9: endpoint.differing > 0}
    for column, text in enumerate(texts, 1):
        yield Text(text, "red" if bad.get(column) else "")


def _fields(figures: Figures) -> Iterator[Table]:
    table = _table(
        *(Column(name, overflow="fold") for name in ("endpoint", "field")),
        "difference",
        _right("share"),
        "production",
        "shadow",
    )
    for endpoint in figures.endpoints[:ENDPOINTS]:
        for field in open_fields(endpoint):
            kind = KINDS.get(field.kind, field.kind)
            early = f" ({EARLY})" if field.nature is Nature.WAITING else ""
            sample = field.samples[0] if field.samples else None
            table.add_row(
                Text(clean(endpoint.name)),
                Text(clean(field.path)),
                Text(clean(f"{kind}, {nature(field)}{early}")),
                percent(field.raw),
                Text(clean(sample.one)[:80] if sample else ""),
                Text(clean(sample.other)[:80] if sample else ""),
            )
    if table.rows:
        yield table


def _table(*columns: Column | str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _right(name: str) -> Column:
    return Column(name, justify="right")
