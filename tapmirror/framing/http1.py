# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 requests: where each begins and ends in the stream of one client.

Theory of operation
-------------------
The stream is a sequence of requests, each a head (RFC 9112, 2.1; the rules are in `head`) and
a body of the length that the head states or in chunks (RFC 9112, 6 and 7).  A head is held
until it is whole and known to be valid, then announced in one `Part`; the body is passed on as
it comes.  Empty lines before a request line (RFC 9112, 2.2) are swallowed: they count in the
`size` of the request that follows and are not in its `data`.

Chunked bodies are followed byte for byte.  Size lines and trailer fields are passed on only
when whole and valid: size of 1 to 16 hexadecimal digits below 2**63, extensions by the grammar
(RFC 9112, 7.1.1), CR LF and nothing else after the data, trailer fields as field lines that
name no framing field (RFC 9110, 6.5.1).

What cannot be followed is not guessed at:

* Invalid or ambiguous: lost as UNPARSED (a head longer than `head_bytes`: OVERSIZE).  So is what
  follows a request after which the server reads no more (`close`; 1.0 without `keep-alive`).
* A gap in a body whose remaining length is known (Content-Length, or the data of a chunk) breaks
  that request only: its rest is counted off, and the next begins where it must.
* Any other gap, also one between two requests, which may have held whole requests, is lost up to
  the next *certain boundary*.

A certain boundary is data that begins a captured segment, sent after the client had received
something from production since its last data (`after_response`), and beginning with a complete and valid
request line with a registered method (for `OST / HTTP/1.1` is valid too); its head must then prove
valid.  A client that waits for responses begins requests there and nowhere else; one that never does
(pipelining without a pause) is not taken up again.  The first segment behind a gap is none: the lost bytes
may have been the head of a request, and it the body.  That costs the request which follows a gap.

After a CONNECT or Upgrade request (RFC 9110, 9.3.6 and 7.8) the server may have left HTTP.  Its response
is not seen here; the next bytes tell: at a turn and beginning a request with a registered method, the
server refused, and HTTP goes on; else everything from there on is the tunnel's, passed on as it is.  A turn amid
the body of that request counts as well: the response may come before the body was sent.  A tunnel does not survive
a gap.

Behind production's FIN (`no_more`) no request can have a response: what the client begins there is left out, and a
request of which a part came before it goes on.

NOTE: cannot know what a server says while it still reads a body: where the head was lost, a request line at the
beginning of a segment of the body is taken for a request if the client received something amid the body.

NOTE: cannot know what came before a connection was joined in mid-stream: its first segment counts as one after a turn,
or the first request of every connection that was idle would be lost; it may be a part of a body as well.

NOTE: cannot know that production ended the connection early (errors, its limit of requests on one):
pipelined requests that it never read are mirrored, if they began before its FIN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tapmirror.events import END, START, TUNNEL, WHOLE, Buffer, DropReason, LeftOut, Lost, Message, Part
from tapmirror.framing.detect import ENOUGH, detect
from tapmirror.framing.head import CHUNKED, HEAD, PLAIN, REQUEST_LINE, STOP, TOKEN, VALUE, Head, read_head
from tapmirror.framing.memory import HeadMemory

CHUNK_LINE_BYTES: Final = 4096
"""Longest line of a chunk's size and extensions, as in Go's net/http (maxLineLength)."""

_NOTHING: Final[tuple[Message, ...]] = ()
_PLAIN: Final = PLAIN.match

_BWS: Final = rb"[ \t]*+"
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\' + VALUE + rb')*"'
_EXTENSION: Final = _BWS.join((b"", b";", TOKEN + rb"++(?:", b"=", rb"(?:" + TOKEN + rb"++|" + _QUOTED + rb"))?"))
_SIZE_LINE: Final = re.compile(rb"([0-7][0-9A-Fa-f]{15}|[0-9A-Fa-f]{1,15})(?:" + _EXTENSION + rb")*\r\n")
"""A chunk's size line; the size is below 2**63."""
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")
_CRLF: Final = re.compile(rb"\r\n")
_TRAILER_LINE: Final = re.compile(
    rb"(?!(?i:content-length|transfer-encoding|host):)" + TOKEN + rb"++:" + VALUE + rb"*+\r\n|\r\n"
)

# States.  The order matters: 0 is what `feed` looks for, and a request is under way from LENGTH to TRAILER.
_BOUNDARY: Final = 0  # between requests, nothing held
_HEAD: Final = 1  # a head is held, or tried
_LENGTH: Final = 2  # in a body of known length
_CHUNK_SIZE: Final = 3
_CHUNK_DATA: Final = 4
_CHUNK_END: Final = 5  # the CR LF after the data
_TRAILER: Final = 6
_SWITCH: Final = 7  # after a CONNECT or Upgrade request
_TUNNEL: Final = 8
_RESYNC: Final = 9  # waiting for a certain boundary
_OVER: Final = 10  # nothing more can be taken
_UNREAD: Final = 11  # what comes began behind production's FIN


class RequestFramer:
    """The requests of one client stream.  Not more than `head_bytes` are held at any time, and no more than
    `memory` has room for; what passes its bound is lost as MEMORY_LIMIT.

    `host` replaces the value of each Host field; targets in absolute form are left as they are.
    Without `trailers` the fields behind a chunked body are swallowed.
    `midstream`: the stream did not begin with the first byte fed.
    """

    transparent: Final = False
    """The framer has to look at the bytes: they do not pass as they are."""

    __slots__ = (
        "_after",
        "_broken",
        "_buffer",
        "_early",
        "_empty",
        "_flags",
        "_head_bytes",
        "_host",
        "_host_at",
        "_last",
        "_lined",
        "_memory",
        "_reason",
        "_remaining",
        "_run",
        "_state",
        "_trailers",
        "answered_early",
    )

    def __init__(
        self, head_bytes: int, host: bytes | None, midstream: bool, memory: HeadMemory, trailers: bool = True
    ) -> None:
        self._head_bytes = head_bytes
        self._memory = memory
        self._host = host
        self._trailers = trailers
        self._state = _RESYNC if midstream else _BOUNDARY
        self._reason = DropReason.MIDSTREAM if midstream else None  # why there is no certain boundary now
        self._buffer = bytearray()  # the beginning of a head or of a line of chunk framing
        self._empty = 0  # bytes that were swallowed: empty lines before the head in `_buffer`, trailers
        self._lined = False  # the request line in `_buffer` is known to be valid
        self._remaining = 0  # of a body or chunk; in trailers, of what they may take
        self._after = _BOUNDARY  # the state that follows the request under way
        self._broken = False  # the request under way is being counted off
        self._last = False  # production has sent its FIN: no other request may begin
        self._early = False  # the client received something amid the request that `_switch` follows
        self.answered_early = False
        """The client received something amid the last request that came in pieces: a response, or 100 Continue."""
        # Within one call of `feed`: data[_run:pos] is to be passed on, with these flags and this Host.
        self._run = 0
        self._flags = 0
        self._host_at: tuple[int, int] | None = None

    @property
    def held(self) -> int:
        """Bytes fed that are in no `Part` and no `Lost` yet."""
        return len(self._buffer) + self._empty

    def no_more(self) -> Sequence[Message]:
        """Production has sent its FIN: leave out requests that begin from here on; one that was begun goes on."""
        if self._last:
            return _NOTHING
        self._last = True
        if self._state <= _HEAD and not self._buffer:
            return self._leave_out()
        if self._state == _SWITCH and self._buffer:
            self._state = _HEAD  # as it seems; else a later piece would decide whether it had begun
        return _NOTHING

    @property
    def astray(self) -> bool:
        """Whether requests may have gone by, or may go by, that are not reported."""
        return self._state >= _RESYNC

    def feed(self, data: Buffer, after_response: bool) -> Sequence[Message]:
        """Take the next bytes of the stream.  Parts may be views of `data`.

        `after_response`: the first byte of `data` may begin a request, by evidence from outside the stream.
        """
        state = self._state
        size = len(data)
        if not state:
            plain = _PLAIN(data)
            if plain is not None and plain.end() <= self._head_bytes:
                rest = plain.end() + int(plain[2] or 0) - size
                if not rest and self._host is None:
                    return (Part(data, size, WHOLE),)
                if rest >= 0:
                    return (self._whole_or_begun(data, plain, rest),)
        elif state == _LENGTH and size <= self._remaining and self._after == _BOUNDARY and not self._broken:
            self._remaining -= size
            if after_response:
                self.answered_early = True
            if self._remaining:
                return (Part(data, size, 0),)
            self._request_ended()
            return (Part(data, size, END),)
        out: list[Message] = []
        self._run = pos = 0
        before = len(self._buffer)
        if after_response:
            self._early = self._early or self._after == _SWITCH
            self.answered_early = self.answered_early or _LENGTH <= state <= _TRAILER
        while pos < size:
            pos = _STEPS[self._state](self, data, pos, after_response and not pos, out)
        self._pass(data, size, 0, out)
        if (self._buffer or before) and not self._memory.resize(before, len(self._buffer)):
            out += self._lose(DropReason.MEMORY_LIMIT)
        return out

    def _whole_or_begun(self, data: Buffer, plain: re.Match[bytes], rest: int) -> Part:
        """What nearly all data is: a request, or its beginning up to `rest` bytes of its body."""
        size = len(data)
        if rest:
            self._remaining = rest
            self._state = _LENGTH
            self.answered_early = False
        flags = START if rest else WHOLE
        if self._host is None:
            return Part(data, size, flags)
        first, last = plain.span(1)
        return Part(b"".join((data[:first], self._host, data[last:])), size, flags)

    def gap(self, length: int) -> Sequence[Message]:
        """Skip `length` bytes that are missing at this place."""
        state = self._state
        if state in (_LENGTH, _CHUNK_DATA) and length <= self._remaining:
            broken = self._under_way()
            self._broken = True
            self._remaining -= length
            if not self._remaining:
                self._body_ended()
            return (Lost(0, DropReason.GAP, True),) if broken else _NOTHING
        if state >= _RESYNC:
            return _NOTHING
        if state == _TUNNEL:
            self._state = _OVER
            return self._give_up(0, DropReason.GAP, True)
        return self._lose(self._reason or DropReason.GAP)

    def end(self) -> Sequence[Message]:
        """The stream is over: give up what is held and what is not whole."""
        lost = self._lose(DropReason.INCOMPLETE) if self._state else _NOTHING
        self._state = _OVER
        return lost

    # --- one step each: take bytes of `data` from `pos` on, say where the next step begins

    def _head(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        if self._buffer or self._empty:
            return self._hold_head(data, pos, out)
        limit = pos + self._head_bytes
        found = PLAIN.match(data, pos, limit) or HEAD.match(data, pos, limit)
        if found is None:
            return self._hold_head(data, pos, out)
        if found.re is PLAIN:
            head: Head | None = Head(0, int(found[2] or 0), False, found.span(1))
        else:
            head = read_head(found)
        if head is None:
            return self._fail(data, pos, DropReason.UNPARSED, out)
        self._run, pos = pos, found.end()
        self._flags = START | head.flags
        if self._host is not None:
            self._host_at = head.host
        return self._begin(head, data, pos, out)

    def _hold_head(self, data: Buffer, pos: int, out: list[Message]) -> int:
        """Take a head that does not lie whole and valid in `data`."""
        buffer = self._buffer
        scanned = len(buffer)
        taken = min(len(data) - pos, self._head_bytes - self.held)
        buffer += data[pos : pos + taken]
        pos += taken
        if buffer.startswith(b"\r\n"):
            empty = _EMPTY_LINES.match(buffer).end()  # type: ignore[union-attr]
            del buffer[:empty]
            self._empty += empty
            scanned = 0
        stop = STOP.search(buffer, max(scanned - 3, 0))
        if stop is None:
            return self._await_head(data, pos, scanned, out)
        found = HEAD.fullmatch(bytes(buffer[: stop.end()]))
        head = read_head(found) if found is not None else None
        if found is None or head is None:
            return self._fail(data, pos, DropReason.UNPARSED, out)
        whole = found[0]
        if self._host is not None and head.host is not None:
            whole = whole[: head.host[0]] + self._host + whole[head.host[1] :]
        out.append(Part(whole, self._empty + stop.end(), START | head.flags | (0 if head.length else END)))
        pos -= len(buffer) - stop.end()
        self._release()
        self._run = pos
        return self._begin(head, data, pos, out)

    def _await_head(self, data: Buffer, pos: int, scanned: int, out: list[Message]) -> int:
        """Keep the beginning of a head, if it may become a valid one."""
        if not self._lined and self._buffer.find(b"\n", scanned) >= 0:
            if REQUEST_LINE.match(self._buffer) is None:
                return self._fail(data, pos, DropReason.UNPARSED, out)
            self._lined = True
        if self.held >= self._head_bytes:
            return self._fail(data, pos, DropReason.OVERSIZE, out)
        self._state = _HEAD
        self._run = pos
        return pos

    def _begin(self, head: Head, data: Buffer, pos: int, out: list[Message]) -> int:
        """A request is announced: its head ends at `pos`."""
        self._reason = None
        self._after = _SWITCH if head.flags & TUNNEL else _RESYNC if head.closing else _BOUNDARY
        self._early = self.answered_early = False
        self._remaining = head.length
        if head.length == CHUNKED:
            self._state = _CHUNK_SIZE
        elif head.length:
            self._state = _LENGTH
        else:
            self._pass(data, pos, END, out)
            self._request_ended()
        return pos

    def _length(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        """Take bytes of a body, or of one chunk's data."""
        taken = min(len(data) - pos, self._remaining)
        self._remaining -= taken
        pos += taken
        if not self._remaining:
            if self._state == _LENGTH:
                self._pass(data, pos, END, out)
            self._body_ended()
        return pos

    def _chunk_size(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        found, stop = self._line(data, pos, _SIZE_LINE, min(CHUNK_LINE_BYTES, self._head_bytes), out)
        if found is None:
            return stop
        size = int(found[1], 16)
        self._state = _CHUNK_DATA if size else _TRAILER
        self._remaining = size or self._head_bytes
        return stop

    def _chunk_end(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        found, stop = self._line(data, pos, _CRLF, 2, out)
        if found is not None:
            self._state = _CHUNK_SIZE
        return stop

    def _trailer(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        found, stop = self._line(data, pos, _TRAILER_LINE, self._remaining, out)
        if found is not None:
            size = found.end() - found.start()
            self._remaining -= size
            if found.string is data and (self._empty or not self._trailers):
                self._pass(data, found.start(), 0, out)
                self._run = stop
                self._take(found[0], out)
            if size == 2:
                self._pass(data, stop, END, out)
                self._request_ended()
        return stop

    def _line(
        self, data: Buffer, pos: int, pattern: re.Pattern[bytes], limit: int, out: list[Message]
    ) -> tuple[re.Match[bytes] | None, int]:
        """Take a line of chunk framing of at most `limit` bytes: (what it says, where it ends).

        (None, …) if only its beginning is there, which is held, or if it is invalid.
        """
        buffer = self._buffer
        if not buffer:
            found = pattern.match(data, pos, pos + limit)
            if found is not None:
                return found, found.end()
            self._pass(data, pos, 0, out)
        piece = bytes(data[pos : pos + limit - len(buffer)])
        end = piece.find(b"\n") + 1
        buffer += piece[:end] if end else piece
        pos += end or len(piece)
        self._run = pos
        found = pattern.fullmatch(bytes(buffer)) if end else None
        if found is None:
            if end or len(buffer) >= limit:
                pos = self._fail(data, pos, DropReason.UNPARSED, out)
            return None, pos
        buffer.clear()
        self._take(found[0], out)
        return found, pos

    def _take(self, line: bytes, out: list[Message]) -> None:
        """Pass on a line of chunk framing; the lines of a trailer are left out up to the empty one."""
        size = len(line)
        if self._state == _TRAILER:
            if size > 2 and not self._trailers:
                self._empty += size
                return
            size, self._empty = size + self._empty, 0
        flags = END if self._state == _TRAILER and len(line) == 2 else 0
        out.append(Lost(size, DropReason.GAP) if self._broken else Part(line, size, flags))

    def _switch(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        """Decide what follows a CONNECT or Upgrade request."""
        buffer = self._buffer
        if self._early or buffer or self._last:
            begun = bytes(buffer) + data[pos : pos + ENOUGH]
            found = detect(begun)
            if found == "http":
                if self._last:
                    out += self._leave_out()
                else:
                    self._state = _HEAD
                return pos
            if found is None and len(begun) < self._head_bytes:
                buffer += data[pos:]
                self._run = len(data)
                return self._run
        self._state = _TUNNEL
        if buffer:
            out.append(Part(bytes(buffer), len(buffer), 0))
            self._release()
        return pos

    def _tunnel(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        return len(data)

    def _resync(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        if (after_response or self._last) and REQUEST_LINE.match(data, pos) and detect(data[pos:]) == "http":
            if self._last:
                self._state = _UNREAD
                return pos
            return self._head(data, pos, after_response, out)
        return self._fail(data, pos, DropReason.UNPARSED, out)

    def _over(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        out.append(Lost(len(data) - pos, self._reason or DropReason.INCOMPLETE))
        self._run = len(data)
        return self._run

    def _unread(self, data: Buffer, pos: int, after_response: bool, out: list[Message]) -> int:
        out.append(LeftOut(len(data) - pos))
        self._run = len(data)
        return self._run

    # --- what the steps share

    def _pass(self, data: Buffer, stop: int, flags: int, out: list[Message]) -> None:
        """Pass on data[_run:stop]."""
        start = self._run
        if start == stop:
            return
        self._run = stop
        if self._broken:
            out.append(Lost(stop - start, DropReason.GAP))
            return
        if self._host_at is not None:
            first, last = self._host_at
            self._host_at = None
            piece: Buffer = b"".join((data[start:first], self._host or b"", data[last:stop]))
        else:
            piece = data[start:stop]
        out.append(Part(piece, stop - start, self._flags | flags))
        self._flags = 0

    def _body_ended(self) -> None:
        if self._state == _LENGTH:
            self._request_ended()
        else:
            self._state = _CHUNK_END

    def _request_ended(self) -> None:
        self._broken = False
        self._state = self._after
        if self._state == _RESYNC:
            self._reason = DropReason.UNPARSED
        elif self._last and self._state == _BOUNDARY:
            self._state = _UNREAD

    def _leave_out(self) -> tuple[Message, ...]:
        """Leave out what is held and all that follows."""
        held = self.held
        self._release()
        self._state = _UNREAD
        return (LeftOut(held),) if held else _NOTHING

    def _under_way(self) -> bool:
        """Whether a request was announced and is neither whole nor given up."""
        return _LENGTH <= self._state <= _TRAILER and not self._broken

    def _fail(self, data: Buffer, pos: int, reason: DropReason, out: list[Message]) -> int:
        """Lose what is held and the rest of `data`, and wait for a certain boundary."""
        size = len(data)
        out.extend(self._give_up(size - pos, self._reason or reason, self._under_way()))
        self._state = _RESYNC
        self._run = size
        return size

    def _lose(self, reason: DropReason) -> tuple[Message, ...]:
        """Between two calls of `feed`: lose what is held and the request under way, and wait for a certain boundary."""
        self._memory.resize(len(self._buffer), 0)
        lost = self._give_up(0, reason, self._under_way())
        self._state = _RESYNC
        return lost

    def _give_up(self, size: int, reason: DropReason, broken: bool) -> tuple[Message, ...]:
        size += self.held
        self._release()
        self._broken = False
        self._reason = reason
        return (Lost(size, reason, broken),) if size or broken else _NOTHING

    def _release(self) -> None:
        self._buffer.clear()
        self._empty = 0
        self._lined = False


_Step: TypeAlias = Callable[[RequestFramer, Buffer, int, bool, list[Message]], int]
_STEPS: Final[tuple[_Step, ...]] = (
    RequestFramer._head,
    RequestFramer._head,
    RequestFramer._length,
    RequestFramer._chunk_size,
    RequestFramer._length,
    RequestFramer._chunk_end,
    RequestFramer._trailer,
    RequestFramer._switch,
    RequestFramer._tunnel,
    RequestFramer._resync,
    RequestFramer._over,
    RequestFramer._unread,
)
"""The method that takes bytes in each state."""
