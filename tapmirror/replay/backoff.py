# SPDX-License-Identifier: Apache-2.0
"""How long to leave a shadow alone that could not be reached.

One state for all connections to a shadow: while it is down there is one attempt at a time, after pauses
that double from `FIRST` (so at most ten attempts a second) up to a bound.  The first success ends it.

Pure: `now` in, yes or no out.
"""

from __future__ import annotations

from typing import Final

from tapmirror.events import DropReason

FIRST: Final = 0.1
"""Seconds after the first failure."""


class Backoff:
    """Whether a connection may be attempted, and why not."""

    __slots__ = ("_longest", "_pause", "_until", "reason")

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._pause = 0.0
        self._until = 0.0
        self.reason = DropReason.SHADOW_DOWN
        """Why what comes meanwhile is dropped."""

    @property
    def down(self) -> bool:
        """The last attempt failed."""
        return self._pause > 0

    def allows(self, now: float) -> bool:
        """Whether to try now.  While down, saying yes starts the next pause: one attempt at a time."""
        if not self._pause:
            return True
        if now < self._until:
            return False
        self._until = now + self._pause
        return True

    def failed(self, now: float, reason: DropReason) -> None:
        """An attempt failed."""
        self.reason = reason
        self._pause = min(self._longest, self._pause * 2) if self._pause else FIRST
        self._until = now + self._pause

    def succeeded(self) -> None:
        """An attempt succeeded."""
        self._pause = 0.0
