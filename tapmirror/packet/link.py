# SPDX-License-Identifier: Apache-2.0
"""Link layers: what a frame carries, and where it begins.

Link types are the numbers of the tcpdump group's registry (LINKTYPE_*, www.tcpdump.org/linktypes.html),
which capture files use.  Ethernet II with VLAN tags (IEEE 802.1Q, 802.1ad) and SNAP (RFC 1042), MPLS (RFC
3032, with the control word of RFC 4385), PPPoE (RFC 2516), PPP (RFC 1661, 1662), Cisco HDLC, Linux cooked
captures, BSD loopback, bare IP.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tapmirror.packet.header import ETHERTYPE_IP4, ETHERTYPE_IP6

NULL: Final = 0
ETHERNET: Final = 1
PPP: Final = 9
PPP_HDLC: Final = 50
PPP_ETHER: Final = 51
RAW: Final = 101
C_HDLC: Final = 104
LOOP: Final = 108
LINUX_SLL: Final = 113
IPV4: Final = 228
IPV6: Final = 229
LINUX_SLL2: Final = 276

VLAN_TYPES: Final = frozenset((0x8100, 0x88A8, 0x9100, 0x9200))
"""IEEE 802.1Q and 802.1ad.  The last two are for outer tags from before 802.1ad, which switches still write."""
PLAIN_TYPES: Final = frozenset((ETHERTYPE_IP4, ETHERTYPE_IP6))
MPLS_TYPES: Final = frozenset((0x8847, 0x8848))
PPPOE_SESSION: Final = 0x8864
SHORTEST_TYPE: Final = 0x600
"""Smallest number that is an EtherType.  A smaller one is a length, and a header of IEEE 802.2 follows."""
MAX_LABELS: Final = 16
MAX_TAGS: Final = 2
"""Most VLAN tags that are followed, as many as in bpf/tap.c."""

_RAW_TYPES: Final = frozenset((12, 14, RAW))
"""LINKTYPE_RAW, and the numbers that DLT_RAW has in the files of some systems."""
_FAMILIES: Final = {2: ETHERTYPE_IP4, 10: ETHERTYPE_IP6, 24: ETHERTYPE_IP6, 28: ETHERTYPE_IP6, 30: ETHERTYPE_IP6}
"""AF_INET everywhere; AF_INET6 in Linux, in NetBSD and OpenBSD, in FreeBSD, in macOS."""
_PPP_PROTOCOLS: Final = {0x0021: ETHERTYPE_IP4, 0x0057: ETHERTYPE_IP6, 0x0281: 0x8847, 0x0283: 0x8848}
_SNAP: Final = b"\xaa\xaa\x03\0\0\0"

KNOWN: Final = _RAW_TYPES | {
    NULL,
    ETHERNET,
    PPP,
    PPP_HDLC,
    PPP_ETHER,
    C_HDLC,
    LOOP,
    LINUX_SLL,
    IPV4,
    IPV6,
    LINUX_SLL2,
}


MAX_LAYERS: Final = 8
"""Most frames within frames of the link layer (MPLS, SNAP, PPPoE).  No use is known that nests more than two or
three."""


class Cargo(NamedTuple):
    """What a frame carries: its EtherType, where it begins, and the VLAN ids as in a flow key."""

    ethertype: int
    offset: int
    vlan: int


def cargo(frame: memoryview, link: int, offset: int = 0, vlan: int = 0, depth: int = 0) -> Cargo | None:
    """Read the link layer at `offset`.  None: its type is unknown, it is not whole, or it is nested deeper than
    `MAX_LAYERS`.
    """
    if depth > MAX_LAYERS:
        return None
    if link == ETHERNET:
        return carried(frame, _number(frame, offset + 12), offset + 14, vlan, depth)
    if link in _RAW_TYPES:
        version = frame[offset] >> 4 if len(frame) > offset else 0
        kind = {4: ETHERTYPE_IP4, 6: ETHERTYPE_IP6}.get(version)
        return Cargo(kind, offset, vlan) if kind is not None else None
    if link == LINUX_SLL:
        return carried(frame, _number(frame, offset + 14), offset + 16, vlan)
    if link == LINUX_SLL2:
        return carried(frame, _number(frame, offset), offset + 20, vlan)
    if link in (NULL, LOOP):
        four = bytes(frame[offset : offset + 4])
        family = _FAMILIES.get(int.from_bytes(four, "little")) or _FAMILIES.get(int.from_bytes(four, "big"))
        return Cargo(family, offset + 4, vlan) if family is not None else None
    if link in (PPP, PPP_HDLC, C_HDLC):
        return _ppp(frame, offset, vlan)
    if link == PPP_ETHER:
        return _ppp(frame, offset + 6, vlan)
    if link in (IPV4, IPV6):
        return Cargo(ETHERTYPE_IP4 if link == IPV4 else ETHERTYPE_IP6, offset, vlan)
    return None


def tagged(frame: memoryview, kind: int, offset: int, vlan: int) -> Cargo:
    """Pass over VLAN tags.  `kind` is an EtherType, and `offset` the place of what it stands for."""
    for _ in range(MAX_TAGS):
        if kind not in VLAN_TYPES:
            break
        vlan = ((vlan << 16) | (_number(frame, offset) & 0xFFF)) & 0xFFFFFFFF
        kind = _number(frame, offset + 2)
        offset += 4
    return Cargo(kind, offset, vlan)


def ethernet(frame: memoryview, vlan: int) -> Cargo:
    """What an Ethernet frame carries, behind nothing but VLAN tags."""
    return tagged(frame, _number(frame, 12), 14, vlan)


def carried(frame: memoryview, kind: int, offset: int, vlan: int, depth: int = 0) -> Cargo | None:
    """Pass over tags and labels behind an EtherType; there were `depth` layers before."""
    if kind in PLAIN_TYPES:
        return Cargo(kind, offset, vlan)
    kind, offset, vlan = tagged(frame, kind, offset, vlan)
    if kind in MPLS_TYPES:
        return _mpls(frame, offset, vlan, depth)
    if kind == PPPOE_SESSION:
        return _ppp(frame, offset + 6, vlan, depth + 1) if depth < MAX_LAYERS else None
    if 0 < kind < SHORTEST_TYPE and bytes(frame[offset : offset + 6]) == _SNAP and depth < MAX_LAYERS:
        return carried(frame, _number(frame, offset + 6), offset + 8, vlan, depth + 1)
    return Cargo(kind, offset, vlan)


def _mpls(frame: memoryview, offset: int, vlan: int, depth: int) -> Cargo | None:
    """Read a stack of MPLS labels.  They do not name what they carry: its first four bits tell (RFC 4928)."""
    for _ in range(MAX_LABELS):
        if len(frame) < offset + 5:
            return None
        bottom = frame[offset + 2] & 1
        offset += 4
        if bottom:
            version = frame[offset] >> 4
            if version == 0:
                return cargo(frame, ETHERNET, offset + 4, vlan, depth + 1)
            return cargo(frame, RAW, offset, vlan)
    return None


def _ppp(frame: memoryview, offset: int, vlan: int, depth: int = 0) -> Cargo | None:
    start = bytes(frame[offset : offset + 2])
    if start in (b"\x0f\x00", b"\x8f\x00"):  # Cisco HDLC: unicast, multicast
        return carried(frame, _number(frame, offset + 2), offset + 4, vlan, depth + 1)
    if start == b"\xff\x03":
        offset += 2
    if len(frame) <= offset:
        return None
    short = frame[offset] & 1  # RFC 1661, 6.5: the protocol field may be one byte
    kind = _PPP_PROTOCOLS.get(frame[offset] if short else _number(frame, offset))
    return carried(frame, kind, offset + (1 if short else 2), vlan, depth + 1) if kind is not None else None


def _number(frame: memoryview, offset: int) -> int:
    """The number in two bytes; 0, which is no EtherType, if they are not there."""
    return int.from_bytes(frame[offset : offset + 2], "big")
