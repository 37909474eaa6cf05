# SPDX-License-Identifier: Apache-2.0
"""Where an HTTP/1 response ends: what all who read responses share, whatever they make of them.

Theory of operation
-------------------
The length of a response's body is found by RFC 9112, 6.3: of known length, in chunks, or up to the end of the
connection.  It is read leniently (lines may end in LF alone) and with constant memory: of everything but the head at
most a line is held.

Who reads has a table of steps by state.  A step takes bytes of `data` from `pos` on, and says where the next begins.

Pure.
"""

from __future__ import annotations

import re
from typing import Any, Final, Generic, TypeVar

from tapmirror.events import Buffer

Found = TypeVar("Found")

LINE_BYTES: Final = 4096
"""Longest line of a chunk's size and extensions, as in the request direction."""
ENDLESS: Final = 1 << 62
"""What `skippable` says when the body ends with the connection, or nothing matters any more."""
KNOWN_BYTES: Final = 1024
"""Longest head that is remembered.  A server's responses to one client often differ in the body and, once a
second, in the Date only; a head that is equal to the last means the same and need not be parsed."""

_PLAIN_LINES: Final = (
    rb"(?:(?:[^CcTt\r][^\r]*+"
    rb"|(?![Cc](?i:ontent-length|onnection)|[Tt](?i:ransfer-encoding))[CcTt][^\r]*+"
    rb"|[Cc]onnection: keep-alive)\r\n)*"
)
PLAIN: Final = re.compile(
    rb"HTTP/1\.1 ((?!204|304)[2-5][0-9][0-9]) [^\r]*+\r\n"
    + _PLAIN_LINES
    + rb"[Cc]ontent-[Ll]ength: ([0-9]{1,18})\r\n"
    + _PLAIN_LINES
    + rb"\r\n"
).match
"""The head that nearly all responses have: status, Content-Length."""

STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?=[ \r\n])[^\n]*+\n")
HEAD_END: Final = re.compile(rb"\n\r?\n")
FIELDS: Final = re.compile(rb"\n(content-length|transfer-encoding|connection)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
PREFIX: Final = b"HTTP/1."
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*[;\r\n]")

# States.  0 is between responses, nothing held.
NEXT: Final = 0
HEAD: Final = 1
BODY: Final = 2  # of known length
CHUNK_SIZE: Final = 3
CHUNK_DATA: Final = 4
CHUNK_END: Final = 5
TRAILER: Final = 6
UNTIL_END: Final = 7  # of the connection
DISCARD: Final = 8  # a tunnel, or nothing can be read any more


class ResponseReader(Generic[Found]):
    """The responses on one connection.  Who derives from it says what a response is to him: `_answered`, `_fail`."""

    __slots__ = ("_buffer", "_head_bytes", "_remaining", "_state")

    def __init__(self, head_bytes: int) -> None:
        self._head_bytes = head_bytes
        self._buffer = bytearray()
        self._remaining = 0
        self._state = NEXT

    def _answered(self, out: list[Found]) -> None:
        """The last byte of a response was taken."""
        raise NotImplementedError

    def _fail(self, data: Buffer) -> int:
        """It is no HTTP/1; nothing is read any more, and this is where: at the end of `data`."""
        raise NotImplementedError

    # --- steps

    def _chunk_size(self, data: Buffer, pos: int, out: list[Found]) -> int:
        line, pos = self._line(data, pos, LINE_BYTES)
        if line:
            found = _SIZE.match(line)
            if found is None:
                return self._fail(data)
            self._remaining = int(found[1], 16)
            self._state = CHUNK_DATA if self._remaining else TRAILER
            if self._state == TRAILER:
                self._remaining = self._head_bytes
        return pos

    def _chunk_end(self, data: Buffer, pos: int, out: list[Found]) -> int:
        line, pos = self._line(data, pos, 2)
        if line:
            if line not in (b"\r\n", b"\n"):
                return self._fail(data)
            self._state = CHUNK_SIZE
        return pos

    def _trailer(self, data: Buffer, pos: int, out: list[Found]) -> int:
        line, pos = self._line(data, pos, self._remaining)
        if line:
            self._remaining -= len(line)
            if line in (b"\r\n", b"\n"):
                self._answered(out)
        return pos

    def _discard(self, data: Buffer, pos: int, out: list[Found]) -> int:
        return len(data)

    # --- what steps share

    def _line(self, data: Buffer, pos: int, limit: int) -> tuple[bytes, int]:
        """Take a line of at most `limit` bytes and say where it ends; empty while it is not whole."""
        buffer = self._buffer
        piece = bytes(data[pos : pos + limit - len(buffer)])
        end = piece.find(b"\n") + 1
        if not end:
            buffer += piece
            if len(buffer) >= limit:
                return b"", self._fail(data)
            return b"", pos + len(piece)
        line = bytes(buffer) + piece[:end]
        buffer.clear()
        return line, pos + end

    def _expect_body(self, fields: list[Any], out: list[Found]) -> bool:
        """A body follows, as these fields of `FIELDS` say; False if they contradict each other."""
        lengths: set[bytes] = set()
        codings: list[bytes] = []
        for name, value in fields:
            match name.lower():
                case b"content-length":
                    lengths.add(value.rstrip(b" \t"))
                case b"transfer-encoding":
                    codings.append(value.lower().rstrip(b" \t"))
        if codings:
            self._state = CHUNK_SIZE if codings[-1].endswith(b"chunked") else UNTIL_END
        elif lengths:
            length = lengths.pop()
            if lengths or not _DIGITS.fullmatch(length):
                return False
            self._await_body(int(length), out)
        else:
            self._state = UNTIL_END
        return True

    def _await_body(self, length: int, out: list[Found]) -> None:
        self._state = BODY
        self._remaining = length
        if not length:
            self._answered(out)

    def _run_ended(self, out: list[Found]) -> None:
        """The last byte of a body of known length, or of a chunk, was taken."""
        if self._state == BODY:
            self._answered(out)
        else:
            self._state = CHUNK_END
