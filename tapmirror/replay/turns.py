# SPDX-License-Identifier: Apache-2.0
"""Pacing `wait`: which connections hold back what follows until the shadow answered as production did.

A turn in a lane's queue is over when every request is answered (HTTP), when the shadow sent as much as
production, or something and then nothing for `SILENCE` (raw); or when `wait_time` is over.
"""

from __future__ import annotations

from typing import Final

from tapmirror.replay.lane import Lane

SILENCE: Final = 0.05
"""Seconds without a byte after which a raw response counts as complete."""
PROMPT: Final = 0.003
"""Seconds within which a response is prompt: of a slower shadow the pause of the worker's loop is a small part."""


class Turns:
    """The lanes whose next bytes wait for a response."""

    __slots__ = ("_before", "_behind", "_latest", "_wait_time", "_waiting")

    def __init__(self, wait_time: float) -> None:
        self._wait_time = wait_time
        self._waiting: dict[Lane, float] = {}
        self._behind: set[Lane] = set()
        self._before = 0.0
        self._latest = 0.0

    def __bool__(self) -> bool:
        """Whether some lane waits, and must be looked at in every tick."""
        return bool(self._waiting or self._behind)

    @property
    def behind(self) -> bool:
        """Whether some lane has another turn queued although its shadow answers promptly: the worker is what holds it
        up.
        """
        return bool(self._behind)

    def look(self, now: float) -> None:
        """Responses that came up to now were looked at: what waits can be judged by them."""
        self._before, self._latest = self._latest, now

    def waiting(self) -> list[tuple[Lane, float]]:
        """The lanes that wait, each with the time until which it does."""
        return list(self._waiting.items())

    def answered(self, lane: Lane, answered: int, now: float) -> bool:
        """Whether the shadow answered as production had, with `answered` bytes; else the lane waits from now on."""
        if lane.framer is not None and not lane.tunnel:
            done = not lane.framer.outstanding
        else:
            done = lane.received >= answered or self.silent(lane, now)
        if not done:
            self._waiting.setdefault(lane, now + self._wait_time)
        return done

    @staticmethod
    def silent(lane: Lane, now: float) -> bool:
        """Whether the shadow sent something that is no HTTP, and nothing was read since then for `SILENCE`.

        Something may have come that was not read yet: this process may have had no CPU for so long.
        """
        return (lane.framer is None or lane.tunnel) and lane.received > 0 and now - lane.received_at >= SILENCE

    def pass_on(self, lane: Lane, now: float) -> None:
        """The turn at the head of the queue is over."""
        deadline = self._waiting.pop(lane, None)
        lane.end_turn()
        # at the first look it is not known how long the response has been there
        since = now if deadline is None else deadline - self._wait_time
        prompt = since >= self._before or now - since < PROMPT
        if prompt and any(item.answered >= 0 for item in lane.queue):  # else nothing would end it
            self._behind.add(lane)
        else:
            self._behind.discard(lane)

    def forget(self, lane: Lane) -> None:
        """The lane's connection is gone."""
        self._waiting.pop(lane, None)
        self._behind.discard(lane)
