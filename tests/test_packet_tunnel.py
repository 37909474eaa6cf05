# SPDX-License-Identifier: Apache-2.0
"""Tunnels: scapy builds the packets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import GRE, GRE_PPTP, IP, PPP, TCP, UDP, VXLAN, Dot1Q, Ether, IPv6, Raw
from scapy.contrib.erspan import ERSPAN_II, ERSPAN_III
from scapy.contrib.geneve import GENEVE
from scapy.contrib.gtp import GTP_U_Header, GTPPDUSessionContainer
from scapy.contrib.mpls import MPLS

from tapmirror.packet.header import Network, network
from tapmirror.packet.tunnel import GRE as PROTO_GRE
from tapmirror.packet.tunnel import IP6_IN_IP, IP_IN_IP, inner
from tapmirror.packet.tunnel import UDP as PROTO_UDP

MAC = "02:00:00:00:00:01"
ETHER = Ether(src=MAC, dst=MAC)
OUTER = IP(src="192.0.2.1", dst="192.0.2.2")
OUTER6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
V4 = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1234, dport=80) / Raw(b"payload")
V6 = IPv6(src="2001:db8::3", dst="2001:db8::4") / TCP(sport=1234, dport=80) / Raw(b"payload")

# outside -> (what is inside, virtual network, VLAN)
PACKETS: dict[str, tuple[Any, Any, int, int]] = {
    "VXLAN": (OUTER / UDP(dport=4789) / VXLAN(vni=0x123456) / ETHER, V4, 0x123456, 0),
    "VXLAN over IPv6, VLAN": (OUTER6 / UDP(dport=4789) / VXLAN(vni=5) / ETHER / Dot1Q(vlan=7), V6, 5, 7),
    "VXLAN, Linux' old port": (OUTER / UDP(dport=8472) / VXLAN(vni=5) / ETHER, V4, 5, 0),
    "GENEVE": (OUTER / UDP(dport=6081) / GENEVE(vni=5, proto=0x6558) / ETHER, V4, 0, 0),
    "GENEVE, options": (
        OUTER / UDP(dport=6081) / GENEVE(vni=5, proto=0x0800, optionlen=2, options=b"\x01\x02\x03\x01data"),
        V4,
        0,
        0,
    ),
    "GRE": (OUTER / GRE(), V4, 0, 0),
    "GRE, IPv6": (OUTER / GRE(proto=0x86DD), V6, 0, 0),
    "GRE, all fields": (OUTER / GRE(chksum_present=1, key_present=1, seqnum_present=1), V4, 0, 0),
    "GRE, Ethernet": (OUTER / GRE(proto=0x6558) / ETHER / Dot1Q(vlan=9), V4, 0, 9),
    "GRE, MPLS": (OUTER / GRE(proto=0x8847) / MPLS(label=3, s=1), V4, 0, 0),
    "ERSPAN I": (OUTER / GRE(proto=0x88BE) / ETHER, V4, 0, 0),
    "ERSPAN II": (OUTER / GRE(proto=0x88BE, seqnum_present=1) / ERSPAN_II() / ETHER, V4, 0, 0),
    "ERSPAN III": (OUTER / GRE(proto=0x22EB, seqnum_present=1) / ERSPAN_III() / ETHER, V4, 0, 0),
    "ERSPAN III, subheader": (
        OUTER / GRE(proto=0x22EB, seqnum_present=1) / ERSPAN_III(o=1) / Raw(bytes(8)) / ETHER,
        V4,
        0,
        0,
    ),
    "IP in IP": (OUTER, V4, 0, 0),
    "6in4": (OUTER, V6, 0, 0),
    "4in6": (OUTER6, V4, 0, 0),
    "Teredo": (OUTER / UDP(sport=5, dport=3544), V6, 0, 0),
    "Teredo, reply with indications": (
        OUTER / UDP(sport=3544, dport=5) / Raw(b"\0\1\2\3" + b"idkey" + bytes(9) + b"\0\0" + bytes(6)),
        V6,
        0,
        0,
    ),
    "PPTP": (OUTER / GRE_PPTP(seqnum_present=1, acknum_present=1) / PPP(), V4, 0, 0),
    "GTP-U": (OUTER / UDP(dport=2152) / GTP_U_Header(gtp_type=255, teid=9), V4, 0, 0),
    "GTP-U, extension": (
        OUTER / UDP(dport=2152) / GTP_U_Header(gtp_type=255, E=1, next_ex=0x85, teid=9) / GTPPDUSessionContainer(),
        V4,
        0,
        0,
    ),
}


def outermost(frame: bytes) -> Network:
    found = network(memoryview(frame), 0, len(frame), 0x0800 if frame[0] >> 4 == 4 else 0x86DD)
    assert found is not None
    return found


@pytest.mark.parametrize("name", PACKETS)
def test_what_is_inside(name: str) -> None:
    outside, inside, vni, vlan = PACKETS[name]
    frame = bytes(outside / inside)
    found = inner(memoryview(frame), outermost(frame))
    assert found is not None
    assert (found.cargo.ethertype, found.cargo.vlan, found.vni) == (0x86DD if inside is V6 else 0x0800, vlan, vni)
    assert frame[found.cargo.offset :] == bytes(inside)


@pytest.mark.parametrize(
    "packet",
    [
        OUTER / UDP(dport=53) / Raw(bytes(40)),
        OUTER / UDP(dport=4789) / Raw(bytes(40)),  # without the flag of a valid id
        OUTER / UDP(dport=6081) / Raw(b"\xff" * 40),  # another version
        OUTER / UDP(dport=2152) / Raw(b"\x32\x01" + bytes(40)),  # an echo request
        OUTER / GRE(version=1) / V4,
        OUTER / V4.payload,
    ],
)
def test_no_tunnel(packet: Any) -> None:
    frame = bytes(packet)
    assert inner(memoryview(frame), outermost(frame)) is None


@given(st.sampled_from([PROTO_UDP, PROTO_GRE, IP_IN_IP, IP6_IN_IP]), st.binary(max_size=80))
def test_any_bytes(proto: int, data: bytes) -> None:
    found = inner(memoryview(data), Network(bytes(16), bytes(16), 0, None, proto, 0, len(data)))
    assert found is None or found.cargo.offset >= 0


@given(st.sampled_from(sorted(PACKETS)), st.data())
def test_damaged_packets(name: str, data: st.DataObject) -> None:
    frame = bytearray(bytes(PACKETS[name][0] / PACKETS[name][1]))
    place = data.draw(st.integers(20, len(frame) - 1))
    frame[place] = data.draw(st.integers(0, 255))
    cut = memoryview(bytes(frame))[: data.draw(st.integers(0, len(frame)))]
    outer = network(cut, 0, len(frame), 0x0800 if frame[0] >> 4 == 4 else 0x86DD)
    if outer is not None:
        inner(cut, outer)
