# SPDX-License-Identifier: Apache-2.0
"""pcapng: blocks of every kind, units of time, sections; damage is told of, with its place."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import IP, TCP, Ether, PcapNgWriter

from capture_files import block, enhanced, interface, section
from tapmirror.source.blocks import Blocks, CaptureError
from tapmirror.source.pcap import Frame
from tapmirror.source.pcapng import MAX_BLOCK, frames


def read(data: bytes, step: int = 1 << 20, into: list[Frame] | None = None) -> list[tuple[int, int, int, bytes]]:
    file = io.BytesIO(data)
    blocks = Blocks(lambda count: file.read(min(step, count)))
    assert blocks.need(4)
    found: list[Frame] = [] if into is None else into
    found.extend(frames(blocks))
    return [(link, ns, size, bytes(frame)) for link, ns, size, frame in found]


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
@pytest.mark.parametrize("order", ["<", ">"])
def test_packets_of_several_interfaces(order: str, step: int) -> None:
    data = section(order) + interface(1, order=order) + interface(113, order=order)
    data += enhanced(b"first", 1_500_000, 1, order, size=9) + enhanced(b"second", 2, 0, order)
    assert read(data, step) == [(113, 1_500_000_000, 9, b"first"), (1, 2_000, 6, b"second")]


UNITS = {
    "microseconds by default": ([], 3, 3_000),
    "nanoseconds": ([(9, b"\x09")], 3, 3),
    "milliseconds": ([(9, b"\x03")], 3, 3_000_000),
    "powers of two": ([(9, b"\x8a")], 1024, 1_000_000_000),
    "offset": ([(14, struct.pack("<q", 100))], 3, 100_000_003_000),
    "unknown options": ([(2, b"eth0"), (9, b"\x09"), (77, b"x" * 9)], 3, 3),
    "an empty option": ([(9, b"")], 3, 3_000),
}


@pytest.mark.parametrize("name", UNITS)
def test_units_of_time(name: str) -> None:
    options, time, wanted = UNITS[name]
    assert read(section() + interface(options=options) + enhanced(b"x", time))[0][1] == wanted


def test_simple_and_old_packets() -> None:
    simple = block(3, struct.pack("<I", 9) + b"frame")
    old = block(2, struct.pack("<HHIIII", 0, 0, 0, 5, 3, 9) + b"abc")
    assert read(section() + interface(snap=5) + simple + old) == [(1, 0, 9, b"frame"), (1, 5_000, 9, b"abc")]


def test_other_blocks_are_skipped_however_long() -> None:
    data = section() + block(4, b"names") + interface() + block(0xBAD, bytes(MAX_BLOCK + 100)) + enhanced(b"x")
    assert [frame for _, _, _, frame in read(data, step=100_000)] == [b"x"]


def test_each_section_has_its_own_order_and_interfaces() -> None:
    data = section() + interface(1) + enhanced(b"a") + section(">") + interface(101, order=">")
    assert [(link, frame) for link, _, _, frame in read(data + enhanced(b"b", order=">"))] == [(1, b"a"), (101, b"b")]


def test_what_scapy_writes(tmp_path: Path) -> None:
    packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP() / TCP()
    packet.time = 1_000_000.25
    with PcapNgWriter(str(tmp_path / "a.pcapng")) as writer:
        writer.write(packet)
    assert read((tmp_path / "a.pcapng").read_bytes()) == [(1, 1_000_000_250_000_000, len(packet), bytes(packet))]


START = section() + interface()
DAMAGE = {
    "no byte order": (section()[:8] + b"abcd" + section()[12:], "at byte 8: a section header without a byte order"),
    "half a block": (START + enhanced(b"x" * 40)[:20], "at byte 52: a block is cut: 20 of 72 bytes"),
    "not even its head": (START + b"\6\0\0\0", "at byte 52: a block is cut: 4 bytes"),
    "half a block that is skipped": (START + block(77, bytes(40))[:20], "at byte 52: a block is cut (it claims"),
    "too short": (START + struct.pack("<III", 6, 8, 8), "at byte 52: a block claims to have 8 bytes"),
    "no multiple of four": (START + struct.pack("<IIII", 6, 13, 13, 0), "at byte 52: a block claims to have 13 bytes"),
    "too long": (START + struct.pack("<III", 6, 1 << 31, 0), "at byte 52: a block claims to have 2,147,483,648 bytes"),
    "two lengths": (START + enhanced(b"x")[:-4] + b"\1\0\0\0", "at byte 52: the two lengths of a block differ"),
    "no such interface": (START + enhanced(b"x", index=1), "at byte 52: a packet of interface 1, which is not"),
    "more than the block": (
        START + block(6, struct.pack("<IIIII", 0, 0, 0, 1 << 30, 60) + bytes(100)),
        "at byte 52: a packet claims to have 1,073,741,824 captured bytes in a block of 132",
    ),
    "a packet without its head": (START + block(6, bytes(8)), "at byte 52: a packet block that is too short"),
    "a short interface": (section() + block(1, bytes(4)), "at byte 28: an interface description that is too short"),
    "a long option": (
        section() + block(1, struct.pack("<HHIHH", 1, 0, 0, 9, 400)),
        "at byte 28: an option of 400 bytes is longer than its block",
    ),
    "a long option of the section": (
        block(0x0A0D0D0A, struct.pack("<IHHqHH", 0x1A2B3C4D, 1, 0, -1, 2, 400)),
        "at byte 0: an option of 400 bytes is longer than its block",
    ),
}


@pytest.mark.parametrize("step", [3, 1 << 20])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage(name: str, step: int) -> None:
    data, message = DAMAGE[name]
    with pytest.raises(CaptureError) as caught:
        read(data, step)
    assert str(caught.value).startswith(message)


def test_what_stands_before_the_damage_is_read() -> None:
    found: list[Frame] = []
    with pytest.raises(CaptureError):
        read(START + enhanced(b"x") * 3 + b"rubbish of some length", into=found)
    assert len(found) == 3


@given(st.data())
def test_any_damage(data: st.DataObject) -> None:
    whole = bytearray(START + enhanced(b"frame") * 2 + block(4, b"names") + section(">") + interface(order=">"))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CaptureError):
        read(bytes(whole[: data.draw(st.integers(4, len(whole)))]))
