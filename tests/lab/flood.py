# SPDX-License-Identifier: Apache-2.0
"""SYNs by the hundred thousand, from clients that are not there."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from lab.hosts import Host
from lab.network import Lab

NETWORK: Final = "198.18.0.0/15"
"""Where they say that they come from: the network of benchmarks (RFC 2544)."""
FIRST: Final = 198 << 24 | 18 << 16
PACE: Final = 50
"""Clients that are sent at once where there is a rate."""
WORDS: Final = struct.Struct("!10H")


@contextlib.contextmanager
def unanswering(lab: Lab) -> Iterator[None]:
    """Production's responses to these clients go to the lab's, which discards them."""
    lab.node.run(["ip", "route", "add", NETWORK, "via", lab.client.addr4])
    for name in ("all", lab.node.iface):
        lab.node.sysctl(f"ipv4.conf.{name}.rp_filter", 0)
    try:
        yield
    finally:
        lab.node.run(["ip", "route", "del", NETWORK])


def syns(host: Host, address: str, port: int, count: int, *, times: int = 2, rate: float = 0.0) -> None:
    """Send so many, each of another client, and each `times`; `rate` clients a second, 0: as fast as the host can."""
    to = socket.inet_aton(address)
    with host.enter():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    began = time.monotonic()
    with raw:
        for number in range(count):
            client = struct.pack("!I", FIRST + number % (1 << 17))
            tcp = struct.pack("!HHIIBBHHH", 1024 + number % 60_000, port, number, 0, 5 << 4, 2, 65_535, 0, 0)
            total = sum(WORDS.unpack(tcp)) + sum(struct.unpack("!4H", client + to)) + socket.IPPROTO_TCP + len(tcp)
            total = (total & 0xFFFF) + (total >> 16)
            total = (total & 0xFFFF) + (total >> 16)
            tcp = tcp[:16] + struct.pack("!H", ~total & 0xFFFF) + tcp[18:]
            packet = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + client + to + tcp
            for _ in range(times):
                raw.sendto(packet, (address, 0))
            if rate and not number % PACE:
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
