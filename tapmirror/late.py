# SPDX-License-Identifier: Apache-2.0
"""Flows that have ended are remembered for a while, so that late segments do not begin new flows.

They are kept in generations, plain dictionaries that are thrown away as a whole.  This takes a third of the memory and
half of the time of one ordered dictionary.

Pure: no clock; `now` is passed in.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from tapmirror.events import FlowKey

LATE: Final = 3.0
"""Least seconds for which an ended flow is remembered (and not much longer): more than the first retransmission
time-outs (RFC 6298: 1 s, then 2 s; Linux: 0.2 s)."""
LATE_FLOWS: Final = 16_384
"""How many are remembered in any case: LATE at 5,000 connections a second."""
_OLDER: Final = 3
"""Number of generations in addition to the one that grows."""
_TIME: Final = LATE / _OLDER
"""Seconds of one generation."""


class LateFlows:
    """The flows that ended last, by key."""

    __slots__ = ("_newest", "_older", "_until")

    def __init__(self) -> None:
        self._newest: dict[FlowKey, int] = {}
        self._older: deque[dict[FlowKey, int]] = deque(maxlen=_OLDER)
        self._until = 0.0

    def remember(self, key: FlowKey, end: int, over: bool, now: float) -> None:
        """A flow has ended at sequence number `end`; `over`: nothing can follow on this connection."""
        if now >= self._until:
            self.expire(now)
        elif len(self._newest) >= LATE_FLOWS // _OLDER:
            self._turn(now)
        self._newest[key] = end << 1 | over

    def expire(self, now: float) -> None:
        """Forget flows that ended long ago."""
        if now >= self._until:
            for _ in range(min(_OLDER, int((now - self._until) / _TIME)) + 1):
                self._turn(now)

    def _turn(self, now: float) -> None:
        """Begin a generation, and forget the oldest one."""
        self._older.appendleft(self._newest)
        self._newest = {}
        self._until = now + _TIME

    def find(self, key: FlowKey) -> tuple[int, bool] | None:
        """(end, over) of the last flow with this key, if it is remembered."""
        found = self._newest.get(key)
        if found is None:
            found = next((older[key] for older in self._older if key in older), None)
        return None if found is None else (found >> 1, bool(found & 1))
