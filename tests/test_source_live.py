# SPDX-License-Identifier: Apache-2.0
"""The two sources on the same traffic: the same segments, the same counts, whatever is on the wire."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.all import (
    IP,
    TCP,
    UDP,
    Dot1AD,
    Dot1Q,
    Ether,
    IPOption,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Padding,
    Raw,
    fragment,
)

from captures import Both, Wire, payloads
from lab import HashSink, Lab, Nginx, body, load
from tapmirror.events import ACCEPTED, FROM_SERVER, LOOP_DSCP, SYN
from tapmirror.packet import flow_hash

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

ADDRESSES = {"src": "10.77.1.1", "dst": "10.77.1.2"}
SIX = {"src": "fd77:1::1", "dst": "fd77:1::2"}
DATA = TCP(sport=40_000, dport=80, seq=100, ack=200, flags="PA") / Raw(b"payload")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


FRAMES: dict[str, tuple[Callable[[Any], Any], list[bytes]]] = {
    "IPv4": (lambda e: e / IP(**ADDRESSES) / DATA, [b"payload"]),
    "IPv4 options": (lambda e: e / IP(**ADDRESSES, options=[IPOption(b"\x94\x04\0\0")]) / DATA, [b"payload"]),
    "IPv6": (lambda e: e / IPv6(**SIX) / DATA, [b"payload"]),
    "IPv6 extension headers": (
        lambda e: e / IPv6(**SIX) / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt() / DATA,
        [b"payload"],
    ),
    "IPv6 atomic fragment": (lambda e: e / IPv6(**SIX) / IPv6ExtHdrFragment(offset=0, m=0) / DATA, [b"payload"]),
    "VLAN": (lambda e: e / Dot1Q(vlan=7) / IP(**ADDRESSES) / DATA, [b"payload"]),
    "VLAN, IPv6": (lambda e: e / Dot1Q(vlan=7) / IPv6(**SIX) / DATA, [b"payload"]),
    "QinQ": (lambda e: e / Dot1AD(vlan=5) / Dot1Q(vlan=7) / IP(**ADDRESSES) / DATA, [b"payload"]),
    "padding is no payload": (
        lambda e: e / IP(**ADDRESSES) / TCP(dport=80, flags="PA") / Raw(b"x") / Padding(b"pad" * 5),
        [b"x"],
    ),
    "TCP options": (
        lambda e: e / IP(**ADDRESSES) / TCP(dport=80, flags="PA", options=[("Timestamp", (1, 2))]) / Raw(b"x"),
        [b"x"],
    ),
    "wrong checksums": (lambda e: e / IP(**ADDRESSES) / TCP(dport=80, flags="A", chksum=1) / Raw(b"x"), [b"x"]),
    "another port": (lambda e: e / IP(**ADDRESSES) / TCP(dport=81, flags="A") / Raw(b"x"), []),
    "for another station": (
        lambda e: Ether(src="02:00:00:00:00:09", dst="02:00:00:00:00:08") / IP(**ADDRESSES) / DATA,
        [],
    ),
    "UDP": (lambda e: e / IP(**ADDRESSES) / UDP(dport=80) / Raw(b"x"), []),
    "header length too small": (lambda e: e / IP(**ADDRESSES) / TCP(dport=80, dataofs=4) / Raw(b"x"), []),
    "header longer than the packet": (lambda e: e / IP(**ADDRESSES, len=40) / TCP(dport=80, dataofs=15), []),
    "length of the packet too large": (lambda e: e / IP(**ADDRESSES, len=60_000) / DATA, [b"payload"]),
    "a frame that ends in the IP header": (lambda e: bytes(e / IP(**ADDRESSES) / DATA)[:30], []),
    "a frame that ends in the TCP header": (lambda e: bytes(e / IP(**ADDRESSES) / DATA)[:50], []),
    "urgent data": (lambda e: e / IP(**ADDRESSES) / TCP(dport=80, flags="PAU", urgptr=2) / Raw(b"abc"), [b"abc"]),
    "SYN with data": (lambda e: e / IP(**ADDRESSES) / TCP(dport=80, flags="S") / Raw(b"fast"), [b"fast"]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames(lab: Lab, name: str) -> None:
    build, wanted = FRAMES[name]
    with Both(lab.node) as both, Wire(lab) as wire:
        wire.send(build(wire.ether))
        assert payloads(both.agreed()) == wanted


def test_fragments_are_counted_and_not_taken(lab: Lab) -> None:
    """The first fragment is seen and dropped with its reason; the others have no TCP header."""
    with Both(lab.node) as both, Wire(lab) as wire:
        whole = IP(**ADDRESSES) / TCP(sport=40_000, dport=80, flags="PA") / Raw(b"x" * 3_000)
        for piece in fragment(whole, 1_000):
            wire.send(wire.ether / piece)
        wire.send(wire.ether / IPv6(**SIX) / IPv6ExtHdrFragment(offset=0, m=1) / DATA)
        assert payloads(both.agreed()) == []
        assert both.ring_source.counters().fragment[0] == 2


@pytest.mark.parametrize("mtu", [1_500, 9_000])
@pytest.mark.parametrize("offloads", [True, False])
@pytest.mark.parametrize("family", [4, 6])
def test_bulk_transfer(mtu: int, offloads: bool, family: int) -> None:
    """Super-packets of up to 64 KiB where there are offloads: nothing cut, nothing twice."""
    with Lab(mtu=mtu, offloads=offloads) as lab, HashSink(lab.node) as sink:
        address = lab.node.addr4 if family == 4 else lab.node.addr6
        with Both(lab.node, ring_bytes=1 << 23) as both:
            assert load(lab.client, address, requests=1, connections=1, bodies=(2_000_000,)).failed == 0
            kept = both.agreed()
        stream: dict[int, bytes] = {each[2]: each[5] for each in kept if each[4] and not each[1] & FROM_SERVER}
        assert max(map(len, stream.values())) > (40_000 if offloads else mtu - 100)
        text = b"".join(stream[seq] for seq in sorted(stream))
        assert hashlib.sha256(text[text.index(b"\r\n\r\n") + 4 :]).hexdigest() == sink.got[0].sha256
        assert text.endswith(body(0, 2_000_000)[-1_000:])


@pytest.mark.parametrize("egress_all", [False, True])
@pytest.mark.parametrize("threshold", [1 << 32, 1 << 31])
def test_connections(lab: Lab, egress_all: bool, threshold: int) -> None:
    with Nginx(lab.node), Both(lab.node, egress_all=egress_all, threshold=threshold, seed=9) as both:
        assert load(lab.client, lab.node.addr4, requests=60, connections=6, per_connection=2).failed == 0
        kept = both.agreed()
        accepted = [each for each in kept if each[1] & ACCEPTED]
        keys = {each[0] for each in kept}
        assert all(flow_hash(key, 9) < threshold for key in keys)
        assert len(accepted) == len(keys) > 5
        assert (len(keys) == 30) == (threshold == 1 << 32)
        assert not any(each[1] & SYN for each in kept)


@pytest.mark.parametrize("threshold", [0, 1, 1 << 30, (1 << 32) - 1, 1 << 32])
def test_the_hash_of_the_kernel_is_ours(lab: Lab, threshold: int) -> None:
    """Random tuples: which are taken tells every hash against the threshold."""
    with lab.node.blocked(80), Both(lab.node, threshold=threshold, seed=0xDEADBEEF) as both, Wire(lab) as wire:
        for number in range(200):
            wire.send(wire.segment(b"x", sport=1_024 + number * 311))
        kept = both.agreed()
        counts = both.ring_source.counters()
        assert counts.seen[0] == 200
        assert all(flow_hash(each[0], 0xDEADBEEF) < threshold for each in kept)
        assert len(kept) + counts.sampled_out[0] == 200
        assert {0: 0, 1 << 32: 200}.get(threshold, len(kept)) == len(kept)


def test_loopback_shows_each_packet_once(lab: Lab) -> None:
    with Nginx(lab.node), Both(lab.node, "lo") as both:
        for address in ("127.0.0.1", "::1", lab.node.addr4):
            assert load(lab.node, address, requests=10, connections=2).failed == 0
        assert len(payloads(both.agreed())) == 30


def test_what_is_not_accepted(lab: Lab) -> None:
    """A SYN to a closed port, and one that nobody completes: counted, no records."""
    with Both(lab.node) as both, Wire(lab) as wire:
        wire.send(wire.segment(flags="S", sport=50_000))
        both.settle()
        assert both.ring_source.counters().syn == (1, 0)
    with Nginx(lab.node), Both(lab.node) as both, Wire(lab) as wire:
        wire.send(wire.segment(flags="S", sport=50_001))
        kept = both.agreed()
        assert not any(each[1] & ACCEPTED for each in kept)
        assert both.ring_source.counters().syn_ack[0] >= 1


def test_addresses_ports_exclusions(lab: Lab) -> None:
    lab.node.run(["ip", "addr", "add", "10.77.1.3/24", "dev", "eth0"])
    try:
        options: dict[str, Any] = {"ports": (80, 82), "addrs": ("10.77.1.2", "fd77:1::2")}
        with Both(lab.node, **options, excluded=[("10.77.1.2", 82)]) as both, Wire(lab) as wire:
            for address in ("10.77.1.2", "10.77.1.3"):
                for port in (80, 81, 82):
                    data = f"{address} {port}".encode()
                    wire.send(wire.ether / IP(src="10.77.1.1", dst=address) / TCP(dport=port, flags="PA") / Raw(data))
            wire.send(wire.ether / IPv6(**SIX) / TCP(dport=82, flags="PA") / Raw(b"six 82"))
            assert payloads(both.agreed()) == [b"10.77.1.2 80", b"six 82"]
    finally:
        lab.node.run(["ip", "addr", "del", "10.77.1.3/24", "dev", "eth0"])


def test_the_loop_mark(lab: Lab) -> None:
    with Both(lab.node) as both, Wire(lab) as wire:
        for flags, data in (("S", b""), ("A", b""), ("PA", b"copy"), ("FA", b"")):
            packet = IP(**ADDRESSES, tos=LOOP_DSCP << 2 | 1) / TCP(sport=40_000, dport=80, flags=flags)
            wire.send(wire.ether / (packet / Raw(data) if data else packet))
        assert payloads(both.agreed()) == []
        counts = both.ring_source.counters()
        assert (counts.loop, counts.loop_syn) == ((1, 4), (1, 0))


def test_stopped_it_takes_no_more_and_what_is_there_can_be_read(lab: Lab) -> None:
    with Both(lab.node) as both, Wire(lab) as wire:
        wire.send(wire.segment(b"before"))
        both.live_source.stop()
        wire.send(wire.segment(b"after"))
        both.settle()
        assert payloads(both.live) == [b"before"]


def test_what_its_buffer_has_no_room_for_is_counted(lab: Lab) -> None:
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire:
        both.live_source._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        for number in range(200):
            wire.send(wire.segment(b"x" * 1_000, seq=number))
        both.settle()
        counts = both.live_source.counters()
        lost = 200 - len(payloads(both.live))
        assert lost > 0
        assert counts.ring_full == (lost, 0)
        assert counts.seen[0] == 200
        assert both.live_source.counters().ring_full == (lost, 0)  # the kernel's own counter is reset by reading
