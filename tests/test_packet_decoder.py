# SPDX-License-Identifier: Apache-2.0
"""The order of the layers: tunnels within tunnels, fragments within them, checksums."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import GRE, IP, TCP, UDP, VXLAN, Dot1Q, Ether, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, Raw
from scapy.all import fragment as cut4
from scapy.all import fragment6 as cut6

from tapmirror.packet import MAPPED, Decoder, Header
from tapmirror.packet.fragments import DATAGRAMS
from tapmirror.packet.link import ETHERNET, KNOWN

MAC = "02:00:00:00:00:01"
ETHER = Ether(src=MAC, dst=MAC)
V4 = IP(src="10.0.0.1", dst="10.0.0.2")
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
SEGMENT = TCP(sport=1234, dport=80, seq=1000, ack=2000, flags="PA") / Raw(b"payload")
OUTER = IP(src="192.0.2.1", dst="192.0.2.2")


def decoder(*, tunnels: bool = True, checksums: bool = False) -> Decoder:
    return Decoder(tunnels=tunnels, checksums=checksums)


def read(reader: Decoder, packet: Any) -> Header | None:
    frame = bytes(packet)
    return reader.decode(memoryview(frame), len(frame), ETHERNET, 0.0)


NESTED = {
    "plain": ETHER / V4 / SEGMENT,
    "VXLAN": ETHER / OUTER / UDP(dport=4789) / VXLAN(vni=5) / ETHER / V4 / SEGMENT,
    "GRE in VXLAN": ETHER / OUTER / UDP(dport=4789) / VXLAN(vni=5) / ETHER / OUTER / GRE() / V4 / SEGMENT,
    "VLAN outside": ETHER / Dot1Q(vlan=3) / OUTER / GRE() / V4 / SEGMENT,
}


@pytest.mark.parametrize("name", NESTED)
def test_nested(name: str) -> None:
    header = read(decoder(), NESTED[name])
    assert header is not None
    assert (header.source, header.seq, bytes(header.payload)) == (MAPPED + bytes([10, 0, 0, 1]), 1000, b"payload")
    assert (read(decoder(tunnels=False), NESTED[name]) is None) == (name != "plain")


def test_padding_of_an_outer_frame_is_none_of_the_inner_packet() -> None:
    header = read(decoder(), bytes(ETHER / OUTER / GRE() / V4 / SEGMENT) + bytes(20))
    assert header is not None and bytes(header.payload) == b"payload"


def test_too_deep() -> None:
    packet = V4 / SEGMENT
    for _ in range(20):
        packet = OUTER / packet
    assert read(decoder(), ETHER / packet) is None


def test_virtual_networks_and_tags_tell_flows_apart() -> None:
    def vlan(vni: int, tag: int, outer: int = 0) -> int:
        inside = ETHER / Dot1Q(vlan=tag) / V4 / SEGMENT
        header = read(decoder(), ETHER / Dot1Q(vlan=outer) / OUTER / UDP(dport=4789) / VXLAN(vni=vni) / inside)
        assert header is not None
        return header.vlan

    assert len({vlan(vni, tag) for vni in (0, 1, 2) for tag in (0, 1)}) == 6
    assert vlan(1, 1, outer=5) == vlan(1, 1)


@pytest.mark.parametrize("outside", [ETHER, ETHER / OUTER / GRE()], ids=["", "in GRE"])
def test_fragments(outside: Any) -> None:
    body = bytes(range(256)) * 10
    four = [outside / piece for piece in cut4(V4 / TCP(dport=80, flags="A") / Raw(body), fragsize=600)]
    reader = decoder()
    found = [read(reader, piece) for piece in four]
    assert found[:-1] == [None] * (len(four) - 1)
    assert found[-1] is not None and bytes(found[-1].payload) == body and not found[-1].fragment


def test_a_datagram_in_two_vlans_is_put_together_in_each() -> None:
    pieces = cut4(V4 / TCP(dport=80, flags="A") / Raw(bytes(2_000)), fragsize=1_200)
    reader = decoder()
    headers = [read(reader, ETHER / Dot1Q(vlan=tag) / piece) for piece in pieces for tag in (1, 2)]
    assert [header and (header.vlan, header.length) for header in headers] == [None, None, (1, 2_000), (2, 2_000)]


def test_fragments_of_ipv6_with_headers_before_and_behind() -> None:
    body = bytes(range(256)) * 10
    whole = V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(id=3) / IPv6ExtHdrHopByHop() / TCP(dport=80) / Raw(body)
    reader = decoder()
    pieces = [ETHER / piece for piece in cut6(whole, 700)]
    found = [header for piece in pieces if (header := read(reader, piece)) is not None]
    assert len(pieces) > 3
    assert [bytes(header.payload) for header in found] == [body]


def test_a_header_that_is_split() -> None:
    reader = decoder()
    first, second = cut4(V4 / SEGMENT, fragsize=16)[:2]
    assert read(reader, ETHER / first) is None
    header = read(reader, ETHER / second)
    assert header is not None and bytes(header.payload) == b"payload"


def test_65_000_datagrams_of_which_the_rest_never_comes() -> None:
    reader = decoder()
    frame = bytearray(bytes(ETHER / cut4(V4 / TCP(dport=80) / Raw(bytes(3_000)), fragsize=1_400)[0]))
    for ident in range(65_000):
        frame[18:20] = ident.to_bytes(2, "big")
        assert read(reader, frame) is None
    assert len(reader.fragments) <= DATAGRAMS
    assert len(reader.fragments) + reader.fragments.discarded == 65_000
    assert read(reader, ETHER / V4 / SEGMENT) is not None


@pytest.mark.parametrize("packet", [V4 / SEGMENT, V6 / SEGMENT, V4 / SEGMENT / Raw(b"x")], ids=["4", "6", "odd"])
def test_checksums(packet: Any) -> None:
    frame = bytearray(bytes(ETHER / packet))
    reader = decoder(checksums=True)
    assert read(reader, frame) is not None
    frame[-1] ^= 1
    assert read(reader, frame) is None
    assert reader.bad_checksums == 1
    assert read(decoder(), frame) is not None
    assert reader.decode(memoryview(bytes(frame))[:-1], len(frame), ETHERNET, 0.0) is not None, "cut: nothing is known"


@given(st.sampled_from(sorted(KNOWN)), st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes(link: int, frame: bytes, more: int) -> None:
    header = decoder(checksums=True).decode(memoryview(frame), len(frame) + more, link, 0.0)
    assert header is None or len(header.payload) <= header.length
