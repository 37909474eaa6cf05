# SPDX-License-Identifier: Apache-2.0
"""The capture program on packets from memory: match, direction, sampling, the choice of a worker, odd headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from scapy.all import (
    IP,
    TCP,
    UDP,
    Dot1AD,
    Dot1Q,
    Ether,
    IPOption_NOP,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    Raw,
)

from captures import fates, payloads
from handshakes import BEHIND_A_SYN_ACK
from program import Program
from tapmirror import loader
from tapmirror.admission import EARLY
from tapmirror.events import ACCEPTED, ACK, FIN, FROM_SERVER, LOOP_DSCP, MULTIPATH, PSH, RST, SYN, UNACCEPTED
from tapmirror.packet import flow_hash, flow_key, shard_of
from tapmirror.source import Counters
from tapmirror.source.ring import ONCE_AT, WANT_ALL, WANT_RESPONSES
from tapmirror.spec.clients import as_ranges
from tapmirror.spec.sampled import threshold
from tapmirror.spec.tap import MAX_CLIENTS
from tapmirror.supervisor.addresses import packed

pytestmark = pytest.mark.ebpf

CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
CLIENT6, SERVER6 = "fd00::1", "fd00::2"
WORKERS = 3


@pytest.fixture(scope="module")
def shards() -> Iterator[Program]:
    with Program(workers=WORKERS, promisc=True, egress_all=True) as program:
        yield program


@pytest.fixture(scope="module")
def frames() -> Iterator[Program]:
    with Program(links=True) as program:
        yield program


def tcp(data: bytes = b"x", **fields: Any) -> Any:
    """A segment of the client to port 80."""
    segment = TCP(**{"sport": 40_000, "dport": 80, "seq": 1, "ack": 1, "flags": "PA", **fields})
    return segment / Raw(data) if data else segment


def handshake(program: Program, port: int, options: Any = ()) -> None:
    """Production answers a SYN of the client's, and the client completes it."""
    program.run(
        IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=port, flags="SA", seq=499, ack=100, options=[*options])
    )
    program.run(IP(src=CLIENT, dst=SERVER) / tcp(b"", sport=port, seq=100, ack=500, flags="A"))


def from_client(number: int, data: bytes = b"x") -> Any:
    """A segment of one of many clients."""
    return IP(src=f"10.1.{number >> 8}.{number & 255}", dst=SERVER) / tcp(data, sport=1_024 + number)


def key_of(number: int) -> bytes:
    """The key of that client's connection."""
    client, server = (
        bytes(10) + b"\xff\xff" + bytes(address) for address in ((10, 1, number >> 8, number & 255), (10, 0, 0, 2))
    )
    return flow_key(client, server, (1_024 + number).to_bytes(2, "big"), b"\0\x50", 0)


def worker_of(number: int) -> int:
    """Who gets that client's connection."""
    return shard_of(flow_hash(key_of(number), 0), WORKERS)


def counted(program: Program) -> list[Counters]:
    """What each worker's ledger is made of; the identity holds for each by itself."""
    found = [source.counters() for source in program.sources]
    for counts in found:
        assert list(counts.seen) == [sum(each) for each in zip(*fates(counts), strict=True)]
    return found


# --- who gets it


def test_each_flow_is_one_workers_and_both_directions_meet(shards: Program) -> None:
    shards.configure(threshold=1 << 32)
    before = [counts.seen[0] for counts in counted(shards)]
    for number in range(300):
        shards.run(from_client(number))
        response = IP(src=SERVER, dst=f"10.1.{number >> 8}.{number & 255}")
        shards.run(response / tcp(sport=80, dport=1_024 + number, flags="A"))
    records = shards.records()
    for shard, kept in enumerate(records):
        assert {each[0] for each in kept} == {key_of(number) for number in range(300) if worker_of(number) == shard}
        assert Counter(each[1] & FROM_SERVER for each in kept) == {0: len(kept) // 2, FROM_SERVER: len(kept) // 2}
        assert 70 < len(kept) // 2 < 130
    seen = [counts.seen[0] - start for counts, start in zip(counted(shards), before, strict=True)]
    assert seen == [len(kept) // 2 for kept in records]


@pytest.mark.parametrize("percent", [50, 10, 2])
def test_who_gets_a_flow_has_nothing_to_do_with_whether_it_is_sampled(shards: Program, percent: float) -> None:
    """Whatever the share: the flows within it go to all workers alike."""
    shards.configure(threshold=threshold(percent))
    inside = (number for number in range(1 << 16) if flow_hash(key_of(number), 0) < threshold(percent))
    chosen = list(islice(inside, 100))
    expected = Counter(worker_of(number) for number in chosen)
    for number in range(chosen[-1] + 1):
        shards.run(from_client(number))
    assert [len(kept) for kept in shards.records()] == [expected[shard] for shard in range(WORKERS)]
    assert min(expected.values()) > 20
    counted(shards)


def test_the_smallest_share_has_flows_for_all_workers() -> None:
    chosen = Counter(shard_of(hashed, WORKERS) for hashed in range(threshold(0.0001)))
    assert len(chosen) == WORKERS
    assert max(chosen.values()) - min(chosen.values()) < 10


def test_what_is_left_out_is_counted_by_the_flows_worker(shards: Program) -> None:
    shards.configure(threshold=0)
    before = [counts.sampled_out[0] for counts in counted(shards)]
    loops = [counts.loop[0] for counts in counted(shards)]
    for number in range(30):
        shards.run(from_client(number))
        marked = from_client(number)
        marked[IP].tos = LOOP_DSCP << 2
        shards.run(marked)
    assert shards.records() == [[]] * WORKERS
    wanted = Counter(worker_of(number) for number in range(30))
    after = counted(shards)
    assert [counts.sampled_out[0] - start for counts, start in zip(after, before, strict=True)] == [
        wanted[shard] for shard in range(WORKERS)
    ]
    assert [counts.loop[0] - start for counts, start in zip(after, loops, strict=True)] == [
        wanted[shard] for shard in range(WORKERS)
    ]


def test_a_full_ring_is_one_workers(shards: Program) -> None:
    shards.configure(threshold=1 << 32)
    shards.records()
    full = next(number for number in range(100) if worker_of(number) == 1)
    other = next(number for number in range(100) if worker_of(number) == 2)
    before = counted(shards)
    shards.run(from_client(full, b"x" * 1_000), repeat=2_000)
    shards.run(from_client(other, b"other"))
    after = counted(shards)
    lost = [one.ring_full[0] - two.ring_full[0] for one, two in zip(after, before, strict=True)]
    assert lost[0] == lost[2] == 0 and 0 < lost[1] < 2_000
    records = shards.records()
    assert [len(kept) for kept in records] == [0, 2_000 - lost[1], 1]
    assert payloads(records[2]) == [b"other"]


def test_an_acceptance_that_there_is_no_room_for_is_told_later() -> None:
    with Program(promisc=True) as program:
        for size in (1_000, 1, 0):  # down to the last place for a record without payload
            program.run(IP(src="10.0.0.9", dst=SERVER) / tcp(b"x" * size, flags="FA"), repeat=1_200)
        handshake(program, 40_000)
        shown = IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=40_000, flags="A", seq=500, ack=103)
        program.run(shown)
        counts = program.sources[0].counters()
        assert counts.control_lost[0] > 0 and counts.accepted[0] == 0
        assert not any(each[1] & ACCEPTED for each in program.records()[0])
        program.run(shown, repeat=2)
        assert [each[1:4] for each in program.records()[0]] == [(ACCEPTED, 100, 500)]


def test_what_user_space_writes_is_left_alone() -> None:
    """The program writes only to bytes of its own: it cannot undo a wish that comes at the same time."""
    with Program(promisc=True) as program:
        (source,) = program.sources
        wishes = bytes([WANT_ALL | WANT_RESPONSES]) * 65_536
        loader.write(program.loaded.wants, 0, wishes)
        program.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=40_000, seq=1, ack=9, flags="A"))
        assert source._wants[:65_536] == wishes
        assert source._wants[ONCE_AT : ONCE_AT + 65_536].count(0) == 1


def test_a_response_that_there_is_no_room_for_still_acknowledges() -> None:
    def response(flags: str) -> Any:
        return IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=40_000, seq=1, ack=9, flags=flags) / Raw(b"y" * 100)

    with Program(promisc=True, response_bytes=50) as program:
        program.run(response("A"))
        assert [one[1:] for one in program.records()[0]] == [(FROM_SERVER | ACK, 1, 9, 100, b"y" * 50)]
        program.run(IP(src=CLIENT, dst=SERVER) / tcp(b"x" * 1_000), repeat=600)
        program.run(response("A"))  # nobody waits for an acknowledgement
        program.run(response("FA"))
        loader.write(program.loaded.wants, 0, bytes([WANT_RESPONSES]) * 65_536)
        loader.write(program.loaded.wants, ONCE_AT, b"\1" * 65_536)
        program.run(response("A"), repeat=2)
        counts = program.sources[0].counters()
        assert (counts.responses[0], counts.responses_lost[0]) == (1, 4)
        (records,) = program.records()
        assert [one[1:] for one in records if one[1] & FROM_SERVER] == [
            (FROM_SERVER | FIN | ACK, 1, 9, 100, b""),
            (FROM_SERVER | ACK, 1, 9, 100, b""),
        ]


# --- what is taken


@pytest.mark.parametrize(
    ("packet", "taken"),
    [
        (IP(src=CLIENT, dst=SERVER) / tcp(b"four"), b"four"),
        (IP(src=CLIENT, dst=SERVER, options=[IPOption_NOP()] * 4) / tcp(b"options"), b"options"),
        (IP(src=CLIENT, dst=SERVER) / tcp(b"tcp options", options=[("Timestamp", (1, 2))]), b"tcp options"),
        (IPv6(src=CLIENT6, dst=SERVER6) / tcp(b"six"), b"six"),
        (IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"12")]) / tcp(b"hop"), b"hop"),
        (IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrDestOpt() / tcp(b"destination"), b"destination"),
        (IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrRouting(addresses=[SERVER6]) / tcp(b"routing"), b"routing"),
        (
            IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / tcp(b"two of them"),
            b"two of them",
        ),
        (IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrFragment(m=0, offset=0) / tcp(b"atomic"), b"atomic"),
        (IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrFragment(m=1, offset=0) / tcp(b"first of some"), None),
        (IP(src=CLIENT, dst=SERVER, flags="MF") / tcp(b"first of some"), None),
        (IP(src=CLIENT, dst=SERVER, frag=5) / tcp(b"a later one"), None),
        (IP(src=CLIENT, dst=SERVER) / tcp(b"other port", dport=81), None),
        (IP(src=CLIENT, dst=SERVER) / UDP(sport=1, dport=80) / b"datagram", None),
        (IP(src=CLIENT, dst=SERVER, tos=LOOP_DSCP << 2) / tcp(b"ours"), None),
        (IP(src=CLIENT, dst=SERVER) / tcp(b""), None),
    ],
)
def test_packets(frames: Program, packet: Any, taken: bytes | None) -> None:
    frames.run(Ether(type=0x86DD if IPv6 in packet else 0x0800) / packet)
    (records,) = frames.records()
    assert payloads(records) == ([] if taken is None else [taken])
    counted(frames)


@pytest.mark.parametrize(
    ("tags", "vlan"),
    [
        (Ether(), 0),
        (Ether() / Dot1Q(vlan=7), 7),
        (Ether() / Dot1AD(vlan=5) / Dot1Q(vlan=7), 5 << 16 | 7),
        (Ether() / Dot1Q(vlan=5) / Dot1Q(vlan=7), 5 << 16 | 7),
        (Ether(type=0x9100) / Dot1Q(vlan=5) / Dot1Q(vlan=7), 5 << 16 | 7),
        (Ether(type=0x9200) / Dot1Q(vlan=5) / Dot1Q(vlan=7), 5 << 16 | 7),
        (Ether() / Dot1Q(vlan=4) / Dot1Q(vlan=5) / Dot1Q(vlan=7), None),
    ],
)
def test_tags_are_in_the_key(frames: Program, tags: Any, vlan: int | None) -> None:
    frames.run(tags / IP(src=CLIENT, dst=SERVER) / tcp(b"tagged"))
    (records,) = frames.records()
    assert [int.from_bytes(each[0][36:], "little") for each in records] == ([] if vlan is None else [vlan])


def test_a_packet_that_is_cut_anywhere_is_not_read_beyond_its_end(frames: Program) -> None:
    whole = bytes(Ether() / Dot1Q(vlan=7) / IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrDestOpt() / tcp(b"whole"))
    for end in range(20, len(whole)):
        frames.run(whole[:end])
    (records,) = frames.records()
    assert all(b"whole".startswith(each) for each in payloads(records))
    assert len(payloads(records)) == 4  # of whose payload a part was there


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (
            [("MSS", 1400), ("SAckOK", b""), ("Timestamp", (1, 2)), ("NOP", None), ("WScale", 7), (30, bytes(10))],
            MULTIPATH,
        ),
        ([("NOP", None)] * 3 + [(30, bytes(2))], MULTIPATH),
        ([("MSS", 0x1E1E), ("Timestamp", (0x1E1E1E1E, 0x1E1E1E1E))], ACCEPTED),
        ([("EOL", None), (30, bytes(10))], ACCEPTED),
        ([(1, b""), ("NOP", None)], ACCEPTED),
        ([], ACCEPTED),
    ],
)
def test_a_handshake_tells_whether_it_is_of_multipath_tcp(shards: Program, options: Any, kind: int) -> None:
    handshake(shards, 40_000, options)
    shards.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=40_000, flags="A", seq=500, ack=103))
    found = [each[1:4] for records in shards.records() for each in records]
    assert found == [(kind, 100, 500), (FROM_SERVER | ACK, 500, 103)]


@pytest.mark.parametrize(
    ("port", "syns", "taken", "ack", "accepted"),
    [
        (50_001, [("S", 99, b"")], 100, 500, False),
        (50_004, [("S", 99, b"xy")], 102, 900, True),
        (50_005, [("S", 99, b"xy")], 100, 900, False),
        (50_006, [("S", 99, b"xy")], 102, 499 + EARLY, True),
        (50_007, [("S", 99, b"xy")], 102, 500 + EARLY, False),
        (50_008, [("S", 99, b"xy"), ("S", 99, b"")], 102, 900, True),
        (50_009, [("S", 99, b"xy"), ("S", 101, b"")], 102, 900, False),
        (50_010, [("SF", 99, b"xy")], 102, 900, False),
        (50_011, [("SR", 99, b"xy")], 102, 900, False),
    ],
)
def test_where_the_data_of_the_syn_was_accepted_so_is_the_connection_that_the_client_completes(
    shards: Program, port: int, syns: list[tuple[str, int, bytes]], taken: int, ack: int, accepted: bool
) -> None:
    """RFC 7413: it may have been answered before."""
    for flags, seq, data in syns:
        shards.run(IP(src=CLIENT, dst=SERVER) / tcp(data, sport=port, seq=seq, flags=flags))
    shards.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=port, flags="SA", seq=499, ack=taken))
    shards.run(IP(src=CLIENT, dst=SERVER) / tcp(b"", sport=port, seq=102, ack=ack, flags="A"))
    found = [each[1:4] for records in shards.records() for each in records if not each[1] & SYN]
    assert found == [(ACCEPTED, taken, 500)] * accepted


@pytest.mark.parametrize(
    ("seq", "ack", "completes"),
    [
        (100, 500, True),
        (103, 500, True),
        (100, 499, False),
        ((99 - EARLY) % (1 << 32), 500, False),
        (100, 501, False),
        (101 + (1 << 30), 500, False),
    ],
)
@pytest.mark.parametrize(("flags", "data"), [("PA", b"x"), ("FA", b""), ("RA", b"")])
def test_what_a_client_sends_before_production_shows_that_it_accepted_is_marked(
    shards: Program, flags: str, data: bytes, seq: int, ack: int, completes: bool
) -> None:
    """Who has not seen production's SYN-ACK has to guess its number."""
    shards.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=50_002, flags="SA", seq=499, ack=100))
    shards.run(IP(src=CLIENT, dst=SERVER) / tcp(data, sport=50_002, seq=seq, ack=ack, flags=flags))
    found = [each[1] & UNACCEPTED for records in shards.records() for each in records]
    assert found == [UNACCEPTED * completes]


@pytest.mark.parametrize(("flags", "seq", "ack", "data", "shows"), BEHIND_A_SYN_ACK)
def test_what_shows_that_production_accepted_a_connection(
    shards: Program, flags: str, seq: int, ack: int, data: bytes, shows: bool
) -> None:
    handshake(shards, 50_003)
    before = counted(shards)
    response = IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=50_003, flags=flags, seq=seq, ack=ack) / Raw(data)
    shards.run(response)
    found = [each[1:4] for records in shards.records() for each in records if not each[1] & FROM_SERVER]
    assert found == [(ACCEPTED, 100, 500)] * shows
    assert sum(two.accepted[0] - one.accepted[0] for one, two in zip(before, counted(shards), strict=True)) == shows
    shards.run(response)  # once
    assert not any(each[1] & ACCEPTED for records in shards.records() for each in records)


@pytest.mark.parametrize(("seq", "gone"), [(500, True), (501, False)])
def test_a_connection_that_production_resets_is_not_accepted_later(shards: Program, seq: int, gone: bool) -> None:
    """An RST with another number answers what is not of this connection."""
    handshake(shards, 50_004)
    for flags, number in (("R", seq), ("FA", 500)):
        shards.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=50_004, flags=flags, seq=number, ack=100))
    assert any(each[1] & ACCEPTED for records in shards.records() for each in records) != gone


def of_many(packet: bytes, number: int) -> bytes:
    """The packet of another of many clients, at 10.1.0.0/16: of production's to it or of its own."""
    found = bytearray(packet)
    client, port = (16, 22) if packet[20:22] == b"\0\x50" else (12, 20)
    found[client : client + 4] = bytes((10, 1, number >> 8 & 255, number & 255))
    found[port : port + 2] = (1_024 + (number >> 16)).to_bytes(2, "big")
    return bytes(found)


RESPONSE = bytes(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=40_000, flags="SA", seq=499, ack=100))
COMPLETES = bytes(IP(src=CLIENT, dst=SERVER) / tcp(b"", seq=100, ack=500, flags="A"))
SHOWN = IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=40_000, flags="FA", seq=500, ack=100)
FORGETS = 70_000
"""Handshakes that leave no room for others, if they take it."""


def is_told(program: Program, shown: Any = SHOWN) -> bool:
    """Whether production's packet tells that a connection is accepted."""
    program.records()
    program.run(shown)
    return any(each[1:4] == (ACCEPTED, 100, 500) for records in program.records() for each in records)


def test_a_flood_of_syns_does_not_take_the_place_of_a_connection_on_which_nobody_has_said_anything() -> None:
    """Each SYN comes again, as they do: a handshake that is looked at twice weighs more in a map that forgets."""
    again = bytes(IP(src=CLIENT, dst=SERVER) / tcp(b"", seq=99, flags="S"))
    with Program(promisc=True) as program:
        program.run(RESPONSE)
        program.run(COMPLETES)
        for number in range(FORGETS):
            program.run(of_many(RESPONSE, number))
            program.run(of_many(again, number))
        assert is_told(program)


def test_in_a_flood_of_syns_a_handshake_has_the_time_of_a_round_trip() -> None:
    """50 ms, where 100,000 are answered in a second: one in twenty million is displaced before."""
    with Program(promisc=True) as program:
        told = 0
        for number in range(20):
            port = 2_000 + number
            response = IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=port, flags="SA", seq=499, ack=100)
            program.run(response)
            for other in range(number * 5_000, (number + 1) * 5_000):
                program.run(of_many(RESPONSE, other))
            program.run(IP(src=CLIENT, dst=SERVER) / tcp(b"", sport=port, seq=100, ack=500, flags="A"))
            told += is_told(
                program, IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=port, flags="FA", seq=500, ack=100)
            )
        assert told == 20


@pytest.mark.parametrize("completed", [True, False])
def test_clients_that_reset_without_a_word_leave_nothing(completed: bool) -> None:
    """As health checks do."""
    reset = bytes(IP(src=CLIENT, dst=SERVER) / tcp(b"", seq=100, ack=500, flags="RA"))
    with Program(promisc=True) as program:
        program.run(RESPONSE)
        program.run(COMPLETES)
        for number in range(FORGETS):
            for packet in (RESPONSE, COMPLETES, reset) if completed else (RESPONSE, reset):
                program.run(of_many(packet, number))
            if number % 1_000 == 0:
                program.records()
        assert is_told(program)


@pytest.mark.parametrize("seq", [100, 103])
def test_what_is_sent_before_a_reset_may_be_accepted_yet(shards: Program, seq: int) -> None:
    """Or the reset has an old number, and is none."""
    handshake(shards, 50_017)
    shards.run(IP(src=CLIENT, dst=SERVER) / tcp(b"GET", sport=50_017, seq=100, ack=500))
    shards.run(IP(src=CLIENT, dst=SERVER) / tcp(b"", sport=50_017, seq=seq, ack=500, flags="RA"))
    assert is_told(shards, IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=50_017, flags="A", seq=500, ack=103))


@pytest.mark.parametrize("flags", ["S", "SA", "SF"])
def test_a_syn_behind_production_s_syn_ack_is_marked(shards: Program, flags: str) -> None:
    """Its data is not what production took with the first one."""
    handshake(shards, 50_016)
    shards.run(IP(src=CLIENT, dst=SERVER) / tcp(b"x", sport=50_016, seq=98, ack=500, flags=flags))
    assert [each[1] & UNACCEPTED for records in shards.records() for each in records] == [UNACCEPTED]
    shards.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=50_016, flags="FA", seq=500, ack=100))
    assert any(each[1:4] == (ACCEPTED, 100, 500) for records in shards.records() for each in records)


def test_at_a_mirror_port_production_may_show_it_before_the_client_s_packet_that_completes_the_handshake(
    shards: Program,
) -> None:
    for flags, seq, ack in (("SA", 499, 100), ("PA", 500, 103)):
        shards.run(
            IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=50_013, flags=flags, seq=seq, ack=ack) / Raw(b"answer")
        )
    assert [each[1] for records in shards.records() for each in records] == [FROM_SERVER | PSH | ACK]
    shards.run(IP(src=CLIENT, dst=SERVER) / tcp(b"GET", sport=50_013, seq=100, ack=500))
    assert [each[1] for records in shards.records() for each in records] == [ACCEPTED, PSH | ACK]


def test_a_connection_of_which_nothing_was_captured_for_long_is_one_in_mid_stream(shards: Program) -> None:
    """As where the share was lowered and raised meanwhile."""
    handshake(shards, 50_014)
    shards.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=50_014, flags="A", seq=500, ack=100 + EARLY))
    shards.run(IP(src=CLIENT, dst=SERVER) / tcp(b"x", sport=50_014, seq=100 + EARLY, ack=500))
    found = [each[1] for records in shards.records() for each in records]
    assert found == [FROM_SERVER | ACK, PSH | ACK]


def test_what_production_sends_before_it_accepted_tells_nothing_of_an_earlier_connection(shards: Program) -> None:
    """These records are for those that are asked for, and there all are."""
    handshake(shards, 50_015)
    for flags in ("A", "R"):
        shards.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=50_015, flags=flags, seq=500, ack=100))
    assert [each[1] for records in shards.records() for each in records] == [FROM_SERVER | RST]


def test_of_a_connection_with_the_mark_of_a_tap_nothing_is_told(shards: Program) -> None:
    """What production sends on it bears none."""
    marked, response = IP(src=CLIENT, dst=SERVER, tos=LOOP_DSCP << 2), IP(src=SERVER, dst=CLIENT)
    shards.run(marked / TCP(sport=50_012, dport=80, flags="S", seq=99))
    shards.run(response / TCP(sport=80, dport=50_012, flags="SA", seq=499, ack=100))
    shards.run(marked / TCP(sport=50_012, dport=80, flags="A", seq=100, ack=500))
    shards.run(response / TCP(sport=80, dport=50_012, flags="PA", seq=500, ack=100) / b"banner")
    assert not any(each[1] & ACCEPTED for records in shards.records() for each in records)


def test_an_acceptance_whose_record_found_no_room_is_told_of_later() -> None:
    """By then the client may have a response, and marked it is until then."""
    with Program(ring_bytes=1 << 12, promisc=True) as program:
        handshake(program, 40_000)
        while not counted(program)[0].control_lost[0]:
            program.run(IP(src=CLIENT, dst=SERVER) / tcp(b"", sport=40_001, flags="FA"))
        program.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=40_000, flags="A", seq=500, ack=103))
        program.records()
        program.run(IP(src=CLIENT, dst=SERVER) / tcp(b"x", seq=103, ack=1 << 24, flags="A"))
        program.run(IP(src=SERVER, dst=CLIENT) / TCP(sport=80, dport=40_000, flags="A", seq=1 << 24, ack=1 << 23))
        found = [each[1:4] for records in program.records() for each in records]
        assert found == [(ACK | UNACCEPTED, 103, 1 << 24), (ACCEPTED, 100, 500)]


def test_clients_of_the_networks_that_are_captured() -> None:
    """As many networks as there can be; production's packets to other clients give nothing either."""
    networks = [f"192.0.2.{n}" for n in range(MAX_CLIENTS - 3)] + ["fd00::/127", "10.0.0.0/31", "10.0.0.7/32"]
    with Program(clients=as_ranges(networks), promisc=True, egress_all=True) as program:
        for last in (0, 1, 2, 7, 255):
            for client, server in ((f"10.0.0.{last}", SERVER), (f"fd00::{last:x}", "fd00::9:1")):
                ip = IPv6 if ":" in client else IP
                program.run(ip(src=client, dst=server) / tcp())
                program.run(ip(src=server, dst=client) / TCP(sport=80, dport=40_000, flags="A", seq=1, ack=2))
        (found,) = program.records()
        wanted = ("10.0.0.0", "10.0.0.1", "10.0.0.7", "fd00::", "fd00::1")
        assert sorted((segment[0][:16], segment[1] & FROM_SERVER) for segment in found) == sorted(
            (packed(client), way) for client in wanted for way in (0, FROM_SERVER)
        )
        (counts,) = counted(program)
        assert (counts.seen[0], counts.client[0], counts.emitted[0]) == (10, 5, 5)
