# SPDX-License-Identifier: Apache-2.0
"""How a running tap is shown: a live table on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Protocol, Self

import click

from tapmirror import governor
from tapmirror.cli.amounts import counted, not_counted, responses
from tapmirror.cli.briefs import brief_lines
from tapmirror.ledger import waits, worst_wait
from tapmirror.spec import By, TapSpec
from tapmirror.spec.numbers import decimal


class View(Protocol):
    """Shows snapshots of the ledgers of some taps, every `interval` seconds."""

    interval: float

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, ledgers: Sequence[dict[str, Any]]) -> None:
        """Show one snapshot of each."""

    def stopping(self) -> None:
        """Say that a signal was received, and what a second one would do, because the end may take seconds."""


DUMB: Final = ("dumb", "unknown")
"""Terminals that cannot move the cursor to another line, as in rich."""


def can_redraw() -> bool:
    """Whether standard error is a terminal on which a table can be redrawn."""
    return bool(sys.stderr and sys.stderr.isatty() and os.environ.get("TERM") not in DUMB)


def view_of(specs: Sequence[TapSpec]) -> View:
    """The view that standard error can show."""
    if can_redraw():
        from tapmirror.cli.redrawn import LiveView  # importing rich takes longer than everything else at a start

        return LiveView(specs)
    return LineView(specs)


def stopping_words(specs: Sequence[TapSpec]) -> str:
    """What happens after a first signal."""
    longest = max(spec.limits.drain_time for spec in specs)
    return f"stopping: what was captured is sent, within {longest:g} s (Ctrl-C now ends it at once, without a ledger)"


def say_no_more() -> None:
    """Discard standard error from now on: its terminal is closed, and an error in writing must not stop the end."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())


FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of writing to standard error if it is a file on a full disk."""


@contextmanager
def lost_if_full() -> Iterator[None]:
    """Lose what is printed inside if the disk is full: there may be room later, and the taps must go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


class Rates:
    """Turns totals of successive snapshots into rates a second."""

    def __init__(self) -> None:
        self._before: tuple[float, int, int, float] | None = None
        self._waits: list[tuple[int, int]] = []

    @property
    def known(self) -> bool:
        """Whether there was a snapshot before, so that the next one gives rates."""
        return self._before is not None

    def of(self, ledger: dict[str, Any]) -> tuple[float, float, float, float]:
        """(units/s, bytes/s, share of a CPU, seconds behind) since the last call.

        Units are requests, or segments if there are no requests.  Seconds behind are the mean of the worst worker.
        """
        unit = ledger["requests"] if ledger["requests"]["seen"] else ledger["segments"]
        now = (time.monotonic(), unit["mirrored"], ledger["bytes"]["mirrored"], ledger["worker"]["cpu_s"])
        before, self._before = self._before, now
        waited, self._waits = self._waits, waits(ledger)
        if before is None or now[0] <= before[0]:
            return 0.0, 0.0, 0.0, 0.0
        span, units, size, cpu = (new - old for new, old in zip(now, before, strict=True))
        return max(0.0, units / span), size / span, cpu / span, worst_wait(waited, self._waits)


class Reach:
    """Finds, from successive snapshots, the shadows that cannot be connected to.  For `run`, which has no governor."""

    def __init__(self) -> None:
        self._before: dict[str, dict[str, Any]] = {}
        self._reach: dict[str, governor.Reach] = {}
        self._down: dict[str, str] = {}

    def of(self, ledger: dict[str, Any]) -> dict[str, str]:
        """What is wrong with each shadow that is down: attempts failed, and none has succeeded since."""
        for label, shadow in ledger["shadows"].items():
            health = governor.health(self._before.get(label), shadow)
            self._before[label] = shadow
            reach = self._reach.setdefault(label, governor.Reach())
            if reach.through(health):
                self._down.pop(label, None)
            elif health.connect_failures:
                self._down[label] = reach.failure
        return self._down


def shadow_words(shadow: dict[str, Any], cause: str, *, several: bool) -> str:
    """A shadow in words: first what is wrong with it; if there are several, also what it got and missed."""
    words = [f"UNWELL: {cause}"] if cause else []
    if cause or several:
        name = counted(shadow)
        words.append(f"{shadow[name]['mirrored']:,} {name} mirrored")
        words += [f"{count:,} dropped ({why})" for why, count in shadow[name]["dropped"].items()]
    return ", ".join([*words, responses(shadow)])


def state_words(ledger: dict[str, Any]) -> str:
    """Why a tap does not mirror, or not all (an interface is down or gone, a worker is restarting); "": it does."""
    return f"{ledger['state'].upper()}: {ledger['state_reason']}" if ledger["state_reason"] else ""


def behind(delay: float) -> str:
    """How late the workers are, in words."""
    return f"{delay:.1f} s behind" if delay >= 1 else f"{delay * 1000:.0f} ms behind"


class LineView:
    """A line for each tap every few seconds, on standard error."""

    interval = 5.0

    def __init__(self, specs: Sequence[TapSpec]) -> None:
        self._specs = specs
        self._rates = [Rates() for _ in specs]
        self._reach = [Reach() for _ in specs]

    def __enter__(self) -> Self:
        with lost_if_full():
            for spec in self._specs:
                click.echo(f"tapmirror: {heading(spec)}", err=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo."""

    def show(self, ledgers: Sequence[dict[str, Any]]) -> None:
        """Print the state of each in one line."""
        for rates, reach, ledger in zip(self._rates, self._reach, ledgers, strict=True):
            rate, size, cpu, delay = rates.of(ledger)
            unit, segments = counted(ledger), ledger["segments"]
            account = ledger[unit]
            lost = sum(account["dropped"].values()), sum(segments["dropped"].values())
            why = f" ({', '.join(account['dropped'])})" if lost[0] else ""
            why += f" ({words})" if (words := not_counted(ledger)) else ""
            waiting = f", {account['in_flight']:,} waiting" if account["in_flight"] else ""
            causes, several = reach.of(ledger), len(ledger["shadows"]) > 1
            shadows = [
                f"shadow{several * f' {label}'}: {shadow_words(shadow, causes.get(label, ''), several=several)}"
                for label, shadow in ledger["shadows"].items()
            ]
            name = f"{ledger['tap']}  " if len(ledgers) > 1 else ""
            state = f"{words}  " if (words := state_words(ledger)) else ""
            line = (
                f"{time.strftime('%H:%M:%S')}  {name}{state}{rate:,.0f}/s {size / 1e6:.1f} MB/s  "
                f"{unit}: {account['mirrored']:,} mirrored, {lost[0]:,} dropped{why}{waiting}  "
                f"segments: {segments['mirrored']:,} passed, {lost[1]:,} dropped  "
                f"flows {ledger['flows']:,}  cpu {cpu:.0%}  {behind(delay)}  {'; '.join(shadows)}"
            )
            with lost_if_full():
                for text in (line, *(f"          {name}{brief}" for brief in brief_lines(ledger))):
                    click.echo(text, err=True)

    def stopping(self) -> None:
        """Say so."""
        click.echo(f"tapmirror: {stopping_words(self._specs)}", err=True)


def heading(spec: TapSpec) -> str:
    """What is mirrored where, in a few words."""
    ports = ",".join(str(p) for p in spec.ports)
    shadows = ", ".join(
        shadow.end_point + (f" x{shadow.copies}" if shadow.copies > 1 else "") for shadow in spec.shadows
    )
    share = f"{spec.ramp.start:g} to {spec.ramp.end:g} %" if spec.ramp is not None else f"{decimal(spec.percent)} %"
    what = {By.CONNECTION: "connections", By.KEY: f"keys ({spec.key})"}.get(spec.by, "requests")
    return f"{spec.iface} port {ports} -> {shadows}, {share} of {what}"
