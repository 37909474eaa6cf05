# SPDX-License-Identifier: Apache-2.0
"""A capture file from end to end: frames, headers, streams, and what is told of each.

The same decoding, reassembly and framing as on a live tap; `cli` prints what comes out.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import msgspec

from tapmirror.events import START, Buffer, Chunk, DropReason, End, Gap, Message, Part
from tapmirror.framing import HeadMemory, RequestFramer, detect
from tapmirror.ledger import Ledger
from tapmirror.packet import Decoder, show_client, show_server
from tapmirror.source.blocks import CaptureError
from tapmirror.source.files import CaptureFile
from tapmirror.spec import Limits
from tapmirror.streams import Connection, Stream, StreamTable

Record: TypeAlias = dict[str, Any]
"""One line of output, as plain data."""

OPEN_FILES: Final = 64
"""Payload files that are open at a time."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a capture."""

    ports: tuple[int, ...] = ()
    """Only connections with one of these on either side; empty: all."""
    http: bool = False
    """Whether requests are told of too."""
    payload_dir: Path | None = None
    """Where to put the bytes of each direction."""
    tunnels: bool = True
    checksums: bool = False
    """Leave out segments with a wrong checksum."""


class Book:
    """What is known of one direction: its bytes, their hash, its holes, and how requests are found in it."""

    __slots__ = ("bytes", "file", "framer", "gaps", "hash", "prefix", "raw")

    def __init__(self) -> None:
        self.bytes = 0
        self.hash = hashlib.sha256()
        self.gaps = 0
        self.file: Path | None = None
        self.framer: RequestFramer | None = None
        self.prefix = b""
        """First bytes that do not tell yet whether they begin a request."""
        self.raw = False
        """Whether the direction is no HTTP, so that no requests are looked for."""


NOTHING: Final = Book()
"""Stands for the book of a direction without a byte."""


class Reader:
    """Reads one capture file to its end, within bounds whatever it holds."""

    def __init__(self, capture: CaptureFile, options: Options, limits: Limits) -> None:
        self._capture = capture
        self._http = options.http
        self._head_bytes = limits.head_bytes
        self._heads = HeadMemory(limits.heads_bytes)
        self.ledger = Ledger()
        self._decoder = Decoder(tunnels=options.tunnels, checksums=options.checksums)
        self._table = StreamTable(limits, self.ledger, options.ports)
        self._ports = frozenset(port.to_bytes(2, "big") for port in options.ports)
        self._files = Payloads(options.payload_dir) if options.payload_dir is not None else None
        self._requests: list[Record] = []
        self._split = 0

    def records(self) -> Iterator[Record]:
        """Every record.  Where the file is damaged raises `CaptureError`, after the streams up to there."""
        error = None
        decode, feed, ports, finished = self._decoder.decode, self._table.feed, self._ports, self._table.finished
        try:
            for link, time_ns, size, data in self._capture.frames():
                now = time_ns / 1e9
                header = decode(data, size, link, now)
                if header is None or (
                    ports and header.source_port not in ports and header.destination_port not in ports
                ):
                    continue
                for stream, chunk, after_response in feed(header, now):
                    self._enter(stream, chunk, after_response)
                if finished or self._requests:
                    yield from self._told()
        except CaptureError as damage:
            error = damage
        for stream, chunk, after_response in self._table.close():
            self._enter(stream, chunk, after_response)
        yield from self._told()
        if self._files is not None:
            self._files.close()
        if error is not None:
            raise error

    def held(self) -> tuple[int, int]:
        """(segments, bytes) in flight in reassembly."""
        return self._table.held()

    def remarks(self) -> list[str]:
        """What was left out or cut short, in words."""
        found = [
            f"{count:,} packets of link type {link} were left out: it is not known"
            for link, count in sorted(self._decoder.unknown.items())
        ]
        if self._decoder.bad_checksums:
            found.append(f"{self._decoder.bad_checksums:,} segments with a wrong checksum were left out")
        pieces = self._decoder.fragments.discarded + len(self._decoder.fragments)
        if pieces:
            found.append(f"{pieces:,} IP fragments did not make a whole datagram")
        cut = self.ledger.bytes.dropped[DropReason.CUT]
        if cut:
            found.append(f"{cut:,} bytes of payload were cut off by the capture")
        if self._split:
            found.append(f"{self._split:,} connections were told of before their end: too many at once")
        return found

    def _enter(self, stream: Stream, chunk: Chunk, after_response: bool) -> None:
        """Put a chunk into the book of its stream."""
        book: Book | None = stream.book
        if book is None:
            book = stream.book = Book()
            book.raw = not (self._http and stream.is_client)
        if isinstance(chunk, Gap):
            book.gaps += 1
            if not book.raw:
                self._find(stream, book, None, gap=chunk.length)
            return
        assert not isinstance(chunk, End)
        book.bytes += len(chunk)
        book.hash.update(chunk)
        self.ledger.bytes.mirrored += len(chunk)
        if self._files is not None:
            book.file = self._files.write(book.file, stream, chunk)
        if not book.raw:
            self._find(stream, book, chunk, after_response=after_response)

    def _find(
        self, stream: Stream, book: Book, data: Buffer | None, *, after_response: bool = False, gap: int = 0
    ) -> None:
        """Look for requests in the next bytes, or (None) behind a gap of `gap` bytes."""
        framer = book.framer
        if framer is None:
            begun = book.prefix + data if data is not None else book.prefix
            kind = "http" if stream.midstream or data is None else detect(begun)
            if kind is None and self._heads.resize(len(book.prefix), len(begun)):
                book.prefix = begun
                return
            self._heads.resize(len(book.prefix), 0)
            book.prefix = b""
            if kind == "raw":
                book.raw = True
                return
            framer = book.framer = RequestFramer(self._head_bytes, None, stream.midstream, self._heads)
            if begun:
                self._tell(stream, framer.feed(begun, True))
            if data is not None:
                return
        self._tell(stream, framer.feed(data, after_response) if data is not None else framer.gap(gap))

    def _tell(self, stream: Stream, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, Part) and message.flags & START:
                method, uri = bytes(message.data).split(b" ", 2)[:2]
                self._requests.append(
                    {
                        "type": "http1",
                        "client": show_client(stream.connection.key),
                        "server": show_server(stream.connection.key),
                        "method": method.decode("ascii"),
                        "uri": uri.decode("utf-8", "backslashreplace"),
                    }
                )

    def _told(self) -> Iterator[Record]:
        """The requests and the ended connections since the last time."""
        yield from self._requests
        self._requests.clear()
        for connection in self._table.finished:
            self._split += not connection.whole
            yield self._record(connection)
        self._table.finished.clear()

    def _record(self, connection: Connection) -> Record:
        client: Book = connection.client.book or NOTHING
        server: Book = connection.server.book or NOTHING
        record = {
            "type": "stream",
            "client": show_client(connection.key),
            "server": show_server(connection.key),
            "client_bytes": client.bytes,
            "client_bytes_sha256": client.hash.hexdigest(),
            "server_bytes": server.bytes,
            "server_bytes_sha256": server.hash.hexdigest(),
            "gaps": client.gaps + server.gaps,
        }
        for name, book in (("client_file", client), ("server_file", server)):
            if book.file is not None:
                record[name] = book.file.name
        return record


class Payloads:
    """A file for the bytes of each direction, of which few are open at a time.  Raises OSError, with its name."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()
        self._count = 0

    def write(self, path: Path | None, stream: Stream, data: Buffer) -> Path:
        """Append to the file of a stream, or (`path` None) begin it; return which it is."""
        mode: Literal["ab", "wb"] = "ab"
        if path is None:
            self._count += 1
            path, mode = self._folder / f"{self._count:06}_{_name(stream)}", "wb"
        if path not in self._open:
            self._open[path] = path.open(mode)
            if len(self._open) > OPEN_FILES:
                self._close(*self._open.popitem(last=False))
        self._open.move_to_end(path)
        try:
            self._open[path].write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        return path

    def close(self) -> None:
        """Write what is left, and close."""
        while self._open:
            self._close(*self._open.popitem())

    def _close(self, path: Path, file: BinaryIO) -> None:
        try:
            file.close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def _name(stream: Stream) -> str:
    """Who sent it and to whom, for the name of a file."""
    ends = [show_client(stream.connection.key), show_server(stream.connection.key)]
    if not stream.is_client:
        ends.reverse()
    return "-".join(end.strip("[").replace("]:", "_").replace(":", "." if "]" in end else "_") for end in ends)
