# SPDX-License-Identifier: Apache-2.0
"""Files of libpcap: what scapy writes comes out again; damage is told of, with its place."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import RawPcapWriter

from capture_files import pcap
from tapmirror.source.blocks import Blocks, CaptureError
from tapmirror.source.pcap import MAX_FRAME, Frame, frames

FRAMES = [b"one", b"", b"three" * 1000, b"four"]


def read(data: bytes, step: int = 1 << 20) -> list[Frame]:
    file = io.BytesIO(data)
    blocks = Blocks(lambda count: file.read(min(step, count)))
    assert blocks.need(4)
    return list(frames(blocks))


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_formats(order: str, nano: bool, step: int) -> None:
    found = read(pcap(FRAMES, order=order, nano=nano, link=113), step)
    scale = 1 if nano else 1000
    assert [(link, ns, size, bytes(data)) for link, ns, size, data in found] == [
        (113, n * 10**9 + n * scale, len(frame), frame) for n, frame in enumerate(FRAMES)
    ]


def test_what_scapy_writes(tmp_path: Path) -> None:
    with RawPcapWriter(str(tmp_path / "a.pcap"), linktype=101, nano=True, endianness=">") as writer:
        writer.write_header(None)
        writer.write_packet(b"frame", sec=5, usec=7, caplen=5, wirelen=9)
    assert [(link, ns, size, bytes(data)) for link, ns, size, data in read((tmp_path / "a.pcap").read_bytes())] == [
        (101, 5_000_000_007, 9, b"frame")
    ]


def test_captured_more_than_was_on_the_wire() -> None:
    assert [(size, len(data)) for _, _, size, data in read(pcap([b"frame"], size=2))] == [(5, 5)]


def test_link_type_with_the_length_of_a_checksum() -> None:
    assert read(pcap([b"frame"], link=0x14000001))[0][0] == 1


HEADER = pcap([])
ONE = pcap([b"frame"])
DAMAGE = {
    "half a header": (HEADER[:10], 0, "at byte 0: the file header is cut: 10 of 24 bytes"),
    "another version": (HEADER[:4] + b"\x09" + HEADER[5:], 0, "at byte 4: version 9"),
    "half a packet header": (ONE + b"\0" * 7, 1, "at byte 45: a packet's header is cut: 7 of 16 bytes"),
    "half a packet": (ONE + struct.pack("<IIII", 0, 0, 8, 8) + b"abc", 1, "at byte 45: a packet is cut: 3 of 8 bytes"),
    "never written": (ONE + bytes(1_000), 1, "at byte 45: zeros instead of packets"),
    "a packet of 3.9 GB": (
        ONE + struct.pack("<IIII", 0, 0, 3_925_868_813, 60) + bytes(100),
        1,
        "at byte 45: a packet claims to have 3,925,868,813 captured bytes",
    ),
}


@pytest.mark.parametrize("step", [3, 1 << 20])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage(name: str, step: int) -> None:
    data, count, message = DAMAGE[name]
    found: list[Frame] = []
    file = io.BytesIO(data)
    blocks = Blocks(lambda count: file.read(min(step, count)))
    blocks.need(4)
    with pytest.raises(CaptureError) as caught:
        found.extend(frames(blocks))
    assert str(caught.value).startswith(message)
    assert len(found) == count


@pytest.mark.parametrize("behind", [b"", ONE[len(HEADER) :]])
def test_one_packet_without_a_byte(behind: bytes) -> None:
    assert [len(frame[3]) for frame in read(HEADER + bytes(16) + behind, 3)] == ([0, 5] if behind else [0])


def test_the_longest_frame() -> None:
    assert len(read(pcap([bytes(MAX_FRAME)]))[0][3]) == MAX_FRAME


@given(st.binary(max_size=300), st.integers(0, 60))
def test_any_bytes(data: bytes, place: int) -> None:
    whole = pcap([b"frame"] * 3)
    with contextlib.suppress(CaptureError):
        read(whole[:24] + whole[24 : 24 + place] + data)
