# SPDX-License-Identifier: Apache-2.0
"""Both directions of every connection of a capture, put back in order.

Theory of operation
-------------------
The flow table of a tap knows one direction, asks production for evidence and has to go on.  A capture file has both
directions and can wait.  Both use the `Receiver`.

* A connection begins with a SYN, with a SYN-ACK, or in mid-stream with whatever comes first.  The client is the sender
  of the SYN, or else the receiver of the SYN-ACK.  Without either, the server is the side whose port is in `ports`; if
  that is neither or both, it is the side with the lower port.
* Data on a SYN or SYN-ACK (RFC 7413) waits for the first acknowledgement, which tells whether the other side took it.
* A hole stays open until the missing bytes come, the connection ends, or a bound of `Limits` is reached: in a file,
  bytes may come later than their own acknowledgement.  At a bound, the hole of the stream that needs room is given up,
  or else the oldest hole.
* A connection ends when the FINs of both sides are in order, by an RST that the receiver would take, or with the
  capture.  A new SYN on its tuple ends it as well, if the connection was over or had no data, or if a SYN-ACK or the
  first byte belongs to the new one.  After its end the connection stays known for `LINGER` seconds of the capture, so
  that late segments begin no new one.
* The byte that an urgent pointer marks stays where it was sent, because a file's streams are what was captured.  A tap
  leaves it out, as the application's `read` does.
* If the table is full, a connection that is over goes first, then the oldest one without data, then the one that has
  been silent for longest.

Pure: headers and the capture's time in, events out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, Final, TypeAlias

from tapmirror.events import ACK, FIN, RST, SYN, Chunk, End, FilterReason, FlowKey, Gap
from tapmirror.ledger import Ledger
from tapmirror.packet import Header, flow_key
from tapmirror.spec import Limits
from tapmirror.tcp import ANY, MASK, UNKNOWN, Piece, ReassemblyMemory, Receiver, distance

LINGER: Final = 60.0
"""Seconds for which an ended connection stays known: Linux's TIME-WAIT (TCP_TIMEWAIT_LEN)."""

Event: TypeAlias = "tuple[Stream, Chunk, bool]"
"""(stream, chunk of it, whether its sender had received something since its last data).  The last one is as in
`flows`."""


class Stream:
    """One direction of a connection.  `book` is free for whoever reads the events."""

    __slots__ = ("ack", "book", "connection", "early", "first", "is_client", "midstream", "peer", "rx")

    peer: Stream

    def __init__(self, connection: Connection, is_client: bool) -> None:
        self.connection = connection
        self.is_client = is_client
        self.rx: Receiver | None = None
        """The receiver; None until a sequence number is known."""
        self.first = 0
        """Sequence number of the first byte."""
        self.midstream = False
        """Whether the stream's first byte may be missing in the capture."""
        self.early = False
        """Whether data of the SYN is held, because it is not known yet whether the other side took it."""
        self.ack = ANY
        """The acknowledgement number of the sender's last data; `ANY`, `UNKNOWN`."""
        self.book: Any = None


class Connection:
    """Both directions of a connection.  `key` names client and server in this order, and `reverse` in the other."""

    __slots__ = ("client", "ended", "has_data", "key", "reverse", "server", "syn", "whole")

    def __init__(self, key: FlowKey, reverse: FlowKey) -> None:
        self.key = key
        self.reverse = reverse
        self.client = Stream(self, True)
        self.server = Stream(self, False)
        self.client.peer, self.server.peer = self.server, self.client
        self.syn: int | None = None
        """Sequence number of the first byte behind a later SYN, which may begin the next connection; None: there was
        none."""
        self.ended = False
        self.has_data = False
        self.whole = True
        """Whether it was followed to its end: false if it had to make room for others."""


class StreamTable:
    """All connections, within `limits`.

    `finished` collects the connections that are over; the caller empties it.  `ports` are ports of servers.
    """

    def __init__(self, limits: Limits, ledger: Ledger, ports: Collection[int] = ()) -> None:
        self._limits = limits
        self._ledger = ledger
        self._memory = ReassemblyMemory(limits)
        self._ports = frozenset(port.to_bytes(2, "big") for port in ports)
        self._streams: dict[FlowKey, Stream] = {}
        self._fresh: OrderedDict[Connection, None] = OrderedDict()
        self._busy: OrderedDict[Connection, None] = OrderedDict()
        self._over: OrderedDict[Connection, float] = OrderedDict()
        self._waiting: OrderedDict[Stream, None] = OrderedDict()
        self.finished: list[Connection] = []

    def __len__(self) -> int:
        return len(self._streams) // 2

    def held(self) -> tuple[int, int]:
        """(segments, bytes) that wait for the bytes before them, or for the first acknowledgement."""
        return self._memory.segments, self._memory.bytes

    def feed(self, header: Header, now: float) -> Sequence[Event]:
        """Take one segment; returns what it adds to the streams.  `now` is the capture's time in seconds."""
        source, destination, source_port, destination_port, vlan, _, _, seq, ack, flags, length, payload = header
        key = flow_key(source, destination, source_port, destination_port, vlan)
        if length:
            self._ledger.segments.seen += 1
            self._ledger.bytes.seen += length
        stream = self._streams.get(key)
        if stream is None or flags & (SYN | FIN | RST) or stream.peer.early or stream.rx is None:
            return self._slowly(key, header, now)
        rx, connection = stream.rx, stream.connection
        if not length:
            return ()
        if seq != rx.next or not rx.simple or len(payload) != length or connection.ended or connection.syn == seq:
            return self._slowly(key, header, now)
        if connection.has_data:
            self._busy.move_to_end(connection)
        else:
            self._note_data(connection)
        rx.next = (seq + length) & MASK
        rx.position += length
        self._ledger.segments.mirrored += 1
        after_response = ack != stream.ack >= 0
        stream.ack = ack
        return ((stream, payload, after_response),)

    def close(self) -> list[Event]:
        """The capture is over: every connection ends."""
        events: list[Event] = []
        for table in (self._over, self._busy, self._fresh):
            for connection in list(table):
                events += self._finish(connection)
        return events

    # --- the slow path

    def _slowly(self, key: FlowKey, header: Header, now: float) -> list[Event]:
        seq, ack, flags, length = header.seq, header.ack, header.flags, header.length
        events = self._expire(now)
        stream = self._streams.get(key)
        if stream is None:
            if flags & RST:
                self._leave_out(length)
                return events
            stream = self._begin(key, header)
            events += self._make_room()
        elif flags & SYN or (stream.connection.syn == seq and stream.is_client and length):
            stream = self._again(key, stream, header, events)
        connection = stream.connection
        if connection.ended:
            self._leave_out(length)
            return events
        if length:
            self._note_data(connection)
        if flags & SYN:
            self._synchronize(stream, header, events)
            return events
        if flags & ACK:
            self._acknowledge(stream.peer, ack, events)
        if flags & RST:
            self._leave_out(length)
            if self._takes_reset(stream, seq, ack):
                events += self._end(connection, now)
            return events
        rx = stream.rx
        if rx is None:
            stream.midstream = True
            rx = self._start(stream, seq)
        self._take(stream, rx, header, events)
        if rx.ended and stream.peer.rx is not None and stream.peer.rx.ended:
            events += self._end(connection, now)
        return events

    def _take(self, stream: Stream, rx: Receiver, header: Header, events: list[Event]) -> None:
        """Take a segment of a known connection.  If it has to wait and there is no room, holes are given up."""
        length = header.length
        while distance(header.seq, rx.next) > 0 and rx.crowded(len(header.payload)):
            oldest = stream if rx.waiting else next(iter(self._waiting), None)
            if oldest is None or oldest.rx is None:
                break
            self._pass_on(oldest, oldest.rx.give_up(), events)
            if not oldest.rx.waiting:
                self._waiting.pop(oldest, None)
        fin = bool(header.flags & FIN)
        self._pass_on(stream, rx.feed(header.seq, header.payload, length, fin, header.ack), events)
        if rx.waiting:
            self._waiting[stream] = None
        else:
            self._waiting.pop(stream, None)

    def _begin(self, key: FlowKey, header: Header) -> Stream:
        """Add the connection that begins with this segment; returns the stream that the segment belongs to."""
        reverse = flow_key(header.destination, header.source, header.destination_port, header.source_port, header.vlan)
        from_client = self._is_from_client(header)
        connection = Connection(key, reverse) if from_client else Connection(reverse, key)
        self._add(connection)
        return connection.client if from_client else connection.server

    def _add(self, connection: Connection) -> None:
        self._streams[connection.reverse] = connection.server
        self._streams[connection.key] = connection.client
        self._fresh[connection] = None

    def _is_from_client(self, header: Header) -> bool:
        if header.flags & SYN:
            return not header.flags & ACK
        to_known, from_known = header.destination_port in self._ports, header.source_port in self._ports
        if to_known != from_known:
            return to_known
        return header.source_port >= header.destination_port

    def _again(self, key: FlowKey, stream: Stream, header: Header, events: list[Event]) -> Stream:
        """Take a segment that may begin another connection on a known tuple; returns the stream that it belongs to."""
        connection = stream.connection
        first = (header.seq + 1) & MASK
        if not header.flags & SYN:  # the first byte after a SYN whose SYN-ACK was not captured
            return self._replace(stream, Connection(connection.key, connection.reverse), events)
        if header.flags & ACK:
            responses = connection.syn == header.ack and not stream.is_client
            return (
                self._replace(stream, Connection(connection.key, connection.reverse), events) if responses else stream
            )
        repeated = stream.rx is not None and stream.first == first
        if repeated and not (connection.ended and connection.has_data):
            return stream
        if connection.ended or not connection.has_data:
            return self._replace(
                stream, Connection(key, connection.reverse if stream.is_client else connection.key), events
            )
        connection.syn = first
        return stream

    def _replace(self, stream: Stream, successor: Connection, events: list[Event]) -> Stream:
        """Put a new connection in the place of one whose end may not have been captured; returns its stream in the
        direction of `stream`.
        """
        old = stream.connection
        events += self._finish(old)
        self._add(successor)
        same = old.key == successor.key
        if same and old.syn is not None:
            self._start(successor.client, old.syn)
        return successor.client if stream.is_client == same else successor.server

    def _synchronize(self, stream: Stream, header: Header, events: list[Event]) -> None:
        """Take a SYN or SYN-ACK of this connection."""
        first = (header.seq + 1) & MASK
        rx = stream.rx or self._start(stream, first)
        if header.flags & ACK:
            if stream.peer.rx is None:
                self._start(stream.peer, header.ack)
            self._acknowledge(stream.peer, header.ack, events)
        if not header.length:
            return
        if stream.first != first:
            self._leave_out(header.length)
        elif rx.position:
            self._ledger.filter(FilterReason.DUPLICATE, header.length, 1)
        else:
            stream.early = True
            rx.hold(first, header.payload, header.length, False, header.ack)

    def _start(self, stream: Stream, seq: int) -> Receiver:
        stream.first = seq
        stream.rx = Receiver(seq, self._memory, self._ledger)
        return stream.rx

    def _acknowledge(self, stream: Stream, ack: int, events: list[Event]) -> None:
        """Decide by the first acknowledgement of this stream whether the data of its SYN was taken."""
        if not stream.early or stream.rx is None:
            return
        stream.early = False
        if distance(ack, stream.first) > 0:
            self._pass_on(stream, stream.rx.release(), events)
        else:
            stream.rx.discard(FilterReason.NOT_ACCEPTED)

    # --- ends

    def _takes_reset(self, stream: Stream, seq: int, ack: int) -> bool:
        """Whether the receiver of an RST takes it (RFC 9293, 3.5.3; RFC 5961, 3.2)."""
        if stream.rx is not None:
            return stream.rx.is_edge(seq)
        peer = stream.peer.rx  # the refusal of a SYN is known by what it acknowledges
        return peer is None or ack == peer.next

    def _end(self, connection: Connection, now: float) -> list[Event]:
        """The connection is over: hand out what is held, and take nothing more of it."""
        events = self._give_out(connection)
        connection.ended = True
        self._fresh.pop(connection, None)
        self._busy.pop(connection, None)
        self._over[connection] = now
        return events

    def _finish(self, connection: Connection) -> list[Event]:
        """Forget a connection, after handing out what is held of it."""
        events = self._give_out(connection)
        connection.ended = True
        for table in (self._fresh, self._busy, self._over):
            table.pop(connection, None)
        del self._streams[connection.key]
        if connection.reverse != connection.key:
            del self._streams[connection.reverse]
        self.finished.append(connection)
        return events

    def _give_out(self, connection: Connection) -> list[Event]:
        events: list[Event] = []
        for stream in (connection.client, connection.server):
            self._waiting.pop(stream, None)
            if stream.rx is None:
                continue
            if stream.early:
                stream.early = False
                self._pass_on(stream, stream.rx.release(), events)
            while stream.rx.waiting:
                self._pass_on(stream, stream.rx.give_up(), events)
        return events

    def _expire(self, now: float) -> list[Event]:
        events: list[Event] = []
        while self._over:
            connection, since = next(iter(self._over.items()))
            if now - since < LINGER:
                break
            events += self._finish(connection)
        return events

    def _make_room(self) -> list[Event]:
        if len(self) <= self._limits.flows:
            return []
        table = self._over or (self._fresh if len(self._fresh) > 1 else self._busy)
        connection = next(iter(table))
        connection.whole = connection.ended or not connection.has_data
        return self._finish(connection)

    def _note_data(self, connection: Connection) -> None:
        if not connection.has_data:
            connection.has_data = True
            self._fresh.pop(connection, None)
        if not connection.ended:
            self._busy[connection] = None
            self._busy.move_to_end(connection)

    def _leave_out(self, length: int) -> None:
        if length:
            self._ledger.filter(FilterReason.OUTSIDE, length, 1)

    def _pass_on(self, stream: Stream, pieces: list[Piece], events: list[Event]) -> None:
        for chunk, ack in pieces:
            if type(chunk) is End:
                continue
            after_response = False
            if ack is not None:
                after_response = ack != stream.ack >= 0
                stream.ack = ack
            elif type(chunk) is Gap:
                stream.ack = UNKNOWN
            events.append((stream, chunk, after_response))
