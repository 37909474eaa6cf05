# SPDX-License-Identifier: Apache-2.0
"""The classic BPF program, run by an interpreter of the few instructions that it has; test_source_live runs it in
the kernel, where it must let through all that the eBPF program takes."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import IP, TCP, UDP, Dot1Q, Ether, IPOption, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, Raw

from tapmirror.source.filter import HEADERS, MAX_LINKS, MAX_PORTS, REFUSE_ALL, tcp_filter

V4 = IP(src="10.0.0.1", dst="10.0.0.2")
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
NET = 0x100000000 - 0x100000
PROTOCOL = 0x100000000 - 0x1000
IFINDEX = PROTOCOL + 8


class Outside(Exception):  # noqa: N818 -- as the kernel: what is not there ends the program with 0
    """A load from beyond the packet."""


def run(program: bytes, packet: bytes, ethertype: int, link: int = 0) -> int:
    """What the program returns for a packet that begins with its network header."""

    def load(place: int, size: int) -> int:
        if place == PROTOCOL:
            return ethertype
        if place == IFINDEX:
            return link
        data = packet[place - NET : place - NET + size]
        if len(data) < size:
            raise Outside
        return int.from_bytes(data, "big")

    code = list(struct.iter_unpack("=HBBI", program))
    at = a = x = 0
    try:
        while True:
            kind, true, false, k = code[at]
            at += 1
            if kind == 0x06:
                return int(k)
            if kind == 0x20:
                a = load(k, 4)
            elif kind == 0x30:
                a = load(k, 1)
            elif kind == 0x28:
                a = load(k, 2)
            elif kind == 0x48:
                a = load(k + x, 2)
            elif kind == 0xB1:
                x = (load(k, 1) & 15) * 4
            elif kind == 0x05:
                at += k
            elif kind == 0x15:
                at += true if a == k else false
            elif kind == 0x45:
                at += true if a & k else false
            else:
                raise AssertionError(f"instruction {kind:#x}")
    except Outside:
        return 0


PACKETS: dict[str, tuple[Any, bool]] = {
    "to the port": (V4 / TCP(sport=5, dport=80), True),
    "from the port": (V4 / TCP(sport=80, dport=5), True),
    "to the other port": (V4 / TCP(sport=5, dport=8080), True),
    "another port": (V4 / TCP(sport=5, dport=81), False),
    "IP options": (IP(options=[IPOption(b"\x94\x04\x00\x00")]) / TCP(sport=5, dport=80), True),
    "IP options, another port": (IP(options=[IPOption(b"\x94\x04\x00\x00")]) / TCP(sport=5, dport=81), False),
    "UDP": (V4 / UDP(sport=80, dport=80), False),
    "a first fragment": (IP(flags="MF") / TCP(sport=5, dport=80), True),
    "a later fragment": (IP(frag=9) / TCP(sport=5, dport=80), False),
    "IPv6": (V6 / TCP(sport=5, dport=80), True),
    "IPv6, from the port": (V6 / TCP(sport=80, dport=5), True),
    "IPv6, another port": (V6 / TCP(sport=5, dport=81), False),
    "IPv6, UDP": (V6 / UDP(dport=80), False),
    "IPv6, extension headers are for later": (V6 / IPv6ExtHdrDestOpt() / TCP(dport=81), True),
    "IPv6, so are fragments": (V6 / IPv6ExtHdrFragment() / TCP(dport=81), True),
    "cut": (Raw(bytes(V4 / TCP(dport=80))[:22]), False),
}


@pytest.mark.parametrize("name", PACKETS)
def test_packets(name: str) -> None:
    packet, wanted = PACKETS[name]
    data = bytes(packet)
    ethertype = 0x86DD if data[0] >> 4 == 6 else 0x0800
    assert bool(run(tcp_filter([80, 8080]), data, ethertype)) == wanted


@pytest.mark.parametrize("network", [V4, V6, IP(options=[IPOption(b"\x94\x04\x00\x00")] * 10)])
def test_of_what_production_sends_the_first_bytes_are_taken(network: Any) -> None:
    """What goes to production is whole, also from a client whose port is among production's."""
    ethertype = 0x86DD if network is V6 else 0x0800
    ends = {"client": (5, 80), "production": (80, 5), "either": (80, 8080), "neither": (5, 6)}

    def taken(response_bytes: int) -> dict[str, int]:
        program = tcp_filter([80, 8080], response_bytes=response_bytes)
        packets = {end: bytes(network / TCP(sport=ports[0], dport=ports[1])) for end, ports in ends.items()}
        return {end: run(program, packet, ethertype) for end, packet in packets.items()}

    whole = 0xFFFFFFFF
    assert taken(0) == {"client": whole, "production": HEADERS, "either": whole, "neither": 0}
    assert taken(4_096)["production"] == HEADERS + 4_096
    options = TCP(options=[("NOP", None)] * 40)
    assert len(Ether() / Dot1Q() / IP(options=[IPOption(b"\x94\x04\x00\x00")] * 10) / options) <= HEADERS


def test_other_ethertypes() -> None:
    data = bytes(V4 / TCP(dport=80))
    taken = {kind for kind in (0x0806, 0x8100, 0x88A8, 0x9100, 0x9200, 0x8847) if run(tcp_filter([80]), data, kind)}
    assert taken == {0x8100, 0x88A8, 0x9100, 0x9200}, "a tag in the frame is for later"


@pytest.mark.parametrize("count", [1, MAX_PORTS, MAX_PORTS + 1, 65_535])
def test_any_number_of_ports(count: int) -> None:
    program = tcp_filter(range(1, count + 1))
    assert run(program, bytes(V4 / TCP(sport=60_000, dport=count)), 0x0800)
    assert run(program, bytes(V6 / TCP(sport=1, dport=60_000)), 0x86DD)
    assert bool(run(program, bytes(V4 / TCP(sport=65_535, dport=65_535)), 0x0800)) == (count > MAX_PORTS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:  # the kernel checks a program when it is attached
        attach(sock, program)


@pytest.mark.parametrize("count", [1, 200, 201, MAX_LINKS])
@pytest.mark.parametrize("ports", [range(1, MAX_PORTS + 1), None])
def test_interfaces(count: int, ports: range | None) -> None:
    links = range(7, 7 + 2 * count, 2)
    program = tcp_filter(ports, links)
    data = bytes(V4 / TCP(dport=MAX_PORTS))
    taken = [link for link in range(links.stop + 1) if run(program, data, 0x0800, link=link)]
    assert taken == [*links]
    assert bool(run(program, bytes(V4 / TCP(sport=60_000, dport=60_000)), 0x0800, link=7)) == (ports is None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(2):  # as where one interface more is captured, or less
            attach(sock, program)


def test_none_at_all() -> None:
    assert run(REFUSE_ALL, bytes(V4 / TCP(dport=80)), 0x0800) == 0


@given(st.binary(max_size=80), st.sampled_from([0x0800, 0x86DD]))
def test_any_bytes(packet: bytes, ethertype: int) -> None:
    assert run(tcp_filter([80]), packet, ethertype) in (0, HEADERS, 0xFFFFFFFF)


def attach(sock: socket.socket, program: bytes) -> None:
    from tapmirror.source.sockets import attach_filter

    attach_filter(sock, program)
