# SPDX-License-Identifier: Apache-2.0
"""Packets in an AF_PACKET ring to segments: what the kernel says of each, its headers, and what `admission` decides.

Theory of operation
-------------------
Nearly all packets are TCP in Ethernet without tags, in IPv4 without options or IPv6 without extension headers.  Of
these everything that is needed lies at known places: one read of the kernel's header, one of theirs, and whose they are
is known by the bytes that name both ends (`_known`), since it is the same for all packets of a flow in one direction.
All others take the long way, through `packet`, which reads everything; so do those whose TCP header has to be read
further.  Both ways lead to the same rules, and have the same outcome.
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
"""Ends that are remembered, some 5 MB; with more all are asked for anew, which costs each what the long way does."""

FRAME: Final = struct.Struct("=4x5IH6x28s")
"""`struct tpacket3_hdr`: seconds, nanoseconds, captured, length, status, offset of the frame; then as one, `_PLACE`."""
_PLACE: Final = struct.Struct("=I14x2s4xHBx")
"""VLAN tag of a packet; of the `struct sockaddr_ll` behind it: protocol, the interface's kind, the packet's."""
_TYPE_AT: Final = 12
"""Where the following begin, in a frame."""
_IP4: Final = struct.Struct(">IH2xI2x12sIIH")
"""EtherType, version, header length and type of service; total length; fragment, time to live and protocol; addresses
and ports; sequence number, acknowledgement; offset and flags."""
_IP6: Final = struct.Struct(">HIHBx36sIIH")
"""EtherType; version, traffic class and flow label; payload length; next header; the rest as in `_IP4`."""
_IP4_PLAIN: Final = ETHERTYPE_IP4 << 8 | 0x45
_IP4_AT: Final = 14
_TCP4_AT: Final = _IP4_AT + 20
_TCP6_AT: Final = _IP4_AT + 40
_TCP_BYTES: Final = 20
_WHOLE_TCP: Final = 0x3FFF00FF
"""Mask of the word with the fragment: what it leaves is 6 (TCP) where the packet is no fragment."""


class Judge:
    """Packets in, segments out.

    `decoder` reads what `decode` does not; `promiscuous`: packets for other stations count (TAP_PROMISC and
    TAP_EITHER_WAY of bpf/tap.h).
    """

    def __init__(self, admission: Admission, decoder: Decoder | None = None, *, promiscuous: bool = False) -> None:
        self._admission = admission
        self._decoder = decoder
        self._promiscuous = promiscuous
        self._known: dict[bytes, dict[bytes, Way | None]] = {}
        """By place (`_PLACE`), where the short way can be gone, and by ends."""
        self._room = KNOWN

    def forget(self) -> None:
        """Whose packets count, or which, may be different from now on."""
        self._known.clear()
        self._room = KNOWN

    def judged(self, ring: memoryview, at: int, ahead: int) -> list[Segment]:
        """The segments of the packet that is there in the ring.

        `ahead`: what the kernel's time stamps are ahead of CLOCK_MONOTONIC, in ns.
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
        """Ask whose packets these are, and remember it."""
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
        """One more; if these are too many, begin anew."""
        self._room -= 1
        if not self._room:
            self.forget()

    def _long(self, ring: memoryview, at: int, ahead: int) -> list[Segment]:
        """The same, for any packet; and go the short way with others of its place, if that can be."""
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
        """`ethertype` for links without an Ethernet header, `vlan` for a tag that the kernel took out."""
        if self._decoder is None:
            return decode(frame, size, ethertype=ethertype, vlan=vlan)
        return self._decoder.decode(frame, size, ETHERNET if ethertype is None else RAW, now, vlan)
