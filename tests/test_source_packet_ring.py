# SPDX-License-Identifier: Apache-2.0
"""The ring of a packet socket, read by one after the other: nothing is counted twice, or not at all, or read twice."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest
from scapy.all import IP, TCP, Raw, fragment

from captures import Wire
from lab import Lab, until
from tapmirror.admission import Admission
from tapmirror.events import LOOP_DSCP
from tapmirror.packet import MAPPED, Decoder
from tapmirror.source.judge import Judge
from tapmirror.source.live import LiveSource
from tapmirror.source.packet_ring import _BLOCK, TP_STATUS_USER, VALUES, PacketRing
from tapmirror.source.sockets import BLOCK_BYTES, open_live

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

BYTES = 8 * BLOCK_BYTES


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built, built.node.blocked(80):
        for host in (built.node, built.client):  # their reports of groups pass the filter, and would be among ours
            host.sysctl("ipv6.conf.all.disable_ipv6", 1)
        yield built


@pytest.fixture
def sock(lab: Lab) -> Iterator[socket.socket]:
    with lab.node.enter():
        opened = open_live("eth0", BYTES, loopback=False, ports=[80])
    with opened:
        yield opened


def judge() -> Admission:
    """Takes port 80."""
    return Admission(ports=[80], addrs=[], excluded=[], threshold=1 << 32, seed=0, dscp=LOOP_DSCP, egress_all=False)


def reader(sock: socket.socket) -> LiveSource:
    """As a worker that begins."""
    return LiveSource(sock, judge(), BYTES)


def send(wire: Wire, sock: socket.socket, *data: bytes) -> None:
    """At once, and until all of it can be read."""
    frames = [bytes(wire.segment(each)) for each in data]
    ring = PacketRing(sock, BYTES, BLOCK_BYTES)
    before = readable(ring)
    for frame in frames:
        wire.send(frame)
    until(lambda: readable(ring) == before + len(frames), "the block with them")
    ring.close()


def readable(ring: PacketRing) -> int:
    """Packets in the blocks that are the reader's."""
    blocks = (_BLOCK.unpack_from(ring.view, at) for at in range(0, BYTES, BLOCK_BYTES))
    return sum(packets for _, status, packets in blocks if status & TP_STATUS_USER)


def texts(source: LiveSource) -> list[bytes]:
    """Of all that is there."""
    return [bytes(segment[5]) for segment in source.read(1_000)]


def test_a_successor_reads_on_where_its_predecessor_died(lab: Lab, sock: socket.socket) -> None:
    """Amid a block; what was under way then is counted, and not read again."""
    with Wire(lab) as wire:
        first = reader(sock)
        send(wire, sock, b"a")
        assert texts(first) == [b"a"]
        send(wire, sock, b"bb", b"ccc", b"dddd")
        reading = first.read(1_000)
        assert [bytes(next(reading)[5]), bytes(next(reading)[5])] == [b"bb", b"ccc"]
        second = reader(sock)
        assert second.received == second.counters().seen == (3, 6)
        third = reader(sock)
        assert third.received == third.counters().seen == (3, 6), "that it was counted was noted"
        assert texts(third) == [b"dddd"]
        assert third.received == third.counters().seen == (4, 10)
        assert reader(sock).empty()


def test_a_predecessor_may_have_died_in_the_block_after_the_one_that_it_noted(lab: Lab, sock: socket.socket) -> None:
    with Wire(lab) as wire:
        first = reader(sock)
        send(wire, sock, b"a")
        send(wire, sock, b"bb", b"ccc")
        reading = first.read(1_000)
        assert [bytes(next(reading)[5]), bytes(next(reading)[5])] == [b"a", b"bb"]
        second = reader(sock)
        assert second.received == second.counters().seen == (2, 3)
        assert texts(second) == [b"ccc"]


def test_a_successor_reads_on_where_its_predecessor_was_done(lab: Lab, sock: socket.socket) -> None:
    with Wire(lab) as wire:
        first = reader(sock)
        for number in range(3 * BYTES // BLOCK_BYTES):  # around the ring, some blocks given back, the last one not
            send(wire, sock, b"x" * number, b"y")
            first.read(1)
            assert len(texts(first)) >= 1
            second = reader(sock)
            assert second.empty()
            assert (second.received, second.counters()) == (first.received, first.counters())


def test_what_a_reader_dies_of_is_looked_at_no_more(
    lab: Lab, sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by a successor's successor, whatever it is."""
    with Wire(lab) as wire:
        first = reader(sock)
        send(wire, sock, b"a", b"b", b"c")
        reading = first.read(1_000)  # kept, or it would end in an orderly way
        next(reading)
        with monkeypatch.context() as patch:
            patch.setattr(Judge, "judged", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                reader(sock)
            assert reader(sock).received == (0, 0)
        assert texts(reader(sock)) == [b"b", b"c"]


def test_what_is_not_read_is_judged_at_the_end(lab: Lab, sock: socket.socket) -> None:
    with Wire(lab) as wire:
        source = reader(sock)
        send(wire, sock, b"a", b"bb", b"ccc")
        next(source.read(1))
        assert (source.received, source.counters().emitted) == ((1, 1), (1, 1))
        source.discard()
        assert source.received == (1, 1)
        assert source.counters().seen == source.counters().emitted == (3, 6)
        assert source.empty()


def test_fragments_of_what_is_not_whole_at_the_end_are_counted(lab: Lab) -> None:
    with lab.node.enter():
        opened = open_live("eth0", BYTES, loopback=False, ports=None)
    with opened, Wire(lab) as wire:
        source = LiveSource(opened, judge(), BYTES, decoder=Decoder(tunnels=True, checksums=False))
        first, second, _ = fragment(
            IP(src=lab.client.addr4, dst=lab.node.addr4) / TCP(dport=80) / Raw(bytes(2_000)), 800
        )
        for each in (first, second):
            wire.send(wire.ether / each)
        ring = PacketRing(opened, BYTES, BLOCK_BYTES)
        until(lambda: readable(ring) == 2, "the fragments")
        ring.close()
        assert texts(source) == []
        assert source.counters().fragment == (0, 0)
        source.discard()
        assert source.counters().fragment == (2, 0)
        assert source.counters().seen[0] >= 2
        source.close()


def test_what_there_was_no_room_for_outlives_the_reader_that_asked(lab: Lab, sock: socket.socket) -> None:
    with Wire(lab) as wire:
        for _ in range(BYTES // 1_000):
            wire.send(wire.segment(b"x" * 1_000))
        first = reader(sock)
        lost = first.counters().ring_full
        assert lost[0] > 0
        second = reader(sock)
        assert second.counters().ring_full == lost
        assert second.counters().seen == lost


def test_of_two_notes_one_is_always_whole(sock: socket.socket) -> None:
    ring = PacketRing(sock, BYTES, BLOCK_BYTES)
    assert ring.noted() is None
    for number in range(1, 4):
        ring.note((number, 2 * number), [number] * VALUES)
        assert ring.noted() == ((number, 2 * number), [number] * VALUES)
    ring.close()


def test_what_counts_may_change_while_it_is_read(lab: Lab, sock: socket.socket) -> None:
    """Also of flows that were read before."""
    with Wire(lab) as wire:
        source = reader(sock)
        shadow = MAPPED + socket.inet_aton(lab.node.addr4), 80
        changes: list[tuple[Callable[[], None], int]] = [
            (lambda: None, 2),
            (lambda: source.set_threshold(0), 0),
            (lambda: source.set_threshold(1 << 32), 2),
            (lambda: source.exclude([shadow]), 0),
            (lambda: source.exclude([]), 2),
        ]
        for change, taken in changes:
            change()
            send(wire, sock, b"x", b"x")
            assert len(texts(source)) == taken


def test_at_the_end_the_block_that_is_being_filled_is_waited_for(lab: Lab) -> None:
    """However late the kernel's timer for it is."""
    began = time.monotonic()
    with (
        Wire(lab) as wire,
        lab.node.enter(),
        open_live("eth0", BYTES, loopback=False, ports=[80], hand_over_ms=300) as opened,
    ):
        source = reader(opened)
        wire.send(wire.segment(b"a"))
        until(PacketRing(opened, BYTES, BLOCK_BYTES).filling, "a packet")
        assert source.empty() or time.monotonic() - began > 0.3
        source.stop()
        assert texts(source) == [b"a"]
