# SPDX-License-Identifier: Apache-2.0
"""The requests of one connection, each paired with production's response and each shadow's.

Theory of operation
-------------------
On each side responses come in the order of the requests (RFC 9112, 9.3.2).  So a reader of each side, which is told of
every request that goes there, knows which response belongs to which request.  Here the sides are brought together: a
request is done when production and every shadow that got it have answered, or cannot answer any more.

*Never mispaired.*  A hole in production's responses, outside a body of known length, hides how many of them went by.
Then everything in progress is unpaired, and so is everything after it, until a request begins while, as far as is
known, no other one waits for its response.  This can be known only for clients that wait for each response before the
next request.  So:

* A client that was ever seen to send a request before the previous response (pipelining) is not trusted: after a hole,
  nothing of its connection is paired again.
* A hole in the chunks of a response hides where the response ends, but not whose it is.  It ends when the client, which
  waits, sends the next request; its times are those of the part that was seen.  The same holds for segments of which
  only the first bytes are captured.
* The first pair after a hole is held until the next request begins, or the connection ends, without a further response
  in between: if the reader had been one response behind, that response would have had no request.

NOTE: a client whose first requests were not seen, or that was joined mid-stream, and that from then on always has one
more request in progress than it seems, is paired wrongly until it has none in progress: nothing on the wire
distinguishes it from one that waits.  (Random schedules in which a twentieth of all segments is lost: for clients that
pipeline all the time, 0.01 % of the pairs, and 0.03 % if a fifth of the connections is joined mid-stream; for clients
that wait, none in eight million.)

The same rules apply if not all requests were seen (`requests_lost`), to a connection that is joined mid-stream, and to
one whose time slice begins again (`suspend`, `resume`).  While a connection rests, `pipelined` is called if the client
sends two requests without acknowledging anything in between, which every client that pipelines does at some time.

Before a request, the caller feeds what production sent before it, as far as the client's acknowledgements show.

Pure: no clock; outcomes are handed to `Sink`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from tapmirror.compare.operations import OPENING
from tapmirror.events import Buffer
from tapmirror.exchange import PROBE, Asked, Delivery, Exchange, Failure, Response, Unpaired
from tapmirror.framing.response_content import NOTHING, ContentReader, ReaderBounds, ResponseMemory, memory_of
from tapmirror.framing.response_end import KNOWN_BYTES

SAMPLE_BODY: Final = 2048
"""Most bytes of a request's body that are kept: as much as a curl line has room for."""
PENDING_BYTES: Final = 800
"""Bytes that a request in progress counts in addition to its head and body: all its objects, and its places in tables
and queues, as measured."""
DELIVERY_BYTES: Final = 250
"""The same for each shadow."""


class Sink(Protocol):
    """Where the outcomes go."""

    def paired(self, exchange: Exchange) -> None:
        """A request is done: every side that will answer has answered.  `deliveries` may be empty."""

    def unpaired(self, reason: Unpaired) -> None:
        """A request that cannot be compared, with any of the shadows."""


class Pending(msgspec.Struct, gc=False):
    """A request in progress.  `gc=False` is safe: nothing that it refers to refers back."""

    asked: Asked
    flags: int
    body_limit: int
    since: float
    deliveries: dict[int, Delivery]
    waiting: int
    """How many things it waits for: its end, production's response, the choice of shadows, their responses, its
    release."""
    left_out: dict[int, Unpaired] = {}
    production: Response | None = None
    decided: bool = False
    dead: bool = False
    """Whether the sink has its outcome already."""


class _Side:
    """One shadow's connection."""

    __slots__ = ("head", "reader", "responses")

    def __init__(self, reader: ContentReader) -> None:
        self.reader = reader
        self.responses = 0
        self.head = b""
        """The head of the last response; if it is long, only what `_LAST` found in it."""

    def answered(self, response: Response) -> None:
        """Count one more response of this side."""
        self.responses += 1
        head = response.head
        if len(head) > KNOWN_BYTES:
            head = _CLOSE if _LAST.search(head) else b""
        self.head = head


class Conversation:
    """The requests of one connection of production.

    `midstream`: it existed before the tap.  `shadows`: how many there are.
    """

    __slots__ = (
        "_bounds",
        "_checks",
        "_cost",
        "_end_implied",
        "_memory",
        "_pending",
        "_pipelined",
        "_production",
        "_sides",
        "_sink",
        "_unconfirmed",
    )

    def __init__(
        self, bounds: ReaderBounds, memory: ResponseMemory, sink: Sink, midstream: bool, shadows: int = 1
    ) -> None:
        self._bounds = bounds
        self._memory = memory
        self._sink = sink
        self._cost = PENDING_BYTES + shadows * DELIVERY_BYTES
        self._production = ContentReader(bounds, memory)
        self._sides: dict[int, _Side] = {}
        self._pending: dict[int, Pending] = {}
        self._pipelined = False
        self._checks = 0
        """Number of the last request that a shadow got again.  These are negative, those of clients positive."""
        self._unconfirmed: Pending | None = None
        """The first request after a hole, until its pair is certain."""
        self._end_implied = False
        """Whether the previous response was taken to be complete because the client sent its next request."""
        if midstream:
            self._production.broken = Unpaired.ORDER

    def __len__(self) -> int:
        """How many requests are in progress."""
        return len(self._pending)

    # --- production's side

    def request(self, asked: Asked | None, flags: int, body_limit: int, now: float) -> None:
        """The client began a request; `flags` are those of its first `Part`, `body_limit` as in `ContentReader.expect`.

        `asked` is None for a request that is not compared and only keeps its place among the others.  If it has
        `ended_ns`, the request was seen whole, and `request_ended` need not follow.
        """
        production = self._production
        size = 0
        if asked is not None:
            size = len(asked.head) + self._cost
            if size > self._memory.free:
                self._sink.unpaired(Unpaired.LIMIT)
                asked = None
        if production.awaited:
            self._finish_implied()
        if production.awaited:
            self._pipelined = True
            if self._unconfirmed is not None:
                production.broken = Unpaired.ORDER
                self._lost()
        elif self._unconfirmed is not None:
            self._confirm()
        recovered = False
        if production.broken is not None:
            if self._pipelined or production.broken not in _CURABLE:
                if asked is not None:
                    self._sink.unpaired(production.broken)
                return
            if asked is None:
                return
            production.resync()
            recovered = True
        if asked is None:
            production.expect(flags, NOTHING, None)
            self._check()
            return
        self._memory.free -= size
        pending = Pending(asked, flags, body_limit, now, {}, 2 if asked.ended_ns else 3)
        self._pending[asked.number] = pending
        if recovered:
            pending.waiting += 1
            self._unconfirmed = pending
        production.expect(flags, body_limit, pending)
        if production.broken is not None:
            self._lost()

    def pipelined(self) -> None:
        """The client sent two requests without a response in between, whether they are compared or not."""
        self._pipelined = True

    @property
    def awaits(self) -> bool:
        """Whether something depends on what production sends next."""
        return self._unconfirmed is not None or any(pending.production is None for pending in self._pending.values())

    def suspend(self) -> bool:
        """The client begins a request that should not be compared.

        True: this connection rests; feed neither requests nor production's bytes until `resume`.  False: it cannot rest
        yet, because earlier requests wait for responses; call `request` for this one.
        """
        production = self._production
        self._finish_implied()
        if production.broken is None:
            if not production.outstanding:
                self._confirm()
            elif any(pending.production is None for pending in self._pending.values()):
                return False
            else:
                self._pipelined = True
            production.broken = Unpaired.ORDER
            self._lost()
        return True

    def resume(self) -> None:
        """End `suspend`: production's bytes are fed again, from the response to the next request on.

        That includes the responses to earlier requests for which the client did not wait.
        """
        if self._production.broken is None:
            self._production.broken = Unpaired.ORDER

    def request_body(self, number: int, data: Buffer) -> None:
        """The next bytes of its body: kept for samples if it is short, or as far as they may name an operation."""
        pending = self._pending.get(number)
        if pending is None:
            return
        asked, size = pending.asked, len(data)
        if asked.longer and (asked.calls is None or not asked.body):
            return
        asked.longer = asked.longer or len(asked.body) + size > SAMPLE_BODY
        if asked.longer and asked.calls is not None:
            data = data[: OPENING - len(asked.body)]
            size = len(data)
        if (asked.longer and asked.calls is None) or size > self._memory.free:
            self._memory.free += len(asked.body)
            asked.body, asked.longer = b"", True
        else:
            self._memory.free -= size
            asked.body += bytes(data)

    def request_ended(self, number: int, time_ns: int, *, late: bool = False) -> None:
        """Its last byte was seen; `late`: do not time it (`Asked.late`)."""
        pending = self._pending.get(number)
        if pending is not None and not pending.asked.ended_ns:
            pending.asked.ended_ns = time_ns
            pending.asked.late |= late
            self._less(pending)

    def request_broken(self, number: int) -> None:
        """The request was not seen whole, but where it ends is known."""
        self._drop(self._pending.get(number), Unpaired.BROKEN)

    def requests_lost(self) -> None:
        """Bytes of the client were not seen, in which requests may have begun."""
        if self._production.broken is None:
            newest = next((each for each in reversed(self._pending.values()) if not each.asked.checks), None)
            if self._production.outstanding and (newest is None or newest.asked.ended_ns):
                self._pipelined = True  # they are no part of the request that waits for its response
            self._production.broken = Unpaired.ORDER
            self._lost()

    def production_data(self, data: Buffer, time_ns: int) -> None:
        """Production's next bytes."""
        production = self._production
        if production.broken is None:
            for pending, response in production.feed(data, time_ns):
                self._answered(pending, response)
            self._check()

    def production_gap(self, size: int, time_ns: int, reason: Unpaired = Unpaired.GAP) -> None:
        """`size` of production's bytes were not seen, or not copied (`Unpaired.CUT`)."""
        production = self._production
        if production.broken is None:
            for pending, response in production.gap(size, time_ns, reason):
                self._answered(pending, response)
            self._check()

    def production_skippable(self) -> int:
        """How many of the next bytes need not be fed, only counted."""
        return self._production.skippable()

    def production_ended(self, time_ns: int, reset: bool) -> None:
        """Production closed its side, or the connection was reset."""
        for pending, response in self._production.end(time_ns, reset):
            self._answered(pending, response)
        if self._production.broken is None:
            self._confirm()
            self._production.broken = Unpaired.UNANSWERED
            self._lost()

    # --- the shadows' sides

    def chosen(self, shadow: int, number: int, request: bytes = b"", *, alone: bool = False) -> None:
        """Note that this shadow should get the request; `asked` or `left_out` will follow.

        `request`: what the shadow gets, if that may be sent again.  `alone`: no other shadow will get it, so `decided`
        need not follow.
        """
        pending = self._pending.get(number)
        if pending is not None:
            size = len(request)
            if size > self._memory.free:
                request, size = b"", 0
            self._memory.free -= size
            pending.deliveries[shadow] = Delivery(_NO_RESPONSE, 0, 0, 0, request)
            if alone:
                pending.decided = True  # its response is waited for in place of that
            else:
                pending.waiting += 1

    def again(self, asked: Asked, shadow: int, first: Response, flags: int, body_limit: int, now: float) -> int:
        """A shadow should get a request once more, as `shadow + PROBE`, to check the fields of `asked.checks`.

        Returns the number of the repeated request; 0: there is no room for it.  In the exchange that the sink gets, the
        shadow's first response is in place of production's.
        """
        size = len(asked.head) + memory_of(first) + self._cost
        if size > self._memory.free:
            return 0
        self._memory.free -= size
        self._checks -= 1
        number = self._checks
        asked = msgspec.structs.replace(asked, number=number, body=b"", timed=False)
        self._pending[number] = Pending(asked, flags, body_limit, now, {}, 0, production=first, decided=True)
        self.chosen(shadow + PROBE, number)
        return number

    def marked(self, number: int) -> None:
        """A shadow gets the request with the mark of the loop check, which its response may contain."""
        pending = self._pending.get(number)
        if pending is not None:
            pending.asked.marked = True

    def asked(self, shadow: int, number: int, flags: int) -> bool:
        """The request begins to be sent to this shadow, after all for which this was called before.

        Returns whether its times count.
        """
        side = self._sides.get(shadow)
        if side is None:
            side = self._sides[shadow] = _Side(ContentReader(self._bounds, self._memory))
        pending = self._pending.get(number)
        body_limit = NOTHING
        if pending is not None:
            body_limit = pending.body_limit
            if shadow not in pending.deliveries:
                self.chosen(shadow, number)
            delivery = pending.deliveries[shadow]
            delivery.begun = True
            delivery.flags = flags
        side.reader.expect(flags, body_limit, pending)
        broken = side.reader.broken
        if broken is not None:
            self._fail(shadow, side, broken)
            if pending is not None:
                self._failed(shadow, pending, broken)
            return False
        return pending is not None and pending.asked.timed

    def withdraw(self, shadow: int, number: int) -> None:
        """Nothing was sent of the request that was `asked` last; it will be asked again, or left out."""
        side = self._sides.get(shadow)
        if side is not None:
            side.reader.withdraw()
        pending = self._pending.get(number)
        delivery = None if pending is None else pending.deliveries.get(shadow)
        if delivery is not None:
            delivery.begun = False

    def times(self, number: int) -> bool:
        """Whether the times of the request count."""
        pending = self._pending.get(number)
        return pending is not None and pending.asked.timed

    def follow(self, shadow: int, owed: Iterable[int], responses: int) -> None:
        """Begin to take this shadow's responses.

        First come those that it still owes, to requests with the flags `owed`.  Before these it gave `responses` on
        this connection.
        """
        self.given_up(shadow, Unpaired.ORDER)
        side = self._sides[shadow] = _Side(ContentReader(self._bounds, self._memory))
        side.responses = responses
        for flags in owed:
            side.reader.expect(flags, NOTHING, None)

    def owes(self, shadow: int) -> bool:
        """Whether this shadow is followed and has not answered everything."""
        side = self._sides.get(shadow)
        return side is not None and side.reader.broken is None and side.reader.outstanding > 0

    def unfollow(self, shadow: int) -> None:
        """Stop taking this shadow's responses; it owes none."""
        side = self._sides.pop(shadow, None)
        if side is not None:
            side.reader.give_up()  # of what it said unasked a part may be held

    def sent(self, shadow: int, number: int, time_ns: int, rtt_ns: int, least_ns: int = 0) -> None:
        """The request's last byte left for the shadow at `time_ns`.

        Round-trip times of tcp_info at that moment, in nanoseconds: `rtt_ns` smoothed, `least_ns` the least.
        """
        pending = self._pending.get(number)
        delivery = None if pending is None else pending.deliveries.get(shadow)
        if delivery is not None:
            delivery.sent_ns, delivery.rtt_ns, delivery.least_ns = time_ns, rtt_ns, least_ns

    def left_out(self, shadow: int, number: int, reason: Unpaired) -> None:
        """A shadow does not get the request, or got only a part of it."""
        pending = self._pending.get(number)
        if pending is not None:
            pending.left_out.setdefault(shadow, reason)
            delivery = pending.deliveries.pop(shadow, None)
            if delivery is not None:
                self._memory.free += len(delivery.request) + memory_of(delivery.response)
                if delivery.response is _NO_RESPONSE:
                    self._less(pending)

    def decided(self, number: int) -> None:
        """`chosen`, `asked` or `left_out` was called for every shadow that may get the request."""
        pending = self._pending.get(number)
        if pending is not None and not pending.decided:
            pending.decided = True
            self._less(pending)

    def shadow_data(self, shadow: int, data: Buffer, time_ns: int) -> None:
        """A shadow's next bytes."""
        side = self._sides.get(shadow)
        if side is not None and side.reader.broken is None:
            for pending, response in side.reader.feed(data, time_ns):
                side.answered(response)
                self._shadow_answered(shadow, pending, response)
            self._check_side(shadow, side)

    def shadow_gap(self, shadow: int, size: int, time_ns: int) -> None:
        """`size` of its bytes were discarded unread, at most `shadow_skippable`."""
        side = self._sides.get(shadow)
        if side is not None:
            for pending, response in side.reader.gap(size, time_ns):
                side.answered(response)
                self._shadow_answered(shadow, pending, response)

    def shadow_skippable(self, shadow: int) -> int:
        """How many of a shadow's next bytes need not be fed, only counted."""
        side = self._sides.get(shadow)
        return 0 if side is None else side.reader.skippable()

    def shadow_ended(self, shadow: int, time_ns: int, reset: bool) -> None:
        """The shadow closed its connection; the next request opens another."""
        side = self._sides.pop(shadow, None)
        if side is None:
            return
        ended = side.reader.end(time_ns, reset)
        for pending, response in ended:
            self._shadow_answered(shadow, pending, response)
        raced = side.responses > 0 and side.reader.idle
        said = bool(ended) or (raced and _LAST.search(side.head) is not None)
        for place, pending in enumerate(side.reader.give_up()):
            delivery = None if pending is None else pending.deliveries.get(shadow)
            if pending is None or delivery is None:
                continue
            # Behind the first one that it did not answer: a client of its own had sent these on another connection.
            if said or place or (raced and (not delivery.sent_ns or time_ns - delivery.sent_ns <= delivery.rtt_ns)):
                self.left_out(shadow, pending.asked.number, Unpaired.RECONNECT)
            else:
                self._shadow_answered(shadow, pending, Response(0, last_ns=time_ns, failure=Failure.CLOSED))

    def timed_out(self, shadow: int, time_ns: int) -> None:
        """The tap closes the connection, because the shadow does not answer in time."""
        side = self._sides.pop(shadow, None)
        if side is not None:
            for pending in side.reader.give_up():
                self._shadow_answered(shadow, pending, Response(0, last_ns=time_ns, failure=Failure.TIMEOUT))

    def given_up(self, shadow: int, reason: Unpaired) -> None:
        """The tap itself closed the connection to the shadow: requests in progress there are unpaired."""
        side = self._sides.pop(shadow, None)
        if side is not None:
            for pending in side.reader.give_up():
                if pending is not None and shadow in pending.deliveries:
                    self.left_out(shadow, pending.asked.number, reason)

    # --- time and the end

    def expire(self, before: float, time_ns: int) -> None:
        """Give up requests that began before this time."""
        self._finish_last_implied(before)
        for pending in list(self._pending.values()):
            if pending.since >= before:
                break
            if pending.production is None or not pending.asked.ended_ns:
                self._drop(pending, Unpaired.UNANSWERED)
                continue
            self.decided(pending.asked.number)
            for shadow, delivery in list(pending.deliveries.items()):
                if delivery.response is not _NO_RESPONSE:
                    continue
                if delivery.begun:
                    self._shadow_answered(shadow, pending, Response(0, last_ns=time_ns, failure=Failure.TIMEOUT))
                else:
                    self.left_out(shadow, pending.asked.number, Unpaired.NOT_SENT)
            if pending.dead:
                _strip(pending)

    def close(self, reason: Unpaired) -> None:
        """The connection is over, on all sides."""
        self._finish_last_implied(math.inf)
        if self._production.broken is None:
            self._confirm()
        for pending in list(self._pending.values()):
            self._drop(pending, reason)
        self._production.give_up()
        for side in self._sides.values():
            side.reader.give_up()
        self._sides.clear()

    # --- inside

    def _finish_implied(self) -> None:
        """The client sends its next request: a response whose end was not seen is complete, if this client waits."""
        production = self._production
        if production.end_unknown:
            if self._pipelined:
                production.broken = production.end_unknown_reason
                self._lost()
            else:
                for pending, response in production.finish_implied():
                    self._answered(pending, response)
                self._end_implied = True

    def _finish_last_implied(self, before: float) -> None:
        """The client sends nothing more: such a response is taken to be complete if all shadows have answered."""
        if self._production.end_unknown:
            pending = next((each for each in self._pending.values() if each.production is None), None)
            if pending is not None and pending.since < before and pending.waiting == 1 + (pending is self._unconfirmed):
                self._finish_implied()

    def _answered(self, pending: Pending | None, response: Response) -> None:
        self._end_implied = False
        if pending is None or pending.dead:
            self._memory.free += memory_of(response)
            return
        pending.production = response
        self._less(pending)

    def _shadow_answered(self, shadow: int, pending: Pending | None, response: Response) -> None:
        delivery = None if pending is None or pending.dead else pending.deliveries.get(shadow)
        if pending is None or delivery is None or delivery.response is not _NO_RESPONSE:
            self._memory.free += memory_of(response)
            return
        delivery.response = response
        self._less(pending)

    def _less(self, pending: Pending) -> None:
        """Count one thing less that the request waits for."""
        pending.waiting -= 1
        if not pending.waiting and pending.production is not None:
            size = self._finish(pending)
            self._sink.paired(Exchange(pending.asked, pending.production, pending.deliveries, pending.left_out, size))

    def _drop(self, pending: Pending | None, reason: Unpaired) -> None:
        if pending is not None and not pending.dead:
            doubtful = pending is self._unconfirmed and self._production.broken is None
            checks = pending.asked.checks
            self._finish(pending)
            _strip(pending)
            if checks:
                return
            self._sink.unpaired(reason)
            if doubtful:  # nothing will show any more whether the order is what it seems
                self._production.broken = Unpaired.ORDER
                self._lost()

    def _finish(self, pending: Pending) -> int:
        """Finish a request; returns how many bytes of heads and bodies it held."""
        pending.dead = True
        if pending is self._unconfirmed:
            self._unconfirmed = None
        del self._pending[pending.asked.number]
        free = len(pending.asked.head) + len(pending.asked.body)
        if pending.production is not None:
            free += memory_of(pending.production)
        for delivery in pending.deliveries.values():
            free += memory_of(delivery.response) + len(delivery.request)
        self._memory.free += free + self._cost
        return free

    def _check_side(self, shadow: int, side: _Side) -> None:
        if side.reader.broken is not None:
            self._fail(shadow, side, side.reader.broken)

    def _fail(self, shadow: int, side: _Side, reason: Unpaired) -> None:
        """Nothing more can be learned from this connection of a shadow's."""
        for pending in side.reader.give_up():
            if pending is not None:
                self._failed(shadow, pending, reason)

    def _failed(self, shadow: int, pending: Pending, reason: Unpaired) -> None:
        if shadow not in pending.deliveries:
            return
        if reason in (Unpaired.UNPARSED, Unpaired.ORDER):
            self._shadow_answered(shadow, pending, Response(0, failure=Failure.INVALID))
        else:
            self.left_out(shadow, pending.asked.number, reason)

    def _check(self) -> None:
        if self._production.broken is not None:
            self._lost()

    def _lost(self) -> None:
        """Give up what is in progress: it is not certain any more which response belongs to which request."""
        production = self._production
        if production.broken is Unpaired.UNPARSED and (self._end_implied or self._unconfirmed is not None):
            production.broken = Unpaired.ORDER  # the rest of a response that was taken for the beginning of one
            self._pipelined = self._pipelined or self._end_implied  # this client did not wait for it
        reason = production.broken or Unpaired.ORDER
        for pending in production.give_up():
            self._drop(pending, reason)
        self._drop(self._unconfirmed, reason)

    def _confirm(self) -> None:
        """The first pair after a hole is certain."""
        pending, self._unconfirmed = self._unconfirmed, None
        if pending is not None:
            self._less(pending)


def _strip(pending: Pending) -> None:
    """Free what a request held that was given up; a reader that waits for its response still refers to the request."""
    pending.asked, pending.production, pending.deliveries = _GONE, None, _NO_DELIVERIES


_LAST: Final = re.compile(
    rb"^HTTP/1\.0 (?!.*\nconnection:[^\n]*keep-alive)|\nconnection:[^\n]*close", re.IGNORECASE | re.DOTALL
)
"""In the head of a response after which the connection closes (RFC 9112, 9.3): what was sent behind that request went
to no server's application.
"""
_CLOSE: Final = b"\nConnection: close"
_NO_RESPONSE: Final = Response(0)
_GONE: Final = Asked(0, b"", b"", b"")
_NO_DELIVERIES: Final[dict[int, Delivery]] = {}
"""In place of those of a request that is done; nothing is put into it, for who is done is not found any more."""
_CURABLE: Final = (Unpaired.GAP, Unpaired.CUT, Unpaired.ORDER, Unpaired.LIMIT)
"""After these a response's beginning can be known again."""
