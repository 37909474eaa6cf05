# SPDX-License-Identifier: Apache-2.0
"""Frames to TCP header facts: the user-space twin of the parsing in bpf/tap.c.

Formats: Ethernet II with up to two VLAN tags (IEEE 802.1Q, 802.1ad), IPv4 (RFC 791), IPv6 (RFC 8200),
its jumbo payloads (RFC 2675) and the kernel's BIG TCP (a length of 0), TCP (RFC 9293).

Pure.  Any bytes are allowed; what is no whole TCP header is `None`.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, NamedTuple

from tapmirror.events import FlowKey

_TCP: Final = struct.Struct(">HHIIBB")
_IP4: Final = struct.Struct(">BBHHHBBH4s4s")
_IP6: Final = struct.Struct(">IHBB16s16s")
_WORDS: Final = struct.Struct("<10I")
MAPPED: Final = bytes(10) + b"\xff\xff"
ETHERTYPE_IP4: Final = 0x0800
ETHERTYPE_IP6: Final = 0x86DD
VLAN_TYPES: Final = (0x8100, 0x88A8)
MAX_TAGS: Final = 2
MAX_EXTENSIONS: Final = 6
PROTO_TCP: Final = 6
HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
DESTINATION: Final = 60


class Header(NamedTuple):
    """What the headers of a TCP packet say.  `length` is the payload's on the wire."""

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


class Network(NamedTuple):
    """What the network header says; `offset` and `end` bound what it carries."""

    source: bytes
    destination: bytes
    dscp: int
    fragment: bool
    offset: int
    end: int


def flow_hash(key: FlowKey, seed: int) -> int:
    """The 32-bit hash by which flows are sampled and put into buckets; the same as in bpf/tap.c.

    Multiply and xor-shift over the words of the key, finished by MurmurHash3's fmix32.
    """
    h = seed
    for word in _WORDS.unpack(key):
        h = ((h ^ word) * 0x9E3779B1) & 0xFFFFFFFF
        h ^= h >> 15
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & 0xFFFFFFFF
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


def flow_key(client: bytes, server: bytes, client_port: bytes, server_port: bytes, vlan: int) -> FlowKey:
    """The key of a flow; addresses in 16 bytes, ports in 2, big endian."""
    return client + server + client_port + server_port + struct.pack("=I", vlan)


def mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """An address in the 16 bytes of a key."""
    return address.packed if address.version == 6 else MAPPED + address.packed


def show_key(key: FlowKey) -> str:
    """A flow for people: `10.0.0.1:1234 > 10.0.0.2:80`."""
    return f"{_show(key[:16], key[32:34])} > {_show(key[16:32], key[34:36])}"


def _show(address: bytes, port: bytes) -> str:
    number = int.from_bytes(port, "big")
    if address.startswith(MAPPED):
        return f"{ipaddress.IPv4Address(address[12:])}:{number}"
    return f"[{ipaddress.IPv6Address(address)}]:{number}"


def decode(frame: memoryview, size: int, *, ethertype: int | None = None, vlan: int = 0) -> Header | None:
    """Read a captured frame of `size` bytes on the wire, of which `frame` was captured.

    `ethertype` is given for links without an Ethernet header; `vlan` is a tag that the kernel had
    taken out of the frame.
    """
    offset = 0
    if ethertype is None:
        link = _link(frame, vlan)
        if link is None:
            return None
        offset, ethertype, vlan = link
    if ethertype == ETHERTYPE_IP4:
        network = _ip4(frame, offset, size)
    elif ethertype == ETHERTYPE_IP6:
        network = _ip6(frame, offset, size)
    else:
        return None
    return _tcp(frame, network, vlan) if network is not None else None


def _link(frame: memoryview, vlan: int) -> tuple[int, int, int] | None:
    """(offset, EtherType, VLAN ids) of what an Ethernet frame carries."""
    offset = 12
    for _ in range(MAX_TAGS + 1):
        if len(frame) < offset + 2:
            return None
        kind = int.from_bytes(frame[offset : offset + 2], "big")
        if kind not in VLAN_TYPES:
            return offset + 2, kind, vlan
        vlan = ((vlan << 16) | (int.from_bytes(frame[offset + 2 : offset + 4], "big") & 0xFFF)) & 0xFFFFFFFF
        offset += 4
    return None


def _ip4(frame: memoryview, offset: int, size: int) -> Network | None:
    if len(frame) < offset + 20:
        return None
    first, tos, total, _, frag, _, proto, _, source, destination = _IP4.unpack_from(frame, offset)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20 or proto != PROTO_TCP or frag & 0x1FFF:
        return None
    end = min(offset + total, size) if total else size
    return Network(MAPPED + source, MAPPED + destination, tos >> 2, bool(frag & 0x2000), offset + header, end)


def _ip6(frame: memoryview, offset: int, size: int) -> Network | None:
    if len(frame) < offset + 40:
        return None
    first, length, proto, _, source, destination = _IP6.unpack_from(frame, offset)
    if first >> 28 != 6:
        return None
    end = min(offset + 40 + length, size) if length else size
    at = offset + 40
    fragment = False
    for _ in range(MAX_EXTENSIONS):
        if proto not in (HOP_BY_HOP, ROUTING, DESTINATION, FRAGMENT):
            break
        if len(frame) < at + 8:
            return None
        if proto == FRAGMENT:
            place = int.from_bytes(frame[at + 2 : at + 4], "big")
            if place & 0xFFF8:
                return None
            fragment = fragment or bool(place & 1)
            step = 8
        else:
            step = (frame[at + 1] + 1) * 8
        proto = frame[at]
        at += step
    if proto != PROTO_TCP:
        return None
    return Network(source, destination, (first >> 22) & 0x3F, fragment, at, end)


def _tcp(frame: memoryview, network: Network, vlan: int) -> Header | None:
    at = network.offset
    if len(frame) < at + 20:
        return None
    _, _, seq, ack, offset, flags = _TCP.unpack_from(frame, at)
    start = at + (offset >> 4) * 4
    if offset >> 4 < 5 or start > network.end:
        return None
    return Header(
        network.source,
        network.destination,
        bytes(frame[at : at + 2]),
        bytes(frame[at + 2 : at + 4]),
        vlan,
        network.dscp,
        network.fragment,
        seq,
        ack,
        flags & 0x3F,
        network.end - start,
        frame[start : network.end],
    )
