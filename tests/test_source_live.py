# SPDX-License-Identifier: Apache-2.0
"""The two sources on the same traffic: the same segments, the same counts, whatever is on the wire."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Self

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

from captures import LIVE_BYTES, Both, Wire, payloads, text_of
from lab import PATIENCE, HashSink, Lab, Nginx, body, load, until
from lab.network import has_vlan
from tapmirror.admission import Admission
from tapmirror.events import ACCEPTED, ACK, FROM_SERVER, LOOP_DSCP, PSH, RST, SYN, UNACCEPTED
from tapmirror.packet import MAPPED, flow_hash, flow_key
from tapmirror.source.live import LiveSource
from tapmirror.source.sockets import BLOCK_BYTES, HAND_OVER_MS, let_in, open_shared

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

ADDRESSES = {"src": "10.77.1.1", "dst": "10.77.1.2"}
BACK = {"src": "10.77.1.2", "dst": "10.77.1.1"}
SIX = {"src": "fd77:1::1", "dst": "fd77:1::2"}
DATA = TCP(sport=40_000, dport=80, seq=100, ack=200, flags="PA") / Raw(b"payload")


class FarEnd:
    """The node's end of the link: what is sent here are production's packets."""

    def __init__(self, lab: Lab) -> None:
        near, far = (host.json("ip", "-j", "link", "show", "eth0")[0]["address"] for host in (lab.node, lab.client))
        self.ether = Ether(src=near, dst=far)
        with lab.node.enter():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sock.bind(("eth0", 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, frame: Any) -> None:
        """One frame."""
        self._sock.send(bytes(frame))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def tags(packet: Any, count: int) -> Any:
    for vlan in range(count):
        packet = packet / Dot1Q(vlan=vlan + 1)
    return packet


def options(packet: Any, count: int) -> Any:
    for _ in range(count):
        packet = packet / IPv6ExtHdrDestOpt()
    return packet


@pytest.fixture(scope="module")
def wire(lab: Lab) -> Iterator[Wire]:
    with Wire(lab) as made:
        yield made


@pytest.fixture(scope="module")
def both(lab: Lab) -> Iterator[Both]:
    """Attached once, for cases that need no options: what is new is behind what was there."""
    with Both(lab.node) as made:
        yield made


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
    "priority tag": (lambda e: e / Dot1Q(vlan=0, prio=5) / IP(**ADDRESSES) / DATA, [b"payload"]),
    "three tags": (lambda e: e / Dot1Q(vlan=3) / Dot1Q(vlan=5) / Dot1Q(vlan=7) / IP(**ADDRESSES) / DATA, [b"payload"]),
    "more tags than are read": (lambda e: tags(e, 4) / IP(**ADDRESSES) / DATA, []),
    "six extension headers": (lambda e: options(e / IPv6(**SIX), 6) / DATA, [b"payload"]),
    "more extension headers than are read": (lambda e: options(e / IPv6(**SIX), 7) / DATA, []),
    "IPv4 length of zero": (lambda e: e / IP(**ADDRESSES, len=0) / DATA, [b"payload"]),
    "IPv6 length of zero": (lambda e: e / IPv6(**SIX, plen=0) / DATA, [b"payload"]),
    "to all stations": (lambda e: Ether(src=e.src, dst="ff:ff:ff:ff:ff:ff") / IP(**ADDRESSES) / DATA, [b"payload"]),
    "all flags": (lambda e: e / IP(**ADDRESSES) / TCP(dport=80, flags=0x1FF) / Raw(b"x"), [b"x"]),
    "a fragment within a whole packet": (
        lambda e: e / IPv6(**SIX) / IPv6ExtHdrFragment(offset=0, m=0) / IPv6ExtHdrFragment(offset=0, m=1) / DATA,
        [],
    ),
    "a whole packet within a first fragment": (
        lambda e: e / IPv6(**SIX) / IPv6ExtHdrFragment(offset=0, m=1) / IPv6ExtHdrFragment(offset=0, m=0) / DATA,
        [],
    ),
    "a whole packet within a later fragment": (
        lambda e: e / IPv6(**SIX) / IPv6ExtHdrFragment(offset=9, m=1) / IPv6ExtHdrFragment(offset=0, m=0) / DATA,
        [],
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames(both: Both, wire: Wire, name: str) -> None:
    build, wanted = FRAMES[name]
    before = len(both.ring)
    wire.send(build(wire.ether))
    assert payloads(both.agreed()[before:]) == wanted


def test_an_urgent_pointer_comes_along_also_without_data(both: Both, wire: Wire) -> None:
    before = len(both.ring)
    for data in (b"abc", b""):
        wire.send(wire.ether / IP(**ADDRESSES) / TCP(dport=80, flags="AU", urgptr=0x1234) / Raw(data))
    found = [(flags, data) for _, flags, _, _, _, data in both.agreed()[before:] if not flags & FROM_SERVER]
    assert found == [(0x12340030, b"abc"), (0x12340030, b"")]


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
        assert max(map(len, payloads(kept))) > (40_000 if offloads else mtu - 100)
        text = text_of(kept)
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


@pytest.mark.parametrize("response_bytes", [16, 65_536])
def test_responses_of_production(lab: Lab, response_bytes: int) -> None:
    """With their first bytes, of the flows that want them; the clients' counters do not change by it."""
    with Nginx(lab.node), Both(lab.node, response_bytes=response_bytes, ring_bytes=1 << 24, live_bytes=1 << 23) as both:
        lab.client.run(["curl", "-sf", "-o", "/dev/null", f"http://{lab.node.addr4}/file/1m?[1-4]"])
        kept = both.agreed()
        responses = [each for each in kept if each[1] & FROM_SERVER and each[4]]
        assert {len(each[5]) for each in responses} <= {min(each[4], response_bytes) for each in responses}
        assert sum(each[5].startswith(b"HTTP/1.1 200 OK") for each in responses) == 4
        counts = both.ring_source.counters()
        assert counts.responses == (len(responses), sum(each[4] for each in responses))
        assert counts.responses[1] > 4 << 20
        assert (counts.seen[0], counts.emitted[0], counts.responses_lost) == (4, 4, (0, 0))
        both.keep_responses(responses[0][0], True)
        both.want_responses(0, 0)
        assert load(lab.client, lab.node.addr4, requests=4, connections=1).failed == 0
        assert not any(each[1] & FROM_SERVER and each[5] for each in both.agreed()[len(kept) :])
        assert both.live_source.counters().responses == counts.responses
        both.want_responses(0xF000, 0x2800)
        before = len(both.agreed())
        assert load(lab.client, lab.node.addr4, requests=100, connections=100).failed == 0
        kept = both.agreed()[before:]
        buckets = {True: set[int](), False: set[int]()}
        for each in kept:
            buckets[bool(each[5] and each[1] & FROM_SERVER)].add(flow_hash(each[0], 0) & 0xFFFF)
        open_ = {flow_hash(responses[0][0], 0) & 0xFFFF}  # as long as it is kept; one of a hundred may be in it
        assert buckets[True] - open_ == {each for each in buckets[False] if (each - 0xF000) & 0xFFFF < 0x2800} - open_
        assert 0 < len(buckets[True]) < 50


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


def test_clients_of_other_networks_are_left_out(lab: Lab) -> None:
    """By the kernel program and by ours, before the copy, from both families."""
    clients = ("10.77.1.128/25", "10.77.1.4/30", "fd77:1::8:0/112")
    with lab.node.blocked(80), Both(lab.node, clients=clients) as both, Wire(lab) as wire:
        for last in (0, 3, 4, 7, 8, 127, 128, 255):
            wire.send(wire.ether / IP(src=f"10.77.1.{last}", dst="10.77.1.2") / DATA)
        for host in ("7:ffff", "8:0", "8:ffff", "9:0"):
            wire.send(wire.ether / IPv6(src=f"fd77:1::{host}", dst="fd77:1::2") / DATA)
        kept = both.agreed()
        assert sorted(each[0][15] for each in kept) == [0, 4, 7, 128, 255, 255]
        counts = both.ring_source.counters()
        assert (counts.seen, counts.client) == ((12, 84), (6, 42))


VLANS = [7] if has_vlan() else []
"""Where the kernel has such devices."""


@pytest.mark.parametrize("vlan", [None, *VLANS])
def test_connections_on_a_link_and_on_its_vlan(vlan: int | None) -> None:
    """Seen on the link itself, a connection's key has its tag; on the VLAN's own interface it has none."""
    with Lab(vlan=vlan) as lab, Nginx(lab.node), ExitStack() as stack:
        expected = {"eth0": vlan or 0} | ({f"eth0.{vlan}": 0} if vlan else {})
        seen = {iface: stack.enter_context(Both(lab.node, iface)) for iface in expected}
        for address in (lab.node.addr4, lab.node.addr6):
            assert load(lab.client, address, requests=6, connections=3, per_connection=2).failed == 0
        for iface, tag in expected.items():
            kept = seen[iface].agreed()
            assert len(payloads(kept)) == 12
            assert {each[0][36:] for each in kept} == {struct.pack("=I", tag)}


def test_a_handshake_in_a_vlan(lab: Lab) -> None:
    """The kernel takes the tag out of what comes in, and not out of what a packet socket sends: one flow still."""
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire, FarEnd(lab) as responses:
        for link, back in (
            (wire.ether / Dot1Q(vlan=7), responses.ether / Dot1Q(vlan=7)),
            (wire.ether / Dot1AD(vlan=5) / Dot1Q(vlan=7), responses.ether / Dot1AD(vlan=5) / Dot1Q(vlan=7)),
        ):
            wire.send(link / IP(**ADDRESSES) / TCP(sport=40_000, dport=80, seq=99, flags="S"))
            responses.send(back / IP(**BACK) / TCP(sport=80, dport=40_000, seq=499, ack=100, flags="SA"))
            until(lambda: both.ring_source.counters().syn_ack == both.ring_source.counters().syn, "the SYN-ACK")
            wire.send(link / IP(**ADDRESSES) / TCP(sport=40_000, dport=80, seq=100, ack=500, flags="PA") / b"data")
            responses.send(back / IP(**BACK) / TCP(sport=80, dport=40_000, seq=500, ack=104, flags="A"))
        kept = both.agreed()
        client, server = (MAPPED + socket.inet_aton(ADDRESSES[end]) for end in ("src", "dst"))
        keys = [flow_key(client, server, b"\x9c\x40", b"\0\x50", vlan) for vlan in (7, 5 << 16 | 7)]
        assert [each[:4] for each in kept if each[1] & ACCEPTED] == [(key, ACCEPTED, 100, 500) for key in keys]
        assert [each[:2] for each in kept if each[5] == b"data"] == [(key, PSH | ACK | UNACCEPTED) for key in keys]


TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN_NO_PI = 0x1001


def test_an_interface_without_ethernet_headers(lab: Lab) -> None:
    """A whole connection by hand through a tun device: packets begin with the IP header, both directions."""
    with lab.node.enter():
        tun = os.open("/dev/net/tun", os.O_RDWR)
    try:
        with lab.node.enter():
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN_NO_PI))
        for words in (
            ["link", "set", "tun0", "up"],
            ["addr", "add", "10.9.9.1/24", "dev", "tun0"],
            ["addr", "add", "fd09::1/64", "dev", "tun0", "nodad"],
        ):
            lab.node.run(["ip", *words])
        with Nginx(lab.node), Both(lab.node, "tun0") as both:
            for network in (IP(src="10.9.9.2", dst="10.9.9.1"), IPv6(src="fd09::2", dst="fd09::1")):
                os.write(tun, bytes(network / TCP(sport=4_000, dport=80, seq=99, flags="S")))
                first = next_tcp(tun, type(network)).seq + 1
                ports = {"sport": 4_000, "dport": 80}
                request = Raw(b"GET / HTTP/1.1\r\nHost: tun\r\n\r\n")
                os.write(tun, bytes(network / TCP(**ports, seq=100, ack=first, flags="PA") / request))
                next_tcp(tun, type(network))
                os.write(tun, bytes(network / TCP(**ports, seq=100 + len(request), ack=first, flags="R")))
            kept = both.agreed()
            assert payloads(kept) == [bytes(request)] * 2
            assert len([each for each in kept if each[1] & ACCEPTED]) == 2
            assert [each[2] for each in kept if each[1] & RST] == [100 + len(request)] * 2
    finally:
        os.close(tun)


def next_tcp(tun: int, network: type) -> Any:
    """The next TCP segment that the kernel sends there."""
    while select.select([tun], [], [], 10)[0]:
        packet = os.read(tun, 65_536)
        if packet[0] >> 4 == (4 if network is IP else 6) and TCP in (read := network(packet)):
            return read[TCP]
    raise AssertionError("no answer")


def test_packets_larger_than_a_record() -> None:
    """BIG TCP (Linux 6.3): the kernel hands over up to 512 KiB at once, which no record holds."""
    with Lab() as lab, HashSink(lab.node) as sink:
        for host in (lab.client, lab.node):
            for limit in ("gso_max_size", "gro_max_size"):
                host.run(["ip", "link", "set", "dev", "eth0", limit, "262144"])
        with Both(lab.node, live_block=1 << 20, ring_bytes=1 << 23) as both:
            assert load(lab.client, lab.node.addr6, requests=1, connections=1, bodies=(3_000_000,)).failed == 0
            both.settle()
            for kept in (both.ring, both.live):
                text = text_of(kept)
                assert hashlib.sha256(text[text.index(b"\r\n\r\n") + 4 :]).hexdigest() == sink.got[0].sha256
            assert max(len(each[5]) for each in both.ring) == 65_536
            both.agreed()


def test_loopback_shows_each_packet_once(lab: Lab) -> None:
    with Nginx(lab.node), Both(lab.node, "lo") as both:
        for address in ("127.0.0.1", "::1", lab.node.addr4):
            assert load(lab.node, address, requests=10, connections=2).failed == 0
        assert len(payloads(both.agreed())) == 30


def test_what_is_not_accepted(lab: Lab) -> None:
    """A SYN to a closed port, and one that nobody completes: counted, no records."""
    with Both(lab.node) as both, Wire(lab) as wire:
        wire.send(wire.segment(flags="S", sport=50_000))
        for address in (lab.node.addr4, lab.node.addr6):
            with lab.client.enter(), pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, 80), timeout=PATIENCE)
        kept = both.agreed()
        assert len(kept) == 3 and all(each[1] & FROM_SERVER and each[1] & RST for each in kept)
        assert both.ring_source.counters().syn == (3, 0)
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


def test_the_probe_is_known_without_the_mark(lab: Lab) -> None:
    """By its first sequence number; a SYN with another, and what follows with the same, are as any."""
    with Both(lab.node, probe=7) as both, Wire(lab) as wire:
        for seq, flags, data in ((7, "S", b""), (8, "S", b""), (7, "PA", b"data")):
            packet = IP(**ADDRESSES) / TCP(sport=40_000, dport=80, flags=flags, seq=seq)
            wire.send(wire.ether / (packet / Raw(data) if data else packet))
        assert payloads(both.agreed()) == [b"data"]
        counts = both.ring_source.counters()
        assert (counts.loop_syn, counts.syn) == ((1, 0), (1, 0))


def test_stopped_it_takes_no_more_and_what_is_there_can_be_read(lab: Lab) -> None:
    with Both(lab.node) as both, Wire(lab) as wire:
        wire.send(wire.segment(b"before"))
        both.live_source.stop()
        wire.send(wire.segment(b"after"))
        both.settle()
        assert payloads(both.live) == [b"before"]


@pytest.mark.parametrize("pause", [0.0, 3 * HAND_OVER_MS / 1000], ids=["", "a block each"])
def test_the_limits_of_a_read(lab: Lab, pause: float) -> None:
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire:
        for number in range(12):
            wire.send(wire.segment(b"x" * 1_000, seq=number))
            time.sleep(pause)
        source = both.live_source
        found: list[int] = []
        cut: list[bool] = []
        while len(found) < 12:
            until(lambda: not source.empty(), "the packets")
            read = [segment[2] for segment in source.read(100, 2_500)]
            assert len(read) <= 3
            found += read
            cut.append(source.cut)
        assert found == list(range(12))
        assert True in cut and not cut[-1]


def test_a_block_is_given_back_when_what_lies_there_is_finished(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire:
        source = both.live_source
        give_back = source._ring.give_back
        for number in range(4):
            wire.send(wire.segment(b"x", seq=number))
            time.sleep(3 * HAND_OVER_MS / 1000)
        waiting: list[int] = []
        found: list[int] = []

        def finish() -> None:
            found.extend(waiting)
            waiting.clear()

        def given_back() -> None:
            assert not waiting
            give_back()

        monkeypatch.setattr(source._ring, "give_back", given_back)

        def all_there() -> bool:
            for segment in source.read(1_000, finish=finish):
                waiting.append(segment[2])
            return len(found) == 4

        until(all_there, "all four")
        assert found == [0, 1, 2, 3]


def test_a_read_that_is_left_amid_the_segments_of_one_packet(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire:
        source = both.live_source
        judged = source._judge.judged
        monkeypatch.setattr(source._judge, "judged", lambda *packet: judged(*packet) * 3)
        wire.send(wire.segment(b"x", seq=1))
        wire.send(wire.segment(b"y", seq=2))
        until(lambda: not source.empty(), "the packets")
        found = [bytes(next(source.read(100))[5])]

        def more() -> bool:
            found.extend(bytes(segment[5]) for segment in source.read(100))
            return len(found) >= 6

        until(more, "the other segments")  # maybe of another block
        assert b"".join(found) == b"xxxyyy"


def test_a_packet_of_which_a_segment_is_unread_stays_and_is_not_counted_as_read(lab: Lab) -> None:
    """Its block is the kernel's again once it is given back, and the segment is a view of it."""
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire, FarEnd(lab) as far:
        source = both.live_source

        def accepted(port: int) -> None:
            """Leave the source behind the first of the two segments of a packet: it completes a handshake whose SYN had
            data (RFC 7413).
            """
            wire.send(wire.segment(b"xyz", sport=port, seq=96, flags="S"))
            far.send(far.ether / IP(**BACK) / TCP(sport=80, dport=port, seq=199, ack=100, flags="SA"))
            wire.send(wire.segment(b"payload", sport=port, seq=100, ack=200))
            until(lambda: any(segment[1] == ACCEPTED for segment in source.read(100)), "the packet")

        accepted(40_000)
        assert source.received == (1, 3)
        assert not source.empty()
        assert 0.0 < source.age(time.monotonic()) < 60.0
        assert bytes(next(source.read(100))[5]) == b"payload"
        assert source.received == (2, 10)
        accepted(40_001)
        source.discard()
        assert source.empty()
        assert source.received == (3, 13)
        assert source.counters().emitted == (4, 20)


def test_how_long_a_packet_has_waited(lab: Lab) -> None:
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire:
        source = both.live_source
        assert source.age(time.monotonic()) == 0.0
        before = time.monotonic()
        wire.send(wire.segment(b"x"))
        wire.send(wire.segment(b"y"))
        until(lambda: not source.empty(), "the packets")
        now = time.monotonic()
        age = source.age(now)
        times: list[int] = []

        def all_read() -> bool:
            times.extend(segment[6] for segment in source.read(100))
            return len(times) == 2

        until(all_read, "both")  # maybe of another block
        assert 0 < age < now - before + 0.01 and now - age == pytest.approx(times[0] / 1e9, abs=0.01)
        assert source.age(time.monotonic()) == 0.0


def random_frame(rng: random.Random, ether: Any, outgoing: bool) -> bytes:
    """A segment of one of two flows of port 80, with anything around it, a few bytes of it damaged."""
    packet = tags(ether, rng.choice((0, 0, 0, 1, 2)))
    mark = rng.choice((0, 0, 0, LOOP_DSCP << 2))
    if rng.random() < 0.5:
        packet = packet / IP(**(BACK if outgoing else ADDRESSES), tos=mark, flags=rng.choice((0, 0, 0, 1)))
    else:
        ends = {"src": SIX["dst"], "dst": SIX["src"]} if outgoing else SIX
        packet = options(packet / IPv6(**ends, tc=mark), rng.choice((0, 0, 1, 2)))
        if rng.random() < 0.1:
            packet = packet / IPv6ExtHdrFragment(m=rng.randrange(2), offset=rng.choice((0, 0, 5)))
    ports = (80, 40_000 + rng.randrange(2)) if outgoing else (40_000 + rng.randrange(2), 80)
    flags = rng.choice(("S", "SA", "A", "PA", "PA", "FA", "R", "RA", "SPA", ""))
    seq = 100 + ("S" not in flags) if rng.random() < 0.8 else 100 + rng.randrange(3)
    ack = 101 if rng.random() < 0.8 else 100 + rng.randrange(3)
    packet = packet / TCP(sport=ports[0], dport=ports[1], seq=seq, ack=ack, flags=flags)
    frame = bytearray(bytes(packet / Raw(rng.randbytes(rng.choice((0, 0, 1, 5, 100, 1_300))))))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        frame[rng.randrange(12, min(len(frame), 110))] = rng.randrange(256)
    return bytes(frame[: rng.randrange(14, len(frame) + 1)] if rng.random() < 0.1 else frame)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("egress_all", [False, True])
def test_random_frames_of_both_sides(lab: Lab, seed: int, egress_all: bool) -> None:
    """Headers and states that nobody thought of.  On one processor: two may show two packets in either order."""
    rng = random.Random(seed)
    processors = os.sched_getaffinity(0)
    with ExitStack() as stack:
        for host in (lab.client, lab.node):
            stack.enter_context(host.blocked(80))
            host.run(["nft", "add rule inet lab in meta l4proto tcp drop"])
        both = stack.enter_context(
            Both(lab.node, threshold=3 << 30, seed=seed, egress_all=egress_all, ring_bytes=1 << 23)
        )
        wire = stack.enter_context(Wire(lab))
        responses = stack.enter_context(FarEnd(lab))
        stack.callback(os.sched_setaffinity, 0, processors)
        os.sched_setaffinity(0, {min(processors)})
        sides = [responses if rng.random() < 0.4 else wire for _ in range(2_000)]
        frames = [random_frame(rng, side.ether, side is responses) for side in sides]
        for side, frame in zip(sides, frames, strict=True):  # at once: a ring that nobody reads fills with time
            side.send(frame)
        kept = both.agreed()
        counts = both.ring_source.counters()
        assert len({each[0] for each in kept}) > 20
        for count in (counts.emitted, counts.sampled_out, counts.loop, counts.fragment, counts.accepted, counts.egress):
            assert count[0] > 5, counts


def test_what_the_ring_has_no_room_for_is_counted(lab: Lab) -> None:
    """Before it is judged, so a packet of another kind may be among what is lost."""
    with lab.node.blocked(80), Both(lab.node, live_bytes=2 * BLOCK_BYTES) as both, Wire(lab) as wire:
        for number in range(400):
            wire.send(wire.segment(b"x" * 1_000, seq=number))
        both.settle()
        counts = both.live_source.counters()
        lost = 400 - len(payloads(both.live))
        assert lost > 0
        assert counts.ring_full[0] in range(lost, lost + 20)
        assert counts.ring_full[1] == 0
        assert counts.seen[0] == counts.ring_full[0] + len(payloads(both.live))
        again = both.live_source.counters().ring_full[0]  # the kernel's own counter is reset by reading
        assert again in range(counts.ring_full[0], lost + 20)
        before = len(both.live)
        wire.send(wire.segment(b"after", seq=1_000))
        both.settle()
        assert payloads(both.live[before:]) == [b"after"]


def test_a_long_response_takes_no_room_of_the_requests(lab: Lab) -> None:
    """A ring of 48 MiB, which nobody reads, beside responses of 64 MB: their headers alone are kept."""
    with Nginx(lab.node), Both(lab.node) as both:
        lab.client.run(["curl", "-sf", "-o", "/dev/null", f"http://{lab.node.addr4}/file/1m?[1-64]"])
        both.live_source.stop()
        found = list(both.live_source.read(100_000))
        assert sum(b"GET /file/1m" in bytes(segment[5]) for segment in found) == 64
        assert both.live_source.counters().ring_full == (0, 0)


@pytest.mark.parametrize("iface", ["eth0", "lo"])
def test_workers_share_the_flows_and_both_directions_meet(lab: Lab, iface: str) -> None:
    """On loopback each packet once."""
    on_loopback = iface == "lo"
    with Nginx(lab.node), lab.node.enter():
        sockets = open_shared(3, LIVE_BYTES, loopback=on_loopback)
        links = [socket.if_nametoindex(iface)]
        sources = [LiveSource(sock, admission(egress_all=True), LIVE_BYTES) for sock in sockets]
        let_in(sockets, [80], links)
        client, address = (lab.node, "127.0.0.1") if on_loopback else (lab.client, lab.node.addr4)
        assert load(client, address, requests=60, connections=60, per_connection=1).failed == 0
        flows = []
        for source in sources:
            source.stop()
            found = list(source.read(10_000))
            flows.append({segment[0] for segment in found})
            ways = {key: {segment[1] & FROM_SERVER for segment in found if segment[0] == key} for key in flows[-1]}
            assert all(len(each) == 2 for each in ways.values())
            counts = source.counters()
            assert counts.seen[0] == counts.emitted[0] == len(flows[-1])
            source.close()
    assert sum(map(len, flows)) == len(set().union(*flows)) == 60
    assert sum(bool(each) for each in flows) > 1


def admission(**more: Any) -> Admission:
    return Admission(
        ports=[80],
        addrs=[],
        excluded=[],
        threshold=1 << 32,
        seed=0,
        dscp=LOOP_DSCP,
        **{"egress_all": False, **more},
    )
