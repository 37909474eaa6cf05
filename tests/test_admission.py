# SPDX-License-Identifier: Apache-2.0
"""The kernel's decisions in Python, packet by packet; test_source_live holds them against the kernel's own."""

from __future__ import annotations

from typing import Any

import pytest

from handshakes import BEHIND_A_SYN_ACK
from tapmirror.admission import CHUNK, COMPLETED, EARLY, HANDSHAKES, Admission
from tapmirror.events import (
    ACCEPTED,
    ACK,
    FIN,
    FROM_SERVER,
    LOOP_DSCP,
    MULTIPATH,
    PSH,
    RST,
    SYN,
    UNACCEPTED,
    URG,
    Segment,
)
from tapmirror.packet import Header, flow_hash, flow_key

CLIENT, SERVER, OTHER = (bytes(15) + bytes([last]) for last in (1, 2, 3))
NET_OF_CLIENT, NET_OF_OTHER = (((address, b"\xff" * 16),) for address in (CLIENT, OTHER))
PORTS = {CLIENT: b"\x9c\x40", SERVER: b"\0\x50"}
BITS = {"F": FIN, "S": SYN, "R": RST, "P": PSH, "A": ACK}


def admission(**options: Any) -> Admission:
    defaults: dict[str, Any] = {
        "ports": (80,),
        "addrs": (),
        "excluded": (),
        "threshold": 1 << 32,
        "seed": 0,
        "dscp": LOOP_DSCP,
        "egress_all": False,
    }
    return Admission(**{**defaults, **options})


def packet(
    source: bytes = CLIENT, flags: int = ACK, data: bytes = b"", *, seq: int = 100, ack: int = 200, **more: Any
) -> Header:
    destination = CLIENT if source == SERVER else SERVER
    fields: dict[str, Any] = {"source_port": PORTS[source], "destination_port": PORTS[destination], "vlan": 0}
    fields |= {"dscp": 0, "fragment": False} | more
    return Header(
        source=source, destination=destination, seq=seq, ack=ack, flags=flags, length=len(data),
        payload=memoryview(data), **fields,
    )  # fmt: skip


def brief(segments: list[Segment]) -> list[tuple[int, int, int, bytes]]:
    return [(flags, seq, ack, bytes(payload)) for _, flags, seq, ack, _, payload, _ in segments]


def test_a_connection() -> None:
    tap = admission()
    assert tap.admit(packet(flags=SYN, seq=99), False, 0) == []
    assert tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0) == []
    assert tap.admit(packet(seq=100, ack=500), False, 0) == []
    request = packet(flags=PSH | ACK, data=b"GET", ack=500)
    assert brief(tap.admit(request, False, 0)) == [(PSH | ACK | UNACCEPTED, 100, 500, b"GET")]
    shown = brief(tap.admit(packet(SERVER, seq=500, ack=103), True, 0))
    assert shown == [(ACCEPTED, 100, 500, b""), (ACK | FROM_SERVER, 500, 103, b"")]
    assert tap.admit(packet(SERVER, seq=500, ack=103), True, 0) == []
    assert brief(tap.admit(packet(flags=FIN | ACK, seq=103, ack=500), False, 0)) == [(FIN | ACK, 103, 500, b"")]
    assert brief(tap.admit(packet(SERVER, FIN | ACK, seq=500), True, 0)) == [(FIN | ACK | FROM_SERVER, 500, 200, b"")]
    assert tap.totals["seen"] == tap.totals["emitted"] == (1, 3)
    assert tap.totals["accepted"] == (1, 0)


@pytest.mark.parametrize(
    ("seq", "ack"), [(100, 499), (99 - EARLY, 500), (100 + (1 << 31), 500), (100, 501), (100, 500 + (1 << 31))]
)
def test_what_does_not_complete_the_handshake(seq: int, ack: int) -> None:
    """It is not marked as what waits for production's acceptance, but as what may be of any other connection."""
    tap = admission()
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    found = brief(tap.admit(packet(seq=seq, ack=ack, data=b"x"), False, 0))
    assert found == [(ACK, seq, ack, b"x")]
    for flags, data in ((ACK, b"x"), (FIN | ACK, b""), (RST | ACK, b"")):
        found = brief(tap.admit(packet(flags=flags, data=data, seq=100, ack=500), False, 0))
        assert found == [(flags | UNACCEPTED, 100, 500, data)]


@pytest.mark.parametrize(("flags", "seq", "ack", "data", "shows"), BEHIND_A_SYN_ACK)
def test_what_shows_that_production_accepted_a_connection(
    flags: str, seq: int, ack: int, data: bytes, shows: bool
) -> None:
    tap = admission()
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    tap.admit(packet(seq=100, ack=500), False, 0)
    sent = packet(SERVER, sum(BITS[each] for each in flags), data, seq=seq, ack=ack)
    found = [each for each in brief(tap.admit(sent, True, 0)) if not each[0] & FROM_SERVER]
    assert found == [(ACCEPTED, 100, 500, b"")] * shows
    assert tap.totals.get("accepted", (0, 0))[0] == shows


@pytest.mark.parametrize(("seq", "gone"), [(500, True), (501, False)])
def test_a_connection_that_production_resets_is_not_accepted_later(seq: int, gone: bool) -> None:
    """An RST with another number answers what is not of this connection."""
    tap = admission()
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    tap.admit(packet(seq=100, ack=500), False, 0)
    tap.admit(packet(SERVER, RST, seq=seq, ack=0), True, 0)
    found = brief(tap.admit(packet(SERVER, FIN | ACK, seq=500, ack=100), True, 0))
    assert [each[0] for each in found] == [ACCEPTED] * (not gone) + [FIN | ACK | FROM_SERVER]


def test_of_a_connection_with_the_mark_of_a_tap_nothing_is_told() -> None:
    """What production sends on it bears none."""
    tap = admission()
    tap.admit(packet(flags=SYN, seq=99, dscp=LOOP_DSCP), False, 0)
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    tap.admit(packet(seq=100, ack=500, dscp=LOOP_DSCP), False, 0)
    found = brief(tap.admit(packet(SERVER, PSH | ACK, b"banner", seq=500, ack=100), True, 0))
    assert not any(flags & ACCEPTED for flags, *_ in found)


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, SYN | FIN])
def test_a_syn_behind_production_s_syn_ack_is_marked(flags: int) -> None:
    """Its data is not what production took with the first one."""
    tap = admission()
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    found = brief(tap.admit(packet(flags=flags, data=b"x", seq=98, ack=500), False, 0))
    assert found == [(flags | UNACCEPTED, 98, 500, b"x")]
    tap.admit(packet(seq=100, ack=500), False, 0)
    assert brief(tap.admit(packet(SERVER, FIN | ACK, seq=500, ack=100), True, 0))[0] == (ACCEPTED, 100, 500, b"")


def test_at_a_mirror_port_production_may_show_it_before_the_client_s_packet_that_completes_the_handshake() -> None:
    tap = admission(both_ways=True)
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), False, 0)
    response = packet(SERVER, PSH | ACK, b"answer", seq=500, ack=103)
    assert brief(tap.admit(response, False, 0)) == [(PSH | ACK | FROM_SERVER, 500, 103, b"")]
    found = brief(tap.admit(packet(flags=PSH | ACK, data=b"GET", seq=100, ack=500), False, 0))
    assert found == [(ACCEPTED, 100, 500, b""), (PSH | ACK, 100, 500, b"GET")]


def test_a_connection_of_which_nothing_was_captured_for_long_is_one_in_mid_stream() -> None:
    """As where the share was lowered and raised meanwhile."""
    tap = admission()
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    assert brief(tap.admit(packet(data=b"x", seq=100, ack=500), False, 0))[0][0] == ACK | UNACCEPTED
    tap.admit(packet(SERVER, seq=500, ack=100 + EARLY), True, 0)
    assert brief(tap.admit(packet(data=b"x", seq=100 + EARLY, ack=500), False, 0))[0][0] == ACK
    assert "accepted" not in tap.totals


def test_what_production_sends_before_it_accepted_tells_nothing_of_an_earlier_connection() -> None:
    tap = admission()
    key = flow_key(CLIENT, SERVER, PORTS[CLIENT], PORTS[SERVER], 0)
    tap.want_ack(key, True)
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    tap.admit(packet(seq=100, ack=500), False, 0)
    assert tap.admit(packet(SERVER, seq=500, ack=100), True, 0) == []
    assert [each[0] for each in brief(tap.admit(packet(SERVER, RST, seq=500, ack=0), True, 0))] == [RST | FROM_SERVER]


def test_what_is_compared_is_told_behind_the_acceptance_that_it_shows() -> None:
    tap = admission(response_bytes=3)
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    tap.admit(packet(seq=100, ack=500), False, 0)
    found = brief(tap.admit(packet(SERVER, PSH | ACK, b"answer", seq=500, ack=103), True, 0))
    assert found == [(ACCEPTED, 100, 500, b""), (PSH | ACK | FROM_SERVER, 500, 103, b"ans")]


@pytest.mark.parametrize(
    ("seq", "taken", "ack", "accepted"),
    [
        (99, 102, 900, True),  # all of the SYN's data: production may answer before the handshake is complete
        (99, 102, 499 + EARLY, True),
        (99, 102, 500 + EARLY, False),
        (99, 100, 900, False),  # none of it
        (99, 101, 900, False),
        (99, 100, 500, False),  # production has to show it, as without that data
        (99, 102, 499, False),
        (98, 102, 900, False),
    ],
)
def test_where_the_data_of_the_syn_was_accepted_the_client_may_have_a_response_already(
    seq: int, taken: int, ack: int, accepted: bool
) -> None:
    """RFC 7413."""
    tap = admission()
    tap.admit(packet(flags=SYN, seq=seq, data=b"xy"), False, 0)
    assert brief(tap.admit(packet(seq=102, ack=0), False, 0)) == []
    for _ in range(2):  # it may come again
        tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=taken), True, 0)
        tap.admit(packet(flags=SYN, seq=seq, data=b"xy"), False, 0)
    assert brief(tap.admit(packet(seq=102, ack=ack), False, 0)) == [(ACCEPTED, taken, 500, b"")] * accepted


def test_data_without_an_acknowledgement_does_not() -> None:
    tap = admission()
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    assert brief(tap.admit(packet(flags=PSH, data=b"x", seq=100, ack=500), False, 0)) == [(PSH, 100, 500, b"x")]


def test_a_packet_that_no_record_holds_is_several() -> None:
    """What begins something goes with the first, what ends something with the last."""
    tap = admission()
    urgent = URG | 7 << 16
    data = bytes(CHUNK) + b"x" * CHUNK + b"yz"
    found = tap.admit(packet(flags=SYN | FIN | PSH | ACK | urgent, data=data, seq=(1 << 32) - 1), False, 5)
    assert [(flags, seq, size, bytes(payload)) for _, flags, seq, _, size, payload, _ in found] == [
        (SYN | ACK | urgent, (1 << 32) - 1, CHUNK, data[:CHUNK]),
        (ACK, CHUNK - 1, CHUNK, data[CHUNK : 2 * CHUNK]),
        (FIN | PSH | ACK, 2 * CHUNK - 1, 2, b"yz"),
    ]
    assert tap.totals["seen"] == tap.totals["emitted"] == (3, len(data))
    assert [each[4] for each in tap.admit(packet(data=data[:CHUNK]), False, 5)] == [CHUNK]
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    assert [each[1] for each in tap.admit(packet(data=data, ack=500), False, 5)] == [ACK | UNACCEPTED] * 3


def test_multipath_is_told_in_its_place() -> None:
    tap = admission()
    tap.admit(packet(SERVER, SYN | ACK | MULTIPATH, seq=499, ack=100), True, 0)
    tap.admit(packet(seq=100, ack=500), False, 0)
    assert brief(tap.admit(packet(SERVER, FIN | ACK, seq=500, ack=100), True, 0))[0] == (MULTIPATH, 100, 500, b"")


def test_a_client_cannot_tell_of_multipath() -> None:
    """Bytes that came with such a record would be in no account."""
    found = admission().admit(packet(flags=SYN | ACK | MULTIPATH, data=b"x"), False, 0)
    assert brief(found) == [(SYN | ACK, 100, 200, b"x")]


def answered(tap: Admission, number: int, *completed: int) -> None:
    """Production answers one of many SYNs, and the client sends something with these flags."""
    port = (number % 60_000).to_bytes(2, "big")
    response = packet(SERVER, SYN | ACK, seq=499, ack=100, vlan=1 + number // 60_000)
    tap.admit(response._replace(destination_port=port), True, 0)
    for flags in completed:
        tap.admit(packet(flags=flags, seq=100, ack=500, vlan=1 + number // 60_000, source_port=port), False, 0)


def shown(tap: Admission) -> list[int]:
    """Flags of what comes of production's first packet on the connection of `packet`."""
    return [each[1] for each in tap.admit(packet(SERVER, FIN | ACK, seq=500, ack=100), True, 0)]


def test_half_open_connections_are_bounded_and_take_no_place_of_those_that_the_client_completed() -> None:
    tap = admission()
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=100), True, 0)
    tap.admit(packet(seq=100, ack=500), False, 0)
    for number in range(HANDSHAKES + 10):
        answered(tap, number)
    assert len(tap._handshakes) == HANDSHAKES
    assert shown(tap) == [ACCEPTED, FIN | ACK | FROM_SERVER]


def test_completed_handshakes_are_bounded() -> None:
    tap = admission()
    for number in range(COMPLETED + 10):
        answered(tap, number, ACK)
    assert (len(tap._handshakes), len(tap._completed)) == (0, COMPLETED)


def test_who_resets_without_a_word_is_forgotten() -> None:
    tap = admission()
    answered(tap, 1, ACK, RST | ACK)
    answered(tap, 2, RST | ACK)
    assert (len(tap._handshakes), len(tap._completed)) == (0, 0)


@pytest.mark.parametrize(
    ("header", "options", "outgoing", "count"),
    [
        (packet(data=b"x", destination_port=b"\0\x51"), {}, False, None),
        (packet(data=b"x"), {"addrs": (OTHER,)}, False, None),
        (packet(data=b"x"), {"addrs": (OTHER, SERVER)}, False, "emitted"),
        (packet(data=b"x"), {"excluded": ((SERVER, 80),)}, False, None),
        (packet(data=b"x"), {"excluded": ((SERVER, 81), (OTHER, 80))}, False, "emitted"),
        (packet(data=b"x"), {}, True, None),
        (packet(data=b"x"), {"either_way": True}, True, "emitted"),
        (packet(data=b"x"), {"either_way": True}, False, "emitted"),
        (packet(data=b"x", dscp=LOOP_DSCP), {}, False, "loop"),
        (packet(data=b"x", fragment=True), {}, False, "fragment"),
        (packet(data=b"x"), {"threshold": 0}, False, "sampled_out"),
        (packet(data=b"x"), {"clients": NET_OF_CLIENT}, False, "emitted"),
        (packet(data=b"x"), {"clients": NET_OF_OTHER}, False, "client"),
        (packet(data=b"x"), {"clients": (*NET_OF_OTHER, *NET_OF_CLIENT)}, False, "emitted"),
        (packet(data=b"x", dscp=LOOP_DSCP), {"clients": NET_OF_OTHER}, False, "loop"),
        (packet(flags=SYN), {"probe": 100}, False, "loop_syn"),
        (packet(flags=SYN), {"probe": 101}, False, "syn"),
        (packet(flags=SYN, seq=0), {}, False, "syn"),
        (packet(data=b"x"), {"probe": 100}, False, "emitted"),
        (packet(data=b"x", fragment=True), {"clients": NET_OF_OTHER, "threshold": 0}, False, "client"),
        (packet(SERVER, SYN | ACK), {"clients": NET_OF_OTHER}, True, None),
        (packet(SERVER, FIN | ACK), {"clients": NET_OF_OTHER, "egress_all": True}, True, None),
        (packet(data=b"x", fragment=True, dscp=LOOP_DSCP), {"threshold": 0}, False, "loop"),
        (packet(data=b"x", fragment=True), {"threshold": 0}, False, "sampled_out"),
        (packet(flags=RST), {}, False, None),
        (packet(), {}, False, "bare_ack"),
    ],
)  # fmt: skip
def test_one_packet(header: Header, options: dict[str, Any], outgoing: bool, count: str | None) -> None:
    tap = admission(**options)
    found = tap.admit(header, outgoing, 0)
    fates = {name for name in tap.totals if name != "seen"}
    assert fates == ({count} if count else set())
    assert bool(found) == (count == "emitted" or bool(header.flags & RST))
    assert ("seen" in tap.totals) == bool(count and header.length)


def test_of_an_interface_that_shows_packets_twice_one_is_taken() -> None:
    tap = admission()
    assert [len(tap.admit(packet(data=b"x"), outgoing, 0, loopback=True)) for outgoing in (True, False)] == [0, 1]
    assert [len(tap.admit(packet(SERVER, data=b"y"), outgoing, 0, loopback=True)) for outgoing in (True, False)] == [
        0,
        1,
    ]


def test_with_many_interfaces_a_vlan_does_not_tell_flows_apart() -> None:
    keys = {admission(many=many).admit(packet(data=b"x", vlan=5), False, 0)[0][0] for many in (True, False)}
    assert keys == {flow_key(CLIENT, SERVER, PORTS[CLIENT], PORTS[SERVER], vlan) for vlan in (0, 5)}


def test_a_threshold_that_moves() -> None:
    tap = admission()
    tap.set_threshold(0)
    assert tap.admit(packet(data=b"x"), False, 0) == []
    tap.set_threshold(1 << 32)
    assert len(tap.admit(packet(data=b"x"), False, 0)) == 1


def test_sampling_is_the_hash_of_the_flow() -> None:
    key = flow_key(CLIENT, SERVER, PORTS[CLIENT], PORTS[SERVER], 0)
    hashed = flow_hash(key, 5)
    assert admission(threshold=hashed, seed=5).admit(packet(data=b"x"), False, 0) == []
    assert admission(threshold=hashed + 1, seed=5).admit(packet(data=b"x"), False, 0) != []


@pytest.mark.parametrize(
    ("first", "count"), [(0, 0), (0, 1 << 16), (0, 1), (1, 1 << 15), (0xFFFF, 2), (0x8000, 0x9000)]
)
def test_responses_are_of_the_buckets_of_the_window(first: int, count: int) -> None:
    tap = admission(response_bytes=3)
    tap.want_responses(first, count)
    inside = {(first + i) & 0xFFFF for i in range(count)}
    taken = 0
    for vlan in range(50):
        bucket = flow_hash(flow_key(CLIENT, SERVER, PORTS[CLIENT], PORTS[SERVER], vlan), 0) & 0xFFFF
        found = [each[5] for each in tap.admit(packet(SERVER, data=b"answer", vlan=vlan), True, 0)]
        assert (b"ans" in found) == (bucket in inside)
        taken += b"ans" in found
    assert tap.totals.get("responses", (0, 0))[0] == taken


@pytest.mark.parametrize(
    ("flags", "again", "accepted"),
    [
        (SYN, [], True),
        (SYN, [99], True),  # the same SYN once more: without its data, as that may be what a network refuses
        (SYN, [101], False),  # another one, which the same acknowledges
        (SYN | FIN, [], False),  # the kernel discards these
        (SYN | RST, [], False),
    ],
)
def test_who_sends_a_syn_with_data_that_production_never_gets_gains_nothing(
    flags: int, again: list[int], accepted: bool
) -> None:
    """Such as one with a wrong checksum."""
    tap = admission()
    tap.admit(packet(flags=flags, seq=99, data=b"xy"), False, 0)
    for seq in again:
        tap.admit(packet(flags=SYN, seq=seq), False, 0)
    tap.admit(packet(SERVER, SYN | ACK, seq=499, ack=102), True, 0)
    assert brief(tap.admit(packet(seq=102, ack=900), False, 0)) == [(ACCEPTED, 102, 500, b"")] * accepted


def test_responses_of_a_flow_that_waits_for_them_are_taken_wherever_the_window_is() -> None:
    tap = admission(response_bytes=3)
    tap.want_responses(0, 0)
    key = flow_key(CLIENT, SERVER, PORTS[CLIENT], PORTS[SERVER], 0)
    response = packet(SERVER, data=b"answer")
    tap.keep_responses(key, True)
    assert [each[5] for each in tap.admit(response, True, 0)] == [b"ans"]
    tap.keep_responses(key, False)
    assert not any(each[5] for each in tap.admit(response, True, 0))


def test_acknowledgements_of_production() -> None:
    """One at the start, then while they are wanted; with `egress_all` each."""
    tap, every = admission(), admission(egress_all=True)
    key = flow_key(CLIENT, SERVER, PORTS[CLIENT], PORTS[SERVER], 0)
    response = packet(SERVER, data=b"answer")
    assert [len(tap.admit(response, True, 0)) for _ in range(3)] == [1, 0, 0]
    tap.want_ack(key, True)
    assert [len(tap.admit(response, True, 0)) for _ in range(3)] == [1, 1, 1]
    tap.want_ack(key, False)
    assert tap.admit(response, True, 0) == []
    assert [len(every.admit(response, True, 0)) for _ in range(3)] == [1, 1, 1]
    assert tap.totals["egress"] == (4, 24)
    assert "seen" not in tap.totals
