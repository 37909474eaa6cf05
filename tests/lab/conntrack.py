# SPDX-License-Identifier: Apache-2.0
"""A table of connections (conntrack) that is full: in one network namespace, by the kernel's own bound.

`net.netfilter.nf_conntrack_max` is one value for the whole machine, and is left alone; but each namespace counts by
itself.  So one of the lab is filled up to it with connections that nobody has, by ctnetlink (the kernel's
nfnetlink_conntrack.h): established and assured ones, of which none gives way to a new one, as others would.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Final

from lab.hosts import Host, LabError

NETLINK_NETFILTER: Final = 12
CT_NEW: Final = 1 << 8
CT_DELETE: Final = 1 << 8 | 2
"""Without a tuple: all there are."""
REQUEST, ACK, CREATE, EXCL = 0x1, 0x4, 0x400, 0x200
NESTED: Final = 0x8000
BATCH: Final = 256
"""Messages of one send."""
PORTS: Final = 60_000
LIMIT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")


@contextlib.contextmanager
def tracked(host: Host, untracked_port: int | None = None) -> Iterator[None]:
    """The host tracks its connections as long as this lasts, but for those to a port of its own."""
    rules = "add table inet track; add chain inet track in { type filter hook input priority 0; }"
    rules += "; add rule inet track in ct state invalid accept"
    if untracked_port is not None:
        for hook, side in (("prerouting", "dport"), ("output", "sport")):
            rules += f"; add chain inet track {hook} {{ type filter hook {hook} priority -300; }}"
            rules += f"; add rule inet track {hook} tcp {side} {untracked_port} notrack"
    host.run(["nft", rules])
    try:
        yield
    finally:
        host.run(["nft", "delete table inet track"])


@contextlib.contextmanager
def full(host: Host) -> Iterator[None]:
    """The host's table has no room for another connection; the ones it has go on.  It is empty afterwards.

    What ends meanwhile is followed by another one that nobody has.
    """
    numbers, limit, over = count(), int(LIMIT.read_text(encoding="ascii")), threading.Event()
    with _netlink(host) as netlink:

        def keep_full() -> None:
            while not over.wait(0.02):
                _fill(netlink, numbers, limit)

        keeper = threading.Thread(target=keep_full, daemon=True)
        try:
            _fill(netlink, numbers, limit)
            keeper.start()
            yield
        finally:
            over.set()
            if keeper.ident is not None:
                keeper.join()
            _said(netlink)
            _ask(netlink, CT_DELETE, b"")


def turned_away(host: Host) -> int:
    """Packets that the host dropped because its table was full."""
    header, *rows = host.read("stat/nf_conntrack").splitlines()
    column = header.split().index("drop")
    return sum(int(row.split()[column], 16) for row in rows)


@contextlib.contextmanager
def _netlink(host: Host) -> Iterator[socket.socket]:
    with host.enter():
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    with netlink:
        yield netlink


def _fill(netlink: socket.socket, numbers: Iterator[int], most: int) -> None:
    """Until there is no room, of which the kernel tells in an error message; `most`: connections that will do."""
    for _ in range(most // BATCH + 1):
        batch = [_message(CT_NEW, REQUEST | CREATE | EXCL, _connection(number)) for number in islice(numbers, BATCH)]
        netlink.send(b"".join(batch))
        if _said(netlink):
            return
    raise LabError("the table of connections is not full")


def _said(netlink: socket.socket) -> bool:
    """Whether anything was; it is read."""
    said = False
    with contextlib.suppress(OSError):  # nothing, or the kernel said more than there was room for
        while netlink.recv(1 << 16, socket.MSG_DONTWAIT):
            said = True
    return said


def _connection(number: int) -> bytes:
    """One that nobody has, between addresses that nobody has (RFC 2544)."""
    here, there = (
        socket.inet_aton(f"198.18.{number // PORTS // 256}.{number // PORTS % 256}"),
        socket.inet_aton("198.19.0.1"),
    )
    port = 1024 + number % PORTS
    tcp = _attribute(1 | NESTED, _attribute(1, b"\x03"))  # CTA_PROTOINFO_TCP_STATE: established
    return (
        _attribute(1 | NESTED, _tuple(here, there, port, 80))
        + _attribute(2 | NESTED, _tuple(there, here, 80, port))
        + _attribute(3, struct.pack(">I", 0x2 | 0x4 | 0x8))  # CTA_STATUS: seen reply, assured, confirmed
        + _attribute(4 | NESTED, tcp)
        + _attribute(7, struct.pack(">I", 3600))  # CTA_TIMEOUT
    )


def _tuple(source: bytes, destination: bytes, source_port: int, destination_port: int) -> bytes:
    protocol = _attribute(1, bytes([socket.IPPROTO_TCP]))
    ports = _attribute(2, struct.pack(">H", source_port)) + _attribute(3, struct.pack(">H", destination_port))
    addresses = _attribute(1, source) + _attribute(2, destination)
    return _attribute(1 | NESTED, addresses) + _attribute(2 | NESTED, protocol + ports)


def _attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def _message(kind: int, flags: int, content: bytes) -> bytes:
    family = struct.pack("=BBH", socket.AF_INET, 0, 0)
    return struct.pack("=IHHII", 20 + len(content), kind, flags, 0, 0) + family + content


def _ask(netlink: socket.socket, kind: int, content: bytes) -> None:
    netlink.send(_message(kind, REQUEST | ACK, content))
    reply = netlink.recv(1 << 16)
    (error,) = struct.unpack_from("=i", reply, 16)
    if error:
        raise LabError(f"ctnetlink: error {-error}")
