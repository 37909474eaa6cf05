# SPDX-License-Identifier: Apache-2.0
"""A lane: one production connection as replay sees it, with what waits for the shadow and what was sent.

It outlives connections to the shadow: if the shadow closes one, an HTTP flow continues with its next request on a new
one.

No socket calls here: callers report what was sent, and the lane keeps the ledger.  Every `Send` is settled once, in
bytes and, for requests, in whole requests.
"""

from __future__ import annotations

import _socket
from collections import deque
from typing import TYPE_CHECKING, Final

from tapmirror.events import END, START, TUNNEL, WHOLE, DropReason
from tapmirror.framing import ResponseFramer
from tapmirror.framing.head import is_safe
from tapmirror.ledger import SENT_AGAIN_BYTES, Ledger
from tapmirror.replay.resend import Resendable, ResendQuota
from tapmirror.replay.tls import TlsSocket

if TYPE_CHECKING:
    from tapmirror.replay.dial import Place
    from tapmirror.replay.observer import Observer

IDLE: Final = 0
"""No socket."""
CONNECTING: Final = 1
OPEN: Final = 2
GIVEN_UP: Final = 3
"""State of a raw stream that lost bytes: nothing more of it can be mirrored."""
ITEM_BYTES: Final = 150
"""Bytes that an item counts against the bounds in addition to its data: its own memory in CPython, that of its `bytes`
object, and its place in the queue."""
AHEAD: Final = 1_024
"""Most parts queued on one connection while requests wait for each other (`QueueMemory.singly`); with more they do not
wait.  With a distant shadow they would become ever later and be dropped in the end; to a shadow that is only slow it is
a second's work."""
ROOM: Final = 4
"""Nor do they wait if one part in this many of the room in bytes is taken, of the connection or of all together."""


class Item:
    """A queued part: `data` to send, of which `offset` bytes were sent; `size` captured bytes are not settled yet."""

    __slots__ = ("announced", "answered", "data", "flags", "number", "offset", "repeated", "size")

    def __init__(self, data: bytes, size: int, flags: int, answered: int = -1, number: int = 0) -> None:
        self.data = data
        self.offset = 0
        self.size = size
        self.flags = flags
        self.announced = False
        """Whether the response framer was told to expect the response to the request that begins here."""
        self.number = number
        """Number of the request that begins here (`Send.number`); 0: none is compared."""
        self.answered = answered
        """If not negative, the item is a turn and has no data: production had sent that many bytes."""
        self.repeated = b""
        """A whole request that was sent and counted before (`Lane.repeat`); empty: it is not one."""

    def restart(self) -> None:
        """Prepare to send the item from its beginning, over another connection."""
        self.announced = False
        if self.repeated:
            self.data, self.offset = self.repeated, 0


class QueueMemory:
    """How much the queues of all lanes hold, and their bounds."""

    __slots__ = ("all_bytes", "bytes", "held", "items", "lane_bytes", "repeats", "requests", "resend_quota", "singly")

    def __init__(self, lane_bytes: int, all_bytes: int) -> None:
        self.lane_bytes = lane_bytes
        self.all_bytes = all_bytes
        self.bytes = 0
        """Captured bytes queued, which the ledger counts as in flight."""
        self.held = 0
        """Bytes of data queued, which is what takes memory: a rewritten request may have far more than its captured
        one.  Without requests that are sent again (`resend_quota`)."""
        self.items = 0
        """Parts and turns queued."""
        self.requests = 0
        """Requests that began and are neither wholly sent nor dropped."""
        self.resend_quota = ResendQuota(all_bytes)
        self.repeats = 0
        """Requests queued to be sent again."""
        self.singly = False
        """Whether each request waits for the response to the previous one (`singly`)."""

    def full(self, size: int) -> bool:
        """Whether `size` more bytes would exceed the bound of all queues together."""
        return self.held + self.items * ITEM_BYTES + size > self.all_bytes


class Lane:
    """One flow's way to the shadow."""

    __slots__ = (
        "_ledger",
        "_memory",
        "begun",
        "blamed",
        "excused",
        "fd",
        "finishing",
        "flow",
        "framer",
        "held_since",
        "http",
        "idle_since",
        "last",
        "lazy",
        "observer",
        "observing",
        "open_request",
        "queue",
        "queued",
        "ready",
        "received",
        "received_at",
        "resendable",
        "resets",
        "sent",
        "sent_at_sweep",
        "shadow_done",
        "skipping",
        "sock",
        "state",
        "switching",
        "timed",
        "timed_at",
        "timed_lazy",
        "torn",
        "tunnel",
        "unanswered",
    )

    def __init__(self, flow: int, http: bool, memory: QueueMemory, ledger: Ledger) -> None:
        self.flow = flow
        self.http = http
        self._memory = memory
        self._ledger = ledger
        self.sock: _socket.socket | TlsSocket | None = None
        self.fd = -1
        """The socket's descriptor, as long as there is a socket."""
        self.observer: Observer | None = None
        """None: its responses cannot be compared."""
        self.observing: Observer | None = None
        """The observer, while responses on this connection are compared."""
        self.state = IDLE
        self.ready = False
        """Whether the next part can be sent at once.  Set by `refresh`, cleared by whatever prevents it."""
        self.framer: ResponseFramer | None = None
        self.queue: deque[Item] = deque()
        self.queued = 0
        """Bytes of data queued for this flow, counted as `QueueMemory.held` is."""
        self.resendable = Resendable(memory.resend_quota)
        """Copies of what was sent on this shadow connection."""
        self.begun = False
        """Whether a request was sent in part."""
        self.open_request = False
        """Whether the last request that was taken in is not complete yet."""
        self.skipping: DropReason | None = None
        """Why the rest of the request (raw: of the stream) is dropped, if it is."""
        self.finishing = False
        self.resets = False
        """Whether the connection ends with an RST, as production's did."""
        self.shadow_done = False
        self.sent = 0
        """Requests sent on this shadow connection."""
        self.last = 0
        """Number of the request after whose response the shadow will probably close this connection; 0: unknown."""
        self.sent_at_sweep = -1
        self.idle_since = 0.0
        """Since when nothing was sent, as far as sweeps saw (`Shadow.idle_time`)."""
        self.lazy = False
        """Whether the kernel wakes us only for many bytes of responses."""
        self.switching = False
        """Whether the last request may make the connection a tunnel: what follows waits for the shadow's response."""
        self.tunnel = False
        """Whether what follows that request is not HTTP."""
        self.unanswered = False
        """Whether the last connection to the shadow ended while a request had no response."""
        self.blamed: Place | None = None
        """The address that broke off the last connection to the shadow without a byte; None: none did."""
        self.excused = False
        """Whether production left the last request unanswered."""
        self.received = 0
        """Bytes of the shadow since the last turn (pacing `wait`)."""
        self.received_at = 0.0
        self.held_since = 0.0
        """Since when the requests wait for each other; 0: they do not."""
        self.torn = False
        """Whether a part of a request was sent that will never be complete, behind requests without a response: nothing
        more is sent on this connection."""
        self.timed = 0
        """Which request's response is timed (`latency`): the value of `sent` with that request; 0: none."""
        self.timed_at = 0.0
        self.timed_lazy = False
        """Whether the connection has to be made lazy again when the response was timed."""

    def attach(self, sock: _socket.socket, framer: ResponseFramer | None, last: int = 0) -> None:
        """Begin a connection to the shadow, which will probably close it after `last` requests (0: unknown)."""
        self.sock = sock
        self.fd = sock.fileno()
        self.state = CONNECTING
        self.framer = framer
        self.sent = 0
        self.last = last
        self.observing = None
        self.lazy = False
        self.shadow_done = False
        self.unanswered = False
        self.blamed = None
        self.received = 0
        self.held_since = 0.0
        self.torn = False
        self.timed = 0
        self.timed_lazy = False

    def refresh(self) -> None:
        """Find out whether the next part can be sent at once."""
        self.ready = (
            self.state == OPEN
            and not self.queue
            and self.skipping is None
            and not (self.switching or self.torn)
            and not (self._memory.singly and self.http)
            and (self.framer is None or not (self.framer.closing or self.parting))
        )

    @property
    def parting(self) -> bool:
        """Whether what follows has to wait for the response that is due.

        It would be lost otherwise: the shadow will probably close the connection behind that response, or it loses what
        is sent ahead of responses.
        """
        framer, memory = self.framer, self._memory
        if framer is None or framer.failed or not framer.awaited:  # once failed it sees no response any more
            return False
        if self.sent == self.last:
            return True
        return (
            memory.singly
            and len(self.queue) < AHEAD
            and self.queued < memory.lane_bytes // ROOM
            and memory.held < memory.all_bytes // ROOM
        )

    # --- taking in

    def full(self, size: int) -> bool:
        """Whether `size` more bytes of data pass a bound."""
        memory = self._memory
        return self.queued + len(self.queue) * ITEM_BYTES + size > memory.lane_bytes or memory.full(size)

    def enqueue(self, data: bytes, size: int, flags: int, number: int = 0) -> None:
        """Keep a part for later."""
        memory, length = self._memory, len(data)
        self.ready = False
        self.queue.append(Item(data, size, flags, -1, number))
        memory.bytes += size
        memory.items += 1
        memory.held += length
        self.queued += length
        if flags & START:
            memory.requests += 1
            self.open_request = not flags & END
        elif flags & END:
            self.open_request = False

    def enqueue_turn(self, answered: int) -> None:
        """Mark a place in the stream before which the shadow must have answered.

        If everything since the last such place was dropped, that place is used again.
        """
        if self.queue and self.queue[-1].answered >= 0:
            return
        self.ready = False
        self.queue.append(Item(b"", 0, 0, answered))
        self._memory.items += 1

    def end_turn(self) -> None:
        """The turn at the head of the queue, if there is one, is over."""
        if self.queue and self.queue[0].answered >= 0:
            self.queue.popleft()
            self._memory.items -= 1
            self.received = 0

    def sent_in_part(self, data: bytes, size: int, flags: int, count: int, number: int = 0) -> None:
        """Keep the rest of a part that was not queued, and of which `count` bytes were sent."""
        self.enqueue(data, size, flags, number)
        self.queue[-1].announced = bool(flags & START)
        self.advance(count)

    def withdraw(self) -> None:
        """Sending failed.  If nothing of the first queued request was sent, expect no response to it here."""
        if self.framer is not None and self.queue and self.queue[0].announced and not self.queue[0].offset:
            self.queue[0].announced = False
            self.framer.withdraw()
            if self.observing is not None:
                self.observing.withdraw(self.queue[0].number)
            self.resendable.withdraw()

    def unsent(self) -> int:
        """Announced requests that were not sent whole: they cannot have been answered."""
        return int(self.begun or (bool(self.queue) and self.queue[0].announced))

    def announced(self) -> int:
        """Requests on this connection, including one that was sent only in part: it may be answered already."""
        return self.sent + int(bool(self.queue) and self.queue[0].announced)

    # --- what was sent

    def sent_whole(self, size: int, flags: int) -> None:
        """Count a part that was sent at once, was never queued and is not a whole request."""
        self._ledger.bytes.mirrored += size
        if flags & START:
            self._memory.requests += 1
            self.open_request = self.begun = True
            self.sent += 1
        if flags & END:
            self.open_request = self.begun = False
            self._memory.requests -= 1
            self._ledger.requests.mirrored += 1

    def advance(self, count: int) -> bool:
        """Count `count` bytes of the first queued part as sent; returns whether the part is done."""
        item = self.queue[0]
        if item.flags == WHOLE and count == len(item.data) and not (item.offset or item.repeated):  # as nearly all
            self._went_whole(item, count)
            return True
        item.offset += count
        item.data = item.data[count:]  # what went shall take no memory: nobody counts it
        if not item.repeated:
            self._hold(-count)
        done = not item.data
        settled = item.size if done else min(count, item.size)
        item.size -= settled
        self._memory.bytes -= settled
        self._ledger.bytes.mirrored += settled
        if done:
            self.queue.popleft()
            self._memory.items -= 1
            if item.repeated:
                self.sent += 1
                self._ledger.events["sent_again"] += 1
                self._ledger.events[SENT_AGAIN_BYTES] += len(item.repeated)
                self._repeated()
            else:
                self._note_sent(item.flags)
        elif item.flags & START and item.offset and not item.repeated:
            self.begun = True
        return done

    def _went_whole(self, item: Item, count: int) -> None:
        """Count the first queued part, a whole request of `count` bytes, as sent at once."""
        memory = self._memory
        self.queue.popleft()
        self.queued -= count
        self.sent += 1
        memory.held -= count
        memory.items -= 1
        memory.bytes -= item.size
        memory.requests -= 1
        self._ledger.bytes.mirrored += item.size
        self._ledger.requests.mirrored += 1

    def _note_sent(self, flags: int) -> None:
        if flags & START:
            self.begun = True
            self.sent += 1
        if flags & END:
            self.begun = False
            self._memory.requests -= 1
            self._ledger.requests.mirrored += 1

    def _hold(self, more: int) -> None:
        self.queued += more
        self._memory.held += more

    def _drop_queued(self, item: Item, reason: DropReason) -> None:
        """Drop the rest of an item that was taken from the queue."""
        self._memory.items -= 1
        self._memory.bytes -= item.size
        if not item.repeated:
            self._hold(-len(item.data))
        self._ledger.bytes.dropped[reason] += item.size

    # --- what may go again

    def repeatable(self) -> list[tuple[bytes, int]]:
        """(request, flags) of the requests that may be sent again (`resend`).

        The shadow should not have processed them: they came behind the one with whose response it gave notice that it
        closes the connection.
        """
        framer = self.framer
        if framer is None or not framer.stopped:
            return []
        self.resendable.prune(framer.outstanding)
        kept = self.resendable.requests
        awaited = list(framer.awaited)[framer.outstanding - len(kept) :]
        unsent = self.unsent() + self.torn
        end = len(kept) - unsent
        begin = max(end - (framer.unanswered - framer.amid - unsent), 0)
        behind = zip(kept[begin:end], awaited[begin:end], strict=True)
        return [(data, flags | WHOLE) for data, flags in behind if data and is_safe(data) and not flags & TUNNEL]

    def repeat(self, requests: list[tuple[bytes, int]]) -> None:
        """Queue them before everything else.  The ledger counts them once; if they are dropped, as unanswered."""
        for data, flags in reversed(requests):
            item = Item(data, 0, flags)
            item.repeated = data
            self.queue.appendleft(item)
        self._memory.items += len(requests)
        self._memory.repeats += len(requests)
        self._memory.resend_quota.count += len(requests)

    def _repeated(self) -> None:
        """Count that one of them is not queued any more."""
        self._memory.repeats -= 1
        self._memory.resend_quota.count -= 1

    # --- what is given up

    def drop(self, size: int, flags: int, reason: DropReason, number: int = 0) -> None:
        """Drop a part that was not taken in, with its request if the part begins one."""
        self._ledger.bytes.dropped[reason] += size
        if flags & START:
            self._ledger.requests.dropped[reason] += 1
            self._left_out(number)

    def drop_all(self, reason: DropReason) -> None:
        """Drop everything queued, and a request that was sent in part."""
        requests = int(self.begun)
        for item in self.queue:
            self._drop_queued(item, reason)
            if item.repeated:
                self._ledger.responses["unanswered"] += 1
                self._repeated()
            elif item.flags & START and not item.offset:
                requests += 1
                self._left_out(item.number)
        self.queue.clear()
        self.begun = False
        self._settle(requests, reason)
        self._cut_open(reason)

    def drop_begun(self, reason: DropReason) -> None:
        """Drop the rest of the request that was sent in part; whole requests behind it stay."""
        if not self.begun:
            return
        ended = False
        while self.queue and not ended:
            item = self.queue[0]
            if item.flags & START and not item.offset:
                break
            ended = bool(item.flags & END)
            self._drop_queued(self.queue.popleft(), reason)
        self.begun = False
        self._settle(1, reason)
        if not ended:
            self._cut_open(reason)

    def drop_last(self, reason: DropReason) -> bool:
        """Drop the last request that was taken in, which is not complete.

        True if some of it was sent, or its response is expected: then the connection cannot be used any more.
        """
        if not self.open_request:
            return False
        while self.queue:
            item = self.queue[-1]
            if item.flags & END:
                break
            self._drop_queued(self.queue.pop(), reason)
            if item.flags & START:
                self._left_out(item.number)
                torn = item.offset > 0 or item.announced
                self.begun = self.begun and not torn
                self._settle(1, reason)
                self._cut_open(reason)
                return torn
        self.begun = False
        self._settle(1, reason)
        self._cut_open(reason)
        return True

    def skip(self, reason: DropReason) -> None:
        """Drop what follows, up to the next request."""
        self.skipping = reason
        self.ready = False

    def _left_out(self, number: int) -> None:
        if self.observer is not None:
            self.observer.left_out(number)

    def _settle(self, requests: int, reason: DropReason) -> None:
        self._memory.requests -= requests
        if requests:
            self._ledger.requests.dropped[reason] += requests

    def _cut_open(self, reason: DropReason) -> None:
        """Drop also what is still to come of the request that was just dropped."""
        if self.open_request:
            self.open_request = False
            self.skip(reason)
