# SPDX-License-Identifier: Apache-2.0
"""What keeps comparison within its budget: of more than so many a second, some.

Pure: no clock; `now` is passed in.
"""

from __future__ import annotations

from typing import Final

_ALL: Final = 1 << 32


class Rate:
    """At most so many a second, counted in seconds of the clock; of less than one, one in several seconds."""

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
