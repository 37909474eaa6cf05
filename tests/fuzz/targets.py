# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: functions of bytes that fail where a promise is broken.

Whatever the bytes: no exception but those that are documented, bounds kept, every byte accounted for.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from capture_files import enhanced, interface, pcap, section
from framing_cases import TAKEN
from tapmirror.events import ACCEPTED, ACK, FROM_SERVER, UNACCEPTED, End, Gap, Lost, Part, Segment
from tapmirror.flows import FlowTable
from tapmirror.framing import HeadMemory, RequestFramer, ResponseFramer, detect
from tapmirror.ledger import Ledger
from tapmirror.offline import Options, Reader
from tapmirror.packet import MAPPED, Decoder, Header
from tapmirror.packet.link import ETHERNET, KNOWN
from tapmirror.source.blocks import CaptureError
from tapmirror.source.files import CaptureFile
from tapmirror.spec import Limits
from tapmirror.streams import StreamTable

SMALL: Final = msgspec.structs.replace(
    Limits(), flows=3, flow_bytes=64, flow_segments=6, reassembly_bytes=128, reassembly_segments=12, head_bytes=200
)
_LINKS: Final = sorted(KNOWN)
_STEP: Final = struct.Struct("<HbBbBB")
"""Flags, place, length, acknowledgement, port, captured less."""


def packets(data: bytes) -> None:
    """Frames of a link: the first byte chooses it; two bytes before each say how long it is."""
    decoder = Decoder(tunnels=True, checksums=False)
    link = _LINKS[data[0] % len(_LINKS)] if data else ETHERNET
    at = 1
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        frame = memoryview(data)[at + 2 : at + 2 + (size & 0x7FF)]
        at += 2 + len(frame)
        header = decoder.decode(frame, len(frame) + (size >> 11), link, at / 100)
        assert header is None or len(header.payload) <= header.length
        assert len(decoder.fragments) <= 65_536


def files(data: bytes) -> None:
    """A capture file."""
    fd = os.memfd_create("capture")
    try:
        os.write(fd, data)
        with contextlib.closing(CaptureFile(f"/proc/self/fd/{fd}")) as capture:
            reader = Reader(capture, Options(http=True), SMALL)
            with contextlib.suppress(CaptureError):
                for record in reader.records():
                    assert record["type"] in ("stream", "http1")
            snapshot = reader.ledger.snapshot()
            assert snapshot["bytes"]["unaccounted"] == snapshot["segments"]["unaccounted"] == 0
    finally:
        os.close(fd)


def reassembly(data: bytes) -> None:
    """Steps of seven bytes: segments, to a tap's table and to that of a file."""
    ledgers = Ledger(), Ledger()
    table, streams = FlowTable(SMALL, 0, ledgers[0]), StreamTable(SMALL, ledgers[1], [80])
    given = [0, 0]
    passed = [0, 0]
    now = 0.0
    for flags, place, length, ack, port, less in _STEP.iter_unpack(data[: len(data) // 7 * 7]):
        length &= 0x3F
        payload = memoryview(bytes(max(0, length - (less & 7 if less > 250 else 0))))
        now += (less & 0x70) / 16
        seq = (place - 20) & 0xFFFFFFFF
        ends = MAPPED + bytes([10, 0, 0, port & 1]), MAPPED + bytes([10, 0, 0, 9])
        key = b"".join((*ends, b"\xaa", bytes([port & 3]), b"\0\x50", bytes(4)))
        wire = flags & 0x3F | ((flags >> 10) << 16 if flags & 0x20 else 0)
        marks = flags & (FROM_SERVER | ACCEPTED)
        if marks == 0 and less & 0x08:
            marks = UNACCEPTED
        segment: Segment = (key, wire | marks, seq, ack & 0xFF, length, payload, 0)
        if marks & ACCEPTED:
            begun, waited = table.accept(segment, now)
            events = [*begun, *(event for each in waited for event in table.feed(each, now))]
        else:
            events = [*table.feed(segment, now)]
        for flow, chunk, _ in events:
            assert flow.key == key or (isinstance(chunk, End) and chunk.reset)  # another made room
            passed[0] += len(chunk) if isinstance(chunk, bytes | memoryview) else 0
        if length and not flags & (FROM_SERVER | ACCEPTED):
            given[0] += 1
            given[1] += length
        for _, chunk, _ in table.expire(now):
            passed[0] += len(chunk) if isinstance(chunk, bytes | memoryview) else 0
        ways = (ends[0], ends[1], b"\xaa" + bytes([port & 3]), b"\0\x50")
        source, destination, source_port, destination_port = (
            ways if not flags & FROM_SERVER else (ways[1], ways[0], ways[3], ways[2])
        )
        header = Header(
            source, destination, source_port, destination_port, 0, 0, False, seq, ack & 0xFF, wire, length, payload
        )
        for _, chunk, _ in streams.feed(header, now):
            passed[1] += len(chunk) if isinstance(chunk, bytes | memoryview) else 0
        for ledger, held, done in ((ledgers[0], table.held(), passed[0]), (ledgers[1], streams.held(), passed[1])):
            seen = given if ledger is ledgers[0] else [ledger.segments.seen, ledger.bytes.seen]
            assert ledger.segments.settled() + held[0] == seen[0]
            assert ledger.bytes.settled() + held[1] + done == seen[1]
            assert held[1] <= SMALL.reassembly_bytes + 2_048 * 1_024
        assert len(table) <= SMALL.flows and len(streams) <= SMALL.flows + 1
    for _, chunk, _ in streams.close():
        assert isinstance(chunk, Gap | bytes | memoryview) or chunk.reset is False
    assert streams.held() == (0, 0)


def requests(data: bytes) -> None:
    """A client's stream, in pieces whose sizes the first byte decides, and its holes."""
    step, rest = (data[0] or 1, data[1:]) if data else (1, b"")
    memory = HeadMemory(SMALL.head_bytes // 2 if step & 4 else SMALL.head_bytes)
    for host in (None, b"x"):
        framer = RequestFramer(SMALL.head_bytes, host, bool(step & 1), memory, trailers=bool(step & 16))
        told = fed = 0
        for at in range(0, len(rest), step):
            piece = rest[at : at + step]
            messages = framer.feed(memoryview(piece), bool(step & 2)) if at % 7 else framer.feed(piece, True)
            fed += len(piece)
            if step & 8 and piece.endswith(b"!"):
                messages = [*messages, *framer.gap(len(piece))]
            told += sum(message.size for message in messages)
            assert fed == told + framer.held
            assert framer.held <= SMALL.head_bytes
            assert memory.bytes == len(framer._buffer) <= memory.limit
            for message in messages:
                assert isinstance(message, Part | Lost)
        told += sum(message.size for message in framer.end())
        assert (fed, framer.held, memory.bytes) == (told, 0, 0)
    assert detect(rest) in ("http", "raw", None)


def responses(data: bytes) -> None:
    """A shadow's stream: the first byte says what was asked, and in which pieces the response comes."""
    step, rest = (data[0] or 1, data[1:]) if data else (1, b"")
    memory = HeadMemory(SMALL.head_bytes // 2 if step & 32 else SMALL.head_bytes)
    framer = ResponseFramer(SMALL.head_bytes, memory)
    statuses: list[int] = []
    asked = 1 + (step & 3)
    for n in range(asked):
        framer.expect(step >> 2 & (4 if n else 28))
    at = 0
    while at < len(rest):
        skipped = min(framer.skippable(), len(rest) - at)
        framer.skip(skipped)
        at += skipped
        statuses += framer.feed(memoryview(rest[at : at + step]))
        assert memory.bytes == len(framer._buffer) <= memory.limit
        at += step
    framer.eof()
    assert memory.bytes == 0
    assert sum(status >= 200 or status == 101 for status in statuses) <= asked


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "packets": packets,
    "files": files,
    "reassembly": reassembly,
    "requests": requests,
    "responses": responses,
}


def seeds(target: str) -> list[bytes]:
    """Inputs that reach deep: what fuzzing begins with."""
    frame = bytes.fromhex("020000000001020000000002080045000030000100004006000 00a0000010a000002".replace(" ", ""))
    tcp = struct.pack(">HHIIBBHHH", 40_000, 80, 1, 1, 5 << 4, ACK, 1_000, 0, 0) + b"GET / HT"
    vlan = frame[:12] + bytes.fromhex("81000007") + frame[12:]
    vxlan = bytes.fromhex("450000000001000040110000c0000201c0000202ffff12b5000000000800000000000500")
    frames = [frame + tcp, vlan + tcp, frame[:14] + vxlan + frame + tcp]
    if target == "packets":
        return [bytes([_LINKS.index(ETHERNET)]) + b"".join(len(f).to_bytes(2, "big") + f for f in frames)]
    if target == "files":
        ng = section() + interface(options=[(9, b"\x09")]) + b"".join(map(enhanced, frames))
        return [pcap(frames), pcap(frames, order=">", nano=True), ng]
    if target == "reassembly":
        whole = [(ACCEPTED, 0, 0, 0), (ACK, 0, 20, 1), (ACK, 40, 20, 1), (ACK, 20, 20, 1), (ACK | 1, 60, 5, 1)]
        other = [(2, -1, 0, 0), (FROM_SERVER | 18, -1, 0, 0), (ACK, 10, 9, 1), (0x7D30, 0, 20, 1), (4, 20, 0, 0)]
        return [b"".join(_STEP.pack(*step, 0, 0) for step in steps) for steps in (whole, other)]
    if target == "requests":
        return [b"\x10" + b"".join(parts) for parts in TAKEN.values()]
    responses = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\n",
        b"HTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\nuntil the end",
        b"HTTP/1.1 101 Switching\r\n\r\nframes",
    ]
    return [bytes([step]) + response * 2 for step in (3, 40) for response in responses]
