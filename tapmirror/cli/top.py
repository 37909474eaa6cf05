# SPDX-License-Identifier: Apache-2.0
"""`tapmirror top`: a live view of the daemon's taps, on the full screen."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.segment import SegmentLines
from rich.table import Table
from rich.text import Text

from tapmirror.cli.amounts import counted
from tapmirror.cli.asking import refused, socket_option, understood
from tapmirror.cli.briefs import brief_lines, load
from tapmirror.cli.live import Rates
from tapmirror.cli.messages import fail
from tapmirror.cli.status import TIMES, duration
from tapmirror.control.client import Client, ControlError
from tapmirror.control.messages import Status
from tapmirror.spec.numbers import decimal

INTERVAL: Final = 1.0
COLUMNS: Final = ("STATE", "SHARE", "RATE", "MB/S", "FLOWS", "MIRRORED", "LOST", "CPU", "MB")
"""Heads of the table of taps, after the tap's name."""
GIVE_WAY: Final = ("MB/S", "FLOWS", "MB", "CPU", "RATE", "SHARE")
"""Columns that are left out on a narrow terminal, in this order."""
LEAST: Final = 8
"""How many characters of a tap's name are shown at least."""
FIGURES: Final = ("MIRRORED", "LOST", "P50", "P99")
"""Heads of a shadow's figures; on a narrow terminal the last one is left out first."""
TROUBLE: Final = 19
"""Least characters for what is wrong with a shadow: those of the column's head, and one."""
GAP: Final = 2
COLORS: Final = {"running": "green", "failed": "bold red", "restarting": "red", "waiting": "yellow", "paused": "yellow"}


@click.command(short_help="Watch the daemon's taps on the full screen.")
@socket_option
def top(socket: Path) -> None:
    """Watch the daemon's taps: rates, what was lost and why, the shadows' responses, the cost of each worker.

    Taps that do not run, or have a shadow that is not well, come first.

    Keys: space and b turn pages, q quits.

    \b
    Example:
      tapmirror top
    """  # noqa: D301 -- click wants the control character
    if sys.stdin is None or not all(stream.isatty() for stream in (sys.stdin, sys.stdout)):
        fail("top needs a terminal; for other output use `tapmirror status --json`", 2)
    if Console().is_dumb_terminal:
        fail("top needs a terminal with cursor control (TERM); use `tapmirror status --watch`", 2)
    load()
    rates: dict[str, Rates] = {}
    try:
        with Client(socket) as client, keys(), Live(screen=True, auto_refresh=False) as live:
            first = 0
            while True:
                done = client.ask(Status())
                with understood():
                    whole = screen(done, rates, live.console.width)
                shown, first = page(whole, live.console, first)
                live.update(shown, refresh=True)
                key = pressed(INTERVAL)
                if key == "":
                    raise OSError(errno.EIO, os.strerror(errno.EIO))  # as writing there does, if that comes first
                if key in ("q", "Q"):
                    return
                first += {" ": 1, "b": -1}.get(key or "", 0) * (live.console.height - 1)
    except ControlError as error:
        refused(error)
    except KeyboardInterrupt:
        return


@contextmanager
def keys() -> Iterator[None]:
    """Read keys at once and without echo; afterwards, also after SIGTERM and SIGHUP, the terminal is as before."""
    before = termios.tcgetattr(sys.stdin)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _frame: sys.exit(128 + caught))
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def pressed(seconds: float) -> str | None:
    """The key that is pressed within this time; empty: the terminal is gone."""
    end = time.monotonic() + seconds
    if select.select([sys.stdin], [], [], max(0.0, end - time.monotonic()))[0]:
        return os.read(sys.stdin.fileno(), 1).decode("latin-1")
    return None


def page(whole: RenderableType, console: Console, first: int) -> tuple[RenderableType, int]:
    """The part of `whole` that the screen has room for, from line `first` on, and the line with which it begins.

    That is an earlier line if there are not so many.
    """
    lines = console.render_lines(whole, pad=False)
    if len(lines) <= console.height:
        return whole, 0
    room = console.height - 1
    first = max(0, min(first, len(lines) - room))
    place = f"lines {first + 1} to {first + room} of {len(lines)}    space: on    b: back    q quits"
    shown = SegmentLines(lines[first : first + room], new_lines=True)
    return Group(shown, Text(place, "reverse", no_wrap=True, overflow="ellipsis")), first


def screen(done: dict[str, Any], rates: dict[str, Rates], width: int) -> RenderableType:
    """The whole content, for a screen of `width` columns; `rates` keeps the totals of the last call."""
    daemon, taps = done["daemon"], sorted(done["taps"], key=lambda tap: not _in_trouble(tap))
    running = sum(tap["state"] == "running" for tap in taps)
    head = Text(
        f"tapmirror {daemon['version']}  up {duration(daemon['uptime_s'])}  "
        f"{len(taps)} tap{'s' * (len(taps) != 1)}, {running} running    {time.strftime('%H:%M:%S')}    q quits"
    )
    parts: list[RenderableType] = [head]
    if daemon["killed"]:
        parts.append(Text("KILL SWITCH: all capture is off", "bold white on red"))
    parts += [Text(daemon[name], "bold red") for name in ("state_error", "reload_error") if daemon[name]]
    if all_taps := daemon.get("all_taps", {}).get("reason"):
        parts.append(Text(f"{daemon['all_taps']['share']:.0%} of all shares: {all_taps}", "yellow"))
    compared = [
        Text.assemble((tap["name"], "bold"), "  ", line) for tap in taps for line in brief_lines(tap["ledger"] or {})
    ]
    tables = (taps_table(taps, rates, width), reasons_table(taps), shadows_table(taps, width))
    return Group(*parts, *(table for table in tables if table.rows), *compared)


def _in_trouble(tap: dict[str, Any]) -> bool:
    """Whether an operator wants to see this tap first."""
    shadows = ((tap["ledger"] or {}).get("shadows") or {}).values()
    return tap["state"] != "running" or any(shadow.get("reason") for shadow in shadows)


def taps_table(taps: list[dict[str, Any]], rates: dict[str, Rates], width: int) -> Table:
    """A line for each tap, and one for each process where it has several.

    Names are cut if need be.  If that is not enough, whole columns are left out: a figure is never cut.
    """
    rows: list[tuple[Text, dict[str, Text]]] = []
    for tap in taps:
        ledger = tap["ledger"]
        state = Text(tap["state"], COLORS.get(tap["state"], ""))
        if ledger is None:
            rows.append((_name(tap["name"]), {"STATE": state, "SHARE": Text(f"{decimal(tap['percent'])} %")}))
            continue
        rate, size, cpu, _ = rates.setdefault(tap["name"], Rates()).of(ledger)
        unit = ledger[counted(ledger)]
        share = (ledger.get("share") or {}).get("effective", tap["percent"])
        figures = {
            "SHARE": f"{decimal(share)} %",
            "RATE": f"{rate:,.0f}",
            "MB/S": f"{size / 1e6:.1f}",
            "FLOWS": f"{ledger['flows']:,}",
            "MIRRORED": f"{unit['mirrored']:,}",
            "LOST": f"{sum(unit['dropped'].values()):,}",
            "CPU": f"{cpu:.0%}",
            "MB": f"{ledger['worker']['rss_kb'] / 1024:.0f}",
        }
        rows.append((_name(tap["name"]), {"STATE": state, **{name: Text(cell) for name, cell in figures.items()}}))
        workers = ledger.get("workers") or []
        for worker in workers if len(workers) > 1 else []:
            mark = _name(f"  worker {worker['pid']}", "dim")
            rows.append((mark, {"MB": Text(f"{worker['rss_kb'] / 1024:.0f}")}))
    shown = [*COLUMNS]
    widths = {name: max([len(name), *(len(cells[name]) for _, cells in rows if name in cells)]) for name in COLUMNS}
    for name in GIVE_WAY:
        if LEAST + sum(GAP + widths[each] for each in shown) <= width:
            break
        shown.remove(name)
    table = Table(box=None, header_style="bold", padding=0)
    table.add_column("TAP", min_width=LEAST)
    for name in shown:
        table.add_column(_behind_gap(Text(name)), justify="left" if name == "STATE" else "right", no_wrap=True)
    for tap_name, cells in rows:
        table.add_row(tap_name, *(_behind_gap(cells.get(name, Text())) for name in shown))
    return table


def _behind_gap(cell: Text) -> Padding:
    """Pad a cell ourselves: rich 13 computes a table's own padding wrongly for the first column and the last."""
    return Padding(cell, (0, 0, 0, GAP))


def reasons_table(taps: list[dict[str, Any]]) -> Table:
    """A line for each tap that lost something, or is in its state for a reason: it has the whole width."""
    table = Table(box=None, expand=True, header_style="bold", pad_edge=False)
    table.add_column("OF TAP", no_wrap=True)
    table.add_column("STATE AND LOSS, BY REASON", ratio=1)
    for tap in taps:
        ledger = tap["ledger"]
        unit = counted(ledger) if ledger is not None else ""
        reasons = []
        if ledger is not None:
            reasons = lost(ledger[unit], " bytes" if unit == "bytes" else "")
            reasons += (
                lost(ledger["segments"], " segments") if unit == "requests" else []
            )  # what was in them: not known
        if tap["state_reason"] or reasons:
            table.add_row(Text(tap["name"]), Text("  ".join(filter(None, (tap["state_reason"], *reasons)))))
    return table


def lost(account: dict[str, Any], what: str) -> list[str]:
    """What an account has lost, the largest number first."""
    return [
        f"{reason} {count:,}{what}" for reason, count in sorted(account["dropped"].items(), key=lambda each: -each[1])
    ]


def _name(name: str, style: str = "") -> Text:
    return Text(name, style, no_wrap=True, overflow="ellipsis")


def shadows_table(taps: list[dict[str, Any]], width: int) -> Table:
    """A line for each shadow: what is wrong with it, its responses by class, its latencies where they are known.

    If that leaves no room for what is wrong, whole columns of figures are left out.
    """
    rows: list[tuple[Text, Text, dict[str, Text], Text]] = []
    for tap in taps:
        for label, shadow in ((tap["ledger"] or {}).get("shadows") or {}).items():
            responses = "  ".join(f"{name} {count:,}" for name, count in shadow["answers"].items())
            latency = shadow.get("latency") or {}
            times = [f"{latency[name]:.1f} ms" if name in latency else "" for name in TIMES]
            account = shadow[counted(shadow)]
            counts = (f"{account['mirrored']:,}", f"{sum(account['dropped'].values()):,}")
            unwell = (f"{shadow['reason']}  ", "bold red") if shadow.get("reason") else ""
            figures = dict(zip(FIGURES, map(Text, (*counts, *times)), strict=True))
            rows.append((_name(label), _name(tap["name"]), figures, Text.assemble(unwell, responses)))
    shown = [*FIGURES]
    widths = {name: max([len(name), *(len(figures[name]) for _, _, figures, _ in rows)]) for name in FIGURES}
    names = sum(max([len(head), *(len(row[i]) for row in rows)]) for i, head in enumerate(("SHADOW", "OF TAP")))
    room = width - TROUBLE - 2 * GAP - sum(GAP + widths[name] for name in shown)
    for name in reversed(FIGURES):
        if names <= room:
            break
        shown.remove(name)
        room += GAP + widths[name]
    table = Table(box=None, expand=True, header_style="bold", pad_edge=False)
    for head in ("SHADOW", "OF TAP"):
        table.add_column(head, max_width=None if names <= room else max(LEAST, room // 2))
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("TROUBLE, RESPONSES", ratio=1)
    for label, tap_name, figures, trouble in rows:
        table.add_row(label, tap_name, *(figures[name] for name in shown), trouble)
    return table
