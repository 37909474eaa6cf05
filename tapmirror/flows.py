# SPDX-License-Identifier: Apache-2.0
"""The flow table: which connections there are, and what bytes their segments add to each client's stream.

Theory of operation
-------------------
A flow begins in one of two ways:

* By an `ACCEPTED` record.  The capture saw production's SYN-ACK, so the first byte is known, and a later packet of
  production showed that it accepted the connection.  What the client sent in between has waited (`unaccepted`, and
  `early` for the data of a SYN).
* In mid-stream, by data of a connection that the table does not know, because it is older than the tap.  If
  production's last word says that it waits for exactly this data (`standing`), the flow goes on at once.  Otherwise the
  flow is *tentative*: its data is held until production acknowledges some of it, without a hole (`_judged`).  What the
  client sends proves nothing.  An RST from production discards the data, and so does `Limits.accept_time` without an
  acknowledgement.  If there is a hole, and production has all that was sent, nothing tells which of the held bytes
  are the connection's: then the flow goes on behind them.

A `MULTIPATH` record announces a connection of Multipath TCP.  It is left out: nothing of it is passed on.

A flow ends by a FIN from both sides (by the client's alone if only requests matter), by an RST, by a new connection on
the same 4-tuple, or by `Limits.flow_idle` of silence.  An ended flow is remembered for a while (`late`), so that a late
retransmission is not taken for a connection in mid-stream, and mirrored twice.

Production's packets are normally not captured, because each would cost a record.  The table asks for the
acknowledgements of a flow while it needs them: for a tentative flow, for one that was given up while it was tentative,
and while there is a hole in the stream.  These requests leave through `ack_requests`.

Anybody who knows addresses and ports can send data that then waits behind a hole.  Such data goes on when the client
fills the hole or production acknowledges it, and only if it acknowledges what production sends in the meantime.

Pure: segments and `now` in, stream events out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, TypeAlias

from tapmirror.early import EarlyData
from tapmirror.events import (
    ACCEPTED,
    ACK,
    FIN,
    FROM_SERVER,
    MULTIPATH,
    PSH,
    RST,
    SYN,
    UNACCEPTED,
    URG,
    Chunk,
    Dismissed,
    DropReason,
    End,
    FilterReason,
    FlowKey,
    Gap,
    Segment,
    ServerFin,
)
from tapmirror.flow import TRANSITIONS, Flow, Move, State
from tapmirror.late import LateFlows
from tapmirror.ledger import Ledger
from tapmirror.packet import BUCKETS, flow_hash
from tapmirror.spec import Limits
from tapmirror.standing import Standing
from tapmirror.tcp import ANY, FAR, MASK, UNKNOWN, Piece, ReassemblyMemory, Receiver, acknowledges, distance
from tapmirror.unaccepted import Unaccepted
from tapmirror.wants import Wants

SCAN: Final = 512
"""How many flows one call of `expire` looks at: the cost of a call stays below a millisecond."""
BEGINS: Final = ACCEPTED | MULTIPATH
"""Flags of a segment that tells of an accepted connection."""
UNDER_WAY: Final = 1 << 24
"""Largest distance, in bytes, between the number that production acknowledges and the first byte that the table knows
of a connection.  Bytes in between were sent before the first one that was seen, or were acknowledged before the table
asked.  The kernel's receive buffers usually have at most 6 MiB (tcp_rmem)."""
LARGEST: Final = 1 << 16
"""Most bytes of a segment (`admission.CHUNK`).  Old holes make room before there is none for such a segment."""
REJOIN: Final = 1 << 16
"""Data of a flow that was joined in mid-stream may begin this many bytes behind the first byte of a handshake that is
reported later: up to this distance both are the same connection, not a new one on the same tuple."""
ALL: Final = 1 << 32
"""How many values the flow hash has."""

_SPECIAL: Final = FIN | SYN | RST | URG | FROM_SERVER | ACCEPTED | UNACCEPTED
_TOLD: Final = _SPECIAL | ACK
_PLAIN: Final = (ACK | PSH, ACK)
"""The flags of nearly all segments with data.  Comparing with these takes a third of the time of `&`."""
_LAST: Final = FIN | ACK
_END: Final = End(reset=False)
_DISMISSED: Final = Dismissed()
_SERVER_FIN: Final = ServerFin()

Event: TypeAlias = "tuple[Flow, Chunk | Dismissed | ServerFin, bool]"
"""(flow, chunk of its client's stream, whether that came after a response).

A chunk that came after a response may begin a new turn of the dialogue.  It is the beginning of a segment, and the
client had received something since its last data, or the chunk is the first one of a connection joined in mid-stream.
A chunk behind a gap never counts as one: the lost bytes may have acknowledged the same response.
"""


class FlowTable:
    """All flows of one worker, within `limits`.

    `ack_requests` collects (key, wanted) for the source; the caller empties it after each batch.
    """

    def __init__(self, limits: Limits, seed: int, ledger: Ledger) -> None:
        self._limits = limits
        self._seed = seed
        self._ledger = ledger
        self._segments = ledger.segments
        self._memory = ReassemblyMemory(limits)
        self._flows: dict[FlowKey, Flow] = {}
        self._blank: OrderedDict[Flow, float] = OrderedDict()
        """Flows without a framer, and since when they are known to be silent, in this order."""
        self._asking: dict[FlowKey, Flow] = {}
        self._wants = Wants()
        self._late = LateFlows()
        self._standing = Standing()
        self._unaccepted = Unaccepted(limits, ledger)
        self._early = EarlyData(limits.accept_time, ledger)
        self._scan: Iterator[Flow] = iter(())
        self._waits: Iterator[Flow] = iter(())
        self._next_id = 1
        self._threshold = ALL
        self.ack_requests = self._wants.requests

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def get(self, key: FlowKey) -> Flow | None:
        """The living flow with this key."""
        return self._flows.get(key)

    def framed(self, flow: Flow) -> None:
        """The flow has a framer from now on: it does not make room for others any more."""
        self._blank.pop(flow, None)

    def held(self) -> tuple[int, int]:
        """(segments, bytes) that wait for the bytes before them, or for production's word."""
        segments = self._memory.segments + self._unaccepted.segments + len(self._early)
        return segments, self._memory.bytes + self._unaccepted.bytes + self._early.size

    @property
    def impatient(self) -> bool:
        """Whether something waits that has a time-out, so that `expire` should be called more often."""
        return bool(self._asking or self._unaccepted)

    def accept(self, segment: Segment, now: float) -> tuple[Sequence[Event], list[Segment]]:
        """Take a segment that `BEGINS` a connection.

        Returns events, and the segments that the client had sent before: feed these next.
        """
        key, server_first = segment[0], segment[3]
        flow = self._flows.get(key)
        if flow is None:
            events = self._begin(segment, now)
        else:
            flow.last = now
            events = self._accepted_again(flow, segment, now)
        return events, self._unaccepted.taken(key, server_first) if self._unaccepted else []

    def feed(self, segment: Segment, now: float) -> Sequence[Event]:
        """Take one captured segment that does not begin a connection; returns what it adds to the clients' streams."""
        key, flags, seq, ack, length, payload, _ = segment
        flow = self._flows.get(key)
        if flow is None:
            if not flags & FROM_SERVER:
                return self._unknown(segment, now)
            self._told(key, flags, seq, ack, length)
            return ()
        rx = flow.rx
        flow.last = now
        if (
            seq == rx.next
            and rx.simple
            and (flags in _PLAIN or flags & _TOLD == ACK)
            and len(payload) == length
            and length
        ):
            rx.next = (seq + length) & MASK
            rx.position += length
            self._segments.mirrored += 1
            after_response = ack != flow.ack >= 0
            flow.ack = ack
            return ((flow, payload, after_response),)
        if flags & _TOLD == _LAST and seq == rx.next and rx.simple and not length:  # as nearly every stream ends
            rx.finish()
            if flow.ends_with_client:
                self._forget(flow, now)
            else:
                self._move(flow, Move.CLIENT_FIN, now)
            return ((flow, _END, ack != flow.ack >= 0),)
        return self._known(flow, segment, now)

    def expire(self, now: float) -> list[Event]:
        """Act on what has waited too long.  Call it a few times a second; each call does a bounded amount of work."""
        events: list[Event] = []
        waiting = list(islice(self._waits, SCAN))
        if len(waiting) < SCAN:
            self._waits = iter(list(self._asking.values()))
        for flow in waiting:
            if not flow.asking:
                continue
            if flow.state is State.TENTATIVE:
                if now - flow.since >= self._limits.accept_time:
                    self._give_up(flow)
            elif now - flow.since >= self._limits.hole_time and self._memory.half_taken(LARGEST):
                flow.rx.discard(DropReason.MEMORY_LIMIT)
                self._stop_asking(flow)
        self._unaccepted.expire(now)
        self._early.expire(now)
        self._late.expire(now)
        batch = list(islice(self._scan, SCAN))
        if len(batch) < SCAN:
            self._scan = iter(list(self._flows.values()))
        for flow in batch:
            if now - flow.last >= self._limits.flow_idle and self._flows.get(flow.key) is flow:
                events += self._evict(flow, now)
        return events

    def drop_above(self, threshold: int, now: float) -> list[Flow]:
        """Forget the flows whose hash is not below `threshold`, and take no more of them; returns the forgotten ones.

        If the threshold rises again, they are joined like any connection in mid-stream.  Flows of Multipath TCP stay in
        the table: without them, their connections would be joined as well.
        """
        self._threshold = threshold
        gone: list[Flow] = []
        if threshold >= ALL:
            return gone
        self._unaccepted.drop(DropReason.SHARE, lambda key: flow_hash(key, self._seed) >= threshold)
        for flow in list(self._flows.values()):
            if flow.hash is None:
                flow.hash = flow_hash(flow.key, self._seed)
            if flow.hash >= threshold and flow.state is not State.LEFT_OUT:
                flow.rx.discard(DropReason.SHARE)
                self._ledger.events["flows_unshared"] += 1
                self._forget(flow, now, over=False)
                gone.append(flow)
        return gone

    def close(self) -> None:
        """Give up everything held: the tap ends."""
        for flow in self._flows.values():
            flow.rx.discard(DropReason.SHUTDOWN)
        self._unaccepted.drop(DropReason.SHUTDOWN)
        self._early.close()

    # --- a flow that the table knows

    def _known(self, flow: Flow, segment: Segment, now: float) -> list[Event]:
        _, flags, seq, ack, length, payload, _ = segment
        if flags & UNACCEPTED:
            return self._before_acceptance(flow, segment, now)
        if flow.state is State.LEFT_OUT:
            return self._left_out(flow, flags, length, now)
        if flags & FROM_SERVER:
            return self._from_server(flow, flags, seq, ack, length, now)
        if flags & SYN and not flags & RST:  # tcp_validate_incoming() looks at RST first
            return self._early_data(segment, now)
        if flow.state in (State.CLIENT_DONE, State.CLOSED):
            self._ledger.filter(FilterReason.DUPLICATE, length, 1 if length else 0)
            return self._reset(flow, now, flags, ack) if flags & RST and flow.rx.is_edge(seq) else []
        if flags & RST:
            if length:
                self._ledger.filter(FilterReason.OUTSIDE, length, 1)
            return self._reset(flow, now, flags, ack) if _takes_reset(flow, seq) else []
        if not flags & ACK or (flow.heard is not None and not acknowledges(ack, flow.heard)):
            if length:  # as tcp_rcv_established() and tcp_ack() discard it
                self._ledger.filter(FilterReason.OUTSIDE, length, 1)
            return []
        if flags & URG:
            flow.rx.mark(seq, length, flags >> 16)
        if flow.state is State.TENTATIVE:
            self._hold(flow, segment)
            return []
        return self._events(flow, flow.rx.feed(seq, payload, length, bool(flags & FIN), ack), now)

    def _before_acceptance(self, flow: Flow, segment: Segment, now: float) -> list[Event]:
        """Take a segment with the mark `UNACCEPTED`.

        It belongs to this connection if another processor reported the acceptance meanwhile, and otherwise to the next
        connection on the same tuple.
        """
        key, flags, seq, ack, length, payload, time_ns = segment
        if flags & SYN:
            return self._early_data(segment, now)
        if ack == flow.server_first:  # no nearer than that: another connection's may be close to it
            return list(self.feed((key, flags & ~UNACCEPTED, seq, ack, length, payload, time_ns), now))
        self._unaccepted.hold(segment, now)
        return []

    def _from_server(self, flow: Flow, flags: int, seq: int, ack: int, length: int, now: float) -> list[Event]:
        if flags & RST:
            self._unaccepted.turned_away(flow.key, seq)
            if flow.state is State.TENTATIVE:
                self._refuse(flow, now)
                return []
            dismissed: list[Event] = [(flow, _DISMISSED, False)] if _dismisses(flow, seq) else []
            return dismissed + self._reset(flow, now)
        if length or flow.server_next is not None:
            self._count_response(flow, seq, length)
        events: list[Event] = []
        rx = flow.rx
        if rx.simple and ack == rx.next:
            pass  # production has what the tap has: nothing follows from it
        elif flags & ACK and flow.state is State.TENTATIVE:
            events += self._judged(flow, ack, now, knows=length > 0 or seq == flow.ack)
        elif flags & ACK and abs(distance(ack, rx.next)) < FAR:
            if flow.asking:
                sent = (seq + length) & MASK
                if flow.heard is None:
                    rx.disbelieve(sent)
                flow.heard = sent
            events += self._events(flow, rx.acknowledged(ack), now)
        if flags & FIN:
            if (seq + length) & MASK == flow.ack and _dismisses(flow, flow.ack):
                events.append((flow, _DISMISSED, False))
            self._move(flow, Move.SERVER_FIN, now)
            if (flow.ends_with_client or flow.framer is None) and flow.state is State.SERVER_DONE:
                events.append((flow, _SERVER_FIN, False))
        return events

    def _judged(self, flow: Flow, ack: int, now: float, *, knows: bool) -> list[Event]:
        """Production acknowledged everything before `ack` on a connection that was joined in mid-stream.

        Anybody may have sent the held data, with any number; production answers it with the number that it waits for.
        `knows`: this packet of production proves a connection.  It has data, or the client acknowledges exactly what
        production sends next.  A bare acknowledgement alone also comes for a handshake that nobody completes
        (`standing`).
        """
        rx = flow.rx
        ahead = distance(ack, rx.next)
        if knows and 0 < ahead <= rx.unbroken:
            return self._confirmed(flow, now)
        if knows and ack == flow.reach:
            # All that the client sent: of an upload, more than is held; or somebody wrote before.
            rx.discard(DropReason.MIDSTREAM)
            flow.rx = Receiver(ack, self._memory, self._ledger)
            flow.first = ack
            return self._confirmed(flow, now)
        if abs(ahead) > UNDER_WAY:
            rx.discard(FilterReason.NOT_ACCEPTED)
            self._remove(flow)
        return []

    def _confirmed(self, flow: Flow, now: float) -> list[Event]:
        """Production knows this connection: the data that was held for its word goes on."""
        flow.ack = ANY
        self._move(flow, Move.CONFIRMED, now)
        pieces = flow.rx.release()
        if not pieces or not isinstance(pieces[0][0], bytes) or len(pieces[0][0]) > 1:
            return self._events(flow, pieces, now)
        # A single byte may be a keep-alive probe, which repeats or invents the byte before the next one (RFC 9293,
        # 3.8.4).  Then the client's first data is what follows.
        events = self._events(flow, pieces[:1], now)
        flow.ack = ANY
        return events + self._events(flow, pieces[1:], now)

    def _count_response(self, flow: Flow, seq: int, length: int) -> None:
        """Note how far production's stream has come; each byte counts once."""
        end = (seq + length) & MASK
        if flow.server_next is None:
            flow.server_next = seq
        gained = distance(end, flow.server_next)
        if 0 < gained < FAR:
            flow.answered += gained
            flow.server_next = end

    def _accepted_again(self, flow: Flow, segment: Segment, now: float) -> list[Event]:
        """A repeated SYN-ACK, or a new connection on the tuple of one whose end was not seen."""
        ahead = distance(flow.first, segment[2])
        if flow.state is State.TENTATIVE and (segment[1] & MULTIPATH or 0 <= ahead < REJOIN):
            flow.server_first = segment[3]
            return self._leave_out(flow) if segment[1] & MULTIPATH else self._confirmed(flow, now)
        # A record for which the ring had no room comes again, maybe behind data that production acknowledged.
        taken_up = segment[1] & MULTIPATH and flow.state is not State.LEFT_OUT
        if not taken_up and (ahead == 0 or (flow.midstream and 0 <= ahead < REJOIN)):
            return []
        events = self._reset(flow, now)
        return events + self._begin(segment, now)

    # --- a segment of no known flow

    def _told(self, key: FlowKey, flags: int, seq: int, ack: int, length: int) -> None:
        """Take a segment that production sent on a connection that the table does not know."""
        if flags & RST:
            self._unaccepted.turned_away(key, seq)
        goes_on = flags & (ACK | SYN | RST | FIN) == ACK
        if goes_on and not length:
            return  # production may have no such connection (`standing`)
        late = self._late.find(key)
        if goes_on and not (late is not None and late[1]):
            self._standing.hear(key, ack)
        else:
            self._standing.forget(key)
        self._await_no_more(key)

    def _unknown(self, segment: Segment, now: float) -> Sequence[Event]:
        key, flags, seq, _, length, _, _ = segment
        if flags & BEGINS:
            raise ValueError("a segment that begins a connection is for `accept`, and what that returns to be fed")
        if self._out_of_share(key):
            if length:  # the capture had it before the share was lowered
                self._ledger.drop(DropReason.SHARE, length, 1)
            return ()
        if flags & SYN:
            return self._early_data(segment, now)
        if flags & UNACCEPTED:
            self._unaccepted.hold(segment, now)
            return ()
        if not length:
            return ()
        if flags & RST or not flags & ACK:
            self._ledger.filter(FilterReason.OUTSIDE, length, 1)
            return ()
        late = self._late.find(key)
        if late is not None and distance(seq, late[0]) < (FAR if late[1] else 0):
            old = distance(seq, late[0]) < 0
            self._ledger.filter(FilterReason.DUPLICATE if old else FilterReason.OUTSIDE, length, 1)
            return ()
        # Anybody can send such segments under any address.  They must not take the room of accepted connections.
        events = self._room(now) if len(self._asking) * 2 < self._limits.flows else None
        if events is None:
            self._ledger.drop(DropReason.TABLE_FULL, length, 1)
            return ()
        flow = self._add(key, seq, now, midstream=True)
        flow.rx.simple = False  # until production's word, nothing counts as in order
        self._hold(flow, segment)
        if self._standing.goes_on(key, seq):
            events += self._confirmed(flow, now)
        else:
            self._ask(flow, now)
        self._await_no_more(key)
        return events

    def _hold(self, flow: Flow, segment: Segment) -> None:
        """Keep a segment of a flow until production's word."""
        _, flags, seq, ack, length, payload, _ = segment
        flow.rx.hold(seq, payload, length, bool(flags & FIN), ack)
        flow.reach = (seq + length) & MASK
        flow.ack = ack

    def _out_of_share(self, key: FlowKey) -> bool:
        return self._threshold < ALL and flow_hash(key, self._seed) >= self._threshold

    def _begin(self, segment: Segment, now: float) -> list[Event]:
        """Production accepted a connection.  The segment's `seq` is the client's first byte, its `ack` production's."""
        key, flags, seq, ack, _, _, _ = segment
        if self._out_of_share(key):
            self._early.drop(key, DropReason.SHARE)
            return []
        self._await_no_more(key)
        events = self._room(now)
        if events is None:
            self._early.drop(key, DropReason.TABLE_FULL)
            self._ledger.events["flows_refused"] += 1
            return []
        if flags & MULTIPATH:
            self._early.drop(key, DropReason.MULTIPATH)
            flow = self._add(key, seq, now, midstream=False)
            flow.server_first = ack
            return events + self._leave_out(flow)
        early = self._early.taken(key, seq)
        if early is None:
            flow = self._add(key, seq, now, midstream=False)
            flow.ack = flow.server_first = ack
            return events
        start, data, said = early
        flow = self._add(key, start, now, midstream=False)
        flow.ack = flow.server_first = ack
        flow.first = seq
        return events + self._events(flow, flow.rx.feed(start, data, len(data), False, said), now)

    def _leave_out(self, flow: Flow) -> list[Event]:
        """Pass on nothing of this connection, and discard what was held."""
        self._stop_asking(flow)
        flow.rx.discard(DropReason.MULTIPATH)
        flow.rx.simple = False  # each segment is looked at
        flow.state = State.LEFT_OUT
        return []

    def _left_out(self, flow: Flow, flags: int, length: int, now: float) -> list[Event]:
        """Take a segment of either side of a connection that is left out."""
        client = not flags & FROM_SERVER
        if length and client:
            self._ledger.drop(DropReason.MULTIPATH, length, 1)
        if flags & RST or (flags & FIN and client):
            self._move(flow, Move.RESET, now)
        return []

    def _early_data(self, segment: Segment, now: float) -> list[Event]:
        self._early.hold(segment, now)
        return []

    def _room(self, now: float) -> list[Event] | None:
        """Make room for one more flow, if necessary by giving up a silent one, whose end is returned; None: no room.

        A full table does not push out busy flows.  A flow is given up only if it was silent for a while and if its
        protocol is not known yet.  Amortized constant time: a flow that had a segment since the last look moves to the
        end.
        """
        if len(self._flows) < self._limits.flows:
            return []
        patience = self._limits.accept_time
        for _ in range(SCAN):
            flow, since = next(iter(self._blank.items()), (None, now))
            if flow is None or now - since < patience:
                return None
            if now - flow.last >= patience:
                return self._evict(flow, now)
            self._blank[flow] = now
            self._blank.move_to_end(flow)
        return None

    def _add(self, key: FlowKey, seq: int, now: float, *, midstream: bool) -> Flow:
        flow = Flow(self._next_id, key, seq, Receiver(seq, self._memory, self._ledger), now, midstream)
        self._next_id += 1
        self._flows[key] = flow
        self._blank[flow] = now
        self._ledger.events["flows_joined" if midstream else "flows"] += 1
        return flow

    # --- ends

    def _move(self, flow: Flow, move: Move, now: float) -> None:
        flow.state = TRANSITIONS.get((flow.state, move), flow.state)
        if flow.state is State.CLOSED:
            self._forget(flow, now)
        elif move is Move.CONFIRMED:
            self._stop_asking(flow)

    def _reset(self, flow: Flow, now: float, flags: int = 0, ack: int = 0) -> list[Event]:
        """The connection is gone: production never read what waits behind a hole.

        `flags`, `ack`: those of the RST, if the client sent it.
        """
        after_response = bool(flags & ACK) and ack != flow.ack >= 0
        tentative = flow.state is State.TENTATIVE
        flow.rx.discard(FilterReason.NOT_ACCEPTED if tentative else FilterReason.OUTSIDE)
        self._move(flow, Move.RESET, now)
        self._forget(flow, now)
        return [(flow, End(reset=True), after_response)]

    def _refuse(self, flow: Flow, now: float) -> None:
        """Production does not know this connection."""
        flow.rx.discard(FilterReason.NOT_ACCEPTED)
        self._move(flow, Move.RESET, now)

    def _give_up(self, flow: Flow) -> None:
        """Production said nothing about this connection that was captured; its next word is waited for."""
        flow.rx.discard(FilterReason.NOT_ACCEPTED)
        self._wants.want(flow.key, self._bucket(flow.key))
        displaced = self._standing.wait(flow.key)
        if displaced is not None:
            self._wants.unwant(displaced, self._bucket(displaced))
        self._remove(flow)

    def _await_no_more(self, key: FlowKey) -> None:
        if self._standing.was_awaited(key):
            self._wants.unwant(key, self._bucket(key))

    def _evict(self, flow: Flow, now: float) -> list[Event]:
        flow.rx.discard(DropReason.IDLE)
        self._ledger.events["flows_idle"] += 1
        self._forget(flow, now, over=False)
        return [(flow, End(reset=True), False)]

    def _forget(self, flow: Flow, now: float, *, over: bool = True) -> None:
        """Take a flow out of the table, and remember it.  `over`: nothing can follow on this connection."""
        goes_on = not over and flow.state is State.OPEN
        if self._remove(flow):
            self._late.remember(flow.key, flow.rx.next, over, now)
            if goes_on:
                self._standing.hear(flow.key, flow.rx.next)

    def _remove(self, flow: Flow) -> bool:
        """Take a flow out of the table without remembering it; returns whether it was there."""
        if flow.asking:
            self._stop_asking(flow)
        flow.state = State.CLOSED
        if self._flows.get(flow.key) is not flow:
            return False
        del self._flows[flow.key]
        if flow.framer is None:
            self._blank.pop(flow, None)
        return True

    # --- pieces, and the acknowledgements that holes need

    def _events(self, flow: Flow, pieces: list[Piece], now: float) -> list[Event]:
        events: list[Event] = []
        for chunk, ack in pieces:
            after_response = False
            if ack is not None:
                after_response = ack != flow.ack >= 0
                flow.ack = ack
            elif type(chunk) is Gap:
                flow.ack = UNKNOWN
            events.append((flow, chunk, after_response))
            if type(chunk) is End:
                self._move(flow, Move.REQUESTS_END if flow.ends_with_client else Move.CLIENT_FIN, now)
        if flow.rx.waiting:
            self._ask(flow, now)
        elif flow.state is not State.TENTATIVE:
            self._stop_asking(flow)
        return events

    def _bucket(self, key: FlowKey) -> int:
        return flow_hash(key, self._seed) % BUCKETS

    def _ask(self, flow: Flow, now: float) -> None:
        if flow.asking or flow.state is State.CLOSED:
            return
        flow.asking = True
        flow.since = now
        self._asking[flow.key] = flow
        self._wants.want(flow.key, self._bucket(flow.key))

    def _stop_asking(self, flow: Flow) -> None:
        if not flow.asking:
            return
        flow.asking = False
        flow.heard = None
        self._asking.pop(flow.key, None)
        self._wants.unwant(flow.key, self._bucket(flow.key))


def _takes_reset(flow: Flow, seq: int) -> bool:
    """Whether an RST of the client ends the connection.

    Behind a hole it does so only if production has spoken since then.  Before that, somebody else may have
    sent what waits there.
    """
    return flow.rx.is_edge(seq) and (seq == flow.rx.next or flow.heard is not None)


def _dismisses(flow: Flow, end: int) -> bool:
    """Whether production's stream, which ends at `end`, had nothing after the client's last data."""
    return end == flow.ack and flow.ends_with_client and flow.state is State.OPEN
