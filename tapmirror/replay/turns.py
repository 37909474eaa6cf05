# SPDX-License-Identifier: Apache-2.0
"""Pacing `wait`: which connections hold back what follows until the shadow answered as production did.

A turn in a lane's queue is over when every request is answered (HTTP), when the shadow sent as much as
production, or something and then nothing for `SILENCE` (raw); or when `wait_time` is over.
"""

from __future__ import annotations

from typing import Final

from tapmirror.replay.lane import Lane

SILENCE: Final = 0.05
"""Seconds without a byte after which a raw answer counts as complete."""


class Turns:
    """The lanes whose next bytes wait for an answer."""

    __slots__ = ("_wait_time", "_waiting")

    def __init__(self, wait_time: float) -> None:
        self._wait_time = wait_time
        self._waiting: dict[Lane, float] = {}

    def __bool__(self) -> bool:
        """Some lane waits: look at it at every tick."""
        return bool(self._waiting)

    def waiting(self) -> list[tuple[Lane, float]]:
        """Those that wait, and until when."""
        return list(self._waiting.items())

    def answered(self, lane: Lane, answered: int, now: float) -> bool:
        """Whether the shadow answered as production had, with `answered` bytes; else the lane waits from now on."""
        if lane.framer is not None and not lane.tunnel:
            done = not lane.framer.outstanding
        else:
            done = lane.heard >= answered or (lane.heard > 0 and now - lane.heard_at >= SILENCE)
        if not done:
            self._waiting.setdefault(lane, now + self._wait_time)
        return done

    def pass_on(self, lane: Lane) -> None:
        """The turn at the head of the queue is over."""
        self._waiting.pop(lane, None)
        if lane.queue and lane.queue[0].answered >= 0:
            lane.queue.popleft()
            lane.heard = 0

    def forget(self, lane: Lane) -> None:
        """Its connection is gone."""
        self._waiting.pop(lane, None)
