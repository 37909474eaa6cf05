# SPDX-License-Identifier: Apache-2.0
"""The ring read through memory: its records, their end, and what happens when it is full."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

import pytest
from scapy.all import IP, TCP, Dot1Q, IPv6, Raw

from captures import Both, Wire, fates, named, payloads, take
from lab import PATIENCE, Lab, Load, LoadPlan, Nginx, until
from program import Program
from tapmirror.events import ACCEPTED, FIN, FROM_SERVER
from tapmirror.loader import Attachment
from tapmirror.packet import BUCKETS, flow_hash
from tapmirror.source import Counters
from tapmirror.source.ring import ONCE_AT, RECORD, WANT_ALL, WINDOW, WINDOWS_AT, RingSource, counter_bytes

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
VNET_HEADER: Final = struct.Struct("=BBHHHH")
"""`struct virtio_net_hdr`, linux/virtio_net.h: how a frame longer than the MTU is to be cut, if it ever is."""
NEEDS_CHECKSUM: Final = 1
GSO_TCP4: Final = 1
MSS: Final = 1_448


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def test_a_payload_is_a_view_of_the_ring_and_its_end_is_exact(lab: Lab) -> None:
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire:
        sizes = [1, 7, 8, 9, 56, 128, 129, 256, 257, 512, 1_024, 1_025, 1_446]
        for size in sizes:
            wire.send(wire.segment(bytes(i % 251 for i in range(size))))
        both.settle()
        assert [each[5] for each in both.ring] == [bytes(i % 251 for i in range(size)) for size in sizes]


@pytest.mark.parametrize(("allowed", "fits"), [(20_480, True), (16_384, False)])
def test_the_program_is_no_larger_than_a_socket_may_have_where_nobody_allowed_more(allowed: int, fits: bool) -> None:
    """Before Linux 6.7 net.core.optmem_max was 20,480 (sk_filter_charge).  With several workers it is largest."""
    with Lab() as lab, Program(workers=3) as program, lab.node.enter():
        lab.node.sysctl("core.optmem_max", allowed)
        with contextlib.ExitStack() as stack:
            if not fits:
                stack.enter_context(pytest.raises(OSError, match=r"net\.core\.optmem_max is too small"))
            Attachment(program.loaded, "eth0").close()


def test_records_wrap_around_the_end_of_the_ring(lab: Lab) -> None:
    """Several times its size passes; what is read is what was sent."""
    with lab.node.blocked(80), Both(lab.node, ring_bytes=1 << 16) as both, Wire(lab) as wire:
        sent = []
        for number in range(400):
            data = bytes([number % 251]) * (1 + number * 37 % 1_400)
            sent.append(data)
            wire.send(wire.segment(data, seq=number))
            if number % 7 == 0:
                take(both.ring_source, both.ring)
        both.settle()
        assert [each[5] for each in both.ring] == sent
        assert both.ring_source.counters().ring_full == (0, 0)


@pytest.mark.parametrize("segments", [13, 18, 24, 32, 36, 45])
def test_super_packets_take_little_more_room_than_they_have_bytes(lab: Lab, segments: int) -> None:
    """Of full segments, as the kernel puts them together."""
    data = bytes(range(251)) * 300
    size = segments * MSS
    with lab.node.blocked(80), Both(lab.node, ring_bytes=1 << 20) as both, Wire(lab) as wire:
        packet = bytes(wire.segment(data[:size]))
        with lab.client.enter():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with sock:
            sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            sock.bind((lab.client.iface, 0))
            for _ in range(60):
                sock.send(VNET_HEADER.pack(NEEDS_CHECKSUM, GSO_TCP4, 54, MSS, 34, 16) + packet)
        until(lambda: both.ring_source.counters().seen[0] == 60, "60 to be seen")
        lost = both.ring_source.counters().ring_full[0]
        both.settle()
        assert [each[5] for each in both.ring] == [data[:size]] * (60 - lost)
        assert 60 - lost >= min(60, 0.7 * (1 << 20) / size)


def test_how_long_a_record_has_waited(lab: Lab) -> None:
    """Of each, wherever in the ring it is."""
    with lab.node.blocked(80), Both(lab.node, ring_bytes=1 << 16) as both, Wire(lab) as wire:
        source = both.ring_source
        for number in range(200):
            assert source.age(time.monotonic()) == 0.0
            wire.send(wire.segment(b"x" * (number * 37 % 1_400 + 1), seq=number))
            until(lambda: not source.empty(), "the record")
            now = time.monotonic()
            age = source.age(now)
            (time_ns,) = [segment[6] for segment in source.read(100)]
            assert age > 0 and now - age == pytest.approx(time_ns / 1e9, abs=1e-6)


def test_a_full_ring_is_counted_and_reading_goes_on(lab: Lab) -> None:
    with lab.node.blocked(80), Both(lab.node, ring_bytes=1 << 16) as both, Wire(lab) as wire:
        for number in range(300):
            wire.send(wire.segment(b"x" * 1_000, seq=number))
        until(lambda: both.ring_source.counters().seen[0] == 300, "300 to be seen")
        lost = both.ring_source.counters().ring_full[0]
        assert 0 < lost < 300
        both.settle()
        assert len(both.ring) == 300 - lost == both.ring_source.received[0]
        wire.send(wire.segment(b"after"))
        both.settle()
        assert both.ring[-1][5] == b"after"
        counts = both.ring_source.counters()
        assert list(counts.seen) == [sum(each) for each in zip(*fates(counts), strict=True)]


def test_the_limit_of_a_read(lab: Lab) -> None:
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire:
        for number in range(10):
            wire.send(wire.segment(b"x", seq=number))
        until(lambda: both.ring_source.counters().emitted[0] == 10, "10 to be there")
        assert [segment[2] for segment in both.ring_source.read(4)] == [0, 1, 2, 3]
        for segment in both.ring_source.read(100):  # left in the middle
            assert segment[2] == 4
            break
        assert [segment[2] for segment in both.ring_source.read(100)] == [5, 6, 7, 8, 9]


def test_room_is_given_back_when_what_lies_there_is_finished(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire:
        for number in range(150):
            wire.send(wire.segment(b"x", seq=number))
        source = both.ring_source
        until(lambda: source.counters().emitted[0] == 150, "150 to be there")
        note = source._note
        waiting: list[int] = []
        found: list[int] = []

        def finish() -> None:
            found.extend(waiting)
            waiting.clear()

        def give_back(position: int) -> None:
            assert not waiting
            note(position)

        monkeypatch.setattr(source, "_note", give_back)
        for segment in source.read(1_000, finish=finish):
            waiting.append(segment[2])
        assert found == list(range(150))


def test_the_limit_of_a_read_in_bytes(lab: Lab) -> None:
    """A read ends behind the record with which it is reached."""
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire:
        for number in range(10):
            wire.send(wire.segment(b"x" * 1_000, seq=number))
        until(lambda: both.ring_source.counters().emitted[0] == 10, "10 to be there")
        source = both.ring_source
        found, cut = [], []
        for limit, size in ((100, 2_500), (2, 2_500), (100, 50_000), (100, 2_500)):
            found.append([segment[2] for segment in source.read(limit, size)])
            cut.append(source.cut)
        assert found == [[0, 1, 2], [3, 4], [5, 6, 7, 8, 9], []]
        assert cut == [True, True, False, False]


def test_its_descriptor_is_readable_while_there_is_something(lab: Lab) -> None:
    with lab.node.blocked(80), Both(lab.node) as both, Wire(lab) as wire, select.epoll() as epoll:
        epoll.register(both.ring_source.fileno(), select.EPOLLIN)
        assert epoll.poll(0) == []
        wire.send(wire.segment(b"x"))
        assert epoll.poll(5)
        both.settle()
        assert epoll.poll(0) == []


def test_the_hash_in_a_record_is_ours(lab: Lab) -> None:
    """All 32 bits, of flows of each kind; user space never reads it, so straight from the memory."""
    seed = 0x9E3779B9
    with lab.node.blocked(80), Both(lab.node, seed=seed) as both, Wire(lab) as wire:
        for number in range(100):
            segment = TCP(sport=1_024 + number * 641, dport=80, flags="PA") / Raw(b"x")
            six = IPv6(src=f"fd77:1::{number + 1:x}", dst="fd77:1::2")
            wire.send(wire.segment(b"x", sport=1_024 + number * 641))
            wire.send(wire.ether / six / segment)
            wire.send(wire.ether / Dot1Q(vlan=1 + number * 40) / six / segment)
        until(lambda: both.ring_source.counters().emitted[0] == 300, "300 to be there")
        source, found = both.ring_source, []
        place = source._position
        for segment in source.read(1_000):
            record = RECORD.unpack_from(source._data, (place & (source._size - 1)) + 8)
            found.append((record[5], flow_hash(segment[0], seed)))
            place += (8 + RECORD.size + 128 + 7) & ~7  # the smallest slot
        assert len(found) == len(set(found)) == 300
        assert all(kernels == ours for kernels, ours in found)


def test_acknowledgements_on_demand(lab: Lab) -> None:
    """Production's packets are records while they are asked for, and else only the first and what ends a connection."""

    def responses(both: Both, client: socket.socket) -> int:
        """How many records of production's packets a request and its response give."""
        before = len(both.agreed())
        client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
        new = both.agreed()[before:]
        assert len(payloads(new)) == 1
        assert not any(each[5] for each in new if each[1] & FROM_SERVER)
        return sum(bool(each[1] & FROM_SERVER) for each in new)

    with Both(lab.node) as both, Nginx(lab.node):
        with lab.client.enter():
            client = socket.create_connection((lab.node.addr4, 80), timeout=PATIENCE)
        with client:
            assert [responses(both, client) for _ in range(3)] == [1, 0, 0]
            key = both.agreed()[0][0]
            both.want_ack(key, True)
            assert all(responses(both, client) >= 1 for _ in range(3))
            both.want_ack(key, False)
            assert responses(both, client) == 0
        kept = both.agreed()
        assert [each[0] for each in kept if each[1] & ACCEPTED] == [key]
        assert any(each[1] & FROM_SERVER and each[1] & FIN for each in kept)


def test_the_table_of_wants_is_set_by_the_flows_hash(lab: Lab) -> None:
    with Both(lab.node, seed=77) as both:
        key = bytes(range(40))
        both.ring_source.want_ack(key, True)
        assert both.ring_source._wants[flow_hash(key, 77) & 0xFFFF] == WANT_ALL
        both.ring_source.want_ack(key, False)
        assert both.ring_source._wants[flow_hash(key, 77) & 0xFFFF] == 0
        assert both.ring_source._wants[ONCE_AT : ONCE_AT + BUCKETS] == b"\1" * BUCKETS


def test_a_successor_finds_the_counters_though_there_are_more_processors_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with Program(workers=2, cpus=3) as program:
        monkeypatch.setattr("os.cpu_count", lambda: 64)
        sizes = {"ring_bytes": program.request.ring_bytes, "cpus": program.loaded.cpus, "workers": 2}
        program.sources += [
            RingSource(*program.loaded.worker_fds(shard), **sizes, seed=0, shard=shard) for shard in range(2)
        ]
        for port in range(40_000, 40_050):
            program.run(IP() / TCP(sport=port, dport=80, flags="PA") / Raw(b"x"))
        counts = [source.counters().emitted[0] for source in program.sources]
        assert counts[:2] == counts[2:]
        assert sum(counts[2:]) == 50
        assert all(counts)


def test_a_successor_wants_acknowledgements_and_no_responses_that_the_first_waited_for() -> None:
    with Program(response_bytes=100) as program:
        (first,) = program.sources
        first.keep_responses(bytes(40), True)
        first.want_responses(7, 8)
        program.run(IP() / TCP(dport=80, flags="PA") / Raw(b"x"))
        assert len(program.records()[0]) == 1
        sizes = {"ring_bytes": program.request.ring_bytes, "cpus": program.request.cpus}
        second = RingSource(*program.loaded.worker_fds(0), **sizes, seed=0)
        program.sources.append(second)
        assert second._wants[:BUCKETS] == bytes(BUCKETS)
        assert second._wants[ONCE_AT : ONCE_AT + BUCKETS] == b"\1" * BUCKETS
        assert WINDOW.unpack_from(second._wants, WINDOWS_AT) == (0, BUCKETS)


def test_counters_are_of_one_moment_under_load(lab: Lab) -> None:
    """What is seen has met its fate in every reading, though two processors count on."""
    with Both(lab.node, ring_bytes=1 << 22) as both, Nginx(lab.node):
        running = Load(lab.client, LoadPlan(address=lab.node.addr4, requests=10**9, connections=20))
        readings: list[Counters] = []
        found: set[int] = set()
        end = time.monotonic() + 5 * PATIENCE
        while len(found) <= 20 or max(found) < 20_000:
            assert time.monotonic() < end, "so many requests"
            take(both.ring_source, both.ring)
            readings.append(both.ring_source.counters())
            found.add(readings[-1].seen[0])
        assert running.stop().failed == 0
        for counts in readings:
            assert list(counts.seen) == [sum(each) for each in zip(*fates(counts), strict=True)], named(counts)


def test_the_layout() -> None:
    assert RECORD.size == 72
    assert counter_bytes(3) % 256 == 0
