# SPDX-License-Identifier: Apache-2.0
"""AF_PACKET sockets, which a privileged process opens and an unprivileged one reads (`live`)."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Collection, Iterable
from typing import Final

from tapmirror.source.filter import REFUSE_ALL, tcp_filter
from tapmirror.source.packet_ring import SOL_PACKET, set_up_ring

ETH_P_ALL: Final = 0x0003
PACKET_ADD_MEMBERSHIP: Final = 1
PACKET_FANOUT: Final = 18
PACKET_IGNORE_OUTGOING: Final = 23
PACKET_MR_PROMISC: Final = 1
PACKET_FANOUT_HASH: Final = 0
PACKET_FANOUT_FLAG_UNIQUEID: Final = 0x2000
SO_ATTACH_FILTER: Final = 26

BLOCK_BYTES: Final = 128 << 10
"""Bytes of a block of the ring.  A packet has to fit into a block.  Many blocks let the ring wait longer for its
reader, because each holds little if there is little traffic: 128 blocks, a ring of 16 MiB, last for at least two
seconds, or half a second (`PROMPT_MS`)."""
HAND_OVER_MS: Final = 16
"""Milliseconds after which the kernel hands over a block that is not full: so long a packet may wait."""
PROMPT_MS: Final = 4
"""Milliseconds after which the kernel hands over a block if responses, and their times, are compared.  Requests that
wait together reach the shadow at once, and have to queue there.  One tick of the kernel's clock at 250 Hz."""
HANDED_OVER: Final = 0.03
"""Seconds after which a block was handed over, unless the host has no time for its timers."""

HEADROOM: Final = 4_096
"""Bytes of a block that are not the packet's: the headers of block, packet and link."""


def open_live(
    iface: str | None,
    ring_bytes: int,
    *,
    loopback: bool,
    ports: Collection[int] | None,
    response_bytes: int = 0,
    block_bytes: int = BLOCK_BYTES,
    hand_over_ms: int = HAND_OVER_MS,
    promiscuous: bool = False,
) -> socket.socket:
    """A packet socket with a ring, on the interface (None: not on any yet).  Needs privilege; raises OSError.

    `ports`: what the kernel lets through (None: everything, for tunnels), with `response_bytes` of what comes from
    there. `hand_over_ms`: how long a packet waits in the ring at most. `promiscuous`: packets for other stations are
    taken too.
    """
    sock = _with_ring(
        0, tcp_filter(ports, response_bytes=response_bytes), ring_bytes, block_bytes, hand_over_ms, loopback
    )
    try:
        if iface is not None:
            if promiscuous:
                be_promiscuous(sock, iface)
            sock.bind((iface, ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock


def open_shared(
    workers: int,
    ring_bytes: int,
    *,
    loopback: bool,
    block_bytes: int = BLOCK_BYTES,
    hand_over_ms: int = HAND_OVER_MS,
) -> list[socket.socket]:
    """A packet socket with a ring for each of several workers, on all interfaces.  No packet comes before `let_in`.

    Each socket gets its share of the flows, and both directions of a flow: the kernel's hash of PACKET_FANOUT_HASH
    takes the lower end point first (`__skb_get_hash_symmetric`).  It does not look into UDP, and therefore not into
    VXLAN or GENEVE.  Sockets of such a group cannot be bound to another interface later, so they are bound to all.
    Needs privilege; raises OSError.
    """
    sockets: list[socket.socket] = []
    group = PACKET_FANOUT_FLAG_UNIQUEID << 16
    try:
        for _ in range(workers):
            sock = _with_ring(socket.htons(ETH_P_ALL), REFUSE_ALL, ring_bytes, block_bytes, hand_over_ms, loopback)
            sockets.append(sock)
            sock.setsockopt(SOL_PACKET, PACKET_FANOUT, group | PACKET_FANOUT_HASH << 16)
            group = sock.getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def let_in(
    sockets: Iterable[socket.socket], ports: Collection[int] | None, links: Collection[int], response_bytes: int = 0
) -> None:
    """Let in packets of these ports and of the interfaces with these numbers, and no others; the rest as for
    `open_live`.
    """
    program = tcp_filter(ports, links, response_bytes) if links else REFUSE_ALL
    for sock in sockets:
        attach_filter(sock, program)


def _with_ring(
    protocol: int, taken: bytes, ring_bytes: int, block_bytes: int, hand_over_ms: int, loopback: bool
) -> socket.socket:
    """A packet socket with a filter and a ring (which discards what came before)."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        attach_filter(sock, taken)
        set_up_ring(sock, ring_bytes, block_bytes, hand_over_ms)
        if loopback:
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def be_promiscuous(sock: socket.socket, iface: str) -> None:
    """Let the interface take packets for other stations too, as long as the packet socket is open."""
    index = socket.if_nametoindex(iface)
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("=iHH8x", index, PACKET_MR_PROMISC, 0))


def block_bytes(largest: int) -> int:
    """Size of a block that has room for packets of `largest` bytes: a power of two."""
    return max(BLOCK_BYTES, 1 << (largest + HEADROOM).bit_length())


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Attach a classic BPF program (socket(7))."""
    code = ctypes.create_string_buffer(program)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
