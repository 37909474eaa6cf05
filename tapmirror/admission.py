# SPDX-License-Identifier: Apache-2.0
"""The decisions of bpf/tap.c, for sources that have no program in the kernel.

These are direction, match, loop mark, sampling, the acceptance of connections, which of production's packets become
records, and the counters.  The rules and their order are the same as there, so that no later stage can tell one source
from another.  The reasons are given at `tap()` in bpf/tap.c.

Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

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
    FlowKey,
    Segment,
)
from tapmirror.packet import BUCKETS, Header, flow_hash, flow_key

HANDSHAKES: Final = 32_768
"""Most handshakes that are remembered of those that the client did not complete; a flood of SYNs fills these."""
COMPLETED: Final = 32_768
"""Most handshakes that are remembered of those that the client completed: the size of the map `completed` there."""
WANT_ONE: Final = 1
WANT_ALL: Final = 2
WANT_RESPONSES: Final = 4
MASK: Final = 0xFFFFFFFF
CHUNK: Final = 65_536
"""TAP_CHUNK of bpf/tap.h.  A larger packet (BIG TCP) becomes several records, the last of which has its FIN or PSH."""
PLAUSIBLE: Final = 1 << 30
"""Largest distance of a number from that of the handshake: the largest window."""
EARLY: Final = 1 << 20
"""Bytes that a side can send before it hears from the other; the same as in bpf/tap.c."""
FAST_OPEN: Final = 0x1000
COMPLETE: Final = 0x4000
SAID: Final = 0x8000
ANSWERED: Final = ACCEPTED | MULTIPATH
"""TAP_EARLY, TAP_COMPLETE, TAP_SAID, TAP_ANSWERED of bpf/tap.c.  TAP_LOOSE has no counterpart, because there is always
room for a report here."""


class Way(NamedTuple):
    """What all packets from one end point to another have in common, if one of the two is production.

    A source may keep the result of `Admission.way` for further packets, until it calls `exclude` or `set_threshold`.
    """

    key: FlowKey
    from_client: bool
    fate: str | None
    """The counter for flows that are left out whole, `client` or `sampled_out`; None: the flow is taken."""
    bucket: int


class Admission:
    """Headers in, segments out; `totals` has the same counters as `Counters`.

    `clients`: (address, mask) of the networks whose clients are admitted; empty: all clients are.
    `probe`: initial sequence number of the SYN that tests whether a shadow leads back to production; 0: no test.
    `both_ways`: production's packets come in as well, from a mirror port or through a tunnel.
    `many`: there are several interfaces, and the same packet may pass more than one.
    `either_way`: production may be behind the interface, so only its address tells the direction.
    `response_bytes`: how much is captured of each segment of production with payload, if its flow's responses are
    wanted.
    """

    def __init__(
        self,
        *,
        ports: Collection[int],
        addrs: Collection[bytes],
        excluded: Collection[tuple[bytes, int]],
        clients: Collection[tuple[bytes, bytes]] = (),
        threshold: int,
        seed: int,
        dscp: int,
        probe: int = 0,
        egress_all: bool,
        both_ways: bool = False,
        response_bytes: int = 0,
        many: bool = False,
        either_way: bool = False,
    ) -> None:
        self._ports = frozenset(port.to_bytes(2, "big") for port in ports)
        self._addrs = frozenset(addrs)
        self.exclude(excluded)
        self._clients = [(int.from_bytes(address), int.from_bytes(mask)) for address, mask in clients]
        self._threshold = threshold
        self._seed = seed
        self._dscp = dscp
        self._probe = probe
        self._both_ways = both_ways or either_way
        self._many = many
        self._either_way = either_way
        self._egress_all = egress_all
        self._response_bytes = response_bytes
        self._wants = bytearray(bytes([WANT_ONE]) * BUCKETS)
        self._window = (0, BUCKETS)
        self._handshakes: OrderedDict[FlowKey, tuple[int, int, int]] = OrderedDict()
        self._completed: OrderedDict[FlowKey, tuple[int, int, int]] = OrderedDict()
        self.totals: dict[str, tuple[int, int]] = {}

    def set_threshold(self, threshold: int) -> None:
        """Take only flows whose hash is below `threshold` from now on."""
        self._threshold = threshold

    def exclude(self, excluded: Collection[tuple[bytes, int]]) -> None:
        """Set the end points of the shadows, (address, port), which are never production."""
        self._excluded = frozenset((address, port.to_bytes(2, "big")) for address, port in excluded)

    def want_ack(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to report production's acknowledgements of the flow's bucket."""
        bucket = flow_hash(key, self._seed) & 0xFFFF
        self._wants[bucket] = self._wants[bucket] & ~WANT_ALL | (WANT_ALL if wanted else 0)

    def want_responses(self, first: int, count: int) -> None:
        """Report production's payload in `count` buckets from `first` on; after the last bucket comes the first."""
        self._window = (first, count)

    def keep_responses(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to report production's payload in the flow's bucket, wherever that window is."""
        bucket = flow_hash(key, self._seed) & 0xFFFF
        self._wants[bucket] = self._wants[bucket] & ~WANT_RESPONSES | (WANT_RESPONSES if wanted else 0)

    def count(self, name: str, size: int = 0) -> None:
        """Add one record of `size` bytes to a counter."""
        records, total = self.totals.get(name, (0, 0))
        self.totals[name] = records + 1, total + size

    def admit(self, header: Header, outgoing: bool, time_ns: int, loopback: bool = False) -> list[Segment]:
        """The segments that one packet gives; `loopback`: its interface shows every packet twice."""
        ends = header.source, header.destination, header.source_port, header.destination_port
        way = self.way(*ends, header.vlan, outgoing, loopback)
        if way is None:
            return []
        _, _, _, _, _, dscp, fragment, seq, ack, flags, size, payload = header
        if way.from_client:
            return self.from_client(way, dscp, fragment, seq, ack, flags, size, payload, time_ns)
        return self.from_server(way, fragment, seq, ack, flags, size, payload, time_ns)

    def way(
        self,
        source: bytes,
        destination: bytes,
        source_port: bytes,
        destination_port: bytes,
        vlan: int,
        outgoing: bool,
        loopback: bool,
    ) -> Way | None:
        """Which flow and direction packets between these end points belong to; None: they are not for this tap."""
        if outgoing and loopback:
            return None
        vlan = 0 if self._many else vlan
        inwards = not outgoing or self._either_way
        if inwards and self._is_production(destination, destination_port):
            return self._way(source, flow_key(source, destination, source_port, destination_port, vlan), True)
        if (outgoing or loopback or self._both_ways) and self._is_production(source, source_port):
            return self._way(destination, flow_key(destination, source, destination_port, source_port, vlan), False)
        return None

    def _way(self, client: bytes, key: FlowKey, from_client: bool) -> Way:
        hashed = flow_hash(key, self._seed)
        fate = None
        if not self._is_client(client):
            fate = "client"
        elif hashed >= self._threshold:
            fate = "sampled_out"
        return Way(key, from_client, fate, hashed & 0xFFFF)

    def _is_production(self, address: bytes, port: bytes) -> bool:
        if port not in self._ports or (address, port) in self._excluded:
            return False
        return not self._addrs or address in self._addrs

    def _is_client(self, address: bytes) -> bool:
        if not self._clients:
            return True
        number = int.from_bytes(address)
        return any(number & mask == network for network, mask in self._clients)

    def from_server(
        self, way: Way, fragment: bool, seq: int, ack: int, flags: int, size: int, payload: memoryview, time_ns: int
    ) -> list[Segment]:
        """The segments that a packet of production gives."""
        key, _, fate, bucket = way
        if fate is not None:
            return []
        if flags & SYN:
            if flags & ACK:
                client, _, kind = self._dropped(key)
                kind &= FAST_OPEN | COMPLETE | SAID if client == ack else 0
                self._remember(key, ack, (seq + 1) & MASK, (flags & MULTIPATH or ACCEPTED) | kind)
                self.count("syn_ack")
            return []
        told: list[Segment] = []
        if key in self._handshakes or key in self._completed:
            shown = self._shown(key, seq, ack, flags, size, time_ns)
            if shown is None:
                return []
            told = shown
        if self._response_bytes and size and not fragment and self._wants_responses(bucket):
            self._wants[bucket] &= ~WANT_ONE
            self.count("responses", size)
            payload = payload[: min(self._response_bytes, CHUNK)]
            return [*told, (key, flags & 0xFF | FROM_SERVER, seq, ack, size, payload, time_ns)]
        if not flags & (FIN | RST) and not self._egress_all:
            if not self._wants[bucket] & (WANT_ONE | WANT_ALL):
                return told
            self._wants[bucket] &= ~WANT_ONE
        self.count("egress", size)
        return [*told, (key, flags | FROM_SERVER, seq, ack, size, b"", time_ns)]

    def _shown(self, key: FlowKey, seq: int, ack: int, flags: int, size: int, time_ns: int) -> list[Segment] | None:
        """The report that production accepted a connection, if this packet, behind its SYN-ACK, shows that.

        None: the packet shows nothing, and is ignored.
        """
        client, server, kind = self._known(key)
        taken, sent = (ack - client) & MASK, (seq - server) & MASK
        if not kind & ANSWERED:
            return []
        if flags & RST and (not flags & ACK or not 0 < taken < EARLY):
            if not sent:
                self._dropped(key)
            return []
        if not flags & ACK or taken >= PLAUSIBLE or sent >= PLAUSIBLE:
            return []
        if taken >= EARLY or sent >= EARLY:  # the packet that would have shown it was not captured
            self._dropped(key)
            return []
        if not taken and not size and not flags & FIN:
            return None
        if not kind & COMPLETE:  # at a mirror port, it may come before the client's packet
            self._handshakes[key] = client, server, kind | FAST_OPEN
            return []
        return self._accepted(key, time_ns)

    def _wants_responses(self, bucket: int) -> bool:
        first, count = self._window
        return bool(self._wants[bucket] & WANT_RESPONSES) or (bucket - first) & 0xFFFF < count

    def from_client(
        self,
        way: Way,
        dscp: int,
        fragment: bool,
        seq: int,
        ack: int,
        flags: int,
        size: int,
        payload: memoryview,
        time_ns: int,
    ) -> list[Segment]:
        """The segments that a packet of a client gives."""
        key, _, fate, _ = way
        if dscp == self._dscp or (flags & SYN and seq == self._probe != 0):
            if flags & SYN:
                self.count("loop_syn")
            fate = "loop"
        elif fate is None and fragment:
            fate = "fragment"
        self._count_all("seen", size)
        self._count_all(fate or "emitted", size)
        if fate is not None:
            return []
        flags &= ~MULTIPATH  # our own mark, which a SYN-ACK of a client must not bear
        segments: list[Segment] = []
        if flags & SYN:
            self.count("syn")
            if self._known(key)[2] & ANSWERED:
                flags |= UNACCEPTED  # the data of another SYN does not belong to this connection
            elif not flags & (ACK | FIN | RST):
                self._fast_open(key, seq, size)
        elif flags & ACK and (key in self._handshakes or key in self._completed) and self._completes(key, seq, ack):
            if self._complete(key, seq, flags, size) & FAST_OPEN:
                segments = self._accepted(key, time_ns)
            else:
                flags |= UNACCEPTED
        if not size and not flags & (FIN | RST | URG):
            if not flags & SYN:
                self.count("bare_ack")
        elif size <= CHUNK:
            segments.append((key, flags, seq, ack, size, payload, time_ns))
        else:
            segments += _chunks((key, flags, seq, ack, size, payload, time_ns))
        return segments

    def _count_all(self, name: str, size: int) -> None:
        """Add the records of a packet with `size` bytes of payload to a counter."""
        if size:
            records, total = self.totals.get(name, (0, 0))
            self.totals[name] = records + 1 + (size - 1) // CHUNK, total + size

    def _completes(self, key: FlowKey, seq: int, ack: int) -> bool:
        """Whether the client completes a handshake that production answered, or completed it before."""
        client, server, kind = self._known(key)
        if not kind & ANSWERED or (seq + EARLY - client) & MASK >= PLAUSIBLE:
            return False
        return (ack - server) & MASK < (EARLY if kind & FAST_OPEN else 1)

    def _complete(self, key: FlowKey, seq: int, flags: int, size: int) -> int:
        """Note a packet of the client by which a handshake is complete; returns what the handshake was before."""
        client, server, kind = self._known(key)
        if flags & RST and seq == client and not kind & (FAST_OPEN | SAID):
            self._dropped(key)  # the client has sent no data, and will send none
            return kind
        now = kind | COMPLETE | (SAID if size or flags & FIN else 0)
        if now != kind:
            self._dropped(key)
            self._remember(key, client, server, now)
        return kind

    def _accepted(self, key: FlowKey, time_ns: int) -> list[Segment]:
        """The report that production accepted a connection."""
        client, server, kind = self._dropped(key)
        self.count("accepted")
        return [(key, kind & ANSWERED, client, server, 0, b"", time_ns)]

    def _fast_open(self, key: FlowKey, seq: int, size: int) -> None:
        """Remember which number acknowledges the data of a SYN, as bpf/tap.c does."""
        client, _, kind = self._known(key)
        if size or (kind and client == (seq + 1) & MASK):
            self._dropped(key)
        if size:
            self._remember(key, (seq + 1 + size) & MASK, 0, FAST_OPEN)

    def _remember(self, key: FlowKey, client: int, server: int, kind: int) -> None:
        those, most = (self._completed, COMPLETED) if kind & COMPLETE else (self._handshakes, HANDSHAKES)
        those[key] = client, server, kind
        if len(those) > most:
            those.popitem(last=False)

    def _known(self, key: FlowKey) -> tuple[int, int, int]:
        """The handshake with this key, from either table; zeros if there is none."""
        return self._completed.get(key) or self._handshakes.get(key, (0, 0, 0))

    def _dropped(self, key: FlowKey) -> tuple[int, int, int]:
        """The handshake with this key, which is forgotten; zeros if there is none."""
        return self._completed.pop(key, None) or self._handshakes.pop(key, (0, 0, 0))


def _chunks(segment: Segment) -> Iterator[Segment]:
    """Divide a segment that is longer than `CHUNK`."""
    key, flags, seq, ack, size, payload, time_ns = segment
    for start in range(0, size, CHUNK):
        part = flags & (UNACCEPTED | 0xFF) & ~(SYN | URG) if start else flags
        length = min(CHUNK, size - start)
        if start + length < size:
            part &= ~(FIN | PSH)
        yield key, part, (seq + start) & MASK, ack, length, payload[start : start + length], time_ns
