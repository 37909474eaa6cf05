# SPDX-License-Identifier: Apache-2.0
"""Capture files for tests, block by block: scapy writes the ordinary ones."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence


def pcap(
    frames: Iterable[bytes], *, order: str = "<", nano: bool = False, link: int = 1, size: int | None = None
) -> bytes:
    """A pcap file; frame n has time n s + n (µs or ns).  `size`: on the wire, where it differs."""
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, link)]
    for n, frame in enumerate(frames):
        parts += [struct.pack(order + "IIII", n, n, len(frame), size or len(frame)), frame]
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A block of pcapng."""
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    """A section header."""
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link: int = 1, snap: int = 0, options: Sequence[tuple[int, bytes]] = (), order: str = "<") -> bytes:
    """An interface description."""
    body = struct.pack(order + "HHI", link, 0, snap)
    for kind, value in options:
        body += struct.pack(order + "HH", kind, len(value)) + value + bytes(-len(value) % 4)
    return block(1, body + bytes(4), order)


def enhanced(frame: bytes, time: int = 0, index: int = 0, order: str = "<", size: int | None = None) -> bytes:
    """An enhanced packet block."""
    head = struct.pack(order + "IIIII", index, time >> 32, time & 0xFFFFFFFF, len(frame), size or len(frame))
    return block(6, head + frame, order)
