# SPDX-License-Identifier: Apache-2.0
"""The shadow's HTTP/1 responses on one connection: how many came, and with which status.

Theory of operation
-------------------
Responses come in the order of the requests (RFC 9112, 9.3.2), so each is read by the flags of
the oldest request without one.  The length of its body is found by RFC 9112, 6.3; the bytes
of the body do not matter, and the caller may discard `skippable()` of them unread.

Nothing that follows from this reaches production, and the shadow may be a test build or
hostile.  So it is read leniently (lines may end in LF alone) and with constant memory: a
head is held up to `head_bytes`, of everything else at most a line, and all connections together hold no more
than `pool` has room for.  What is not HTTP, or answers nothing that was asked, or finds no room, sets `failed`:
from then on nothing is looked at any more.

Pure: bytes in, counts out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tapmirror.events import CONNECT, NO_BODY, TUNNEL, Buffer
from tapmirror.framing.pool import Pool

ENDLESS: Final = 1 << 62
"""What `skippable` says when the body ends with the connection, or nothing matters any more."""
LINE_BYTES: Final = 4096
"""Longest line of a chunk's size and extensions, as in the request direction."""
KNOWN_BYTES: Final = 1024
"""Longest head that is remembered.  A server's answers to one client often differ in the body and, once a
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
DIGITS: Final = re.compile(rb"[0-9]{1,18}")
SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*[;\r\n]")
PREFIX: Final = b"HTTP/1."

# States.  0 is what `feed` looks for.
_NEXT: Final = 0  # between responses, nothing held
_HEAD: Final = 1
_BODY: Final = 2  # of known length
_CHUNK_SIZE: Final = 3
_CHUNK_DATA: Final = 4
_CHUNK_END: Final = 5
_TRAILER: Final = 6
_ENDLESS: Final = 7  # up to the end of the connection
_DISCARD: Final = 8  # a tunnel, or failed


class ResponseFramer:
    """The responses on one connection to the shadow."""

    __slots__ = (
        "_awaited",
        "_buffer",
        "_head_bytes",
        "_known",
        "_known_size",
        "_known_status",
        "_pool",
        "_remaining",
        "_state",
        "closing",
        "failed",
        "tunnel",
    )

    def __init__(self, head_bytes: int, pool: Pool, like: ResponseFramer | None = None) -> None:
        """`like`: of another connection to the same server, whose last head is likely to come again."""
        self._head_bytes = head_bytes
        self._pool = pool
        self._awaited: deque[int] = deque()  # flags of each request without a complete response
        self._buffer = bytearray()
        self._remaining = 0
        self._state = _NEXT
        # The last plain head, the size of its whole response, and the status.
        if like is None:
            self._known, self._known_size = b"", -1
            self._known_status: tuple[int, ...] = ()
        else:
            self._known, self._known_size, self._known_status = like._known, like._known_size, like._known_status
        self.closing = False
        """The shadow closes the connection after a response that has come, or that is coming."""
        self.failed = False
        """What came is not HTTP, or answers nothing.  Everything else is discarded."""
        self.tunnel: bool | None = None
        """Whether the last CONNECT or Upgrade request was accepted; None: no answer yet."""

    @property
    def outstanding(self) -> int:
        """Requests whose response is not complete.  One accepted as a tunnel is complete."""
        return len(self._awaited)

    def expect(self, flags: int) -> None:
        """A request with these flags (as of its first `Part`) is sent: call it before its answer can come."""
        if flags & TUNNEL and self.tunnel is not True:
            self.tunnel = None
        self._awaited.append(flags & (NO_BODY | TUNNEL | CONNECT))

    def feed(self, data: Buffer) -> Sequence[int]:
        """Take the next bytes: the status codes of the final responses whose heads they complete."""
        known = self._known
        if (
            len(data) == self._known_size
            and not self._state
            and self._awaited
            and not self._awaited[0]
            and bytes(data[: len(known)]) == known
        ):
            self._awaited.popleft()
            return self._known_status
        out: list[int] = []
        pos, size = 0, len(data)
        before = len(self._buffer)
        while pos < size:
            pos = _STEPS[self._state](self, data, pos, out)
        if (self._buffer or before) and not self._pool.resize(before, len(self._buffer)):
            self._pool.resize(len(self._buffer), 0)
            self._fail(data)
        return out

    def skippable(self) -> int:
        """How many of the next bytes need not be looked at: discard up to so many, and call `skip`."""
        if self._state in (_BODY, _CHUNK_DATA):
            return self._remaining
        return ENDLESS if self._state in (_ENDLESS, _DISCARD) else 0

    def skip(self, size: int) -> None:
        """`size` bytes, at most `skippable()`, were discarded in place of being fed."""
        if self._state in (_BODY, _CHUNK_DATA):
            self._remaining -= size
            if not self._remaining:
                self._run_ended()

    def eof(self) -> int:
        """The shadow closed its side.  Returns how many requests remain without a complete response."""
        if self._state == _ENDLESS:
            self._answered()
        self._state = _DISCARD
        self._pool.resize(len(self._buffer), 0)
        self._buffer.clear()
        self.closing = True
        return len(self._awaited)

    # --- one step each: take bytes of `data` from `pos` on, say where the next step begins

    def _head(self, data: Buffer, pos: int, out: list[int]) -> int:
        if not self._awaited:
            return self._fail(data)
        buffer = self._buffer
        if not buffer:
            known = self._known
            if known and not self._awaited[0] and bytes(data[pos : pos + len(known)]) == known:
                out += self._known_status
                self._await_body(self._known_size - len(known))
                return pos + len(known)
            plain = None if self._awaited[0] else PLAIN(data, pos)
            if plain is not None and plain.end() - pos <= self._head_bytes:
                return self._read_plain(plain, bytes(data[pos : plain.end()]), out)
            end = HEAD_END.search(data, pos, pos + self._head_bytes)
            if end is not None:
                return end.end() if self._read_head(bytes(data[pos : end.end()]), out) else self._fail(data)
        scanned = len(buffer)
        piece = data[pos : pos + self._head_bytes - scanned]
        buffer += piece
        found = HEAD_END.search(buffer, max(scanned - 2, 0))
        if found is None:
            if len(buffer) >= self._head_bytes or not PREFIX.startswith(buffer[: len(PREFIX)]):
                return self._fail(data)
            self._state = _HEAD
            return pos + len(piece)
        head = bytes(buffer[: found.end()])
        buffer.clear()
        pos += len(head) - scanned
        return pos if self._read_head(head, out) else self._fail(data)

    def _run(self, data: Buffer, pos: int, out: list[int]) -> int:
        taken = min(len(data) - pos, self._remaining)
        self._remaining -= taken
        if not self._remaining:
            self._run_ended()
        return pos + taken

    def _chunk_size(self, data: Buffer, pos: int, out: list[int]) -> int:
        line, pos = self._line(data, pos, LINE_BYTES)
        if line:
            found = SIZE.match(line)
            if found is None:
                return self._fail(data)
            self._remaining = int(found[1], 16)
            self._state = _CHUNK_DATA if self._remaining else _TRAILER
            if self._state == _TRAILER:
                self._remaining = self._head_bytes
        return pos

    def _chunk_end(self, data: Buffer, pos: int, out: list[int]) -> int:
        line, pos = self._line(data, pos, 2)
        if line:
            if line not in (b"\r\n", b"\n"):
                return self._fail(data)
            self._state = _CHUNK_SIZE
        return pos

    def _trailer(self, data: Buffer, pos: int, out: list[int]) -> int:
        line, pos = self._line(data, pos, self._remaining)
        if line:
            self._remaining -= len(line)
            if line in (b"\r\n", b"\n"):
                self._answered()
        return pos

    def _discard(self, data: Buffer, pos: int, out: list[int]) -> int:
        return len(data)

    # --- what the steps share

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

    def _read_head(self, head: bytes, out: list[int]) -> bool:
        """Act on a whole head; False if it is none.  RFC 9112, 6.3 gives the order of the cases."""
        line = STATUS_LINE.match(head)
        if line is None:
            return False
        status, asked = int(line[2]), self._awaited[0]
        accepted = asked & TUNNEL and (status == 101 or (asked & CONNECT and 200 <= status < 300))
        if status < 200 and not accepted:
            self._state = _NEXT
            return status != 101
        out.append(status)
        if asked & TUNNEL:
            self.tunnel = bool(accepted)
        if accepted:
            self._answered()
            self._state = _DISCARD
            return True
        lengths: set[bytes] = set()
        codings: list[bytes] = []
        option = b""
        for name, value in FIELDS.findall(head, line.end() - 1):
            match name.lower():
                case b"content-length":
                    lengths.add(value.rstrip(b" \t"))
                case b"transfer-encoding":
                    codings.append(value.lower().rstrip(b" \t"))
                case _:
                    option += value.lower()
        if b"close" in option or (line[1] == b"0" and b"keep-alive" not in option):
            self.closing = True
        if asked & NO_BODY or status in (204, 304):
            self._answered()
            return True
        return self._expect_body(lengths, codings)

    def _read_plain(self, plain: re.Match[bytes], head: bytes, out: list[int]) -> int:
        status, length = int(plain[1]), int(plain[2])
        if len(head) <= KNOWN_BYTES:
            self._known, self._known_size, self._known_status = head, len(head) + length, (status,)
        out.append(status)
        self._await_body(length)
        return plain.end()

    def _expect_body(self, lengths: set[bytes], codings: list[bytes]) -> bool:
        if codings:
            chunked = codings[-1].endswith(b"chunked")
            self._state = _CHUNK_SIZE if chunked else _ENDLESS
        elif lengths:
            length = lengths.pop()
            if lengths or not DIGITS.fullmatch(length):
                return False
            self._await_body(int(length))
        else:
            self._state = _ENDLESS
        if self._state == _ENDLESS:
            self.closing = True
        return True

    def _await_body(self, length: int) -> None:
        self._state = _BODY
        self._remaining = length
        if not length:
            self._answered()

    def _run_ended(self) -> None:
        if self._state == _BODY:
            self._answered()
        else:
            self._state = _CHUNK_END

    def _answered(self) -> None:
        self._awaited.popleft()
        self._state = _NEXT

    def _fail(self, data: Buffer) -> int:
        self.failed = True
        self._state = _DISCARD
        self._buffer.clear()
        return len(data)


_Step: TypeAlias = Callable[[ResponseFramer, Buffer, int, list[int]], int]
_STEPS: Final[tuple[_Step, ...]] = (
    ResponseFramer._head,
    ResponseFramer._head,
    ResponseFramer._run,
    ResponseFramer._chunk_size,
    ResponseFramer._run,
    ResponseFramer._chunk_end,
    ResponseFramer._trailer,
    ResponseFramer._discard,
    ResponseFramer._discard,
)
"""By state."""
