# SPDX-License-Identifier: Apache-2.0
"""Which buckets of the flow hash the capture should give more of: production's packets are captured only where somebody
wants them.

Several connections of a bucket may want it, so they are counted, and the capture is told of the first and of the last.

Pure: what the capture is to be told is a list.
"""

from __future__ import annotations

from collections import Counter

from tapmirror.events import FlowKey


class Wants:
    """How many connections want each bucket.

    `requests` collects (key, wanted) for the capture, where `key` is of any connection of the bucket.  Whoever passes
    them on empties it.
    """

    __slots__ = ("_counts", "requests")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.requests: list[tuple[FlowKey, bool]] = []

    def want(self, key: FlowKey, bucket: int) -> None:
        """One more connection wants this bucket, which is that of `key`."""
        self._counts[bucket] += 1
        if self._counts[bucket] == 1:
            self.requests.append((key, True))

    def unwant(self, key: FlowKey, bucket: int) -> None:
        """One connection less wants it.  Each call must follow one of `want`."""
        self._counts[bucket] -= 1
        if not self._counts[bucket]:
            del self._counts[bucket]
            self.requests.append((key, False))
