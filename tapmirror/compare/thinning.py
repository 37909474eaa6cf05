# SPDX-License-Identifier: Apache-2.0
"""What keeps comparison within its budget: of more than so many a second, some.  And what is not to be timed.

Pure: no clock; `now` is passed in.
"""

from __future__ import annotations

import math
from typing import Final

from tapmirror.packet import BUCKETS

_ALL: Final = 1 << 32
SLICE_TIME: Final = 0.1
"""Seconds for which the same connections are compared: a client's only one is left alone for a second or so."""


class Rotation:
    """The connections that are compared while there are more requests a second than `most`: those in so many buckets
    from one on and around, and in the next time slice those behind them.  Each has its part of the time, and costs
    nothing in the rest of it.
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
        """Begin the next slice, by the rate of requests that was measured in the last one.  Returns whether other
        connections are compared in it.
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
    """At most so many a second, counted in seconds of the clock; of less than one, one in several seconds.

    What costs as much as several is to `pay` for them; while it `owes` there is none.
    """

    __slots__ = ("_cap", "_left", "_most", "_second")

    def __init__(self, most: float) -> None:
        self._most = most
        self._cap = max(1.0, most)
        self._left = self._cap
        self._second = -1

    def allows(self, now: float) -> bool:
        """Whether there may be one more, which is counted then."""
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
        """One that was allowed cost so many more."""
        self._left -= more

    @property
    def owes(self) -> bool:
        """More was used than there is for this second."""
        return self._left < 0


LATE: Final = 0.05
"""Seconds that a request may have waited for the tap and be timed.  A tap that keeps up takes less: the pause for
batching (1.2 ms), what AF_PACKET holds back (16 ms), a busy processor's time slices."""


class Backlog:
    """Tells requests that the shadow gets in one rush, for the tap was late, from those that come as clients sent them.

    In a rush they queue at the shadow as they did not at production, and so do those behind them, until the shadow has
    worked it off: for as long again as the tap was late, if production's rate is half of what the shadow can take.
    """

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = -math.inf

    def holds(self, now: float, time_ns: int) -> bool:
        """Whether a request that was captured at `time_ns` and is sent now is one of a rush, or just behind one."""
        waited = now - time_ns / 1e9
        if waited > LATE:
            self._until = max(self._until, now + waited)
        return now < self._until


class Draw:
    """About so many a second, drawn so that each has the same chance; all where there are fewer.

    The chance of a second is what the one before it had been right for.  `Rate` takes the first ones of each second
    instead: what a distribution is made of must not depend on when it came.
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
            self._left = max(1.0, 2 * self._most)  # where the rate has just risen
        self._seen += 1
        # A linear congruential generator (Numerical Recipes, 7.1): cheap, and its high bits, which decide, are good.
        self._number = number = (self._number * 1664525 + 1013904223) & 0xFFFFFFFF
        if number >= self._chance or self._left < 1:
            return False
        self._left -= 1
        return True
