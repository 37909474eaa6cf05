# SPDX-License-Identifier: Apache-2.0
"""Reads responses from the sockets: in one iteration of the loop a bounded amount of each, and of all together.

`responses` and `observer` decide what becomes of responses; here is what a response, or its end, means for the
connection.
"""

from __future__ import annotations

import _socket
import time
from typing import Final

from tapmirror.ledger import Ledger
from tapmirror.replay.ends import Ends
from tapmirror.replay.lane import OPEN, Lane
from tapmirror.replay.latency import Timing
from tapmirror.replay.responses import Responses
from tapmirror.replay.tls import TlsSocket

READS: Final = 8
"""Most reads of one connection in one iteration of the loop."""
TURN_TIME: Final = 0.005
"""Seconds of reading in one iteration, after which the present read is finished: as long as a batch of the capture
takes.  It is enough for 5,000 ordinary responses, or for 8 KiB of chunks of one byte."""


class Drain:
    """Reads the connections of one reactor.

    `unread` gets those with something left, in the order of their turns.  `paced`: the time and size of responses
    matter (pacing `wait`).  `secured`: the connections use TLS.
    """

    __slots__ = ("_ends", "_events", "_paced", "_responses", "_secured", "_timing", "_unread", "left")

    def __init__(
        self,
        responses: Responses,
        timing: Timing,
        ends: Ends,
        unread: dict[Lane, None],
        ledger: Ledger,
        *,
        paced: bool,
        secured: bool,
    ) -> None:
        self._responses = responses
        self._timing = timing
        self._ends = ends
        self._unread = unread
        self._events = ledger.events
        self._paced = paced
        self._secured = secured
        self.left = TURN_TIME
        """Seconds that are left for reading in this iteration of the loop."""

    def begin_iteration(self) -> None:
        """Allow the full time of reading again."""
        self.left = TURN_TIME

    def read(self, lane: Lane, sock: _socket.socket | TlsSocket, now: float, *, ended: bool) -> bool:
        """Read and discard a bounded amount; returns whether the connection lasts.

        A read that was not filled has emptied the socket, and more data will be a new edge (epoll(7)), unless the
        connection ended with this event (`ended`).
        """
        if self.left <= 0.0:
            self._unread[lane] = None
            return True
        return self._read(lane, sock, now, ended=ended)

    def _read(self, lane: Lane, sock: _socket.socket | TlsSocket, now: float, *, ended: bool) -> bool:
        responses = self._responses
        begin = time.monotonic()
        try:
            for _ in range(READS):
                if lane.observing is not None:
                    asked, count = lane.observing.read(lane, sock, responses)
                elif lane.framer is not None:
                    asked, count = responses.read_http(lane, sock)
                else:
                    asked, count = responses.read_raw(sock)
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
        """Read once more before the connection is reset: responses that have come by now count."""
        if lane.sock is not None and lane.state == OPEN and lane.framer is not None and lane.framer.outstanding:
            self._read(lane, lane.sock, now, ended=False)

    def broken(self, lane: Lane, now: float) -> None:
        """Sending failed.  Responses that came before count."""
        if lane.framer is not None and lane.sock is not None:
            lane.withdraw()
            if not self._read(lane, lane.sock, now, ended=True):
                return
            if lane.observing is not None:
                lane.observing.ended(now, reset=True)
        self._ends.broken(lane, now)
