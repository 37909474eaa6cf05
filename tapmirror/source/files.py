# SPDX-License-Identifier: Apache-2.0
"""Capture files: pcap and pcapng, also if gzip has compressed them.

The readers of scapy and libpcap are not used.  Neither tells where a file is damaged.  scapy's takes several times as
long for a packet as everything that is done with it here, and libpcap does not read gzip.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from tapmirror.source import pcap, pcapng
from tapmirror.source.blocks import GZIP, Blocks, CaptureError, Gunzip
from tapmirror.source.pcap import Frame


class CaptureFile:
    """An open capture file.  `-` is standard input.  Raises `CaptureError` if it cannot be opened."""

    def __init__(self, path: str) -> None:
        if path == "-" and sys.stdin is None:
            raise CaptureError("standard input is closed")
        try:
            self._file: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb")  # noqa: SIM115 -- see close
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise CaptureError(f"it cannot be opened: {error.strerror}") from None
        self.on_read: Callable[[int], object] | None = None
        """Called with the number of bytes whenever some were read from the file."""

    def frames(self) -> Iterator[Frame]:
        """Every frame, in the order of the file.  Raises `CaptureError` if the file is damaged."""
        blocks = Blocks(self._read)
        blocks.need(4)
        if bytes(blocks.view[:2]) == GZIP:
            blocks = Blocks(Gunzip(self._read, bytes(blocks.view)).read)
        if not blocks.need(4):
            raise CaptureError("no capture file: too short" if blocks.view else "the file is empty", 0)
        magic = bytes(blocks.view[:4])
        if magic == pcapng.MAGIC:
            return pcapng.frames(blocks)
        if magic in pcap.MAGICS:
            return pcap.frames(blocks)
        raise CaptureError("no capture file (pcap or pcapng, or either compressed by gzip)", 0)

    def is_same(self, path: str) -> bool:
        """Whether this path leads to the open file."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except OSError as error:
            raise CaptureError(f"it cannot be read: {error.strerror}") from None
        if self.on_read is not None:
            self.on_read(len(data))
        return data
