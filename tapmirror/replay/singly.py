# SPDX-License-Identifier: Apache-2.0
"""Whether a shadow loses requests that are sent before it has answered the one before them.

Theory of operation
-------------------
Production's clients wait for their answers, as a rule, and what they send one after the other may reach a slower shadow
as two requests in one packet.  Servers are to take these (RFC 9112, 9.3.2), and some do not: gunicorn's threads answer
the first and keep the second until a third comes, or until the connection was idle for two seconds.  Others close
behind answers of their choice, lighttpd behind the error to a request whose body it does not want.

To wait for each answer takes reading it as it comes, so it is not done from the start.  Where connections end with
requests unanswered, and not as `Dialer.last` foresees, it is done for a while, on all connections to that shadow.
Servers also end connections that were idle for too long, and a request that is on its way then is lost, too: a single
one, behind the last answer by far.
"""

from __future__ import annotations

from typing import Final

from tapmirror.ledger import Ledger
from tapmirror.replay.lane import Lane, QueueMemory
from tapmirror.replay.ports import quiet_since

TOGETHER: Final = 60.0
"""Seconds within which two connections must end so: one may be an accident."""
LASTS: Final = 300.0
"""Seconds: what was an outage of the shadow or of one version of it shall not cost for ever."""


class Singly:
    """Of one reactor: sets `QueueMemory.singly`, by which lanes go."""

    __slots__ = ("_events", "_memory", "_paced", "_seen", "_until")

    def __init__(self, memory: QueueMemory, ledger: Ledger, *, paced: bool) -> None:
        """`paced`: by `wait`, which does so anyway: there is nothing to learn."""
        self._memory = memory
        self._paced = paced
        self._events = ledger.events
        self._seen = float("-inf")
        self._until = 0.0

    def ended(self, lane: Lane, last: int, now: float) -> bool:
        """The shadow ended this connection, of which all was read; `last`: after how many requests that was to be
        expected, 0: not known.  Whether requests go one by one from now on.
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
        """Whether the last request was not lost because it was sent ahead of an answer: where requests go one by one,
        where production did not answer it either, where the shadow had begun to, and where nothing came since (a
        server's time for idle connections was over just then).
        """
        begun = lane.framer is not None and lane.framer.amid
        if begun or self._memory.singly or lane.excused:
            return True
        return lane.sock is not None and not lane.unsent() and quiet_since(lane.sock)  # it was what was sent last

    def look(self, now: float) -> None:
        """Once in a while: what was learnt is given up when its time is over."""
        if self._memory.singly and now >= self._until:
            self._memory.singly = False
            self._seen = float("-inf")
