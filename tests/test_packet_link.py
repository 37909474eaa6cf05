# SPDX-License-Identifier: Apache-2.0
"""Link layers: scapy builds the frames."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import (
    HDLC,
    IP,
    LLC,
    PPP,
    SNAP,
    TCP,
    CookedLinux,
    CookedLinuxV2,
    Dot1Q,
    Dot3,
    Ether,
    IPv6,
    Loopback,
    PPPoE,
    Raw,
)
from scapy.contrib.mpls import MPLS, EoMCW

from tapmirror.packet.link import (
    C_HDLC,
    ETHERNET,
    IPV4,
    IPV6,
    KNOWN,
    LINUX_SLL,
    LINUX_SLL2,
    LOOP,
    MAX_LABELS,
    NULL,
    PPP_ETHER,
    PPP_HDLC,
    RAW,
    cargo,
)
from tapmirror.packet.link import PPP as LINK_PPP

MAC = "02:00:00:00:00:01"  # given, or scapy asks the network for it
ETHER = Ether(src=MAC, dst=MAC)
V4 = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(dport=80) / Raw(b"payload")
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(dport=80) / Raw(b"payload")

FRAMES: dict[str, tuple[int, Any, int]] = {
    "Ethernet": (ETHERNET, ETHER, 0),
    "VLAN": (ETHERNET, ETHER / Dot1Q(vlan=7), 7),
    "QinQ": (ETHERNET, Ether(src=MAC, dst=MAC, type=0x88A8) / Dot1Q(vlan=5) / Dot1Q(vlan=7), 5 << 16 | 7),
    "QinQ, as it was before": (
        ETHERNET,
        Ether(src=MAC, dst=MAC, type=0x9100) / Dot1Q(vlan=5) / Dot1Q(vlan=7),
        5 << 16 | 7,
    ),
    "SNAP": (ETHERNET, Dot3(src=MAC, dst=MAC) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(), 0),
    "MPLS": (ETHERNET, ETHER / MPLS(label=3, s=0) / MPLS(label=4, s=1), 0),
    "MPLS, pseudowire": (ETHERNET, ETHER / MPLS(label=4, s=1) / EoMCW() / ETHER / Dot1Q(vlan=9), 9),
    "PPPoE": (ETHERNET, ETHER / PPPoE() / PPP(), 0),
    "PPPoE in a VLAN": (ETHERNET, ETHER / Dot1Q(vlan=7) / PPPoE() / PPP(), 7),
    "PPPoE without Ethernet": (PPP_ETHER, PPPoE() / PPP(), 0),
    "PPP": (LINK_PPP, PPP(), 0),
    "PPP in HDLC framing": (PPP_HDLC, HDLC() / PPP(), 0),
    "Linux cooked": (LINUX_SLL, CookedLinux(), 0),
    "Linux cooked, VLAN": (LINUX_SLL, CookedLinux() / Dot1Q(vlan=7), 7),
    "Linux cooked 2": (LINUX_SLL2, CookedLinuxV2(), 0),
    "raw": (RAW, Raw(b""), 0),
    "raw, as some systems number it": (12, Raw(b""), 0),
    "BSD loopback": (NULL, Loopback(), 0),
}


@pytest.mark.parametrize("inside", [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("name", FRAMES)
def test_cargo(name: str, inside: Any) -> None:
    link, outside, vlan = FRAMES[name]
    frame = memoryview(bytes(outside / inside))
    found = cargo(frame, link)
    assert found is not None
    assert (found.ethertype, found.vlan) == (0x86DD if inside is V6 else 0x0800, vlan)
    assert bytes(frame[found.offset :]) == bytes(inside)


HAND_MADE = {
    "loopback, network order": (LOOP, struct.pack(">I", 2) + bytes(V4), bytes(V4)),
    "loopback, little endian, macOS": (NULL, struct.pack("<I", 30) + bytes(V6), bytes(V6)),
    "Cisco HDLC": (C_HDLC, b"\x0f\x00\x08\x00" + bytes(V4), bytes(V4)),
    "PPP, short protocol": (LINK_PPP, b"\x21" + bytes(V4), bytes(V4)),
    "IPv4": (IPV4, bytes(V4), bytes(V4)),
    "IPv6": (IPV6, bytes(V6), bytes(V6)),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_what_scapy_does_not_build(name: str) -> None:
    link, data, inside = HAND_MADE[name]
    found = cargo(memoryview(data), link)
    assert found is not None
    assert data[found.offset :] == inside


def test_labels_without_an_end() -> None:
    frame = bytes(ETHER / MPLS(label=1, s=0))[:14] + b"\0\0\x10\x40" * (MAX_LABELS + 2)
    assert cargo(memoryview(frame), ETHERNET) is None


def test_a_link_that_is_not_known() -> None:
    assert cargo(memoryview(bytes(V4)), 147) is None


@given(st.sampled_from(sorted(KNOWN)), st.binary(max_size=64))
def test_any_bytes(link: int, frame: bytes) -> None:
    found = cargo(memoryview(frame), link)
    assert found is None or found.offset > 0 or link in (IPV4, IPV6) or frame[0] >> 4 in (4, 6)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        (b"\x01\x00", b"\xaa\xaa\x03\0\0\0\x01\x00"),  # SNAP in SNAP
        (b"\x88\x47", b"\x00\x00\x11\x40" + bytes(4) + bytes(12) + b"\x88\x47"),  # MPLS, Ethernet, MPLS, ...
        (b"\x88\x64", bytes(6) + b"\x0f\x00\x88\x64"),  # PPPoE, HDLC, PPPoE, ...
    ],
)
def test_layers_without_end(kind: bytes, layer: bytes) -> None:
    """A few bytes each: they end somewhere, and not in the stack of the interpreter."""
    found = cargo(memoryview(bytes(12) + kind + layer * 1_200), ETHERNET)
    assert found is None or found.ethertype not in (0x0800, 0x86DD)
