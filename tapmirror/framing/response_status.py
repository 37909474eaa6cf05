# SPDX-License-Identifier: Apache-2.0
"""The shadow's HTTP/1 responses on one connection: how many came, and with which status.

Theory of operation
-------------------
Responses come in the order of the requests (RFC 9112, 9.3.2), so each is read by the flags of
the oldest request without one.  The length of its body is found by RFC 9112, 6.3; the bytes
of the body do not matter, and the caller may discard `skippable()` of them unread.

A 408 that answers nothing says that the connection was idle for too long (RFC 9110, 15.5.9); nothing follows it.

Nothing of this reaches production, and the shadow may be a test build, or hostile.  So it is read leniently (lines may
end in LF alone) and with constant memory: at most `head_bytes` of a head are held, at most a line of everything else,
and all connections together hold no more than `memory` has room for.  Bytes that are not HTTP, or answer no request, or
find no room, set `failed`; from then on nothing is inspected.

Pure: bytes in, counts out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tapmirror.events import CONNECT, KEEPING, NO_BODY, TUNNEL, Buffer
from tapmirror.framing.memory import HeadMemory
from tapmirror.framing.response_end import (
    BODY,
    CHUNK_DATA,
    DISCARD,
    ENDLESS,
    FIELDS,
    HEAD,
    HEAD_END,
    KNOWN_BYTES,
    NEXT,
    PLAIN,
    PREFIX,
    STATUS_LINE,
    UNTIL_END,
    ResponseReader,
)

_TIMEOUTS: Final = (b"HTTP/1.1 408", b"HTTP/1.0 408")
"""The beginning of what a server sends on a connection that was idle for too long."""


class ResponseFramer(ResponseReader[int]):
    """The responses on one connection to the shadow."""

    __slots__ = (
        "_at_notice",
        "_known",
        "_known_size",
        "_known_status",
        "_memory",
        "awaited",
        "closing",
        "failed",
        "idled",
        "offered",
        "tunnel",
        "upgraded",
    )

    def __init__(self, head_bytes: int, memory: HeadMemory, like: ResponseFramer | None = None) -> None:
        """`like`: the framer of another connection to the same server, whose last head will probably come again."""
        super().__init__(head_bytes)
        self._memory = memory
        self.awaited: deque[int] = deque()
        """Flags of each request without a complete response."""
        # The last plain head, the size of its whole response, and the status.
        if like is None:
            self._known, self._known_size = b"", -1
            self._known_status: tuple[int, ...] = ()
        else:
            self._known, self._known_size, self._known_status = like._known, like._known_size, like._known_status
        self.closing = False
        """The shadow closes the connection after a response that has come, or that is coming."""
        self._at_notice = 0
        """How many requests waited at that time, including that one."""
        self.failed = False
        """What came is not HTTP, or answers nothing.  Everything else is discarded."""
        self.idled = False
        """The shadow closes the connection for being idle too long, so the number of responses on it means nothing."""
        self.tunnel: bool | None = None
        """Whether the last CONNECT or Upgrade request was accepted; None: no response yet."""
        self.offered = False
        """An Upgrade request has no response yet: whether HTTP/1 can follow is not known."""
        self.upgraded = False
        """It was an Upgrade and was accepted: no HTTP/1 can follow on this connection."""

    @property
    def outstanding(self) -> int:
        """Requests whose response is not complete.  One accepted as a tunnel is complete."""
        return len(self.awaited)

    @property
    def unanswered(self) -> int:
        """Requests that remain without a response if the connection ends here: the end completes a body of unknown
        length.
        """
        return len(self.awaited) - (self._state == UNTIL_END)

    @property
    def amid(self) -> bool:
        """Whether the oldest response has begun and is not complete, and only further bytes can complete it."""
        return self._state not in (NEXT, UNTIL_END, DISCARD)

    @property
    def stopped(self) -> bool:
        """Whether the shadow gave notice with a response that it closes the connection, and began no later response."""
        behind = self._at_notice - len(self.awaited)
        return self.closing and not self.failed and (not behind or (behind == 1 and self._state == NEXT))

    def owed(self) -> tuple[int, ...] | None:
        """The flags of the requests without a response; None: amid a response, or where none will come any more."""
        if self._state != NEXT or self._buffer or self.closing or self.tunnel:
            return None
        return tuple(self.awaited)

    def expect(self, flags: int) -> None:
        """A request with these flags (as of its first `Part`) is sent: call it before its response can come."""
        if flags < NO_BODY:  # nothing but where it begins and ends
            self.awaited.append(0)
            return
        if flags & TUNNEL and self.tunnel is not True:
            self.tunnel = None
            self.offered = not flags & CONNECT
        self.awaited.append(flags & (NO_BODY | TUNNEL | CONNECT | KEEPING))

    def withdraw(self) -> None:
        """Nothing was sent of the request that was expected last: take it back."""
        if not self.awaited:
            return
        self.awaited.pop()
        self._at_notice -= 1
        if not self.awaited and self._state != NEXT:  # what has begun to come answers nobody
            self._memory.resize(len(self._buffer), 0)
            self._fail(b"")

    def feed(self, data: Buffer) -> Sequence[int]:
        """Take the next bytes: the status codes of the final responses whose heads they complete."""
        known, awaited = self._known, self.awaited
        if (
            len(data) == self._known_size
            and not self._state
            and awaited
            and not awaited[0]
            and bytes(data[: len(known)]) == known
        ):
            awaited.popleft()
            return self._known_status
        out: list[int] = []
        pos, size = 0, len(data)
        before = len(self._buffer)
        while pos < size:
            if not self._state and self._known:  # as nearly all are: like the one before, and whole
                start, known, length = pos, self._known, self._known_size
                while (
                    awaited and not awaited[0] and pos + length <= size and bytes(data[pos : pos + len(known)]) == known
                ):
                    awaited.popleft()
                    pos += length
                if pos > start:
                    out += self._known_status * ((pos - start) // length)
                    continue
            pos = _STEPS[self._state](self, data, pos, out)
        if (self._buffer or before) and not self._memory.resize(before, len(self._buffer)):
            self._memory.resize(len(self._buffer), 0)
            self._fail(data)
        return out

    def skippable(self) -> int:
        """How many of the next bytes need not be looked at: discard up to so many, and call `skip`."""
        if self._state in (BODY, CHUNK_DATA):
            return self._remaining
        return ENDLESS if self._state in (UNTIL_END, DISCARD) else 0

    def skip(self, size: int) -> None:
        """`size` bytes, at most `skippable()`, were discarded in place of being fed."""
        if self._state in (BODY, CHUNK_DATA):
            self._remaining -= size
            if not self._remaining:
                self._run_ended([])

    def eof(self) -> int:
        """The shadow closed its side.  Returns how many requests remain without a complete response."""
        if self._state == UNTIL_END:
            self._answered([])
        self._state = DISCARD
        if self._buffer:
            self._memory.resize(len(self._buffer), 0)
            self._buffer.clear()
        self.closing = True
        return len(self.awaited)

    # --- one step each: take bytes of `data` from `pos` on, say where the next step begins

    def _head(self, data: Buffer, pos: int, out: list[int]) -> int:
        if not self.awaited:
            return self._unasked(data, pos)
        buffer = self._buffer
        if not buffer:
            known = self._known
            if known and not self.awaited[0] and bytes(data[pos : pos + len(known)]) == known:
                out += self._known_status
                self._await_body(self._known_size - len(known), out)
                return pos + len(known)
            plain = None if self.awaited[0] else PLAIN(data, pos)
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
            self._state = HEAD
            return pos + len(piece)
        head = bytes(buffer[: found.end()])
        buffer.clear()
        pos += len(head) - scanned
        return pos if self._read_head(head, out) else self._fail(data)

    def _unasked(self, data: Buffer, pos: int) -> int:
        """Take bytes that come while no request waits for a response."""
        buffer = self._buffer
        piece = data[pos : pos + len(_TIMEOUTS[0]) - len(buffer)]
        buffer += piece
        if not any(each.startswith(buffer) for each in _TIMEOUTS):
            return self._fail(data)
        self._state = HEAD
        if bytes(buffer) not in _TIMEOUTS:
            return pos + len(piece)
        buffer.clear()
        self.closing = self.idled = True
        self._state = DISCARD
        return len(data)

    def _run(self, data: Buffer, pos: int, out: list[int]) -> int:
        taken = min(len(data) - pos, self._remaining)
        self._remaining -= taken
        if not self._remaining:
            self._run_ended(out)
        return pos + taken

    # --- what the steps share

    def _read_head(self, head: bytes, out: list[int]) -> bool:
        """Act on a whole head; False if it is none.  RFC 9112, 6.3 gives the order of the cases."""
        line = STATUS_LINE.match(head)
        if line is None:
            return False
        status, asked = int(line[2]), self.awaited[0]
        accepted = asked & TUNNEL and (status == 101 or (asked & CONNECT and 200 <= status < 300))
        if status < 200 and not accepted:
            self._at_notice += self.closing  # it has begun with another request
            self._state = NEXT
            return status != 101
        out.append(status)
        if asked & TUNNEL:
            self.tunnel = bool(accepted)
            self.offered = False
            self.upgraded = bool(accepted) and not asked & CONNECT
        if accepted:
            self._answered(out)
            self._state = DISCARD
            return True
        fields = FIELDS.findall(head, line.end() - 1)
        option = b"".join(value.lower() for name, value in fields if name.lower() == b"connection")
        if b"close" in option or ((line[1] == b"0" or asked & KEEPING) and b"keep-alive" not in option):
            self._give_notice()
        if asked & NO_BODY or status in (204, 304):
            self._answered(out)
            return True
        if not self._expect_body(fields, out):
            return False
        if self._state == UNTIL_END:
            self._give_notice()
        return True

    def _give_notice(self) -> None:
        if not self.closing:
            self._at_notice = len(self.awaited)
        self.closing = True

    def _read_plain(self, plain: re.Match[bytes], head: bytes, out: list[int]) -> int:
        status, length = int(plain[1]), int(plain[2])
        if len(head) <= KNOWN_BYTES:
            self._known, self._known_size, self._known_status = head, len(head) + length, (status,)
        out.append(status)
        self._await_body(length, out)
        return plain.end()

    def _answered(self, out: list[int]) -> None:
        self.awaited.popleft()
        self._state = NEXT

    def _fail(self, data: Buffer) -> int:
        self.failed = True
        self._state = DISCARD
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
"""The method that takes bytes in each state."""
