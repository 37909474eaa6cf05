# SPDX-License-Identifier: Apache-2.0
"""How long to leave a shadow alone that could not be reached.

One state for all connections to a shadow: while it is down there is one attempt at a time, after pauses
that double from `FIRST` (so at most ten attempts a second) up to a bound.  The first success ends it.
A shadow that does not answer at all is down after `UNANSWERED`; until then all may try.

Pure: `now` in, yes or no out.
"""

from __future__ import annotations

from typing import Final

from tapmirror.events import DropReason

FIRST: Final = 0.1
"""Seconds after the first failure."""
UNANSWERED: Final = 1.0
"""Seconds after which an attempt without an answer counts as a failure for others: its SYN has been repeated by
then (RFC 6298, 2.1: the first time-out is one second)."""


class Backoff:
    """Whether a connection may be attempted, and why not."""

    __slots__ = ("_last", "_longest", "_pause", "_until", "reason")

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._pause = 0.0
        self._until = 0.0
        self._last = 0.0
        """When the pause was set."""
        self.reason = DropReason.SHADOW_DOWN
        """Why what comes meanwhile is dropped."""

    @property
    def down(self) -> bool:
        """The last attempt failed."""
        return self._pause > 0

    def allows(self, now: float, oldest: float) -> bool:
        """Whether to try now; `oldest` is when the oldest attempt under way began (`now`: there is none).

        While down, saying yes starts the next pause: one attempt at a time.
        """
        if not self._pause:
            if now - oldest < UNANSWERED:
                return True
            self.failed(now, DropReason.SHADOW_DOWN, now)
        if now < self._until:
            return False
        self._until = now + self._pause
        return True

    def failed(self, now: float, reason: DropReason, began: float) -> None:
        """An attempt that began at `began` failed.  Those that began before the last failure tell nothing new."""
        self.reason = reason
        if self._pause and began < self._last:
            return
        self._pause = min(self._longest, self._pause * 2) if self._pause else FIRST
        self._until = now + self._pause
        self._last = now

    def succeeded(self) -> None:
        """An attempt succeeded."""
        self._pause = 0.0
