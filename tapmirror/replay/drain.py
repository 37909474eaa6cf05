# SPDX-License-Identifier: Apache-2.0
"""The sockets are emptied of answers, a bounded amount of each, and of all together, in an iteration of the loop.

What becomes of the answers is `answers`' and `observer`'s; here is what an answer, or the end of one, means to its
connection.
"""

from __future__ import annotations

import _socket
import time
from typing import Final

from tapmirror.ledger import Ledger
from tapmirror.replay.answers import Answers
from tapmirror.replay.ends import Ends
from tapmirror.replay.lane import OPEN, Lane
from tapmirror.replay.latency import Timing
from tapmirror.replay.tls import TlsSocket

READS: Final = 8
"""Reads of one connection in one iteration of the loop."""
TURN_TIME: Final = 0.005
"""Seconds of reading in one iteration, and then to the end of a read: as long as a batch of the capture takes.  So long
take 5,000 ordinary answers, or 8 KiB of chunks of one byte."""


class Drain:
    """Of all connections of one reactor.

    `unread` gets those of which something is left, in the order in which it is their turn; `paced`: the time and size
    of answers matter (pacing `wait`); `secured`: they come through TLS.
    """

    __slots__ = ("_answers", "_ends", "_events", "_paced", "_secured", "_timing", "_unread", "left")

    def __init__(
        self,
        answers: Answers,
        timing: Timing,
        ends: Ends,
        unread: dict[Lane, None],
        ledger: Ledger,
        *,
        paced: bool,
        secured: bool,
    ) -> None:
        self._answers = answers
        self._timing = timing
        self._ends = ends
        self._unread = unread
        self._events = ledger.events
        self._paced = paced
        self._secured = secured
        self.left = TURN_TIME
        """Seconds that may still be spent on reading in this iteration of the loop."""

    def begin_iteration(self) -> None:
        """As much may be read again."""
        self.left = TURN_TIME

    def read(self, lane: Lane, sock: _socket.socket | TlsSocket, now: float, *, ended: bool) -> bool:
        """Read and discard, a bounded amount; whether the connection lasts.

        A read that was not filled emptied the socket: more will be a new edge (epoll(7)), except for an
        end that came with this one (`ended`).
        """
        if self.left <= 0.0:
            self._unread[lane] = None
            return True
        return self._read(lane, sock, now, ended=ended)

    def _read(self, lane: Lane, sock: _socket.socket | TlsSocket, now: float, *, ended: bool) -> bool:
        answers = self._answers
        begin = time.monotonic()
        try:
            for _ in range(READS):
                if lane.observing is not None:
                    asked, count = lane.observing.read(lane, sock, answers)
                elif lane.framer is not None:
                    asked, count = answers.read_http(lane, sock)
                else:
                    asked, count = answers.read_raw(sock)
                if not count:
                    if lane.observing is not None:
                        lane.observing.ended(now, reset=False)
                    if lane.timed:
                        self._timing.end(lane, now)
                    self._ends.shadow_ended(lane, now)
                    return False
                if self._paced:  # in a tunnel too, which is read as HTTP is
                    lane.received += count
                    lane.received_at = now
                if count < asked and not ended and not self._secured:
                    break
                if time.monotonic() - begin >= self.left:
                    self._unread[lane] = None
                    break
            else:
                self._unread[lane] = None
        except BlockingIOError:
            pass
        except OSError:
            self._events["shadow_resets"] += 1
            if lane.observing is not None:
                lane.observing.ended(now, reset=True)
            self._ends.shadow_reset(lane, now)
            return False
        self.left -= time.monotonic() - begin
        if lane.resendable.requests and lane.framer is not None:
            lane.resendable.prune(0 if lane.framer.failed else lane.framer.outstanding)
        if lane.timed:
            self._timing.end(lane, now)
        return True

    def look_once_more(self, lane: Lane, now: float) -> None:
        """Its connection is about to be torn: what was answered by now counts."""
        if lane.sock is not None and lane.state == OPEN and lane.framer is not None and lane.framer.outstanding:
            self._read(lane, lane.sock, now, ended=False)

    def broken(self, lane: Lane, now: float) -> None:
        """Sending failed.  What was answered before counts."""
        if lane.framer is not None and lane.sock is not None:
            lane.withdraw()
            if not self._read(lane, lane.sock, now, ended=True):
                return
            if lane.observing is not None:
                lane.observing.ended(now, reset=True)
        self._ends.broken(lane, now)
