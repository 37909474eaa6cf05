# SPDX-License-Identifier: Apache-2.0
"""Capture files in the format pcapng (draft-ietf-opsawg-pcapng).

Section headers, interface descriptions with their units of time, and enhanced, simple and (obsolete) packet blocks are
read; every other block is skipped.  Each section may have its own byte order and interfaces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from tapmirror.source.blocks import Blocks, CaptureError
from tapmirror.source.pcap import MAX_FRAME, Frame

MAGIC: Final = b"\x0a\x0d\x0d\x0a"
MAX_INTERFACES: Final = 65_536
MAX_BLOCK: Final = MAX_FRAME + (1 << 16)
"""Longest block that is read: a frame and its options.  Longer blocks of a kind that is skipped are skipped as well."""

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_PACKET: Final = 2
_SIMPLE: Final = 3
_ENHANCED: Final = 6
_READ: Final = frozenset((_SECTION, _INTERFACE, _PACKET, _SIMPLE, _ENHANCED))
_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_TSRESOL: Final = 9
_TSOFFSET: Final = 14


class Interface(NamedTuple):
    """What an interface description says.  A time stamp counts in `1 / units` seconds."""

    link: int
    snap: int
    units: int
    offset: int


class _Section:
    """What applies to the blocks of a section."""

    def __init__(self, order: str) -> None:
        self.interfaces: list[Interface] = []
        self.head = struct.Struct(order + "II")
        self.interface = struct.Struct(order + "HHI")
        self.enhanced = struct.Struct(order + "IIIII")
        self.packet = struct.Struct(order + "HHIIII")
        self.simple = struct.Struct(order + "I")
        self.option = struct.Struct(order + "HH")
        self.offset = struct.Struct(order + "q")


def frames(blocks: Blocks) -> Iterator[Frame]:
    """The frames of a file whose window stands at its beginning.  Raises `CaptureError` if the file is damaged."""
    section: _Section | None = None
    while True:
        if not blocks.need(12):
            if blocks.view:
                raise CaptureError(f"a block is cut: {len(blocks.view)} bytes", blocks.start)
            return
        start = blocks.start
        if bytes(blocks.view[:4]) == MAGIC:
            section = _begin(blocks)
        assert section is not None  # the file begins with MAGIC
        kind, length = section.head.unpack_from(blocks.view)
        if length < 12 or length % 4:
            raise CaptureError(f"a block claims to have {length:,} bytes", start)
        if kind not in _READ:
            if not blocks.skip(length):
                raise CaptureError(f"a block is cut (it claims to have {length:,} bytes)", start)
            continue
        if length > MAX_BLOCK:
            raise CaptureError(f"a block claims to have {length:,} bytes", start)
        if not blocks.need(length):
            raise CaptureError(f"a block is cut: {len(blocks.view):,} of {length:,} bytes", start)
        if section.simple.unpack_from(blocks.view, length - 4)[0] != length:
            raise CaptureError("the two lengths of a block differ", start)
        body = blocks.view[8 : length - 4]
        if kind == _INTERFACE:
            _describe(section, body, start)
        elif kind == _SECTION:
            _options(section, body, 16, start)
        else:
            yield _frame(section, kind, body, start)
        blocks.advance(length)


def _begin(blocks: Blocks) -> _Section:
    order = _ORDERS.get(bytes(blocks.view[8:12]))
    if order is None:
        raise CaptureError("a section header without a byte order", blocks.start + 8)
    return _Section(order)


def _describe(section: _Section, body: memoryview, start: int) -> None:
    if len(body) < 8 or len(section.interfaces) >= MAX_INTERFACES:
        raise CaptureError("an interface description that is too short, or one too many", start)
    link, _, snap = section.interface.unpack_from(body)
    options = _options(section, body, 8, start)
    resolution = options.get(_TSRESOL, b"\x06")[:1] or b"\x06"
    power = resolution[0] & 0x7F
    units = 2**power if resolution[0] & 0x80 else 10**power
    offset = section.offset.unpack(options[_TSOFFSET])[0] if len(options.get(_TSOFFSET, b"")) == 8 else 0
    section.interfaces.append(Interface(link, snap, units, offset))


def _options(section: _Section, body: memoryview, at: int, start: int) -> dict[int, bytes]:
    """The options of a block; of each kind the last one."""
    found: dict[int, bytes] = {}
    while len(body) - at >= 4:
        kind, length = section.option.unpack_from(body, at)
        at += 4
        if kind == 0:
            break
        if at + length > len(body):
            raise CaptureError(f"an option of {length:,} bytes is longer than its block", start)
        found[kind] = bytes(body[at : at + length])
        at += -(-length // 4) * 4
    return found


def _frame(section: _Section, kind: int, body: memoryview, start: int) -> Frame:
    fixed = 4 if kind == _SIMPLE else 20
    if len(body) < fixed:
        raise CaptureError("a packet block that is too short", start)
    index, high, low = 0, 0, 0
    if kind == _ENHANCED:
        index, high, low, caplen, size = section.enhanced.unpack_from(body)
    elif kind == _PACKET:
        index, _, high, low, caplen, size = section.packet.unpack_from(body)
    else:
        (size,) = section.simple.unpack_from(body)
        caplen = size
    if index >= len(section.interfaces):
        raise CaptureError(f"a packet of interface {index}, which is not described", start)
    interface = section.interfaces[index]
    if kind == _SIMPLE:
        caplen = min(size, interface.snap or size, len(body) - fixed)
    if caplen > len(body) - fixed:
        raise CaptureError(f"a packet claims to have {caplen:,} captured bytes in a block of {len(body) + 12:,}", start)
    time_ns = (high << 32 | low) * 1_000_000_000 // interface.units + interface.offset * 1_000_000_000
    return interface.link, time_ns, max(size, caplen), body[fixed : fixed + caplen]
