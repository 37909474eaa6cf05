# SPDX-License-Identifier: Apache-2.0
"""Servers that remember what they got: `HashSink` by HTTP request, `RecordingTcp` by connection.

They run in a thread of the calling process, on sockets of the host's network.  They know no line of tapmirror: the
little HTTP here is written for being strict, not fast.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import resource
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from lab.hosts import NOFILE_MOST, PATIENCE, Host, until

HEAD_BYTES: Final = 1 << 22
FLOOD_BYTES: Final = 1 << 18
NO_RESPONSE_BODY: Final = (b"HEAD",)
MARK: Final = re.compile(rb"\r\nTapmirror-Loop: [0-9a-f]{32}\.[0-9]+(?=\Z|\r\n\r\n)")


class Server:
    """A listening socket on a host, for IPv4 and IPv6, served by a thread."""

    def __init__(self, host: Host, port: int, protocol: Callable[[], asyncio.BaseProtocol], read: bool = True) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (NOFILE_MOST, NOFILE_MOST))  # what the lab starts is not affected
        with host.enter():
            self._listener = socket.create_server(
                ("::", port), family=socket.AF_INET6, backlog=16384, dualstack_ipv6=True
            )
        self.port: int = self._listener.getsockname()[1]
        self._open: set[asyncio.Transport] = set()
        self._accepting = read
        self._protocol = protocol
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event
        ready = threading.Event()
        name = f"sink {host.name}:{port}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name=name, daemon=True)
        self._thread.start()
        ready.wait()
        host.at_close(self.stop)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = None
        if self._accepting:
            server = await self._loop.create_server(self._protocol, sock=self._listener, backlog=16384)
        ready.set()
        await self._end.wait()
        if server is not None:
            self._loop.remove_reader(self._listener)
        await _turns(5)  # what was accepted gets its transport
        for transport in [*self._open]:
            transport.abort()
        await _turns(5)  # and loses its socket
        if server is not None:
            server.close()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and reset what is established."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(PATIENCE)


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- HTTP


def unmarked(data: bytes | bytearray) -> bytes:
    """Requests without the field that a tap gives to some, as the last one."""
    return MARK.sub(b"", bytes(data))


@dataclass(frozen=True)
class Got:
    """A request as it arrived."""

    method: str
    uri: str
    length: int
    """Of the body."""
    sha256: str
    head: bytes
    """Without the field of a copy that is `marked`."""
    marked: bool
    """By a tap, as the last field."""
    connection: int
    whole: bool
    """Its last byte arrived.  False: the connection ended within it."""


class BadRequestError(Exception):
    """Not HTTP/1."""


class Head:
    """A parsed request head."""

    def __init__(self, raw: bytes) -> None:
        lines = raw.split(b"\r\n")
        line = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/1\.([01])", lines[0])
        if line is None:
            raise BadRequestError(f"request line {lines[0][:80]!r}")
        self.raw = raw
        self.method, self.uri = line[1], line[2]
        fields: dict[bytes, list[bytes]] = {}
        for text in lines[1:]:
            name, colon, value = text.partition(b":")
            if not colon or not name or name != name.strip():
                raise BadRequestError(f"header line {text[:80]!r}")
            fields.setdefault(name.lower(), []).append(value.strip())
        codings = [value.lower() for value in fields.get(b"transfer-encoding", [])]
        lengths = set(fields.get(b"content-length", []))
        if codings and (codings != [b"chunked"] or lengths):
            raise BadRequestError(f"transfer coding {codings!r} with lengths {lengths!r}")
        if len(lengths) > 1 or not all(value.isdigit() for value in lengths):
            raise BadRequestError(f"lengths {lengths!r}")
        self.chunked = bool(codings)
        self.length = int(lengths.pop()) if lengths else 0
        connection = b",".join(fields.get(b"connection", [])).lower()
        self.keep = b"close" not in connection if line[3] == b"1" else b"keep-alive" in connection
        self.expects = b"100-continue" in b",".join(fields.get(b"expect", [])).lower()


class HttpConnection(asyncio.Protocol):
    """Reads requests of any size without holding their bodies."""

    def __init__(self, sink: HashSink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._step: Callable[[], bool] = self._read_head
        self._head: Head | None = None
        self._left = 0
        self._length = 0
        self._hash = hashlib.sha256()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._number = self._sink.opened(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head is not None:
            self._done(whole=False)
        elif self._buffer:
            self._sink.bad.append(f"connection {self._number} ended with {bytes(self._buffer[:80])!r}")
        self._sink.closed(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._left and not self._buffer and len(data) <= self._left:  # the body of a large request
            self._take(data)
            if self._left:
                return
        else:
            self._buffer += data
        try:
            while not self._transport.is_closing() and self._step():
                pass
        except BadRequestError as error:
            self._sink.bad.append(str(error))
            self._buffer.clear()
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self._transport.close()

    def _line(self, end: bytes, what: str) -> bytes | None:
        """What stands before the next `end`, which is taken too; None: not all is here."""
        at = self._buffer.find(end)
        if at > HEAD_BYTES or (at < 0 and len(self._buffer) > HEAD_BYTES):
            raise BadRequestError(f"{what} too long")
        if at < 0:
            return None
        line = bytes(self._buffer[:at])
        del self._buffer[: at + len(end)]
        return line

    def _take(self, data: bytes | bytearray) -> None:
        self._hash.update(data)
        self._length += len(data)
        self._sink.received += len(data)
        self._left -= len(data)

    def _read_head(self) -> bool:
        raw = self._line(b"\r\n\r\n", "head")
        if raw is None:
            return False
        self._head = head = Head(raw)
        self._length, self._hash = 0, hashlib.sha256()
        if head.expects:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.chunked:
            self._step = self._read_chunk_size
        else:
            self._left = head.length
            self._step = self._read_body
        return True

    def _read_body(self) -> bool:
        if self._left:
            part = self._buffer[: self._left]
            del self._buffer[: len(part)]
            self._take(part)
        if self._left:
            return False
        self._answer()
        return True

    def _read_chunk_size(self) -> bool:
        line = self._line(b"\r\n", "chunk size")
        if line is None:
            return False
        size = line.partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}", size):
            raise BadRequestError(f"chunk size {line[:80]!r}")
        self._left = int(size, 16)
        self._step = self._read_chunk if self._left else self._read_trailer
        return True

    def _read_chunk(self) -> bool:
        part = self._buffer[: self._left]
        del self._buffer[: len(part)]
        self._take(part)
        if self._left or len(self._buffer) < 2:
            return False
        if self._buffer[:2] != b"\r\n":
            raise BadRequestError("no CR LF after a chunk")
        del self._buffer[:2]
        self._step = self._read_chunk_size
        return True

    def _read_trailer(self) -> bool:
        line = self._line(b"\r\n", "trailer")
        if line is None:
            return False
        if not line:
            self._answer()
        return True

    def _answer(self) -> None:
        head = self._head
        assert head is not None
        self._done(whole=True)
        self._step = self._read_head
        self._transport.write(self._sink.response(head.method))
        if not head.keep:
            self._transport.close()

    def _done(self, *, whole: bool) -> None:
        head = self._head
        assert head is not None
        self._head = None
        self._sink.got.append(
            Got(
                method=head.method.decode("latin-1"),
                uri=head.uri.decode("latin-1"),
                length=self._length,
                sha256=self._hash.hexdigest(),
                head=unmarked(head.raw),
                marked=MARK.search(head.raw) is not None,
                connection=self._number,
                whole=whole,
            )
        )


class HashSink(Server):
    """An HTTP/1 server that keeps each request's head and the hash of its body.

    got           the requests in the order in which they ended.
    bad           what was no HTTP/1, in words; empty unless something was torn.
    connections   how many were accepted.
    received      bytes of bodies, of those under way too.
    """

    def __init__(self, host: Host, port: int = 80, *, status: int = 200, text: bytes = b"ok\n") -> None:
        self.got: list[Got] = []
        self.bad: list[str] = []
        self.connections = self.received = 0
        self._status = status
        self._text = text
        super().__init__(host, port, lambda: HttpConnection(self))

    def opened(self, transport: asyncio.Transport) -> int:
        """A connection begins; its number."""
        self._open.add(transport)
        self.connections += 1
        return self.connections

    def closed(self, transport: asyncio.Transport) -> None:
        """A connection is over."""
        self._open.discard(transport)

    def response(self, method: bytes) -> bytes:
        """The bytes of the response."""
        head = b"HTTP/1.1 %d Sink\r\nContent-Length: %d\r\n\r\n" % (self._status, len(self._text))
        return head if method in NO_RESPONSE_BODY else head + self._text

    def wait_for(self, count: int, seconds: float = PATIENCE) -> list[Got]:
        """Wait until `count` requests ended; all of them."""
        until(lambda: len(self.got) >= count, f"{count} requests (now {len(self.got)})", seconds)
        return self.got


# --- TCP


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What a `RecordingTcp` does with a connection.  The default reads everything and says nothing."""

    accept: bool = True
    """False: connections are established by the kernel (the backlog) and nobody takes them."""
    read: bool = True
    """False: accepted, and never read: its window closes."""
    read_rate: float = 0.0
    """Bytes a second that are read; 0: all."""
    echo: bool = False
    response: bytes = b""
    """Sent once for each piece of data that arrives."""
    delay: float = 0.0
    """Seconds before a response."""
    flood: int = 0
    """Bytes that are sent, as fast as they are taken, from the first data on."""
    drip: float = 0.0
    """With `flood`: one byte in this many seconds instead."""
    flood_start: bytes = b""
    """Before the flood: a response's head, for example."""
    close_after: int | None = None
    """Close (FIN) when this many bytes arrived; 0: at once."""
    reset_after: int | None = None
    """Reset (RST) when this many bytes arrived; 0: at once."""


@dataclass
class Recorded:
    """One connection as it was received."""

    number: int
    peer: str
    length: int = 0
    content: bytearray = field(default_factory=bytearray)
    """The first `keep` bytes."""
    end: str = ""
    """"eof" (FIN), "reset", or "" while it is open or was ended by us."""
    hash: Any = field(default_factory=hashlib.sha256, repr=False)

    @property
    def sha256(self) -> str:
        """Of everything that arrived."""
        return str(self.hash.hexdigest())


class TcpConnection(asyncio.Protocol):
    """One connection behaves."""

    def __init__(self, server: RecordingTcp) -> None:
        self._server = server
        self._do = server.behaviour
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._flooding: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._record = self._server.opened(transport)
        if not self._do.read:  # not at once: asyncio begins to read after this call
            asyncio.get_running_loop().call_soon(transport.pause_reading)
        self._end_if_due()

    def data_received(self, data: bytes) -> None:
        record, do = self._record, self._do
        record.length += len(data)
        record.hash.update(data)
        record.content += data[: max(0, self._server.keep - len(record.content))]
        self._end_if_due()
        if self._transport.is_closing():
            return
        if do.read_rate:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(len(data) / do.read_rate, self._resume)
        if do.echo or do.response:
            asyncio.get_running_loop().call_later(do.delay, self._write, data if do.echo else do.response)
        if do.flood and self._flooding is None:
            self._flooding = asyncio.get_running_loop().create_task(self._flood())

    def eof_received(self) -> bool:
        self._record.end = "eof"
        return bool(self._flooding or (self._do.delay and (self._do.echo or self._do.response)))

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ConnectionResetError):
            self._record.end = "reset"
        if self._flooding is not None:
            self._flooding.cancel()
        self._server.closed(self._transport)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)
            self._server.written += len(data)

    def _end_if_due(self) -> None:
        do = self._do
        if do.reset_after is not None and self._record.length >= do.reset_after:
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        elif do.close_after is not None and self._record.length >= do.close_after:
            self._transport.close()

    async def _flood(self) -> None:
        self._write(self._do.flood_start)
        left, piece = self._do.flood, bytes(1 if self._do.drip else FLOOD_BYTES)
        while left > 0 and not self._transport.is_closing():
            await self._may_write.wait()
            self._write(piece[:left])
            left -= len(piece)
            await asyncio.sleep(self._do.drip)


class RecordingTcp(Server):
    """A TCP server that records each connection and behaves as told.

    records   one for each connection, in the order of their beginning.
    written   bytes it answered in all.
    """

    def __init__(self, host: Host, port: int, behaviour: Behaviour | None = None, *, keep: int = 1 << 20) -> None:
        self.behaviour = behaviour or Behaviour()
        """May be changed: it holds for connections from then on."""
        self.keep = keep
        self.records: list[Recorded] = []
        self.written = 0
        super().__init__(host, port, lambda: TcpConnection(self), self.behaviour.accept)

    def opened(self, transport: asyncio.Transport) -> Recorded:
        """A connection begins."""
        self._open.add(transport)
        peer = transport.get_extra_info("peername")
        record = Recorded(len(self.records) + 1, f"{peer[0]} {peer[1]}" if peer else "")
        self.records.append(record)
        return record

    def closed(self, transport: asyncio.Transport) -> None:
        """A connection is over."""
        self._open.discard(transport)

    def received(self) -> int:
        """Bytes of all connections."""
        return sum(record.length for record in [*self.records])

    def wait_for(self, size: int, seconds: float = PATIENCE) -> None:
        """Wait until `size` bytes arrived."""
        until(lambda: self.received() >= size, f"{size} bytes (now {self.received()})", seconds)

    def wait_ended(self, count: int, seconds: float = PATIENCE) -> list[Recorded]:
        """Wait until `count` connections were ended by the other side; all records."""

        def ended() -> int:
            return sum(1 for record in [*self.records] if record.end)

        until(lambda: ended() >= count, f"{count} ended connections (now {ended()})", seconds)
        return self.records
