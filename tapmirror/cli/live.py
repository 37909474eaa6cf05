# SPDX-License-Identifier: Apache-2.0
"""What a running tap looks like: a live table on a terminal, a line now and then elsewhere, the ledger at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol, Self

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tapmirror.spec import TapSpec


class View(Protocol):
    """Shows snapshots of the ledger, every `interval` seconds."""

    interval: float

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, ledger: dict[str, Any]) -> None:
        """Show one snapshot."""


class Rates:
    """Turns totals of successive snapshots into rates a second."""

    def __init__(self) -> None:
        self._before: tuple[float, int, int, float] | None = None

    def of(self, ledger: dict[str, Any]) -> tuple[float, float, float]:
        """(units/s, bytes/s, CPU share) since the last call; units are requests, without any segments."""
        unit = ledger["requests"] if ledger["requests"]["seen"] else ledger["segments"]
        now = (time.monotonic(), unit["mirrored"], ledger["bytes"]["mirrored"], ledger["worker"]["cpu_s"])
        before, self._before = self._before, now
        if before is None or now[0] <= before[0]:
            return 0.0, 0.0, 0.0
        span = now[0] - before[0]
        return max(0.0, (now[1] - before[1]) / span), (now[2] - before[2]) / span, (now[3] - before[3]) / span


class LineView:
    """One line every few seconds, on standard error."""

    interval = 5.0

    def __init__(self, spec: TapSpec) -> None:
        self._spec = spec
        self._rates = Rates()

    def __enter__(self) -> Self:
        click.echo(f"tapmirror: {heading(self._spec)}", err=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo."""

    def show(self, ledger: dict[str, Any]) -> None:
        """Print the state in one line."""
        rate, size, cpu = self._rates.of(ledger)
        requests, segments = ledger["requests"], ledger["segments"]
        lost = sum(requests["dropped"].values()), sum(segments["dropped"].values())
        answers = " ".join(f"{name} {count:,}" for name, count in ledger["answers"].items())
        click.echo(
            f"{time.strftime('%H:%M:%S')}  {rate:,.0f}/s {size / 1e6:.1f} MB/s  "
            f"requests {requests['mirrored']:,} mirrored {lost[0]:,} dropped  "
            f"segments {segments['mirrored']:,} passed {lost[1]:,} dropped  "
            f"flows {ledger['flows']:,}  cpu {cpu:.0%}  shadow: {answers or 'no answers'}",
            err=True,
        )


class LiveView:
    """A table that is redrawn in place."""

    interval = 0.5

    def __init__(self, spec: TapSpec) -> None:
        self._spec = spec
        self._rates = Rates()
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        self._live.__exit__(kind, error, trace)

    def show(self, ledger: dict[str, Any]) -> None:
        """Redraw."""
        rate, size, cpu = self._rates.of(ledger)
        table = Table(title=Text(heading(self._spec)), title_justify="left", caption_justify="left")
        table.caption = Text(
            f"{rate:,.0f}/s  {size / 1e6:.1f} MB/s  flows {ledger['flows']:,}  "
            f"worker {cpu:.0%} CPU {ledger['worker']['rss_kb'] / 1024:.0f} MB  "
            f"capture {ledger['capture']}   Ctrl-C stops"
        )
        _fill(table, ledger)
        self._live.update(table, refresh=True)


def heading(spec: TapSpec) -> str:
    """What is mirrored where, in a few words."""
    ports = ",".join(str(p) for p in spec.ports)
    host = f"[{spec.shadow.host}]" if ":" in spec.shadow.host else spec.shadow.host
    return f"{spec.iface} port {ports} -> {host}:{spec.shadow.port}, {spec.percent:g} % of connections"


def print_ledger(ledger: dict[str, Any]) -> None:
    """The final ledger, as a table on standard output."""
    table = Table(title="Ledger", title_justify="left")
    _fill(table, ledger)
    Console().print(table)


def _fill(table: Table, ledger: dict[str, Any]) -> None:
    """A row for each fate, a column for each unit."""
    units = [ledger["segments"], ledger["bytes"], ledger["requests"]]
    table.add_column("")
    for name in ("segments", "bytes", "requests"):
        table.add_column(name, justify="right")
    for fate in ("seen", "mirrored", "sampled_out"):
        table.add_row(fate.replace("_", " "), *(f"{unit[fate]:,}" for unit in units))
    for kind in ("filtered", "dropped"):
        for reason in sorted({r for unit in units for r in unit[kind]}):
            table.add_row(f"{kind}: {reason}", *(f"{unit[kind].get(reason, 0):,}" for unit in units))
    for fate in ("in_flight", "unaccounted"):
        table.add_row(fate.replace("_", " "), *(f"{unit[fate]:,}" for unit in units))
    answers = "  ".join(f"{name}: {count:,}" for name, count in ledger["answers"].items())
    table.add_section()
    table.add_row("shadow's answers", answers or "none seen")
