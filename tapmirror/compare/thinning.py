# SPDX-License-Identifier: Apache-2.0
"""Keeps comparison within its budget: which of too many requests are compared, and which are not timed.

Pure: no clock; `now` is passed in.
"""

from __future__ import annotations

import math
from typing import Final

from tapmirror.packet import BUCKETS

_ALL: Final = 1 << 32
SLICE_TIME: Final = 0.1
"""Seconds of a time slice: a client with one connection is left out for about a second at a time."""


class Rotation:
    """Chooses the connections that are compared while there are more than `most` requests a second.

    They are those in a range of hash buckets, which moves on by its own width with each time slice and wraps around.
    Each connection has its share of the time, and costs nothing in the rest of it.
    """

    __slots__ = ("_began", "_most", "_rate", "_seen", "count", "due", "first")

    def __init__(self, most: float) -> None:
        self._most = most
        self._began = 0.0
        self._rate = 0.0
        self._seen = 0
        self.first = 0
        self.count = BUCKETS
        self.due = 0.0
        """When it is time for the `next_slice`."""

    def seen(self, now: float) -> bool:
        """Count a request, compared or not; returns whether it is time for the `next_slice`."""
        self._seen += 1
        return now >= self.due

    def next_slice(self, now: float) -> bool:
        """Begin the next slice; its size follows from the rate of requests in the last one.

        Returns whether other connections are compared in it.
        """
        took = now - self._began
        if self._began and took > 0:  # quick to rise, and slow to fall
            rate = self._seen / took
            self._rate = rate if rate > self._rate else self._rate + (rate - self._rate) * min(1.0, took)
        self._began, self._seen, self.due = now, 0, now + SLICE_TIME
        before = self.count
        if self._rate <= self._most:
            self.count = BUCKETS
            return before != BUCKETS
        self.first = (self.first + before) % BUCKETS
        self.count = max(1, int(BUCKETS * self._most / self._rate))
        return True

    def takes(self, bucket: int) -> bool:
        """Whether the connections of this bucket are compared now."""
        return (bucket - self.first) % BUCKETS < self.count


class Rate:
    """Allows at most `most` a second, counted in whole seconds of the clock; below 1, one in several seconds.

    For something that costs as much as several, call `pay`.  While it `owes`, nothing is allowed.
    """

    __slots__ = ("_cap", "_left", "_most", "_second")

    def __init__(self, most: float) -> None:
        self._most = most
        self._cap = max(1.0, most)
        self._left = self._cap
        self._second = -1

    def allows(self, now: float) -> bool:
        """Whether one more is allowed; if so, it is counted."""
        second = int(now)
        if second != self._second:
            passed = max(1, second - self._second)
            self._second = second
            self._left = min(self._cap, self._left + self._most * passed)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def pay(self, more: float) -> None:
        """Say that one that was allowed cost as much as `more` further ones."""
        self._left -= more

    @property
    def owes(self) -> bool:
        """Whether more was used than this second has."""
        return self._left < 0


LATE: Final = 0.05
"""Seconds that a request may wait for the tap and still be timed.  In a tap that keeps up, requests wait less: for the
pause of batching (1.2 ms), for AF_PACKET's block (16 ms), for a busy processor's time slices."""


class Backlog:
    """Recognises requests that the shadow gets in a rush because the tap was late.

    In a rush, requests queue at the shadow as they did not at production.  So do those behind them, until the shadow
    has worked the rush off: that takes as long again as the tap was late, if production's rate is half of the shadow's
    capacity.
    """

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = -math.inf

    def holds(self, now: float, time_ns: int) -> bool:
        """Whether a request that was captured at `time_ns` and is sent now belongs to a rush, or follows one."""
        waited = now - time_ns / 1e9
        if waited > LATE:
            self._until = max(self._until, now + waited)
        return now < self._until


class Draw:
    """Draws about `most` a second, so that each has the same chance; if there are fewer, it takes all.

    The chance in each second is the one that would have been right for the second before.  `Rate` takes the first ones
    of each second instead, but the sample of a distribution must not depend on when values came.
    """

    __slots__ = ("_chance", "_left", "_most", "_number", "_second", "_seen")

    def __init__(self, most: float) -> None:
        self._most = most
        self._number = 1
        self._chance = _ALL
        self._second = -1
        self._seen = 0
        self._left = 0.0

    def takes(self, now: float) -> bool:
        """Whether this one is drawn."""
        second = int(now)
        if second != self._second:
            seen = self._seen if second == self._second + 1 else 0
            self._chance = _ALL if seen <= self._most else int(_ALL * self._most / seen)
            self._second = second
            self._seen = 0
            self._left = max(1.0, 2 * self._most)  # the rate has just risen
        self._seen += 1
        # A linear congruential generator (Numerical Recipes, 7.1): cheap, and its high bits, which decide, are good.
        self._number = number = (self._number * 1664525 + 1013904223) & 0xFFFFFFFF
        if number >= self._chance or self._left < 1:
            return False
        self._left -= 1
        return True
