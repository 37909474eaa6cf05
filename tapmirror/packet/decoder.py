# SPDX-License-Identifier: Apache-2.0
"""Frames to TCP headers: the order of the layers.

`decode` reads what the kernel program reads, and no more.  A `Decoder` also looks into tunnels and puts
fragments together, for sources that have the time.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from typing import Final

from tapmirror.packet.fragments import Fragments
from tapmirror.packet.header import ETHERTYPE_IP6, PROTO_TCP, Header, Network, extensions, network, tcp
from tapmirror.packet.key import MAPPED
from tapmirror.packet.link import KNOWN, Cargo, cargo, ethernet
from tapmirror.packet.tunnel import inner

MAX_TUNNELS: Final = 6
"""Most tunnels within one another that are looked into."""


def decode(frame: memoryview, size: int, *, ethertype: int | None = None, vlan: int = 0) -> Header | None:
    """Read a frame as bpf/tap.c does; `size` is its length on the wire, `frame` what was captured of it.

    `ethertype` is given for links without an Ethernet header; `vlan` is a tag that the kernel had taken out of the
    frame.
    """
    found = ethernet(frame, vlan) if ethertype is None else Cargo(ethertype, 0, vlan)
    packet = network(frame, found.offset, size, found.ethertype)
    return tcp(frame, packet, found.vlan) if packet is not None else None


class Decoder:
    """Frames to headers, through tunnels and fragments.

    `checksums`: leave out segments whose TCP checksum is wrong.  This is only done on request: if the sender's network
    card computes checksums, outgoing packets are captured before that, and all of them look wrong.
    """

    def __init__(self, *, tunnels: bool, checksums: bool) -> None:
        self._tunnels = tunnels
        self._checksums = checksums
        self.fragments = Fragments()
        self.bad_checksums = 0
        self.unknown: Counter[int] = Counter()
        """Frames of unknown link types, by type."""

    def decode(self, frame: memoryview, size: int, link: int, now: float, vlan: int = 0) -> Header | None:
        """Read a frame; `size` is its length on the wire, `frame` what was captured of it, `now` the capture's time in
        seconds.

        `vlan` is a tag that the kernel had taken out of the frame.
        """
        found = cargo(frame, link, 0, vlan)
        if found is None and link not in KNOWN:
            self.unknown[link] += 1
        vni = 0
        for _ in range(MAX_TUNNELS):
            if found is None:
                return None
            packet = network(frame, found.offset, size, found.ethertype)
            if packet is None:
                return None
            if packet.piece is not None:
                whole = self.fragments.add(frame, packet, now, label(vni, found.vlan))
                if whole is None:
                    return None
                frame, packet = whole
                if found.ethertype == ETHERTYPE_IP6:
                    packet = extensions(frame, packet)
                    if packet is None:
                        return None
            if packet.proto == PROTO_TCP:
                return self._tcp(frame, packet, label(vni, found.vlan))
            if not self._tunnels:
                return None
            within = inner(frame, packet)
            if within is None:
                return None
            found, size = within.cargo, packet.end
            vni = within.vni or vni
        return None

    def _tcp(self, frame: memoryview, packet: Network, vlan: int) -> Header | None:
        header = tcp(frame, packet, vlan)
        if header is not None and self._checksums and not checksum_right(frame, packet):
            self.bad_checksums += 1
            return None
        return header


def label(vni: int, vlan: int) -> int:
    """What stands for the VLAN ids in a flow key.  In a virtual network (`vni`) it is a checksum of its id and the VLAN
    ids.
    """
    return zlib.crc32(struct.pack(">II", vni, vlan)) if vni else vlan


def checksum_right(frame: memoryview, packet: Network) -> bool:
    """Whether the TCP checksum is right (RFC 9293, 3.1; RFC 8200, 8.1).  It is taken for right if the segment was not
    captured whole.
    """
    data = frame[packet.offset : packet.end]
    length = packet.end - packet.offset
    if len(data) < length:
        return True
    source, destination = packet.source, packet.destination
    if source.startswith(MAPPED):
        source, destination = source[12:], destination[12:]
    words = b"".join((source, destination, struct.pack(">II", length, PROTO_TCP), data, b"\0" * (length & 1)))
    # The ones' complement sum is the number modulo 2**16 - 1; all ones is right, and is 0 there.
    return int.from_bytes(words, "big") % 0xFFFF == 0
