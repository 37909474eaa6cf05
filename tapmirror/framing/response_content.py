# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 responses of one connection, for comparison: each with its request, its head, and as much of its body as is
kept.

Theory of operation
-------------------
As in `response_status`, responses come in the order of the requests (RFC 9112, 9.3.2), and the length of each body
follows from RFC 9112, 6.3.  Here the caller gives a token with each expected request, and gets it back with the
response.  So this is the only place that decides which response belongs to which request.

Both sides are read in this way.  A shadow may be hostile, so it is read leniently and within bounds.  Production's
stream has holes.  A hole inside a body of known length costs only that body.  A hole inside a chunked body hides where
the body ends: if no other response is owed, its end is unknown (`end_unknown`), and the caller, who sees what the
client does next, says when the response is complete (`finish_implied`).  Any other hole hides how many responses went
by.  Then nothing is read (`broken`) until the caller knows a point at which a response must begin (`resync`).  The same
happens if there is no room for a head; a body without room is hashed.

Pure: bytes and times in, responses out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import msgspec

from tapmirror.events import CONNECT, NO_BODY, TUNNEL, Buffer
from tapmirror.exchange import Response, Unpaired
from tapmirror.framing.response_end import (
    BODY,
    CHUNK_DATA,
    CHUNK_END,
    CHUNK_SIZE,
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
    TRAILER,
    UNTIL_END,
    ResponseReader,
)

SMALL: Final = 512
"""Pieces of a body that are shorter than this are joined as they come: a shadow may send chunks of one byte, and an
object for each would take 43 bytes."""
NOTHING: Final = -1
"""`body_limit` of a request whose response's body does not matter: it is skipped by its length."""
DIGEST_BYTES: Final = 16
"""Bytes of a digest: with 128 bits, two different bodies have the same digest neither by chance nor on purpose."""

END_UNKNOWN: Final = DISCARD + 1
"""One more state: inside a chunked body whose end was not seen."""
_CHUNKS: Final = (CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER)
_NONE: Final = ()


class ReaderBounds(msgspec.Struct, frozen=True):
    """Bounds of one reader."""

    head_bytes: int
    """Bytes of the longest head."""
    hash_bytes: int
    """Bytes of the longest body that gets a digest."""
    awaited: int
    """Most requests without a response."""


class ResponseMemory:
    """Bytes that all readers of a worker may keep of responses.

    Whoever is done with a response gives back its `memory_of`.
    """

    __slots__ = ("free",)

    def __init__(self, free: int) -> None:
        self.free = free


def memory_of(response: Response) -> int:
    """Bytes of the room that a response takes."""
    return len(response.head) + len(response.body)


class ContentReader(ResponseReader[tuple[Any, Response]]):
    """The responses on one side of one connection."""

    __slots__ = (
        "_before",
        "_body",
        "_body_left",
        "_bounds",
        "_digest",
        "_first",
        "_hashed",
        "_head",
        "_known",
        "_known_length",
        "_known_status",
        "_length",
        "_memory",
        "_now",
        "_status",
        "_whole",
        "awaited",
        "broken",
        "end_unknown_reason",
    )

    def __init__(self, bounds: ReaderBounds, memory: ResponseMemory) -> None:
        super().__init__(bounds.head_bytes)
        self._bounds = bounds
        self._memory = memory
        self.awaited: deque[tuple[int, int, Any]] = deque()
        """Requests whose response is not complete (`outstanding`): flags, keep, token."""
        self._now = self._first = self._before = 0
        self.broken: Unpaired | None = None
        """Why nothing is read any more, if so."""
        self.end_unknown_reason = Unpaired.GAP
        """Why the end of the last response with an unknown end is unknown."""
        self._known = b""  # the last plain head, the length of its body, and its status: see `response_status`
        self._known_length = 0
        self._known_status = 0
        self._status = 0
        self._head = b""
        self._body_left = NOTHING
        self._body: list[bytes | bytearray] = []
        self._length = 0
        self._hashed: blake2b | None = None
        self._digest = True
        self._whole = True

    @property
    def outstanding(self) -> int:
        """Requests whose response is not complete."""
        return len(self.awaited)

    @property
    def idle(self) -> bool:
        """Whether the reader is between two responses and holds nothing of one."""
        return self._state == NEXT

    def expect(self, flags: int, body_limit: int, token: Any) -> None:
        """A request with these flags (as of its first `Part`): call it before its response can come.

        `body_limit` is how many bytes of the response's body are kept (NOTHING: its body does not matter at all).
        """
        if self.broken is None:
            if len(self.awaited) >= self._bounds.awaited:
                self._break(Unpaired.LIMIT)
            marks = flags & (NO_BODY | TUNNEL | CONNECT) if flags >= NO_BODY else 0
            self.awaited.append((marks, body_limit, token))

    def withdraw(self) -> None:
        """Nothing was sent of the last expected request, so no response to it will come."""
        if self.broken is None and self.awaited:
            self.awaited.pop()
            if not self.awaited and self._state != NEXT:  # what has begun to come answers nobody
                self._break(Unpaired.ORDER)

    def feed(self, data: Buffer, time_ns: int) -> Sequence[tuple[Any, Response]]:
        """Take the next bytes: the responses that they complete, each with its request's token."""
        if self.broken is not None:
            return _NONE
        self._now = time_ns
        pos, size = 0, len(data)
        out: list[tuple[Any, Response]] = []
        while pos < size and not self._state and self.awaited:  # the common case: plain responses, each of them whole
            end = self._take_plain(data, pos, size, out)
            if end == size:
                return out
            if not end:
                break
            pos = end
        before = len(self._buffer)
        while pos < size:
            pos = _STEPS[self._state](self, data, pos, out)
        if before or self._buffer:
            self._memory.free -= len(self._buffer) - before
            if self._memory.free < 0:
                self._break(Unpaired.LIMIT)
        return out

    def _take_plain(self, data: Buffer, pos: int, size: int, out: list[tuple[Any, Response]]) -> int:
        """Take a plain response that is complete in `data`; returns where it ends, or 0."""
        flags, body_limit, token = self.awaited[0]
        if flags:
            return 0
        now, head = self._now, self._known
        body_at = pos + len(head)
        if not head or bytes(data[pos:body_at]) != head:
            plain = PLAIN(data, pos)
            if plain is None:
                return 0
            body_at = plain.end()
            head = bytes(data[pos:body_at])
            if len(head) > KNOWN_BYTES:
                return 0
            self._known, self._known_length, self._known_status = head, int(plain[2]), int(plain[1])
        length, memory = self._known_length, self._memory
        end = body_at + length
        if end > size or length > body_limit >= 0:
            return 0
        kept = (end if body_limit > 0 else body_at) - pos
        if kept > memory.free:
            return 0
        memory.free -= kept
        self.awaited.popleft()
        body = bytes(data[body_at:end]) if body_limit > 0 else b""
        out.append((token, Response(self._known_status, head, body, length, b"", True, now, now, self._before)))
        self._before = now
        return end

    def gap(self, size: int, time_ns: int, reason: Unpaired = Unpaired.GAP) -> Sequence[tuple[Any, Response]]:
        """`size` bytes were not seen, or not looked at (`skippable`).  If they are needed it is broken for `reason`."""
        if self.broken is not None:
            return _NONE
        before, self._now = self._now, time_ns
        out: list[tuple[Any, Response]] = []
        if self._state in (BODY, CHUNK_DATA) and size <= self._remaining:
            self._whole = False
            self._length += size
            self._remaining -= size
            if not self._remaining:
                self._run_ended(out)
        elif self._state == UNTIL_END:
            self._whole = False
            self._length += size
        elif self._state in (*_CHUNKS, END_UNKNOWN) and len(self.awaited) == 1:
            self._now = before  # when these bytes came is not known
            self._whole = False
            self._length += size
            self._memory.free += len(self._buffer)
            self._buffer.clear()
            if self._state != END_UNKNOWN:
                self._state, self.end_unknown_reason = END_UNKNOWN, reason
        else:
            self._break(reason)
        return out

    @property
    def end_unknown(self) -> bool:
        """Whether a response is in progress whose end will not be seen."""
        return self._state == END_UNKNOWN and self.broken is None

    def finish_implied(self) -> Sequence[tuple[Any, Response]]:
        """That response is complete: the last byte that was seen was its last one."""
        out: list[tuple[Any, Response]] = []
        self._answered(out)
        return out

    def skippable(self) -> int:
        """How many of the next bytes need not be fed: hand them to `gap`."""
        if self.broken is not None:
            return ENDLESS
        if self._body_left == NOTHING or not (self._digest and self._whole):
            if self._state in (BODY, CHUNK_DATA):
                return self._remaining
            if self._state == UNTIL_END:
                return ENDLESS
        return 0

    def end(self, time_ns: int, reset: bool) -> Sequence[tuple[Any, Response]]:
        """The side closed its stream; that ends the body of a response whose length nothing else tells."""
        out: list[tuple[Any, Response]] = []
        if self._state == UNTIL_END and not reset and self.broken is None:
            self._now = time_ns
            self._answered(out)
        elif self.end_unknown and not reset:
            self._answered(out)
        return out

    def give_up(self) -> list[Any]:
        """Forget everything in progress; returns the tokens of the requests without a response."""
        tokens = [token for _, _, token in self.awaited]
        self.awaited.clear()
        self._memory.free += len(self._buffer) + len(self._head) + sum(map(len, self._body))
        self._buffer.clear()
        self._head = b""
        self._body = []
        return tokens

    def resync(self) -> None:
        """After `give_up`: the next byte is the first of the response to the request that is expected next."""
        self.broken = None
        self._state = NEXT

    # --- one step each: take bytes of `data` from `pos` on, say where the next step begins

    def _next(self, data: Buffer, pos: int, out: list[tuple[Any, Response]]) -> int:
        """Begin the next response: the common case, in which its head lies whole in `data`."""
        if not self.awaited:
            return self._fail(data)
        flags, body_limit, _ = self.awaited[0]
        self._first = self._now
        if not flags:
            plain = PLAIN(data, pos)
            if plain is not None and plain.end() - pos <= self._bounds.head_bytes:
                end = plain.end()
                if not self._start(int(plain[1]), bytes(data[pos:end]), body_limit):
                    return len(data)
                self._await_body(int(plain[2]), out)
                return end
        self._state = HEAD
        return pos

    def _read_head(self, data: Buffer, pos: int, out: list[tuple[Any, Response]]) -> int:
        buffer = self._buffer
        scanned = len(buffer)
        piece = data[pos : pos + self._bounds.head_bytes - scanned]
        buffer += piece
        found = HEAD_END.search(buffer, max(scanned - 2, 0))
        if found is None:
            if len(buffer) >= self._bounds.head_bytes or not PREFIX.startswith(buffer[: len(PREFIX)]):
                return self._fail(data)
            return pos + len(piece)
        head = bytes(buffer[: found.end()])
        buffer.clear()
        return pos + len(head) - scanned if self._interpret(head, out) else self._fail(data)

    def _run(self, data: Buffer, pos: int, out: list[tuple[Any, Response]]) -> int:
        taken = min(len(data) - pos, self._remaining)
        self._take(data, pos, taken)
        self._remaining -= taken
        if not self._remaining:
            self._run_ended(out)
        return pos + taken

    def _until_end(self, data: Buffer, pos: int, out: list[tuple[Any, Response]]) -> int:
        self._take(data, pos, len(data) - pos)
        return len(data)

    def _drift(self, data: Buffer, pos: int, out: list[tuple[Any, Response]]) -> int:
        """Take bytes that belong to a body, as far as is known; another response would begin its own segment."""
        if bytes(data[pos : pos + len(PREFIX)]) == PREFIX:
            self._break(self.end_unknown_reason)
        self._length += len(data) - pos
        return len(data)

    # --- what the steps share

    def _start(self, status: int, head: bytes, body_limit: int) -> bool:
        """Begin a final response, whose body may follow; False: there is no room for it."""
        if len(head) > self._memory.free:
            self._break(Unpaired.LIMIT)
            return False
        self._memory.free -= len(head)
        self._status, self._head, self._body_left = status, head, body_limit
        self._body = []
        self._length = 0
        self._hashed = None
        self._digest = body_limit != NOTHING
        self._whole = True
        return True

    def _interpret(self, head: bytes, out: list[tuple[Any, Response]]) -> bool:
        """Act on a whole head; False if it is none, or has no room.  RFC 9112, 6.3 gives the order of the cases."""
        line = STATUS_LINE.match(head)
        if line is None:
            return False
        status = int(line[2])
        asked, body_limit, _ = self.awaited[0]
        accepted = asked & TUNNEL and (status == 101 or (asked & CONNECT and 200 <= status < 300))
        if status < 200 and not accepted:
            self._state = NEXT
            return status != 101
        if not self._start(status, head, body_limit):
            return False
        if accepted:
            self._answered(out)
            self._break(Unpaired.TUNNEL)
            return True
        if asked & NO_BODY or status in (204, 304):
            self._answered(out)
            return True
        return self._expect_body(FIELDS.findall(head, line.end() - 1), out)

    def _take(self, data: Buffer, pos: int, size: int) -> None:
        """Body bytes: keep the first, hash the others along with them."""
        if self._digest:
            memory = self._memory
            taken = min(size, self._body_left, memory.free) if self._whole else 0
            if taken == size:
                self._add_piece(data[pos : pos + size])
            else:
                if self._hashed is None:
                    self._hashed = blake2b(b"".join(self._body), digest_size=DIGEST_BYTES)
                if taken:
                    self._add_piece(data[pos : pos + taken])
                self._hashed.update(data[pos : pos + size])
                self._body_left = taken
                self._digest = self._length + size <= self._bounds.hash_bytes
            self._body_left -= taken
            memory.free -= taken
        self._length += size

    def _add_piece(self, piece: Buffer) -> None:
        body = self._body
        if len(piece) >= SMALL:
            body.append(bytes(piece))
        elif body and isinstance(body[-1], bytearray):
            body[-1] += piece
        else:
            body.append(bytearray(piece))

    def _answered(self, out: list[tuple[Any, Response]]) -> None:
        digest = b""
        if self._hashed is not None and self._digest and self._whole:
            digest = self._hashed.digest()
        body = self._body
        self._state = NEXT
        out.append(
            (
                self.awaited.popleft()[2],
                Response(
                    self._status,
                    self._head,
                    body[0] if len(body) == 1 and isinstance(body[0], bytes) else b"".join(body),
                    self._length,
                    digest,
                    self._whole,
                    self._first,
                    self._now,
                    self._before,
                ),
            )
        )
        self._before = self._now
        self._head = b""
        self._body = []

    def _break(self, reason: Unpaired) -> None:
        self.broken = reason
        self._state = DISCARD

    def _fail(self, data: Buffer) -> int:
        if self.broken is None:
            self._break(Unpaired.UNPARSED if self.awaited else Unpaired.ORDER)
        return len(data)


_Step: TypeAlias = Callable[[ContentReader, Buffer, int, list[tuple[Any, Response]]], int]
_STEPS: Final[tuple[_Step, ...]] = (
    ContentReader._next,
    ContentReader._read_head,
    ContentReader._run,
    ContentReader._chunk_size,
    ContentReader._run,
    ContentReader._chunk_end,
    ContentReader._trailer,
    ContentReader._until_end,
    ContentReader._discard,
    ContentReader._drift,
)
"""The method that takes bytes in each state."""
