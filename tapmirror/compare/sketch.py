# SPDX-License-Identifier: Apache-2.0
"""A distribution in bounded memory: counts in buckets whose edges grow by a constant factor.

It works like DDSketch (Masson, Rim and Lee, VLDB 2019): every quantile is within a relative error of `ERROR`, however
the values are distributed, and sketches of several workers add up exactly.  It is written here and not taken from a
library because the confidence sequences of `statistics` need the ranks at the edges of the buckets, which none offers,
and a state that is plain data; HDR histograms have linear buckets within each power of two, and a fixed array of them.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, TypeAlias

import msgspec

ERROR: Final = 0.01
_GAMMA: Final = (1 + ERROR) / (1 - ERROR)
_SCALE: Final = 1 / math.log(_GAMMA)
KEYS: Final = 2048
"""Keys lie between -KEYS and KEYS: factors of up to 6e17 around 1, more than nanoseconds in an hour (3.6e12)."""
MOST: Final = (1 << 63) - 1
"""Largest count, and sum of bytes or nanoseconds, that is believed: a worker has no number with more digits."""
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
_Key: TypeAlias = Annotated[int, msgspec.Meta(ge=-KEYS, le=KEYS)]
_LEAST: Final = _GAMMA ** (1 - KEYS)
_MOST: Final = _GAMMA ** (KEYS - 1)
_log = math.log
_ceil = math.ceil


class Sketch(msgspec.Struct):
    """A distribution of values above 0."""

    buckets: dict[_Key, Count] = {}
    """By key: how many values lie in (gamma ** (key - 1), gamma ** key]."""

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.buckets.values())

    def add(self, value: float) -> int:
        """Count a value, and say in which bucket; what lies outside of the range is counted at its end."""
        if not _LEAST < value < _MOST:
            value = _MOST if value > 1 else _LEAST
        key = _ceil(_log(value) * _SCALE)
        buckets = self.buckets
        if key in buckets:
            buckets[key] += 1
        else:
            buckets[key] = 1
        return key

    def merge(self, other: Sketch) -> None:
        """Add another one's values."""
        for key, count in other.buckets.items():
            self.buckets[key] = self.buckets.get(key, 0) + count

    def quantile(self, share: float) -> float:
        """The value that this share of all is at or below, within the relative error; 0 if there is none."""
        if not self.buckets:
            return 0.0
        low, high = self.around(share, share)
        return 2 * low * high / (low + high)

    def around(self, low: float, high: float) -> tuple[float, float]:
        """Edges between which the quantiles of two shares lie for certain: the lower one's from below and the
        higher one's from above.  A share below 0 or above 1 gives 0 or infinity.
        """
        bottom, top = 0.0 if low <= 0 else -1.0, math.inf if high > 1 else -1.0
        seen, count = 0, self.count
        least, most = max(1, math.ceil(low * count)), max(1, math.ceil(high * count))
        for key in sorted(self.buckets):
            seen += self.buckets[key]
            if bottom < 0 and seen >= least:
                bottom = _GAMMA ** (key - 1)
            if top < 0 and seen >= most:
                top = _GAMMA**key
        return max(bottom, 0.0), math.inf if top < 0 else top

    def points(self) -> list[tuple[float, int]]:
        """(middle of a bucket, count), in order of value."""
        return [(2 * _GAMMA**key / (1 + _GAMMA), self.buckets[key]) for key in sorted(self.buckets)]


def value_at(key: int, coarse: int = 0) -> float:
    """The middle of a bucket, or of 2**coarse of them whose keys begin alike (`key >> coarse`)."""
    return float(_GAMMA ** ((key + 0.5) * (1 << coarse) - 0.5) / math.sqrt(_GAMMA))
