# SPDX-License-Identifier: Apache-2.0
"""What a look at all connections once a second finds: what no event reports.

Nothing here makes a system call.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from tapmirror.replay.lane import OPEN, Lane

EVERY: Final = 1.0
"""Seconds between two sweeps."""
OUTSTANDING: Final = 16_384
"""Requests without a response beyond which a connection is given up at the next sweep: each costs 8 bytes."""
OUTSTANDING_ALL: Final = 1 << 20
"""Requests without a response on all connections, beyond which those are given up that have more than an equal
share."""


class Sweep:
    """Tells when the next look at all connections is due, and what to look for.  `idle_time` in seconds; 0: idle
    connections stay.
    """

    __slots__ = ("_idle_time", "next")

    def __init__(self, idle_time: float) -> None:
        self._idle_time = idle_time
        self.next = 0.0

    def due(self, now: float) -> bool:
        """Whether to sweep now; the next one is put off then."""
        if now < self.next:
            return False
        self.next = now + EVERY
        return True

    def sluggish(self, lanes: Collection[Lane]) -> list[Lane]:
        """Lanes that wake us only for many bytes: fewer may wait to be read."""
        return [lane for lane in lanes if lane.lazy]

    def unanswered(self, lanes: Collection[Lane]) -> list[Lane]:
        """Lanes whose shadow owes too many responses."""
        owed = [(lane, lane.framer.outstanding) for lane in lanes if lane.framer is not None]
        bound = OUTSTANDING
        if sum(count for _, count in owed) > OUTSTANDING_ALL:
            bound = min(bound, OUTSTANDING_ALL // len(owed))
        return [lane for lane, count in owed if count > bound]

    def idle(self, lanes: Collection[Lane], now: float) -> list[Lane]:
        """Lanes that have had nothing to send and nothing to wait for in `idle_time`."""
        found: list[Lane] = []
        if not self._idle_time:
            return found
        for lane in lanes:
            if lane.sent != lane.sent_at_sweep or lane.queue or lane.framer is None or lane.framer.outstanding:
                lane.sent_at_sweep = lane.sent
                lane.idle_since = now
            elif lane.state == OPEN and not lane.begun and not lane.tunnel and now - lane.idle_since >= self._idle_time:
                found.append(lane)
        return found
