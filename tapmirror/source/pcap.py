# SPDX-License-Identifier: Apache-2.0
"""Capture files in the format of libpcap (draft-ietf-opsawg-pcap): micro- and nanoseconds, both byte orders."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, TypeAlias

from tapmirror.source.blocks import Blocks, CaptureError

Frame: TypeAlias = tuple[int, int, int, memoryview]
"""(link type, time in ns since 1970, size on the wire, captured bytes)."""

HEADER: Final = 24
MAX_FRAME: Final = 1 << 20
"""Longest captured frame: tcpdump takes 262,144 bytes, and BIG TCP has up to 8 * 65,535.  A longer one is damage."""
_NEVER_WRITTEN: Final = bytes(32)
"""Two packet headers without a byte, at time 0: the end of a file that kept its size but lost its content in a
crash."""

_FORMATS: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1_000),
    b"\xa1\xb2\xc3\xd4": (">", 1_000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
MAGICS: Final = frozenset(_FORMATS)


def frames(blocks: Blocks) -> Iterator[Frame]:
    """The frames of a file whose window stands at its beginning.  Raises `CaptureError` if the file is damaged."""
    if not blocks.need(HEADER):
        raise CaptureError(f"the file header is cut: {len(blocks.view)} of {HEADER} bytes", 0)
    order, scale = _FORMATS[bytes(blocks.view[:4])]
    major, _, _, _, _, link = struct.unpack_from(order + "HHiIII", blocks.view, 4)
    if major != 2:
        raise CaptureError(f"version {major} of the format is not known", 4)
    link &= 0xFFFF
    unpack = struct.Struct(order + "IIII").unpack_from
    at, view = HEADER, blocks.view
    while True:
        if len(view) - at < 16:
            blocks.advance(at)
            whole = blocks.need(16)
            at, view = 0, blocks.view
            if not whole:
                if view:
                    raise CaptureError(f"a packet's header is cut: {len(view)} of 16 bytes", blocks.start)
                return
        seconds, fraction, caplen, size = unpack(view, at)
        if not (size or caplen or seconds or fraction):
            blocks.advance(at)
            blocks.need(len(_NEVER_WRITTEN))
            at, view = 0, blocks.view
            if view[: len(_NEVER_WRITTEN)] == _NEVER_WRITTEN:
                raise CaptureError("zeros instead of packets: the file was not written to its end", blocks.start)
        if caplen > MAX_FRAME:
            raise CaptureError(f"a packet claims to have {caplen:,} captured bytes", blocks.start + at)
        end = at + 16 + caplen
        if end > len(view):
            blocks.advance(at)
            whole = blocks.need(16 + caplen)
            at, view, end = 0, blocks.view, 16 + caplen
            if not whole:
                raise CaptureError(f"a packet is cut: {len(view) - 16:,} of {caplen:,} bytes", blocks.start)
        yield link, seconds * 1_000_000_000 + fraction * scale, max(size, caplen), view[at + 16 : end]
        at = end
