# SPDX-License-Identifier: Apache-2.0
"""A ledger for people: a table, or lines where the terminal is too narrow for it; and the shadows' responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import msgspec
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from tapmirror.cli.amounts import not_counted, responses

Row: TypeAlias = tuple[str, list[str]]
"""A row: a fate, and its number in each column."""

BESIDE: Final = 3
"""Columns of a table's cell beside its text: a border and two spaces."""


class Account(msgspec.Struct, frozen=True):
    """What rich prints of a ledger."""

    title: Text
    names: list[list[str]]
    """Heads of the columns, each in lines: the unit, and the shadow where there are several."""
    rows: list[Row]
    lines: list[str]
    """Lines for what no column has."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.title
        names, rows = self.names, self.rows
        first = max(cell_len(fate) for fate, _ in rows)
        columns = [list(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]
        least = [max(map(cell_len, (*column, name[0]))) for column, name in zip(columns, names, strict=True)]
        room = options.max_width - 1 - BESIDE * (len(least) + 1) - first
        if sum(least) <= room:
            table = Table()
            table.add_column("", width=first)
            for name, width in zip(names, _widths(names, least, room), strict=True):
                table.add_column(Text("\n".join(name)), justify="right", overflow="fold", width=width)
            for fate, numbers in rows:
                table.add_row(fate, *numbers)
            yield table
        else:
            for fate, numbers in rows:
                said = (f"{number} {' of '.join(name)}" for number, name in zip(numbers, names, strict=True))
                yield Text(f"{fate}: {', '.join(said)}")
        for line in self.lines:
            yield Text(line)


def print_ledger(ledger: dict[str, Any]) -> None:
    """The final ledger, on standard output."""
    Console().print(final(ledger))


def final(ledger: dict[str, Any]) -> Account:
    """A ledger with its title."""
    return account(f"Ledger of {ledger['tap']}" if ledger["tap"] != "tap" else "Ledger", ledger)


def account(title: str, ledger: dict[str, Any]) -> Account:
    """A ledger under a title."""
    return Account(Text(title, "bold"), list(_names(ledger)), list(_rows(ledger)), list(_lines(ledger)))


def _widths(names: list[list[str]], least: list[int], room: int) -> list[int]:
    """The widths of the columns.  Names of shadows are wrapped if there is no room; numbers and units never are."""
    widths = [max(each, *map(cell_len, name)) for each, name in zip(least, names, strict=True)]
    while sum(widths) > room:
        _, widest = max((width, i) for i, width in enumerate(widths) if width > least[i])
        widths[widest] -= 1
    return widths


def _units(ledger: dict[str, Any]) -> list[dict[str, Any]]:
    """The accounts that are its columns; with several shadows, those of bytes and requests for each."""
    if len(ledger["shadows"]) <= 1:
        return [ledger["segments"], ledger["bytes"], ledger["requests"]]
    return [
        ledger["segments"],
        *(shadow[unit] for shadow in ledger["shadows"].values() for unit in ("bytes", "requests")),
    ]


def _names(ledger: dict[str, Any]) -> Iterator[list[str]]:
    """The heads of the columns: the unit, and the shadow if there are several."""
    yield ["segments"]
    labels = list(ledger["shadows"]) if len(ledger["shadows"]) > 1 else [None]
    for label in labels:
        for unit in ("bytes", "requests"):
            yield [unit] if label is None else [unit, label]


def _rows(ledger: dict[str, Any]) -> Iterator[Row]:
    """A row for each fate."""
    units = _units(ledger)
    for fate in ("seen", "mirrored", "sampled_out"):
        yield fate.replace("_", " "), [f"{unit[fate]:,}" for unit in units]
    for kind in ("filtered", "dropped"):
        for reason in sorted({r for unit in units for r in unit[kind]}):
            yield f"{kind}: {reason}", [f"{unit[kind].get(reason, 0):,}" for unit in units]
    for fate in ("in_flight", "unaccounted"):
        yield fate.replace("_", " "), [f"{unit[fate]:,}" for unit in units]


def _lines(ledger: dict[str, Any]) -> Iterator[str]:
    """What is printed below the table, because no account has it."""
    if words := not_counted(ledger):
        yield f"requests {words}"
    if ledger["away_s"]:
        yield f"nothing was captured for {ledger['away_s']:.1f} s, because there was no interface to capture"
    for name, seconds in ledger["missing_s"].items():
        yield f"{name} was not captured for {seconds:.1f} s: it was missing, or could not be"
    for label, shadow in ledger["shadows"].items():
        yield f"shadow{'' if len(ledger['shadows']) == 1 else f' {label}'}: {responses(shadow)}"
    calls = ledger["events"].get("hook_calls")
    if calls:
        yield f"hook: {calls:,} calls, {ledger['events']['hook_ns'] / calls / 1000:.1f} us each"
