# SPDX-License-Identifier: Apache-2.0
"""How flows and their connections to the shadow end, whoever ends them.

Theory of operation
-------------------
*Production ends.*  A raw FIN becomes a half-close behind what is queued, and a raw RST an RST behind what is queued,
because production could read the bytes before it (tcp_reset() leaves them).  If they came after production's response,
both wait for the shadow's response, since a server may abandon its work when it sees its client go.  The response is
awaited for `wait_time`, as with pacing `wait`, and everything together for `linger_time`; a stream with bytes left then
is reset.  An HTTP flow that ended, in whatever way, is closed when its complete requests are sent and answered, within
`linger_time`: a server that sees its client gone might not do what production did.

*A request is incomplete*, because the client left or bytes were lost.  If a part of it was sent, the connection is
reset, so that the shadow cannot take it for whole.  The reset waits until the requests ahead of it are answered, or for
`wait_time`, since a server may abandon these too.  What comes next on that flow waits, and uses a new connection.

*The shadow ends.*  When it closes a connection, a request that was sent in part is dropped, and requests that were sent
and have no response count as `unanswered`.  Requests still queued as a whole use a new connection.  So do those behind
a response with notice that it is the last one on its connection (`Lane.repeatable`).  A raw stream that lost bytes is
given up.
"""

from __future__ import annotations

import socket
from itertools import islice
from typing import Final

from tapmirror.events import Abort, DropReason, Excuse, Finish
from tapmirror.ledger import Ledger
from tapmirror.replay.dial import Dialer
from tapmirror.replay.lane import GIVEN_UP, IDLE, OPEN, Lane
from tapmirror.replay.ports import Ports, reset_on_close, response_finished, sent_to_the_last
from tapmirror.replay.responses import wake_for
from tapmirror.replay.singly import Singly
from tapmirror.replay.sockets import Sockets

LOOKS: Final = 1_024
"""Most connections with a waiting end that one call of `expire` looks at: two milliseconds, ten times a second."""


class Ends:
    """Ends the flows of one reactor, and removes them from `lanes`.  `gentle` as in `Ports`."""

    __slots__ = (
        "_awaiting_end",
        "_dialer",
        "_events",
        "_lanes",
        "_linger_time",
        "_lingering",
        "_ports",
        "_singly",
        "_sockets",
        "_wait_time",
    )

    def __init__(
        self,
        lanes: dict[int, Lane],
        sockets: Sockets,
        dialer: Dialer,
        singly: Singly,
        ledger: Ledger,
        linger_time: float,
        wait_time: float,
        gentle: int,
    ) -> None:
        self._lanes = lanes
        self._sockets = sockets
        self._dialer = dialer
        self._singly = singly
        self._events = ledger.events
        self._linger_time = linger_time
        self._wait_time = wait_time
        self._ports = Ports(gentle)
        self._lingering: dict[Lane, float] = {}
        self._awaiting_end: dict[Lane, float] = {}
        """Flows whose end waits for the shadow's response, with the time until which each waits."""

    # --- production's

    def finish(self, command: Finish, now: float) -> None:
        """The client closed its side; what is queued is still sent."""
        lane = self._lanes.get(command.flow)
        if lane is None:
            return
        lane.finishing = True
        if lane.state in (IDLE, GIVEN_UP):
            self.remove(lane, DropReason.INCOMPLETE)
            return
        if lane.state == OPEN and not (lane.queue or lane.tunnel or lane.framer is None or lane.framer.awaited):
            self.try_finish(lane, now)  # as nearly all: it is not waited for
            return
        self._lingering[lane] = now + self._linger_time
        if command.answered and (not lane.http or lane.tunnel):
            self._awaiting_end[lane] = now + self._wait_time
        if lane.lazy:
            wake_for(lane, 1)
        if lane.state == OPEN:
            self.try_finish(lane, now)

    def abort(self, command: Abort, now: float) -> None:
        """The request under way, or the stream, cannot go on."""
        lane = self._lanes.get(command.flow)
        if lane is None:
            return
        if not lane.http or lane.tunnel:
            if command.reset and command.reason is DropReason.INCOMPLETE:  # behind bytes that production could read
                lane.resets = True
                self.finish(Finish(command.flow, answered=command.answered), now)
                return
            self.give_up(lane, command.reason)
            if command.reset:
                self.remove(lane, command.reason)
            return
        if lane.drop_last(command.reason):
            self._part(lane, now)
        if command.reset:
            self.finish(Finish(command.flow), now)

    def excuse(self, command: Excuse, _now: float) -> None:
        """Production ended the connection, and had no response to what was asked last."""
        lane = self._lanes.get(command.flow)
        if lane is not None and lane.http and not lane.tunnel:
            lane.excused = True
            self._sockets.excuse(lane)

    def take_back(self, lane: Lane) -> None:
        """Continue a flow that had ended, because more is to be sent on it."""
        lane.finishing = False
        self._lingering.pop(lane, None)
        self._awaiting_end.pop(lane, None)

    def try_finish(self, lane: Lane, now: float) -> None:
        """Close an ended flow when nothing is left to be sent or answered."""
        if lane.queue:
            return
        if lane.framer is not None and not lane.tunnel:
            if len(lane.framer.awaited) <= lane.torn:
                if lane.sock is not None:
                    self._ports.spare(lane.sock, now)
                self.remove(lane, DropReason.INCOMPLETE)
            return
        if lane.resets and lane.sock is not None and not sent_to_the_last(lane.sock):
            self._sockets.ask_again(lane)  # an event when it is
            return
        if lane in self._awaiting_end and not lane.shadow_done and lane.sock is not None:
            if now < self._awaiting_end[lane] and not response_finished(lane.sock):
                return
            del self._awaiting_end[lane]
        if lane.resets or lane.shadow_done:
            self.remove(lane, DropReason.INCOMPLETE)
            return
        if lane.finishing and lane.sock is not None:
            try:
                lane.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.remove(lane, DropReason.SHADOW_CLOSED)

    def __bool__(self) -> bool:
        """Whether a connection waits for its end."""
        return bool(self._lingering)

    def next_deadline(self) -> float | None:
        """When one of them needs `expire`; None: none waits."""
        if self._awaiting_end:
            return 0.0
        return next(iter(self._lingering.values())) if self._lingering else None

    def expire(self, now: float) -> None:
        """End the flows that waited too long, or whose response is complete."""
        for lane in list(islice(self._awaiting_end, LOOKS)):
            self._awaiting_end[lane] = self._awaiting_end.pop(lane)  # the others are first next time
            self.try_finish(lane, now)
        while self._lingering and next(iter(self._lingering.values())) <= now:
            lane = next(iter(self._lingering))
            self._events["lingered_out"] += 1
            if lane.observer is not None:
                lane.observer.timed_out(now)
            self.remove(lane, DropReason.SHADOW_SLOW)

    # --- the shadow's

    def connect_failed(self, lane: Lane, number: int, now: float) -> None:
        """A connection could not be made, for the reason `number` (errno)."""
        self._dialer.failed(lane, number, now)
        reason = self._dialer.reason
        self._sockets.close(lane)
        if self._dialer.elsewhere and self._sockets.connect(lane, now):
            return
        lane.drop_all(reason)
        if not lane.http:
            lane.state = GIVEN_UP
            lane.skip(reason)
        if lane.finishing:
            self.remove(lane, reason)

    def shadow_ended(self, lane: Lane, now: float) -> None:
        """The shadow closed its side, and all of its responses were read."""
        if lane.http:
            self._learn(lane, now)
            self.broken(lane, now)
            return
        lane.shadow_done = True
        if lane.finishing and not lane.queue:
            self.remove(lane, DropReason.SHADOW_CLOSED)

    def shadow_reset(self, lane: Lane, now: float) -> None:
        """The shadow reset the connection, and all of its responses were read."""
        self._learn(lane, now)
        self.broken(lane, now)

    def _learn(self, lane: Lane, now: float) -> None:
        """Learn from the end of a connection what is to be expected of the next ones."""
        if lane.http and not (lane.tunnel or lane.torn) and self._singly.ended(lane, self._dialer.last, now):
            for each in self._lanes.values():
                each.ready = each.ready and not each.http

    def broken(self, lane: Lane, now: float) -> None:
        """The shadow broke the connection off, or closed one for requests."""
        if lane.http and not lane.tunnel:
            self._dialer.broke_off(lane, now)
        self.lost(lane, now)

    def lost(self, lane: Lane, now: float) -> None:
        """Give up a connection: drop the request that was sent in part, and send the rest over a new one."""
        if not lane.http or lane.tunnel:
            self.give_up(lane, DropReason.SHADOW_CLOSED)
            if lane.finishing:
                self.remove(lane, DropReason.SHADOW_CLOSED)
            return
        again = lane.repeatable()
        if lane.state == OPEN:
            self._sockets.close(lane, torn=len(again))
        lane.drop_begun(DropReason.SHADOW_CLOSED)
        lane.repeat(again)
        if lane.queue and not self._sockets.connect(lane, now):
            lane.drop_all(self._dialer.reason)
        if lane.finishing and lane.state == IDLE:
            self.remove(lane, DropReason.SHADOW_CLOSED)

    # --- ours

    def _part(self, lane: Lane, now: float) -> None:
        """Reset a connection whose last request stays incomplete, when those before it are answered."""
        if lane.state != OPEN or lane.framer is None or lane.framer.outstanding < 2 or lane.framer.failed:
            self._sockets.reset(lane, torn=1)
            return
        lane.torn = True
        lane.held_since = now
        reset_on_close(lane.sock)  # type: ignore[arg-type]
        lane.timed_lazy = False
        if lane.lazy:
            wake_for(lane, 1)

    def tear(self, lane: Lane, reason: DropReason) -> None:
        """Give up an incomplete request, and reset its connection if some of it was sent."""
        if lane.drop_last(reason):
            self._sockets.reset(lane, torn=1)
            lane.drop_all(reason)

    def give_up(self, lane: Lane, reason: DropReason) -> None:
        """A stream lost bytes: reset the connection, drop the rest of the flow."""
        self._sockets.reset(lane)
        lane.drop_all(reason)
        lane.state = GIVEN_UP
        lane.skip(reason)

    def remove(self, lane: Lane, reason: DropReason) -> None:
        """End a flow, and drop what is left of it."""
        if lane.sock is not None and (lane.resets or (lane.queued and (not lane.http or lane.tunnel))):
            reset_on_close(lane.sock)
        self._sockets.close(lane)
        if lane.queue or lane.begun or lane.open_request:
            lane.drop_all(reason)
        self._lingering.pop(lane, None)
        self._awaiting_end.pop(lane, None)
        self._lanes.pop(lane.flow, None)

    def close(self, reason: DropReason) -> None:
        """Drop what is queued and end every flow."""
        for lane in list(self._lanes.values()):
            if lane.observing is not None:
                lane.observing.shut()
            self.remove(lane, reason)
