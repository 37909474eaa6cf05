# SPDX-License-Identifier: Apache-2.0
"""IP and TCP headers as a live tap reads them: scapy builds them, and is the oracle."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import (
    IP,
    TCP,
    UDP,
    Dot1Q,
    Ether,
    IPOption,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Padding,
    Raw,
)

from tapmirror.events import MULTIPATH
from tapmirror.packet import decode

MAC = "02:00:00:00:00:01"  # given, or scapy asks the network for it
ETHER = Ether(src=MAC, dst=MAC)
V4 = IP(src="10.0.0.1", dst="10.0.0.2")
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
SEGMENT = TCP(sport=1234, dport=80, seq=1000, ack=2000, flags="PA") / Raw(b"payload")
DEI = Dot1Q.fields_desc[1].name  # scapy 2.5 calls it `id`
MAPPED = bytes(10) + b"\xff\xff"


def read(packet: Any, **more: Any) -> Any:
    frame = bytes(packet)
    return decode(memoryview(frame), len(frame), **more)


FRAMES = {
    "plain": (ETHER / V4 / SEGMENT, 0),
    "IP options": (ETHER / IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption(b"\x94\x04\x00\x00")]) / SEGMENT, 0),
    "TCP options": (
        ETHER / V4 / TCP(sport=1234, dport=80, seq=1000, ack=2000, flags="PA", options=[("MSS", 1400)]) / b"payload",
        0,
    ),
    "padding": (ETHER / V4 / SEGMENT / Padding(b"\0" * 30), 0),
    "VLAN": (ETHER / Dot1Q(vlan=7) / V4 / SEGMENT, 7),
    "QinQ": (Ether(src=MAC, dst=MAC, type=0x88A8) / Dot1Q(vlan=5) / Dot1Q(vlan=7) / V4 / SEGMENT, 5 << 16 | 7),
    "QinQ, as it was before": (
        Ether(src=MAC, dst=MAC, type=0x9100) / Dot1Q(vlan=5) / Dot1Q(vlan=7) / V4 / SEGMENT,
        5 << 16 | 7,
    ),
    "VLAN, with a priority": (ETHER / Dot1Q(vlan=7, prio=5, **{DEI: 1}) / V4 / SEGMENT, 7),
    "IPv6": (ETHER / V6 / SEGMENT, 0),
    "trailer behind IPv6": (ETHER / V6 / SEGMENT / Padding(b"\0" * 8), 0),
    "extension headers": (ETHER / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / SEGMENT, 0),
    "atomic fragment": (ETHER / V6 / IPv6ExtHdrFragment(offset=0, m=0) / SEGMENT, 0),
}


@pytest.mark.parametrize("name", FRAMES)
def test_headers(name: str) -> None:
    packet, vlan = FRAMES[name]
    header = read(packet)
    assert (header.seq, header.ack, header.flags) == (1000, 2000, 0x18)
    assert bytes(header.payload) == b"payload"
    assert header.length == 7
    assert header.vlan == vlan
    assert not header.fragment
    assert header.source_port + header.destination_port == struct.pack(">HH", 1234, 80)
    if IPv6 in packet:
        assert header.source == bytes.fromhex("20010db8" + "00" * 11 + "01")
    else:
        assert header.source == MAPPED + bytes([10, 0, 0, 1])


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / V4 / UDP(dport=80),
        Ether(src=MAC, dst=MAC, type=0x0806) / Raw(b"x" * 50),
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", frag=100) / SEGMENT,
        ETHER / V6 / IPv6ExtHdrFragment(offset=9, m=0) / SEGMENT,
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", len=30) / SEGMENT,
    ],
    ids=["UDP", "ARP", "later fragment", "later fragment of IPv6", "length shorter than the headers"],
)
def test_no_segment(packet: Any) -> None:
    assert read(packet) is None


def test_first_fragment_is_marked() -> None:
    assert read(ETHER / IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / SEGMENT).fragment
    assert read(ETHER / V6 / IPv6ExtHdrFragment(offset=0, m=1) / SEGMENT).fragment


def test_length_of_zero_means_the_whole_frame() -> None:
    body = b"x" * 70_000
    four = ETHER / IP(src="10.0.0.1", dst="10.0.0.2", len=0) / TCP(dport=80, flags="A") / Raw(body)
    six = ETHER / IPv6(src="::1", dst="::2", plen=0) / TCP(dport=80, flags="A") / Raw(body)
    assert [read(packet).length for packet in (four, six)] == [70_000, 70_000]


def test_cut_frame_keeps_the_length_of_the_wire() -> None:
    frame = bytes(ETHER / V4 / SEGMENT)
    header = decode(memoryview(frame[:-3]), len(frame))
    assert header is not None
    assert (header.length, bytes(header.payload)) == (7, b"payl")


def test_link_without_ethernet_header_and_tag_from_the_kernel() -> None:
    assert bytes(read(V4 / SEGMENT, ethertype=0x0800).payload) == b"payload"
    assert read(ETHER / V4 / SEGMENT, vlan=9).vlan == 9


def test_urgent_pointer() -> None:
    assert read(ETHER / V4 / TCP(dport=80, flags="AU", urgptr=0x1234)).flags == 0x12340030
    assert read(ETHER / V4 / TCP(dport=80, flags="A", urgptr=0x1234)).flags == 0x10


@pytest.mark.parametrize(
    ("options", "multipath"),
    [
        ([(30, b"\x01\x00" + bytes(8))], True),
        ([("MSS", 1400), ("SAckOK", b""), ("Timestamp", (1, 2)), ("NOP", None), ("WScale", 7), (30, bytes(10))], True),
        ([("NOP", None)] * 3 + [(30, bytes(2))], True),
        ([("MSS", 0x1E1E), ("Timestamp", (0x1E1E1E1E, 0x1E1E1E1E))], False),
        ([("EOL", None), (30, bytes(10))], False),
        ([], False),
    ],
)
def test_multipath_tcp_is_told_of_the_reply_to_a_syn(options: list[Any], multipath: bool) -> None:
    for flags, told in (("SA", multipath), ("S", False), ("A", False)):
        assert read(ETHER / V4 / TCP(dport=80, flags=flags, options=options)).flags & MULTIPATH == MULTIPATH * told
    frame = bytes(ETHER / V4 / TCP(dport=80, flags="SA", options=options))
    assert decode(memoryview(frame)[:54], len(frame)) is not None  # cut behind the header's fixed part


def test_an_option_of_no_length_ends_the_search() -> None:
    frame = bytearray(bytes(ETHER / V4 / TCP(dport=80, flags="SA", options=[("MSS", 1400)])))
    frame[55] = 0
    assert read(Ether(bytes(frame))).flags == 0x12


def test_differentiated_services() -> None:
    assert read(ETHER / IP(src="10.0.0.1", dst="10.0.0.2", tos=0xAF) / SEGMENT).dscp == 0x2B
    assert read(ETHER / IPv6(src="::1", dst="::2", tc=0xAF) / SEGMENT).dscp == 0x2B


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes(frame: bytes, more: int) -> None:
    for ethertype in (None, 0x0800, 0x86DD):
        header = decode(memoryview(frame), len(frame) + more, ethertype=ethertype)
        assert header is None or len(header.payload) <= header.length


@given(st.data())
def test_damaged_packets(data: st.DataObject) -> None:
    packet = data.draw(st.sampled_from([bytes(packet) for packet, _ in FRAMES.values()]))
    place = data.draw(st.integers(0, len(packet) - 1))
    damaged = bytearray(packet)
    damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packet)))
    header = decode(memoryview(bytes(damaged))[:cut], len(packet))
    assert header is None or len(header.payload) <= header.length
