# SPDX-License-Identifier: Apache-2.0
"""How long the shadow takes to answer, from a few requests of each connection.

Theory of operation
-------------------
A connection has at most one request under way that is timed, by the clock that the loop reads anyway: from the
iteration in which the request's last byte was sent to the iteration in which its response's last byte was read.  So a
time has in it the network, the shadow, what the shadow had to answer on this connection before, and our own iterations:
the rest of the batch in which the request was sent (`worker.BATCH`), and the pause after it (`worker.HOLD`), a
millisecond or two as a rule, more where the worker is short of CPU.  What is not in it: connecting, and waiting for the
shadow to take the request.  Responses that never come are not in it either.

A busy connection wakes the loop only for many bytes of responses.  To time a response there, the connection is made to
wake the loop for a few bytes; `LAZY` bounds how often a second.  If responses are compared, `observer` decides about
waking, and the requests that it times, more precisely than is possible here, are the ones timed here too.

A new connection acknowledges late (`dial`).  A server that writes head and body separately waits for that (Nagle's
algorithm), usually 40 ms, while production's own clients acknowledge at once.  So a connection whose first request is
timed is made to acknowledge at once too; `NEW` bounds how often a second.
"""

from __future__ import annotations

from typing import Final

from tapmirror.histogram import Histogram
from tapmirror.replay.lane import Lane
from tapmirror.replay.responses import LAZY_BYTES, acknowledge_at_once, wake_for

LAZY: Final = 50
"""Most requests a second that are timed on busy connections, all together: enough for a median of each second.  Each
costs two system calls and a wake-up, some 10 us."""

NEW: Final = 250
"""Most first requests on new connections that are timed a second, all together; each costs a system call, a packet."""


class Timing:
    """Times requests of one reactor's connections.

    Call `sent` when a request was sent whole.  To save calls, `begin` may be called instead, if `Lane.timed` is 0 and,
    on a busy connection, some are `left` or the second is over (`until`).  Call `end` when responses were read, if
    `Lane.timed` is not 0.
    """

    __slots__ = ("_histogram", "_new", "left", "until")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self.left = self._new = 0
        self.until = 0.0

    def sent(self, lane: Lane, now: float) -> None:
        """A part was sent that ended a request."""
        if lane.timed or lane.framer is None:
            return
        if lane.observing is not None and not lane.observing.timed:
            return
        self.begin(lane, now)

    def begin(self, lane: Lane, now: float) -> None:
        """Time the last request that was sent from now on, unless enough are timed in this second."""
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

    def end(self, lane: Lane, now: float) -> None:
        """Count the time, if the response is complete."""
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
