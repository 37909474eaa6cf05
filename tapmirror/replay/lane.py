# SPDX-License-Identifier: Apache-2.0
"""What waits for the shadow on one flow, and what of it has gone: the account of a connection.

A lane belongs to one production connection.  It outlives shadow connections: an HTTP flow whose
shadow closed the connection goes on with its next request on a new one.

No socket calls here: what was sent is told to the lane, and it keeps the ledger.  Every `Send` is
settled once, in bytes and, for requests, in whole requests.
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
"""A raw stream that lost bytes: nothing of it can be mirrored any more."""
ITEM_BYTES: Final = 150
"""What an item counts in the bounds beside its data: what CPython takes for it, the head of its data's object, and its
place in the queue."""
AHEAD: Final = 1_024
"""Parts queued on one connection beyond which requests do not wait for each other (`QueueMemory.singly`).  Over a long
way to the shadow they would be ever later, and dropped at the end; of one that is only slow it is a second's work."""
ROOM: Final = 4
"""Nor do they where a part of so many of the room in bytes is taken, of the connection's or of all together."""


class Item:
    """A queued part: `data` is to be sent, `offset` bytes went before; `size` captured bytes are not yet settled."""

    __slots__ = ("announced", "answered", "data", "flags", "number", "offset", "repeated", "size")

    def __init__(self, data: bytes, size: int, flags: int, answered: int = -1, number: int = 0) -> None:
        self.data = data
        self.offset = 0
        self.size = size
        self.flags = flags
        self.announced = False
        """The response framer was told to expect the answer to the request that begins here."""
        self.number = number
        """Number of the request that begins here (as of `Send`); 0: none is compared."""
        self.answered = answered
        """Not negative: no data but a turn; production had sent that much."""
        self.repeated = b""
        """A whole request that went before (`Lane.repeat`), and was counted then; empty: it is none."""

    def restart(self) -> None:
        """It goes over another connection."""
        self.announced = False
        if self.repeated:
            self.data, self.offset = self.repeated, 0


class QueueMemory:
    """What the queues of all lanes hold, against the bounds."""

    __slots__ = ("all_bytes", "bytes", "held", "items", "lane_bytes", "repeats", "requests", "resend_quota", "singly")

    def __init__(self, lane_bytes: int, all_bytes: int) -> None:
        self.lane_bytes = lane_bytes
        self.all_bytes = all_bytes
        self.bytes = 0
        """Captured bytes queued, which the ledger counts as in flight."""
        self.held = 0
        """Bytes of data queued, which take the memory: a rewritten request may have far more.  What goes again is not
        among them (`resend_quota`)."""
        self.items = 0
        """Parts and turns queued."""
        self.requests = 0
        """Requests that began and are neither wholly sent nor dropped."""
        self.resend_quota = ResendQuota(all_bytes)
        self.repeats = 0
        """Requests queued to be sent again."""
        self.singly = False
        """Each request waits for the answer to the one before (`singly`)."""

    def full(self, size: int) -> bool:
        """Whether `size` more bytes of data pass the bound of all queues together."""
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
        """The socket's, as long as there is one."""
        self.observer: Observer | None = None
        """If its answers can be compared."""
        self.observing: Observer | None = None
        """The observer, while answers on this connection are compared."""
        self.state = IDLE
        self.ready = False
        """What comes next can be sent at once.  Set by `refresh`, cleared by whatever stands in the way."""
        self.framer: ResponseFramer | None = None
        self.queue: deque[Item] = deque()
        self.queued = 0
        """As `QueueMemory.held`."""
        self.resendable = Resendable(memory.resend_quota)
        """Copies of what was sent on this shadow connection."""
        self.begun = False
        """A request was sent in part."""
        self.open_request = False
        """The last request that was taken in has not come to its end."""
        self.skipping: DropReason | None = None
        """Why the rest of the request (raw: of the stream) is being dropped."""
        self.finishing = False
        self.resets = False
        """It ends with an RST, as production's connection did."""
        self.shadow_done = False
        self.sent = 0
        """Requests sent on this shadow connection."""
        self.last = 0
        """The request after whose answer the shadow is likely to close this connection; 0: none is known."""
        self.sent_at_sweep = -1
        self.idle_since = 0.0
        """Since when nothing was sent, as far as sweeps saw (`Shadow.idle_time`)."""
        self.lazy = False
        """The kernel wakes us only for many bytes of answers."""
        self.switching = False
        """The last request may turn the connection into a tunnel: what follows waits for the shadow's word."""
        self.tunnel = False
        """What follows that request is no HTTP."""
        self.unanswered = False
        """The last connection to the shadow ended while a request had no answer."""
        self.blamed: Place | None = None
        """The address that broke off the last connection to the shadow without a byte; None: none did."""
        self.excused = False
        """Production leaves unanswered what was asked last."""
        self.received = 0
        """Bytes of the shadow since the last turn (pacing `wait`)."""
        self.received_at = 0.0
        self.held_since = 0.0
        """Since when its requests wait for each other, as not all are answered; 0: they do not."""
        self.torn = False
        """A part of a request went that will have no end: nothing more goes here, and what went before it has no answer
        yet."""
        self.timed = 0
        """The request whose answer is timed (`latency`), counted as `sent`; 0: none."""
        self.timed_at = 0.0
        self.timed_lazy = False
        """The connection is to be made lazy again then."""

    def attach(self, sock: _socket.socket, framer: ResponseFramer | None, last: int = 0) -> None:
        """A connection to the shadow begins, which it is likely to close after so many requests."""
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
        """Find out whether what comes next can be sent at once."""
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
        """What follows waits for the answer that is due, or would be lost: the shadow is likely to close behind it, or
        loses what comes ahead of it.
        """
        framer, memory = self.framer, self._memory
        if framer is None or framer.failed or not framer.awaited:  # once failed it sees no answer any more
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
        """Mark the place in the stream where the shadow must have answered; where what came since the last such place
        was dropped, that one will do.
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
        """Of a part that was not queued, `count` bytes went; keep the rest."""
        self.enqueue(data, size, flags, number)
        self.queue[-1].announced = bool(flags & START)
        self.advance(count)

    def withdraw(self) -> None:
        """Sending failed: if nothing went of the request that is first in the queue, no answer here is its."""
        if self.framer is not None and self.queue and self.queue[0].announced and not self.queue[0].offset:
            self.queue[0].announced = False
            self.framer.withdraw()
            if self.observing is not None:
                self.observing.withdraw(self.queue[0].number)
            self.resendable.withdraw()

    def unsent(self) -> int:
        """Announced requests that did not go whole: they cannot have been answered."""
        return int(self.begun or (bool(self.queue) and self.queue[0].announced))

    def announced(self) -> int:
        """Requests on this connection, with one whose first part has not gone whole: it may be answered already."""
        return self.sent + int(bool(self.queue) and self.queue[0].announced)

    # --- what was sent

    def sent_whole(self, size: int, flags: int) -> None:
        """A part went at once that was never queued and is not a whole request."""
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
        """`count` bytes of the first queued part went.  True when the part is done."""
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
        """The first queued part, a whole request of `count` bytes, went at once."""
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
        """It is queued no more, and what is left of it is dropped."""
        self._memory.items -= 1
        self._memory.bytes -= item.size
        if not item.repeated:
            self._hold(-len(item.data))
        self._ledger.bytes.dropped[reason] += item.size

    # --- what may go again

    def repeatable(self) -> list[tuple[bytes, int]]:
        """What the shadow should not have processed, and may be asked again (`resend`), with its flags: requests behind
        the one with whose answer it said that it closes the connection.
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
        """Queue them before all else.  They are in the ledger, and are not again; dropped they are unanswered."""
        for data, flags in reversed(requests):
            item = Item(data, 0, flags)
            item.repeated = data
            self.queue.appendleft(item)
        self._memory.items += len(requests)
        self._memory.repeats += len(requests)
        self._memory.resend_quota.count += len(requests)

    def _repeated(self) -> None:
        """One of them is not queued any more."""
        self._memory.repeats -= 1
        self._memory.resend_quota.count -= 1

    # --- what is given up

    def drop(self, size: int, flags: int, reason: DropReason, number: int = 0) -> None:
        """Drop a part that was not taken in; its request, if it begins one."""
        self._ledger.bytes.dropped[reason] += size
        if flags & START:
            self._ledger.requests.dropped[reason] += 1
            self._left_out(number)

    def drop_all(self, reason: DropReason) -> None:
        """Drop everything queued, and a request that went in part."""
        requests = int(self.begun)
        for item in self.queue:
            self._drop_queued(item, reason)
            if item.repeated:
                self._ledger.answers["unanswered"] += 1
                self._repeated()
            elif item.flags & START and not item.offset:
                requests += 1
                self._left_out(item.number)
        self.queue.clear()
        self.begun = False
        self._settle(requests, reason)
        self._cut_open(reason)

    def drop_begun(self, reason: DropReason) -> None:
        """Drop the rest of the request that went in part; the whole ones behind it stay."""
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
        """Drop the request that was taken in last and has no end yet.

        True if some of it went, or its answer is expected: the connection cannot be used any more.
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
        """Drop what comes, up to the next request."""
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
        """What is still to come of the request that was just dropped is dropped as well."""
        if self.open_request:
            self.open_request = False
            self.skip(reason)
