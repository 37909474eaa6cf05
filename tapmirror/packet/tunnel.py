# SPDX-License-Identifier: Apache-2.0
"""Tunnels: what a packet carries that is a packet itself.

VXLAN (RFC 7348) and GENEVE (RFC 8926), in which AWS and Azure deliver mirrored traffic; GTP-U (3GPP TS 29.281); Teredo
(RFC 4380); GRE (RFC 2784, 2890) with IP, Ethernet, MPLS or ERSPAN of types I to III (draft-foschiano-erspan), as
switches use it, and that of PPTP (RFC 2637); IPv4 and IPv6 in either (RFC 2003, 2473, 4213).  UDP tunnels are
recognised by their port.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tapmirror.packet.header import ETHERTYPE_IP4, ETHERTYPE_IP6, Network
from tapmirror.packet.link import ETHERNET, PPP, RAW, Cargo, cargo, carried

IP_IN_IP: Final = 4
UDP: Final = 17
IP6_IN_IP: Final = 41
GRE: Final = 47

VXLAN_PORTS: Final = frozenset((4789, 8472))
"""IANA's port, and the one that Linux used before there was one."""
GENEVE_PORT: Final = 6081
GTP_PORT: Final = 2152
TEREDO_PORT: Final = 3544
PPTP_PPP: Final = 0x880B
ETHERNET_BRIDGING: Final = 0x6558
ERSPAN: Final = 0x88BE
ERSPAN_3: Final = 0x22EB


class Inner(NamedTuple):
    """What a tunnel carries, and the id of the virtual network that it belongs to (0: none).

    Only VXLAN has one here: its id names a network segment, and is the same in both directions (RFC 7348, 4).  With the
    other tunnels each end may choose its own.
    """

    cargo: Cargo
    vni: int


def inner(frame: memoryview, outer: Network) -> Inner | None:
    """Read what a packet carries.  None: it is no tunnel of a known kind."""
    _, _, _, _, proto, at, _ = outer
    if proto == UDP:
        return _udp(frame, at)
    if proto == GRE:
        return _inner(_gre(frame, at))
    if proto == IP_IN_IP:
        return Inner(Cargo(ETHERTYPE_IP4, at, 0), 0)
    if proto == IP6_IN_IP:
        return Inner(Cargo(ETHERTYPE_IP6, at, 0), 0)
    return None


def _inner(found: Cargo | None, vni: int = 0) -> Inner | None:
    return Inner(found, vni) if found is not None else None


def _udp(frame: memoryview, at: int) -> Inner | None:
    if len(frame) < at + 16:
        return None
    source, port = _number(frame, at), _number(frame, at + 2)
    at += 8
    if port in VXLAN_PORTS and frame[at] & 0x08:
        return _inner(cargo(frame, ETHERNET, at + 8), int.from_bytes(frame[at + 4 : at + 7], "big"))
    if port == GENEVE_PORT and frame[at] >> 6 == 0:
        kind = _number(frame, at + 2)
        return _inner(_bridged(frame, kind, at + 8 + (frame[at] & 0x3F) * 4))
    if port == GTP_PORT and frame[at] >> 4 == 3 and frame[at + 1] == 0xFF:
        return _inner(_gtp(frame, at))
    if TEREDO_PORT in (source, port):
        return _inner(_teredo(frame, at))
    return None


def _teredo(frame: memoryview, at: int) -> Cargo | None:
    """IPv6, which may be behind an authentication and an origin indication (RFC 4380, 5.1.1)."""
    if _number(frame, at) == 1:
        at += 13 + _byte(frame, at + 2) + _byte(frame, at + 3)
    if _number(frame, at) == 0:
        at += 8
    return Cargo(ETHERTYPE_IP6, at, 0) if _byte(frame, at) >> 4 == 6 else None


def _gtp(frame: memoryview, at: int) -> Cargo | None:
    """A G-PDU.  Three flags say whether optional fields and extension headers follow."""
    flags = frame[at]
    at += 8
    if flags & 7:
        kind = _byte(frame, at + 3)
        at += 4
        while kind and flags & 4:
            length = _byte(frame, at) * 4
            if not length:
                return None
            kind = _byte(frame, at + length - 1)
            at += length
    return cargo(frame, RAW, at)


def _gre(frame: memoryview, at: int) -> Cargo | None:
    if len(frame) < at + 4:
        return None
    flags, kind = _number(frame, at), _number(frame, at + 2)
    if flags & 7 == 1 and kind == PPTP_PPP:
        return cargo(frame, PPP, at + 8 + 4 * (flags & 0x1000 > 0) + 4 * (flags & 0x80 > 0))
    if flags & 0x4007:  # source routes, and other versions than 0
        return None
    at += 4 + 4 * (flags & 0x8000 > 0) + 4 * (flags & 0x2000 > 0) + 4 * (flags & 0x1000 > 0)
    if kind == ERSPAN:
        return cargo(frame, ETHERNET, at + 8 if flags & 0x1000 else at)
    if kind == ERSPAN_3:
        return cargo(frame, ETHERNET, at + 12 + 8 * (_byte(frame, at + 11) & 1))
    return _bridged(frame, kind, at)


def _bridged(frame: memoryview, kind: int, at: int) -> Cargo | None:
    return cargo(frame, ETHERNET, at) if kind == ETHERNET_BRIDGING else carried(frame, kind, at, 0)


def _byte(frame: memoryview, at: int) -> int:
    return frame[at] if at < len(frame) else 0


def _number(frame: memoryview, at: int) -> int:
    return int.from_bytes(frame[at : at + 2], "big")
