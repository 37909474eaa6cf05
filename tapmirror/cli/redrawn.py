# SPDX-License-Identifier: Apache-2.0
"""The view of running taps on a terminal: a table for each, redrawn in place.  For other outputs see `live`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tapmirror.cli.account import account
from tapmirror.cli.briefs import brief_lines
from tapmirror.cli.live import Rates, Reach, behind, heading, say_no_more, state_words, stopping_words
from tapmirror.spec import TapSpec


class LiveView:
    """A table for each tap, redrawn in place."""

    interval = 0.5

    def __init__(self, specs: Sequence[TapSpec]) -> None:
        self._specs = specs
        self._rates = [Rates() for _ in specs]
        self._reach = [Reach() for _ in specs]
        self._parts: list[RenderableType] = []
        # On the same screen the final ledger replaces the table.
        same = sys.stdout.isatty()
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=same)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen, if the terminal is still there and the ledger does not replace it."""
        try:
            self._live.__exit__(kind, error, trace)
        except OSError:
            say_no_more()

    def show(self, ledgers: Sequence[dict[str, Any]]) -> None:
        """Redraw."""
        self._parts = []
        for spec, rates, reach, ledger in zip(self._specs, self._rates, self._reach, ledgers, strict=True):
            rate, size, cpu, delay = rates.of(ledger)
            facts = (
                f"{rate:,.0f}/s  {size / 1e6:.1f} MB/s  flows {ledger['flows']:,}  "
                f"worker {cpu:.0%} CPU {ledger['worker']['rss_kb'] / 1024:.0f} MB, {behind(delay)}  "
                f"capture {ledger['capture']}"
            )
            unwell = [words] if (words := state_words(ledger)) else []
            unwell += [f"shadow {label}: UNWELL: {cause}" for label, cause in sorted(reach.of(ledger).items())]
            self._parts.append(account(heading(spec), ledger))
            self._parts += [Text(line, "bold red") for line in unwell]
            self._parts += [Text(line) for line in (*brief_lines(ledger), facts)]
        self._live.update(Group(*self._parts, Text("Ctrl-C stops", "dim")), refresh=True)

    def stopping(self) -> None:
        """Say so in the last line."""
        self._live.update(Group(*self._parts, Text(stopping_words(self._specs), "bold")), refresh=True)
