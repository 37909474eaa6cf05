# SPDX-License-Identifier: Apache-2.0
"""Whether a shadow loses requests that are sent before it has answered the one before them.

Theory of operation
-------------------
Production's clients usually wait for their responses, but what they send one after the other may reach a slower shadow
as two requests in one packet.  Servers must accept that (RFC 9112, 9.3.2), and some do not: gunicorn's threads answer
the first and keep the second until a third comes, or until the connection was idle for two seconds.  Others close after
responses of their choice, as lighttpd does after the error for a request whose body it does not want.

Waiting for each response means reading it as it comes, so it is not done from the start.  If connections end with
unanswered requests, and not after the number that `Dialer.last` predicts, requests wait for a while, on all connections
to that shadow.  Servers also end connections that were idle for too long.  A request that is on its way then is lost
too, but it is a single one, long after the last response.
"""

from __future__ import annotations

from typing import Final

from tapmirror.ledger import Ledger
from tapmirror.replay.lane import Lane, QueueMemory
from tapmirror.replay.ports import quiet_since

TOGETHER: Final = 60.0
"""Seconds within which two connections must end in this way: one may be an accident."""
LASTS: Final = 300.0
"""Seconds for which requests wait: it may only have been an outage, or one version, of the shadow."""


class Singly:
    """Decides for one reactor, by setting `QueueMemory.singly`."""

    __slots__ = ("_events", "_memory", "_paced", "_seen", "_until")

    def __init__(self, memory: QueueMemory, ledger: Ledger, *, paced: bool) -> None:
        """`paced`: pacing `wait` is on, which lets requests wait anyway, so there is nothing to learn."""
        self._memory = memory
        self._paced = paced
        self._events = ledger.events
        self._seen = float("-inf")
        self._until = 0.0

    def ended(self, lane: Lane, last: int, now: float) -> bool:
        """The shadow ended this connection, and everything on it was read; returns whether requests wait from now on.

        `last`: after how many requests the end was to be expected; 0: unknown.
        """
        framer = lane.framer
        if self._paced or framer is None or framer.failed or framer.idled:
            return False
        answered = lane.announced() - framer.unanswered
        unanswered = framer.unanswered - lane.unsent() - len(lane.repeatable())
        if not answered or unanswered < 1 or (unanswered == 1 and self._alone(lane)):
            return False
        if framer.closing and last in (0, answered):  # the next connection's end is foreseen
            return False
        together = now - self._seen <= TOGETHER
        self._seen = now
        if not together or self._memory.singly:
            return False
        self._memory.singly = True
        self._until = now + LASTS
        self._events["singly"] += 1
        return True

    def _alone(self, lane: Lane) -> bool:
        """Whether the last request was lost for another reason than being sent ahead of a response.

        That is so if requests wait already, if production did not answer it either, if the shadow had begun to answer
        it, or if nothing came since it was sent (the server's idle time-out ended just then).
        """
        begun = lane.framer is not None and lane.framer.amid
        if begun or self._memory.singly or lane.excused:
            return True
        return lane.sock is not None and not lane.unsent() and quiet_since(lane.sock)  # it was what was sent last

    def look(self, now: float) -> None:
        """Stop waiting when the time is over; call it now and then."""
        if self._memory.singly and now >= self._until:
            self._memory.singly = False
            self._seen = float("-inf")
