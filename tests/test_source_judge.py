# SPDX-License-Identifier: Apache-2.0
"""Packets as the kernel puts them into a ring: both ways to judge them, held against `decode` and `Admission.admit`."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tapmirror.admission import Admission
from tapmirror.events import ACK, FIN, LOOP_DSCP, PSH, RST, SYN, URG, Segment
from tapmirror.packet import MAPPED, Decoder, decode
from tapmirror.source import judge as module
from tapmirror.source.judge import ARPHRD_LOOPBACK, PACKET_OTHERHOST, PACKET_OUTGOING, Judge

CLIENT, SERVER = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
CLIENT6, SERVER6 = b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2"
ETHER, IFINDEX, AHEAD = 1, 2, 5_000_000_000
TAG_VALID = 0x50  # TP_STATUS_VLAN_VALID | TP_STATUS_VLAN_TPID_VALID
BEFORE = b"\xa5" * 8
"""Something that is there in a ring before the packet."""


def ring(
    frame: bytes,
    *,
    size: int | None = None,
    kind: int = 0,
    hardware: int = ETHER,
    tag: int | None = None,
    protocol: bytes = b"\x08\0",
    ns: int = 0,
) -> memoryview:
    """A packet behind `BEFORE`, as tpacket_rcv of net/packet/af_packet.c writes it; `tag` was taken out of it."""
    offset = 82 if hardware in (ETHER, ARPHRD_LOOPBACK) else 96
    seconds, status = 7, 1 if tag is None else 1 | TAG_VALID
    header = struct.pack("=6I2HIIHH8x", 0, seconds, ns, len(frame), len(frame) if size is None else size, status,
                         offset, 96, 0x1234, tag or 0, 0 if tag is None else 0x8100, 0)  # fmt: skip
    address = struct.pack("=H2siHBB8s", 17, protocol, IFINDEX, hardware, kind, 6, b"\2\0\0\0\0\1\0\0")
    return memoryview(BEFORE + (header + address).ljust(offset, b"\0") + frame + bytes(60))


def tcp(
    flags: int, data: bytes, *, seq: int, ack: int, ports: tuple[int, int], options: bytes = b"", urgent: int = 0
) -> bytes:
    words = 5 + len(options) // 4
    return struct.pack(">HHIIBBHHH", *ports, seq, ack, words << 4, flags, 1_000, 0, urgent) + options + data


def frame4(segment: bytes, *, back: bool = False, tos: int = 0, total: int | None = None, part: int = 0) -> bytes:
    total = 20 + len(segment) if total is None else total
    ends = SERVER + CLIENT if back else CLIENT + SERVER
    return bytes(12) + b"\x08\0" + struct.pack(">BBHHHBBH8s", 0x45, tos, total, 1, part, 64, 6, 0, ends) + segment


def frame6(segment: bytes, *, back: bool = False, tos: int = 0, length: int | None = None, proto: int = 6) -> bytes:
    length = len(segment) if length is None else length
    ends = SERVER6 + CLIENT6 if back else CLIENT6 + SERVER6
    return bytes(12) + b"\x86\xdd" + struct.pack(">IHBB32s", 6 << 28 | tos << 20 | 5, length, proto, 64, ends) + segment


def admission(**more: Any) -> Admission:
    defaults = {"ports": [80], "addrs": [], "excluded": [], "threshold": 1 << 32, "seed": 3, "dscp": LOOP_DSCP}
    return Admission(**{**defaults, "egress_all": False, **more})


def plain(segments: list[Segment]) -> list[tuple[Any, ...]]:
    """With payloads that can be compared."""
    return [(*each[:5], bytes(each[5]), each[6]) for each in segments]


class Twins:
    """A judge, and what reads the same packets without a ring."""

    def __init__(self, **options: Any) -> None:
        self.mine, self.its = admission(**options), admission(**options)
        self.judge = Judge(self.mine)

    def agreed(
        self, frame: bytes, *, size: int | None = None, kind: int = 0, tag: int | None = None, **more: Any
    ) -> int:
        """Both have the same outcome; how many segments."""
        found = self.judge.judged(ring(frame, size=size, kind=kind, tag=tag, **more), len(BEFORE), AHEAD)
        header = decode(memoryview(frame), len(frame) if size is None else size, vlan=(tag or 0) & 0xFFF)
        loopback = more.get("hardware") == ARPHRD_LOOPBACK
        time_ns = 7_000_000_000 + more.get("ns", 0) - AHEAD
        wanted = [] if header is None else self.its.admit(header, kind == PACKET_OUTGOING, time_ns, loopback)
        assert plain(found) == plain(wanted)
        assert self.mine.totals == self.its.totals
        return len(found)


REQUEST = frame4(tcp(PSH | ACK, b"GET", seq=100, ack=500, ports=(40_000, 80)))
REQUEST6 = frame6(tcp(PSH | ACK, b"GET", seq=100, ack=500, ports=(40_000, 80), options=b"\1\1\1\0"))
RESPONSE = frame4(tcp(PSH | ACK, b"200", seq=500, ack=103, ports=(80, 40_000)), back=True)


@pytest.mark.parametrize(
    "frame",
    [
        REQUEST,
        REQUEST6,
        frame4(tcp(ACK, b"", seq=100, ack=500, ports=(40_000, 80))),
        frame4(tcp(SYN, b"", seq=99, ack=0, ports=(40_000, 80), options=b"\2\4\5\xb4")),
        frame4(tcp(FIN | ACK, b"x", seq=99, ack=0, ports=(40_000, 80))),
        frame4(tcp(ACK, b"x", seq=99, ack=0, ports=(40_000, 80)), total=0),
        frame4(tcp(ACK, b"x" * 60, seq=99, ack=0, ports=(40_000, 80)))[:-10],
        frame4(tcp(ACK, b"x", seq=99, ack=0, ports=(40_000, 80))) + b"padding",
        frame4(tcp(ACK, b"x", seq=99, ack=0, ports=(40_000, 80)), tos=LOOP_DSCP << 2 | 1),
        frame6(tcp(ACK, b"x", seq=99, ack=0, ports=(40_000, 80)), tos=LOOP_DSCP << 2 | 1),
        frame6(tcp(ACK, b"x", seq=99, ack=0, ports=(40_000, 80)), length=0),
        frame4(tcp(ACK, b"x", seq=99, ack=0, ports=(40_000, 81))),
    ],
)
def test_the_short_way_has_the_same_outcome(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins()
    twins.agreed(REQUEST)
    monkeypatch.setattr(Judge, "_header", lambda *_: 1 // 0)
    for number in range(3):
        twins.agreed(frame, ns=number)


@pytest.mark.parametrize("frame", [RESPONSE, frame4(tcp(RST, b"", seq=500, ack=0, ports=(80, 40_000)), back=True)])
def test_so_it_has_for_production(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, {"egress_all": True}, {"response_bytes": 2}):
        twins = Twins(**options)
        twins.agreed(RESPONSE, kind=PACKET_OUTGOING)
        with monkeypatch.context() as patch:
            patch.setattr(Judge, "_header", lambda *_: 1 // 0)
            for _ in range(3):
                twins.agreed(frame, kind=PACKET_OUTGOING)


def test_a_handshake_and_what_follows() -> None:
    """What completes it may go either way; the SYN-ACK's options are read."""
    for options in (b"\2\4\5\xb4", b"\x1e\4\0\0"):
        twins = Twins()
        twins.agreed(REQUEST)
        twins.agreed(frame4(tcp(SYN, b"", seq=99, ack=0, ports=(40_001, 80))))
        response = tcp(SYN | ACK, b"", seq=499, ack=100, ports=(80, 40_001), options=options)
        twins.agreed(frame4(response, back=True), kind=PACKET_OUTGOING)
        assert twins.agreed(frame4(tcp(PSH | ACK, b"GET", seq=100, ack=500, ports=(40_001, 80)))) == 1
        shows = tcp(FIN | ACK, b"", seq=500, ack=103, ports=(80, 40_001))
        assert twins.agreed(frame4(shows, back=True), kind=PACKET_OUTGOING) == 2


def test_an_urgent_pointer_is_read() -> None:
    twins = Twins()
    twins.agreed(REQUEST)
    twins.agreed(frame4(tcp(URG | ACK, b"abc", seq=1, ack=1, ports=(40_000, 80), urgent=2)))


def test_more_than_a_segment_may_hold() -> None:
    """BIG TCP: its length is 0, and it is several segments."""
    twins = Twins()
    twins.agreed(REQUEST)
    for flags in (ACK, FIN | PSH | ACK):
        data = bytes(range(256)) * 600
        assert twins.agreed(frame4(tcp(flags, data, seq=1, ack=1, ports=(40_000, 80)), total=0)) == 3


def test_tags_interfaces_and_kinds_are_told_apart() -> None:
    twins = Twins()
    for _ in range(2):
        for tag in (None, 0, 5, 7, 0x2007):
            assert twins.agreed(REQUEST, tag=tag) == 1
        assert twins.agreed(REQUEST, kind=PACKET_OUTGOING) == 0
        for kind in (0, PACKET_OUTGOING):
            for frame in (REQUEST, frame4(tcp(FIN, b"", seq=500, ack=0, ports=(80, 40_000)), back=True)):
                assert twins.agreed(frame, hardware=ARPHRD_LOOPBACK, kind=kind) == (kind == 0)
    keys = {
        twins.judge.judged(ring(REQUEST, tag=tag), len(BEFORE), AHEAD)[0][0][36:] for tag in (None, 0, 5, 7, 0x2007)
    }
    assert keys == {struct.pack("=I", vlan) for vlan in (0, 5, 7)}


def test_links_without_ethernet_headers() -> None:
    judge = Judge(admission())
    for frame, protocol in ((REQUEST, b"\x08\0"), (REQUEST6, b"\x86\xdd")) * 2:
        packet = ring(frame[14:], hardware=65_534, protocol=protocol)
        (segment,) = judge.judged(packet, len(BEFORE), AHEAD)
        assert bytes(segment[5]) == b"GET"


def test_what_looks_like_an_ethernet_header_and_is_an_address() -> None:
    """Of a packet without one: 8.0.69.0 is the EtherType of IPv4 and what IPv4 begins with."""
    segment = tcp(PSH | ACK, b"GET", seq=100, ack=500, ports=(0x8000, 6))
    frame = frame4(segment)[14:26] + bytes((8, 0, 0x45, 0)) + SERVER + segment
    judge = Judge(admission(ports=[6]))
    for _ in range(3):
        (found,) = judge.judged(ring(frame, hardware=65_534), len(BEFORE), AHEAD)
        assert bytes(found[5]) == b"GET"


def test_packets_for_others() -> None:
    for promiscuous in (False, True):
        judge = Judge(admission(), promiscuous=promiscuous)
        for _ in range(2):
            assert len(judge.judged(ring(REQUEST, kind=PACKET_OTHERHOST), len(BEFORE), AHEAD)) == promiscuous
            assert len(judge.judged(ring(REQUEST), len(BEFORE), AHEAD)) == 1


def test_what_counts_may_change() -> None:
    tap = admission()
    judge = Judge(tap)

    def taken() -> int:
        return len(judge.judged(ring(REQUEST), len(BEFORE), AHEAD))

    assert [taken(), taken()] == [1, 1]
    changes: list[tuple[Callable[[], None], Callable[[], None]]] = [
        (lambda: tap.set_threshold(0), lambda: tap.set_threshold(1 << 32)),
        (lambda: tap.exclude([(MAPPED + SERVER, 80)]), lambda: tap.exclude([])),
    ]
    for change, back in changes:
        change()
        judge.forget()
        assert [taken(), taken()] == [0, 0]
        back()
        judge.forget()
        assert [taken(), taken()] == [1, 1]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends, and places (VLAN tags, say), in all."""
    monkeypatch.setattr(module, "KNOWN", 10)
    twins = Twins()
    for number in range(100):
        for tag in (None, number):
            twins.agreed(frame4(tcp(ACK, b"x", seq=1, ack=1, ports=(40_000 + number, 80))), tag=tag)
            known = twins.judge._known
            assert len(known) + sum(map(len, known.values())) <= 10
    assert twins.mine.totals["emitted"][0] == 200


def test_with_a_decoder() -> None:
    """A datagram in two fragments is put together, amid packets that are whole; those go the short way."""
    judge = Judge(admission(), Decoder(tunnels=True, checksums=False))
    whole = tcp(PSH | ACK, b"x" * 100, seq=1, ack=1, ports=(40_000, 80))
    found = []
    for frame in (REQUEST, frame4(whole[:64], part=0x2000), REQUEST, frame4(whole[64:], part=8)):
        found += [len(each[5]) for each in judge.judged(ring(frame), len(BEFORE), AHEAD)]
    assert found == [3, 3, 100]


def random_frame(rng: random.Random, back: bool) -> bytes:
    """A segment of one of four flows with anything in it, some of its bytes damaged, and perhaps cut."""
    ports = (80, 40_000 + rng.randrange(4)) if back else (40_000 + rng.randrange(4), 80)
    segment = tcp(
        rng.choice((SYN, SYN | ACK, ACK, PSH | ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, URG | ACK, 0)),
        rng.randbytes(rng.choice((0, 0, 1, 5, 100, 1_300))),
        seq=100 + rng.randrange(3),
        ack=100 + rng.randrange(3),
        ports=ports,
        options=rng.choice((b"", b"", b"\1\1\1\0", b"\x1e\4\0\0", b"\1" * 40)),
        urgent=rng.randrange(5),
    )
    tos = rng.choice((0, 0, 0, LOOP_DSCP << 2))
    if rng.random() < 0.5:
        frame = bytearray(frame4(segment, back=back, tos=tos, part=rng.choice((0, 0, 0x4000, 0x2000, 5))))
    else:
        frame = bytearray(frame6(segment, back=back, tos=tos, proto=rng.choice((6, 6, 6, 0, 44, 17))))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        frame[rng.randrange(12, min(len(frame), 110))] = rng.randrange(256)
    return bytes(frame[: rng.randrange(14, len(frame) + 1)] if rng.random() < 0.1 else frame)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"egress_all": True, "threshold": 3 << 30}, {"response_bytes": 16}])
def test_random_packets(seed: int, options: dict[str, Any]) -> None:
    rng = random.Random(seed)
    twins = Twins(**options)
    taken = 0
    for _ in range(5_000):
        back = rng.random() < 0.4
        frame = random_frame(rng, back)
        size = len(frame) + rng.choice((0, 0, 0, 1, 100))
        tag = rng.choice((None, None, None, 7))
        taken += twins.agreed(frame, size=size, kind=PACKET_OUTGOING if back else 0, tag=tag)
    assert taken > 500
    assert all(twins.mine.totals[name][0] > 5 for name in ("emitted", "loop", "fragment", "syn", "syn_ack", "bare_ack"))
