# SPDX-License-Identifier: Apache-2.0
"""The bytes of a capture file in blocks, each with its place in the file for error messages."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

BLOCK: Final = 1 << 20
"""Bytes that one read asks for."""
GZIP: Final = b"\x1f\x8b"
_GZIP_BITS: Final = 31
"""Argument of zlib: the largest window, and a gzip header is expected."""


class CaptureError(Exception):
    """A capture file cannot be read, or not any further.  The message is one line.  `offset` is the place, if it is
    known.
    """

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message if offset is None else f"at byte {offset:,}: {message}")
        self.offset = offset


class Blocks:
    """A window on a stream of bytes.  `view` begins at byte `start` of the stream; slices of it stay valid."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.view = memoryview(b"")
        self.start = 0

    def need(self, count: int) -> bool:
        """Make the window hold at least `count` bytes; False if the stream ends before.  Raises `CaptureError`."""
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
        """Move the beginning of the window on by `count` bytes, which the window must hold."""
        self.view = self.view[count:]
        self.start += count

    def skip(self, count: int) -> bool:
        """Move on by any number of bytes; False if the stream ends before.  Raises `CaptureError`."""
        while count:
            if not self.need(1):
                return False
            step = min(count, len(self.view))
            self.advance(step)
            count -= step
        return True


class Gunzip:
    """Unpacks gzip with any number of members (RFC 1952).  `begun` are the bytes that were already read."""

    def __init__(self, read: Callable[[int], bytes], begun: bytes) -> None:
        self._read = read
        self._rest = begun
        self._taken = len(begun)
        self._stream = zlib.decompressobj(_GZIP_BITS)
        self._within = False

    def read(self, count: int) -> bytes:
        """At most `count` bytes, however many the packed ones stand for; no bytes at the end.

        Raises `CaptureError` if the file is damaged, with an offset in the packed file.
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
