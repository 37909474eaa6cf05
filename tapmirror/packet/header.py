# SPDX-License-Identifier: Apache-2.0
"""The headers of IP and TCP; bpf/tap.c reads them in the same way.

IPv4 (RFC 791), IPv6 (RFC 8200) with its jumbo payloads (RFC 2675) and the kernel's BIG TCP (with a length of 0), TCP
(RFC 9293).  Any bytes are allowed; a header that is not whole is `None`.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from tapmirror.events import ACK, MULTIPATH, SYN, URG
from tapmirror.packet.key import MAPPED

_TCP: Final = struct.Struct(">HHIIBB")
_IP4: Final = struct.Struct(">BBHHHBBH4s4s")
_IP6: Final = struct.Struct(">IHBB16s16s")
ETHERTYPE_IP4: Final = 0x0800
ETHERTYPE_IP6: Final = 0x86DD
MAX_EXTENSIONS: Final = 6
"""Most extension headers that are followed, as many as in bpf/tap.c."""
MAX_OPTIONS: Final = 16
"""Most TCP options that are looked at, as many as in bpf/tap.c."""
OPTION_MPTCP: Final = 30
PROTO_TCP: Final = 6
HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
DESTINATION: Final = 60
_EXTENSIONS: Final = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION))


class Header(NamedTuple):
    """What the headers of a TCP packet say.  `length` is the payload's length on the wire; `flags` as in `Segment`."""

    source: bytes
    destination: bytes
    source_port: bytes
    destination_port: bytes
    vlan: int
    dscp: int
    fragment: bool
    seq: int
    ack: int
    flags: int
    length: int
    payload: memoryview


class Piece(NamedTuple):
    """Which part of a datagram a fragment has: `place` is its first byte there, `offset` the same byte in the frame,
    and `more` tells whether others follow.
    """

    ident: int
    place: int
    more: bool
    proto: int
    offset: int


class Network(NamedTuple):
    """What the network header says.  What it carries, of protocol `proto`, is from `offset` to `end`."""

    source: bytes
    destination: bytes
    dscp: int
    piece: Piece | None
    """Which part of a datagram this is; None: it is whole.  Only the first part (with `place` 0) has a header of
    `proto` at `offset`."""
    proto: int
    offset: int
    end: int


def network(frame: memoryview, offset: int, size: int, ethertype: int) -> Network | None:
    """Read the IP header at `offset` of a frame of `size` bytes on the wire."""
    if ethertype == ETHERTYPE_IP4:
        return _ip4(frame, offset, size)
    if ethertype == ETHERTYPE_IP6:
        return _ip6(frame, offset, size)
    return None


def _ip4(frame: memoryview, offset: int, size: int) -> Network | None:
    if len(frame) < offset + 20:
        return None
    first, tos, total, ident, frag, _, proto, _, source, destination = _IP4.unpack_from(frame, offset)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20:
        return None
    end = min(offset + total, size) if total else size
    offset += header
    piece = Piece(ident, (frag & 0x1FFF) * 8, bool(frag & 0x2000), proto, offset) if frag & 0x3FFF else None
    return Network(MAPPED + source, MAPPED + destination, tos >> 2, piece, proto, offset, end)


def _ip6(frame: memoryview, offset: int, size: int) -> Network | None:
    if len(frame) < offset + 40:
        return None
    first, length, proto, _, source, destination = _IP6.unpack_from(frame, offset)
    if first >> 28 != 6:
        return None
    end = min(offset + 40 + length, size) if length else size
    return extensions(frame, Network(source, destination, (first >> 22) & 0x3F, None, proto, offset + 40, end))


def extensions(frame: memoryview, found: Network) -> Network | None:
    """Pass over the IPv6 extension headers at `found.offset`, as far as a fragment has them."""
    _, _, _, piece, proto, at, _ = found
    for _ in range(MAX_EXTENSIONS):
        if proto not in _EXTENSIONS:
            break
        if len(frame) < at + 8:
            return None
        fragment = proto == FRAGMENT
        step = 8 if fragment else (frame[at + 1] + 1) * 8
        proto = frame[at]
        if fragment:
            place = int.from_bytes(frame[at + 2 : at + 4], "big")
            if place & 0xFFF9 and piece is None:
                ident = int.from_bytes(frame[at + 4 : at + 8], "big")
                piece = Piece(ident, place & 0xFFF8, bool(place & 1), proto, at + 8)
            if place & 0xFFF8:
                at += 8
                break
        at += step
    return Network(found.source, found.destination, found.dscp, piece, proto, at, found.end)


def tcp(frame: memoryview, found: Network, vlan: int) -> Header | None:
    """Read the TCP header at the place that the network header tells."""
    source, destination, dscp, piece, proto, at, end = found
    if proto != PROTO_TCP or len(frame) < at + 20 or (piece is not None and piece.place):
        return None
    _, _, seq, ack, offset, flags = _TCP.unpack_from(frame, at)
    start = at + (offset >> 4) * 4
    if offset >> 4 < 5 or start > end:
        return None
    flags &= 0x3F
    if flags & URG:
        flags |= int.from_bytes(frame[at + 18 : at + 20], "big") << 16
    if flags & (SYN | ACK) == SYN | ACK and _is_multipath(frame, at + 20, start):
        flags |= MULTIPATH
    return Header(
        source,
        destination,
        bytes(frame[at : at + 2]),
        bytes(frame[at + 2 : at + 4]),
        vlan,
        dscp,
        piece is not None,
        seq,
        ack,
        flags,
        end - start,
        frame[start:end],
    )


def _is_multipath(frame: memoryview, at: int, end: int) -> bool:
    """Whether one of the TCP options is that of Multipath TCP; `kind_of` of bpf/tap.c does the same."""
    for _ in range(MAX_OPTIONS):
        if at + 2 > min(end, len(frame)) or not frame[at]:
            break
        if frame[at] == OPTION_MPTCP:
            return True
        at += 1 if frame[at] == 1 else frame[at + 1]
    return False
