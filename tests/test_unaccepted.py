# SPDX-License-Identifier: Apache-2.0
"""What waits until production accepts its connection: how much, how long, and that none of it leaves the account."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.events import ACK, FIN, RST, UNACCEPTED, DropReason, FilterReason, FlowKey, Segment
from tapmirror.ledger import Ledger
from tapmirror.pipeline import AT_ONCE as FRAMED_AT_ONCE
from tapmirror.spec import Limits
from tapmirror.unaccepted import AT_ONCE, EARLY, ENTRY, MOST_BYTES, MOST_SEGMENTS, Unaccepted

SERVER = 5_000


def key(number: int = 0) -> FlowKey:
    return number.to_bytes(40, "big")


def segment(data: bytes = b"", seq: int = 1, ack: int = SERVER, number: int = 0, flags: int = ACK) -> Segment:
    return key(number), flags | UNACCEPTED, seq, ack, len(data), memoryview(data), 7


class Room:
    def __init__(self, **limits: int) -> None:
        self.limits = Limits(**limits)
        self.ledger = Ledger()
        self.unaccepted = Unaccepted(self.limits, self.ledger)
        self.given = [0, 0]

    def put(self, each: Segment, now: float = 0.0) -> None:
        self.given[0] += bool(each[4])
        self.given[1] += each[4]
        self.unaccepted.hold(each, now)

    def is_settled(self, taken: list[Segment]) -> None:
        """What was given is held, was taken, or is in the ledger."""
        ledger, held = self.ledger, self.unaccepted
        assert held.segments + ledger.segments.settled() + sum(bool(each[4]) for each in taken) == self.given[0]
        assert held.bytes + ledger.bytes.settled() + sum(each[4] for each in taken) == self.given[1]

    def has_all_its_room(self) -> bool:
        """Nothing is held, and all of it is free again: it takes as much as at first."""
        held = self.unaccepted
        return (len(held), held.segments, held.bytes, held._room) == (0, 0, 0, self.limits.heads_bytes)


def test_what_was_held_comes_as_it_came_and_without_the_mark() -> None:
    room = Room()
    room.put(segment(b"abc"))
    room.put(segment(b"GET", number=1))
    room.put(segment(b"def", seq=4))
    room.put(segment(seq=7, flags=FIN | ACK))
    taken = room.unaccepted.taken(key(), SERVER)
    assert [(flags, seq, bytes(data), time_ns) for _, flags, seq, _, _, data, time_ns in taken] == [
        (ACK, 1, b"abc", 7),
        (ACK, 4, b"def", 7),
        (FIN | ACK, 7, b"", 7),
    ]
    assert (len(room.unaccepted), room.unaccepted.segments, room.unaccepted.bytes) == (1, 1, 3)
    assert room.unaccepted.taken(key(), SERVER) == []
    room.is_settled(taken)


def test_what_is_sent_again_tells_that_production_had_discarded_what_came_before() -> None:
    """Its time of response does not begin before it accepted the connection."""
    room = Room()
    for seq, time_ns in ((1, 10), (4, 11), (7, 12), (1, 90), (10, 95)):
        room.put((*segment(b"abc", seq)[:6], time_ns))
    taken = room.unaccepted.taken(key(), SERVER)
    assert [(each[2], each[6]) for each in taken] == [(1, 90), (4, 90), (7, 90), (10, 95)]
    assert room.ledger.bytes.filtered == {FilterReason.DUPLICATE: 3}
    room.is_settled(taken)


def test_what_is_sent_again_in_other_pieces_is_held_beside_it() -> None:
    """Reassembly decides, as where production's word is known: of two copies it takes the first."""
    room = Room()
    for data in (b"abc", b"abcd", b"xyz"):
        room.put(segment(data))
    assert [bytes(each[5]) for each in room.unaccepted.taken(key(), SERVER)] == [b"abc", b"abcd"]


def test_an_end_that_is_sent_again_is_held_once() -> None:
    """That production had discarded what came before, is told by it as well."""
    room = Room()
    for seq, flags, data, time_ns in ((1, ACK, b"abc", 10), (4, FIN | ACK, b"", 11), (4, FIN | ACK, b"", 90)):
        room.put((*segment(data, seq, flags=flags)[:6], time_ns))
    taken = room.unaccepted.taken(key(), SERVER)
    assert [(each[1], each[6]) for each in taken] == [(ACK, 90), (FIN | ACK, 90)]
    assert room.has_all_its_room()


def test_on_the_loopback_one_segment_is_the_window_and_is_sent_again() -> None:
    room = Room()
    for _ in range(3):
        room.put(segment(bytes(65_483)))
    assert room.ledger.bytes.dropped == {}
    assert len(room.unaccepted.taken(key(), SERVER)) == 1


def test_a_reset_with_nothing_before_it_is_not_held() -> None:
    """So look whether a port is open those who watch over servers, and scanners: production never says more to them."""
    room = Room()
    room.put(segment(flags=RST | ACK))
    assert room.has_all_its_room()
    room.put(segment(b"abc"))
    room.put(segment(flags=RST | ACK, seq=4))
    taken = room.unaccepted.taken(key(), SERVER)
    assert [each[1] for each in taken] == [ACK, RST | ACK]
    room.put(segment(b"abc", flags=RST | ACK))
    assert room.ledger.bytes.filtered == {FilterReason.OUTSIDE: 3}
    room.is_settled(taken)


def test_it_is_a_copy() -> None:
    """The ring is written over meanwhile."""
    room, data = Room(), bytearray(b"abc")
    room.put((key(), ACK | UNACCEPTED, 1, SERVER, 3, memoryview(data), 7))
    data[:] = b"xyz"
    assert room.unaccepted.taken(key(), SERVER)[0][5] == b"abc"


@pytest.mark.parametrize(
    ("ack", "of_this"), [(SERVER, True), (SERVER + EARLY - 1, True), (SERVER + EARLY, False), (SERVER - 1, False)]
)
def test_what_is_of_an_earlier_connection_with_the_same_ports_was_not_accepted(ack: int, of_this: bool) -> None:
    room = Room()
    room.put(segment(b"old", ack=ack))
    taken = room.unaccepted.taken(key(), SERVER)
    assert len(taken) == of_this
    assert room.ledger.segments.filtered[FilterReason.NOT_ACCEPTED] == (not of_this)
    room.is_settled(taken)


@pytest.mark.parametrize(("seq", "gone"), [(SERVER, True), (SERVER + 1, False)])
def test_production_turns_a_connection_away(seq: int, gone: bool) -> None:
    """An RST with another number answers what is not of this connection."""
    room = Room()
    room.put(segment(b"abc"))
    room.unaccepted.turned_away(key(1), SERVER)
    room.unaccepted.turned_away(key(), seq)
    assert len(room.unaccepted) == (not gone)
    assert room.ledger.bytes.filtered[FilterReason.NOT_ACCEPTED] == 3 * gone
    room.is_settled([])


def test_what_waits_too_long_was_not_accepted() -> None:
    room = Room(accept_time=10)
    room.put(segment(b"abc"), 0.0)
    room.put(segment(b"de", number=1), 4.0)
    room.put(segment(b"abc"), 9.0)  # sent again: production may have taken it
    room.unaccepted.expire(13.9)
    assert len(room.unaccepted) == 2
    room.unaccepted.expire(14.0)
    assert len(room.unaccepted) == 1
    assert room.ledger.bytes.filtered[FilterReason.NOT_ACCEPTED] == 2
    room.unaccepted.expire(19.0)
    assert room.ledger.segments.filtered[FilterReason.NOT_ACCEPTED] == 2
    room.is_settled([])


def test_many_are_given_up_in_several_calls() -> None:
    room = Room()
    for number in range(AT_ONCE + 1):
        room.put(segment(b"x", number=number))
    for left in (1, 0):
        room.unaccepted.expire(10.0)
        assert len(room.unaccepted) == left


def test_one_connection_holds_the_window_of_a_syn_ack_and_no_more() -> None:
    """And less than the pipeline frames at once, for it is fed all of it at once."""
    assert 65_535 < MOST_BYTES < FRAMED_AT_ONCE
    room = Room()
    room.put(segment(bytes(MOST_BYTES - 1)))
    room.put(segment(b"ab"))
    room.put(segment(b"c"))
    assert room.ledger.bytes.dropped == {DropReason.FLOW_LIMIT: 2}
    room = Room()
    for seq in range(MOST_SEGMENTS + 1):
        room.put(segment(b"x", seq))
    assert room.ledger.segments.dropped == {DropReason.FLOW_LIMIT: 1}
    room.is_settled([])


def test_what_has_been_silent_for_longest_makes_room() -> None:
    """Production may accept what is new at once."""
    room = Room(flows=4)
    for number in (0, 1, 0, 2):
        room.put(segment(b"x", seq=number, number=number))
    assert room.ledger.bytes.dropped == {DropReason.TABLE_FULL: 1}
    taken = [len(room.unaccepted.taken(key(number), SERVER)) for number in range(3)]
    assert taken == [1, 0, 1]
    room = Room(heads_bytes=2 * (16_000 + ENTRY))
    for number in range(3):
        room.put(segment(bytes(16_000), number=number))
    assert room.ledger.bytes.dropped == {DropReason.MEMORY_LIMIT: 16_000}
    assert [len(room.unaccepted.taken(key(number), SERVER)) for number in range(3)] == [0, 1, 1]
    room = Room(heads_bytes=8 * ENTRY)
    for number in range(9):
        room.put(segment(number=number, flags=FIN | ACK))
    assert len(room.unaccepted) == 8 and room.ledger.segments.settled() == 0
    room.is_settled([])


def test_a_segment_that_has_no_room_by_itself_is_dropped() -> None:
    room = Room(heads_bytes=1 << 15)
    for _ in range(2):
        room.put(segment(b"x", number=1))
        room.put(segment(bytes(40_000)))
    assert room.ledger.bytes.dropped == {DropReason.MEMORY_LIMIT: 80_002}
    room.unaccepted.drop(DropReason.SHUTDOWN)
    assert room.has_all_its_room()


def test_some_or_all_are_given_up() -> None:
    room = Room()
    for number in range(3):
        room.put(segment(b"x", number=number))
    room.unaccepted.drop(DropReason.SHARE, lambda each: each == key(1))
    room.unaccepted.drop(DropReason.SHUTDOWN)
    assert room.ledger.bytes.dropped == {DropReason.SHARE: 1, DropReason.SHUTDOWN: 2}
    assert room.has_all_its_room()


DEEDS = st.one_of(
    st.tuples(
        st.just("put"),
        st.integers(0, 3),
        st.sampled_from((0, 1, 1_000, 40_000)),
        st.sampled_from((SERVER, SERVER + 9, 1)),
    ),
    st.tuples(st.just("take"), st.integers(0, 3), st.just(0), st.sampled_from((SERVER, 1))),
    st.tuples(st.just("reset"), st.integers(0, 3), st.just(0), st.sampled_from((SERVER, 1))),
    st.tuples(st.just("wait"), st.integers(1, 8), st.just(0), st.just(0)),
)


@given(st.lists(DEEDS, max_size=40))
def test_nothing_leaves_the_account(deeds: list[tuple[str, int, int, int]]) -> None:
    room, now, taken = Room(flows=6, heads_bytes=1 << 17, accept_time=10), 0.0, []
    for deed, number, size, ack in deeds:
        if deed == "put":
            room.put(segment(bytes(size), ack=ack, number=number), now)
        elif deed == "take":
            taken += room.unaccepted.taken(key(number), ack)
        elif deed == "reset":
            room.unaccepted.turned_away(key(number), ack)
        else:
            now += number
            room.unaccepted.expire(now)
        room.is_settled(taken)
    room.unaccepted.drop(DropReason.SHUTDOWN)
    room.is_settled(taken)
    assert room.has_all_its_room()
