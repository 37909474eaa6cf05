# SPDX-License-Identifier: Apache-2.0
"""The bytes of a capture file, in blocks, with the place of each for error messages."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

BLOCK: Final = 1 << 20
"""Bytes of a read."""
GZIP: Final = b"\x1f\x8b"
_GZIP_BITS: Final = 31
"""Argument of zlib: the largest window, and a gzip header is expected."""


class CaptureError(Exception):
    """A capture file that cannot be read (further).  The message is one line; `offset` is where, if known."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message if offset is None else f"at byte {offset:,}: {message}")
        self.offset = offset


class Blocks:
    """A window on a stream of bytes: `view`, which begins at byte `start`.  Slices of it stay valid."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.view = memoryview(b"")
        self.start = 0

    def need(self, count: int) -> bool:
        """See that the window holds `count` bytes; False if the stream ends before.  Raises `CaptureError`."""
        have = len(self.view)
        if have >= count:
            return True
        pieces = [bytes(self.view)]
        while have < count and (piece := self._read(BLOCK)):
            pieces.append(piece)
            have += len(piece)
        self.view = memoryview(b"".join(pieces))
        return have >= count

    def advance(self, count: int) -> None:
        """Move the window's beginning on, within the window."""
        self.view = self.view[count:]
        self.start += count

    def skip(self, count: int) -> bool:
        """Move on by `count` bytes, however many; False if they are not there.  Raises `CaptureError`."""
        while count:
            if not self.need(1):
                return False
            step = min(count, len(self.view))
            self.advance(step)
            count -= step
        return True


class Gunzip:
    """Unpacks gzip of any number of members (RFC 1952), of which `begun` was read already."""

    def __init__(self, read: Callable[[int], bytes], begun: bytes) -> None:
        self._read = read
        self._rest = begun
        self._taken = len(begun)
        self._stream = zlib.decompressobj(_GZIP_BITS)
        self._within = False

    def read(self, count: int) -> bytes:
        """At most `count` bytes, however much the packed ones stand for; none at the end.

        Raises `CaptureError` where the file is damaged; its offsets are those of the packed file.
        """
        while True:
            if self._stream.eof:
                self._rest = self._stream.unused_data
                self._stream = zlib.decompressobj(_GZIP_BITS)
                self._within = False
            if not self._rest:
                self._rest = self._read(BLOCK)
                self._taken += len(self._rest)
                if not self._rest:
                    if self._within:
                        raise CaptureError("the gzip file ends in the middle", self._taken)
                    return b""
            if not self._within:
                self._rest = self._rest.lstrip(b"\0")  # padding between members and at the end, as gzip(1) takes it
                if not self._rest:
                    continue
            self._within = True
            try:
                found = self._stream.decompress(self._rest, count)
            except zlib.error as error:
                where = self._taken - len(self._rest)
                raise CaptureError(f"the gzip file is damaged behind this ({error})", where) from None
            self._rest = self._stream.unconsumed_tail
            if found:
                return found
