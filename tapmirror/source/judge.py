# SPDX-License-Identifier: Apache-2.0
"""Turns packets in an AF_PACKET ring into segments: by what the kernel says of each, its headers, and `admission`.

Theory of operation
-------------------
Nearly all packets are TCP in Ethernet without tags, in IPv4 without options or IPv6 without extension headers.  All
that is needed of these lies at known places: one read takes the kernel's header, another one those of the packet.
Which flow and direction it belongs to is known by the bytes that name both ends (`_known`), because these are the same
for all packets of a flow in one direction.  All other packets take the long way, through `packet`, which reads
everything; so do packets of which more of the TCP header is needed (the urgent pointer, the options of a SYN-ACK).
Both ways lead to the same rules, and have the same outcome.
"""

from __future__ import annotations

import struct
from typing import Final

from tapmirror.admission import Admission, Way
from tapmirror.events import ACK, SYN, URG, Segment
from tapmirror.packet import MAPPED, Decoder, Header, decode
from tapmirror.packet.header import ETHERTYPE_IP4, ETHERTYPE_IP6, PROTO_TCP
from tapmirror.packet.link import ETHERNET, RAW

PACKET_OTHERHOST: Final = 3
PACKET_OUTGOING: Final = 4
TP_STATUS_VLAN_VALID: Final = 0x10
ARPHRD_LOOPBACK: Final = 772
ARPHRD_WITH_ETHERNET: Final = (1, ARPHRD_LOOPBACK)
KNOWN: Final = 16_384
"""Most pairs of end points that are remembered (some 5 MB).  If there are more, all are looked up anew, each at the
cost of the long way."""

FRAME: Final = struct.Struct("=4x5IH6x28s")
"""`struct tpacket3_hdr`: seconds, nanoseconds, captured, length, status, offset of the frame; then as one, `_PLACE`."""
_PLACE: Final = struct.Struct("=I14x2s4xHBx")
"""The VLAN tag of a packet; then, from the `struct sockaddr_ll` behind it: the protocol, the kind of interface, the
kind of packet."""
_TYPE_AT: Final = 12
"""Where the following structures begin in a frame."""
_IP4: Final = struct.Struct(">IH2xI2x12sIIH")
"""EtherType, version, header length and type of service; total length; fragment, time to live and protocol;
addresses and ports; sequence number, acknowledgement; data offset and flags."""
_IP6: Final = struct.Struct(">HIHBx36sIIH")
"""EtherType; version, traffic class and flow label; payload length; next header; the rest as in `_IP4`."""
_IP4_PLAIN: Final = ETHERTYPE_IP4 << 8 | 0x45
_IP4_AT: Final = 14
_TCP4_AT: Final = _IP4_AT + 20
_TCP6_AT: Final = _IP4_AT + 40
_TCP_BYTES: Final = 20
_WHOLE_TCP: Final = 0x3FFF00FF
"""Mask for the word with the fragment fields: the result is 6 (TCP) if the packet is not a fragment."""


class Judge:
    """Packets in, segments out.

    `decoder` reads packets that `decode` does not.  `promiscuous`: packets for other stations count (TAP_PROMISC and
    TAP_EITHER_WAY of bpf/tap.h).
    """

    def __init__(self, admission: Admission, decoder: Decoder | None = None, *, promiscuous: bool = False) -> None:
        self._admission = admission
        self._decoder = decoder
        self._promiscuous = promiscuous
        self._known: dict[bytes, dict[bytes, Way | None]] = {}
        """For each place (`_PLACE`) at which the short way is possible: what is known of end points, by their bytes."""
        self._room = KNOWN

    def forget(self) -> None:
        """Forget what is remembered: other packets, or packets of other end points, count from now on."""
        self._known.clear()
        self._room = KNOWN

    def judged(self, ring: memoryview, at: int, ahead: int) -> list[Segment]:
        """The segments of the packet that is at `at` in the ring.

        `ahead`: how far the kernel's time stamps are ahead of CLOCK_MONOTONIC, in ns.
        """
        seconds, nanoseconds, captured, size, _, offset, place = FRAME.unpack_from(ring, at)
        known = self._known.get(place)
        if known is None or captured < _TCP4_AT + _TCP_BYTES:
            return self._long(ring, at, ahead)
        frame = at + offset
        kind, total, part, ends, seq, ack, bits = _IP4.unpack_from(ring, frame + _TYPE_AT)
        if kind >> 8 == _IP4_PLAIN and part & _WHOLE_TCP == PROTO_TCP:
            traffic = kind & 0xFF
            start = _TCP4_AT
            end = _IP4_AT + total
        elif kind >> 16 == ETHERTYPE_IP6 and captured >= _TCP6_AT + _TCP_BYTES:
            _, first, total, proto, ends, seq, ack, bits = _IP6.unpack_from(ring, frame + _TYPE_AT)
            if first >> 28 != 6 or proto != PROTO_TCP:
                return self._long(ring, at, ahead)
            traffic = first >> 20 & 0xFF
            start = _TCP6_AT
            end = _TCP6_AT + total
        else:
            return self._long(ring, at, ahead)
        if not total or end > size:
            end = size
        start += bits >> 10 & 0x3C
        length = end - start
        flags = bits & 0x3F
        if bits < 5 << 12 or length < 0 or flags & URG or flags & (SYN | ACK) == SYN | ACK:
            return self._long(ring, at, ahead)
        try:
            way = known[ends]
        except KeyError:
            way = self._learn(known, place, ends)
        if way is None:
            return []
        payload = ring[frame + start : frame + min(end, captured)]
        time_ns = seconds * 1_000_000_000 + nanoseconds - ahead
        if way.from_client:
            return self._admission.from_client(way, traffic >> 2, False, seq, ack, flags, length, payload, time_ns)
        return self._admission.from_server(way, False, seq, ack, flags, length, payload, time_ns)

    def _learn(self, known: dict[bytes, Way | None], place: bytes, ends: bytes) -> Way | None:
        """Look up whose packets these are, and remember it."""
        tag, _, hardware, kind = _PLACE.unpack(place)
        size = (len(ends) - 4) // 2
        mapped = MAPPED if size == 4 else b""
        way = self._admission.way(
            mapped + ends[:size],
            mapped + ends[size : 2 * size],
            ends[-4:-2],
            ends[-2:],
            tag & 0xFFF,
            kind == PACKET_OUTGOING,
            hardware == ARPHRD_LOOPBACK,
        )
        known[ends] = way
        self._remembered()
        return way

    def _remembered(self) -> None:
        """Remember one more; if there are too many, forget all."""
        self._room -= 1
        if not self._room:
            self.forget()

    def _long(self, ring: memoryview, at: int, ahead: int) -> list[Segment]:
        """The segments of any packet, on the long way.  If others of its place can go the short way, they will."""
        seconds, nanoseconds, captured, size, status, offset, place = FRAME.unpack_from(ring, at)
        tag, protocol, hardware, kind = _PLACE.unpack(place)
        if kind == PACKET_OTHERHOST and not self._promiscuous:
            return []
        ethernet = hardware in ARPHRD_WITH_ETHERNET
        if ethernet and place not in self._known:
            self._known[place] = {}
            self._remembered()
        time_ns = seconds * 1_000_000_000 + nanoseconds - ahead
        vlan = tag & 0xFFF if status & TP_STATUS_VLAN_VALID else 0
        ethertype = None if ethernet else int.from_bytes(protocol, "big")
        frame = ring[at + offset : at + offset + captured]
        header = self._header(frame, size, ethertype, vlan, time_ns / 1e9)
        if header is None:
            return []
        return self._admission.admit(header, kind == PACKET_OUTGOING, time_ns, hardware == ARPHRD_LOOPBACK)

    def _header(self, frame: memoryview, size: int, ethertype: int | None, vlan: int, now: float) -> Header | None:
        """`ethertype`: for links without an Ethernet header.  `vlan`: a tag that the kernel took out of the frame."""
        if self._decoder is None:
            return decode(frame, size, ethertype=ethertype, vlan=vlan)
        return self._decoder.decode(frame, size, ETHERNET if ethertype is None else RAW, now, vlan)
