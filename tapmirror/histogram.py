# SPDX-License-Identifier: Apache-2.0
"""Histograms of times with fixed buckets: their size is bounded, and they can be added.

As plain data a histogram is {"count", "sum_s", "buckets": {upper bound in seconds: how many were at most that and above
the previous bound}}, without empty buckets; "inf" has the times above all bounds.  So those of workers and their
predecessors are added like all other counters (`ledger.summed`).

Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final

BOUNDS: Final = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds in seconds, from the time of a host in the same rack to times that nobody waits for.  A quantile may be
wrong by half."""
BEYOND: Final = "inf"
NAMES: Final = (*(f"{bound:g}" for bound in BOUNDS), BEYOND)
"""Names of the buckets, in order."""


class Histogram:
    """A histogram of times."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * len(NAMES)
        self.total = 0.0
        """Sum of all times in seconds."""

    def add(self, seconds: float) -> None:
        """Count one time."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def snapshot(self) -> dict[str, Any]:
        """The histogram as plain data."""
        buckets = {name: count for name, count in zip(NAMES, self.counts, strict=True) if count}
        return {"count": sum(self.counts), "sum_s": self.total, "buckets": buckets}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Add the times of a snapshot."""
        self.counts = [count + saved["buckets"].get(name, 0) for name, count in zip(NAMES, self.counts, strict=True)]
        self.total += saved["sum_s"]


def quantile(buckets: Mapping[str, int], part: float) -> float | None:
    """The quantile `part` (0 to 1) in seconds; None if there are no times.

    Times are assumed to be spread evenly within a bucket, as in Prometheus's histogram_quantile.  For times above all
    bounds the result is the last bound.
    """
    rank = part * sum(buckets.values())
    below = 0.0
    for name, bound in zip(NAMES, (*BOUNDS, None), strict=True):
        count = buckets.get(name, 0)
        if count and rank <= count:
            return below if bound is None else below + (bound - below) * rank / count
        rank -= count
        below = below if bound is None else bound
    return None
