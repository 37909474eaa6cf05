# SPDX-License-Identifier: Apache-2.0
"""A flow table that follows production's direction too: where responses are compared.

Theory of operation
-------------------
Production's segments are seen at its own interface, where its kernel sends them in order: one that is ahead of what
was followed shows that the capture lost what lies between, and nobody will send that again.  So nothing is held: the
hole is a `Gap` at once.  What is behind was seen already (a retransmission), and is cut off.

What the capture lost without anything after it shows when the client acknowledges it; its next data tells that before
it can begin a request.  So when a request begins, all that production had sent before it is accounted for.

A client that begins a request where it has received nothing since its last data did not wait for a response
(`Flow.pipelines`).  That shows behind a hole too, where requests are not framed: a segment there that begins like one
is taken for one.

NOTE: at a mirror port frames may come in another order than they were sent: a gap, and what is late is taken for a
retransmission.  Comparison loses by it; nothing is paired wrongly.

Pure: segments and `now` in, events of both directions out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final, TypeAlias

from tapmirror.events import (
    ACCEPTED,
    ACK,
    FIN,
    FROM_SERVER,
    PSH,
    RST,
    Chunk,
    Cut,
    Dismissed,
    End,
    Gap,
    Segment,
    ServerFin,
)
from tapmirror.flow import Flow
from tapmirror.flows import Event, FlowTable
from tapmirror.framing import detect
from tapmirror.ledger import Ledger
from tapmirror.spec import Limits
from tapmirror.tcp import FAR, MASK, Piece, distance

RESPONSE: Final = None
"""In the place of `after_response`: the chunk is production's."""

_PLAIN: Final = (FROM_SERVER | ACK | PSH, FROM_SERVER | ACK)
"""Flags of nearly all of production's segments with data."""

EitherEvent: TypeAlias = "tuple[Flow, Chunk | Dismissed | ServerFin | Cut, bool | None]"
"""An `Event`, or one of production's direction, which has `RESPONSE` in the place of `after_response`."""


class AnsweredTable(FlowTable):
    """All flows of one worker; `responses` counts production's segments, which are in no ledger."""

    def __init__(self, limits: Limits, seed: int, ledger: Ledger, responses: Counter[str]) -> None:
        super().__init__(limits, seed, ledger)
        self._responses = responses

    def goes_on(self, segment: Segment, now: float) -> Flow | None:
        """Take a segment of production as nearly all are: what follows on the one before, and tells nothing of the
        client's.  Whose it is, None: it is not one of these, and for `feed_both`, which comes to the same of any.
        """
        key, flags, seq, ack, length, payload, _ = segment
        flow = self._flows.get(key)
        if flow is None or seq != flow.followed_to or flags not in _PLAIN:
            return None
        rx = flow.rx
        if ack != rx.next or not rx.simple or not length or length != len(payload):
            return None
        self._responses["segments"] += 1
        flow.last = now
        flow.followed_to = end = (seq + length) & MASK
        if flow.server_next == seq:
            flow.answered += length
            flow.server_next = end
        else:
            self._count_response(flow, seq, length)
        return flow

    def accept(self, segment: Segment, now: float) -> tuple[Sequence[Event], list[Segment]]:
        """As in `FlowTable`; production's stream begins too."""
        found = super().accept(segment, now)
        flow = self.get(segment[0])
        if segment[1] & ACCEPTED and flow is not None and flow.followed_to is None and not flow.midstream:
            flow.followed_to = segment[3]
        return found

    def feed_both(self, segment: Segment, now: float) -> Sequence[EitherEvent]:
        """Take one captured segment of either side; `accept` takes those that begin a connection."""
        flags, ack = segment[1], segment[3]
        if flags >= FROM_SERVER and flags & FROM_SERVER:
            flow = self.get(segment[0])
            events = FlowTable.feed(self, segment, now)
            return events if flow is None or flags & RST else [*events, *self._follow(flow, segment)]
        events = FlowTable.feed(self, segment, now)  # super() takes 0.25 us more
        if events:
            flow = events[-1][0]
            if type(events) is tuple and flow.framer is not None and flow.framer.astray:
                if ack == flow.said and detect(segment[5]) == "http":
                    flow.pipelines = True
                flow.said = ack
            followed_to = flow.followed_to
            if followed_to is not None and ack != followed_to and 0 < distance(ack, followed_to) < FAR and flags & ACK:
                return [self._gap(flow, distance(ack, followed_to)), *events]
        return events

    def _events(self, flow: Flow, pieces: list[Piece], now: float) -> list[Event]:
        said = flow.ack if flow.ack >= 0 else flow.said
        for chunk, ack in pieces:
            if ack is not None:
                if ack == said and detect(chunk) == "http":  # type: ignore[arg-type]
                    flow.pipelines = True
                said = ack
        flow.said = said
        return super()._events(flow, pieces, now)

    def _follow(self, flow: Flow, segment: Segment) -> Collection[EitherEvent]:
        """What production's stream gained."""
        _, flags, seq, _, length, payload, _ = segment
        counts = self._responses
        if length and flow.followed_to is None:
            flow.followed_to = seq
        events: list[EitherEvent] = []
        if length:
            counts["segments"] += 1
            ahead = distance(seq, flow.followed_to or 0)
            if ahead and abs(ahead) >= FAR:
                counts["outside"] += 1
                return ()
            if ahead > 0:
                events.append(self._gap(flow, ahead))
            old = max(-ahead, 0)
            if old >= length:
                counts["duplicate"] += 1
                return ()
            captured = payload[old:] if old else payload
            length -= old
            flow.followed_to = ((flow.followed_to or 0) + length) & MASK
            events.append((flow, captured if len(captured) == length else Cut(captured, length), RESPONSE))
        if flags & FIN and flow.followed_to is not None and (seq + segment[4]) & MASK == flow.followed_to:
            flow.followed_to = (flow.followed_to + 1) & MASK
            events.append((flow, End(reset=False), RESPONSE))
        return events

    def _gap(self, flow: Flow, length: int) -> EitherEvent:
        self._responses["gaps"] += 1
        self._responses["gap_bytes"] += length
        flow.followed_to = ((flow.followed_to or 0) + length) & MASK
        return flow, Gap(length), RESPONSE
