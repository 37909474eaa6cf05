# SPDX-License-Identifier: Apache-2.0
"""How long to leave an address alone that could not be reached.

All connections to an address share one state.  While the address is down there is one attempt at a time, after pauses
that double from `FIRST` (so at most ten attempts a second) up to a bound.  The first success ends this.  An address
that does not answer at all counts as down after `UNANSWERED` seconds; until then all connections may try.

Pure: `now` in, yes or no out.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 0.1
"""Seconds of pause after the first failure."""
UNANSWERED: Final = 1.0
"""Seconds after which an attempt without a reply counts as a failure for other connections: its SYN has been repeated
by then (RFC 6298, 2.1: the first time-out is one second)."""


class Backoff:
    """Whether a connection may be attempted."""

    __slots__ = ("_first", "_last", "_longest", "_until", "pause")

    def __init__(self, longest: float, first: float = FIRST) -> None:
        """`first` and `longest` pause, in seconds."""
        self._longest = longest
        self._first = min(first, longest)
        self.pause = 0.0
        """Seconds between two attempts; 0: the last one did not fail."""
        self._until = 0.0
        self._last = 0.0
        """When the present pause began."""

    def allows(self, now: float, oldest: float) -> bool:
        """Whether to try now; `oldest` is when the oldest attempt under way began (`now`: there is none).

        While down, saying yes starts the next pause: one attempt at a time.
        """
        if not self.pause:
            if now - oldest < UNANSWERED:
                return True
            self.failed(now, now)
        if now < self._until:
            return False
        self._until = now + self.pause
        return True

    def knows(self, began: float) -> bool:
        """Whether the failure of an attempt that began then is no news, because there was another failure since."""
        return self.pause > 0 and began < self._last

    def failed(self, now: float, began: float) -> None:
        """An attempt that began at `began` failed."""
        if self.knows(began):
            return
        self.pause = min(self._longest, self.pause * 2) if self.pause else self._first
        self._until = now + self.pause
        self._last = now

    def undecided(self) -> None:
        """An attempt ended without saying anything about the address: another may begin at once."""
        self._until = 0.0

    def succeeded(self) -> None:
        """An attempt succeeded."""
        self.pause = 0.0
