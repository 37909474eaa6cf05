# SPDX-License-Identifier: Apache-2.0
"""How long the shadow takes to answer, from a few requests of each connection.

Theory of operation
-------------------
A connection has at most one request under way that is timed, by the clock that the loop reads anyway: from the
iteration in which the request's last byte was sent to the iteration in which its answer's last byte was read.  So a
time has in it the network, the shadow, what the shadow had to answer on this connection before, and our own iterations:
the rest of the batch in which the request was sent (`worker.BATCH`), and the pause after it, which is the short one
for a while (`CLOSE`): a millisecond or two as a rule, more where the worker is short of CPU.  What is not in it:
connecting, and waiting for the shadow to take the request.  Answers that never come are not in it either.

A busy connection wakes us only for many bytes of answers.  To time one there it is made to wake us for a few, and
`LAZY` bounds how often a second.  Where answers are compared, it is `observer` that decides when we are woken, and
those are timed that it times, closer than we can.

A new connection acknowledges late (`dial`), and a server that writes head and body apart waits for that (Nagle's
algorithm), 40 ms as a rule, where production's own clients acknowledge at once.  So one whose first request is timed
is made to as well, and `NEW` bounds how often a second.
"""

from __future__ import annotations

from typing import Final

from tapmirror.histogram import Histogram
from tapmirror.replay.answers import LAZY_BYTES, acknowledge_at_once, wake_for
from tapmirror.replay.lane import Lane

LAZY: Final = 50
"""Requests timed a second on busy connections, all together: enough for a median of each second; each costs two
system calls and a wake-up, some 10 us."""

NEW: Final = 250
"""First requests on new connections that are timed a second, all together; each costs a system call and a packet."""

CLOSE: Final = 0.05
"""Seconds after the beginning of a time for which the loop's pauses are short.  Where traffic is dense the first
requests of each second are timed, so this is a small part of it; and of a time that is longer a pause is one."""


class Timing:
    """Of all connections of one reactor.

    When a request went whole: `sent`; or, to save calls, `begin` where `Lane.timed` is 0 and, on a busy connection,
    some are `left` or the second is over (`until`).  When answers were read: `end`, where it is not 0.
    """

    __slots__ = ("_histogram", "_new", "close_until", "left", "until")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self.left = self._new = 0
        self.until = 0.0
        self.close_until = 0.0
        """Until then a time is being taken of which a pause would be a large part."""

    def sent(self, lane: Lane, now: float) -> None:
        """A part went that was the last of a request, if it is one."""
        if lane.timed or lane.framer is None:
            return
        if lane.observing is not None and not lane.observing.timed:
            return
        self.begin(lane, now)

    def begin(self, lane: Lane, now: float) -> None:
        """The last request that was sent is timed from now on, if there is room for one more."""
        if now >= self.until:
            self.until, self.left, self._new = now + 1.0, LAZY, NEW
        if lane.lazy:
            if not self.left:
                return
            self.left -= 1
            wake_for(lane, 1)
            lane.timed_lazy = True
        elif lane.sent == 1 and lane.observing is None and lane.sock is not None:
            if not self._new:
                return
            self._new -= 1
            acknowledge_at_once(lane.sock)
        lane.timed, lane.timed_at = lane.sent, now
        self.close_until = now + CLOSE

    def end(self, lane: Lane, now: float) -> None:
        """Take the time, if the answer has come whole."""
        framer = lane.framer
        if framer is None or lane.sent - len(framer.awaited) < lane.timed:
            return
        if not framer.failed:
            self._histogram.add(max(0.0, now - lane.timed_at))
        lane.timed = 0
        if lane.timed_lazy:
            lane.timed_lazy = False
            if not (lane.finishing or lane.switching):
                wake_for(lane, LAZY_BYTES)
