# SPDX-License-Identifier: Apache-2.0
"""Reassembly of one direction: schedules of segments in, the application's bytes out."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapmirror.events import DropReason, End, FilterReason, Gap
from tapmirror.ledger import Ledger
from tapmirror.spec import Limits
from tapmirror.tcp import FAR, Piece, ReassemblyMemory, Receiver, distance

LIMITS = Limits()


class Stream:
    """A receiver and all that it gave: bytes, and gaps as '<n>', and the end as '.'."""

    def __init__(self, first: int = 1000, limits: Limits = LIMITS) -> None:
        self.first = first
        self.ledger = Ledger()
        self.memory = ReassemblyMemory(limits)
        self.rx = Receiver(first, self.memory, self.ledger)
        self.out = b""
        self.ended = False
        self.given = [0, 0]

    def take(self, pieces: list[Piece]) -> None:
        for chunk, _ in pieces:
            assert not self.ended
            if isinstance(chunk, Gap):
                self.out += b"<%d>" % chunk.length
            elif isinstance(chunk, End):
                self.ended = True
            else:
                self.out += chunk

    def seg(self, at: int, data: bytes, fin: bool = False) -> None:
        seq = (self.first + at) & 0xFFFFFFFF
        if data:
            self.given[0] += 1
            self.given[1] += len(data)
        self.take(self.rx.feed(seq, memoryview(data), len(data), fin, 0))

    def ack(self, at: int) -> None:
        self.take(self.rx.acknowledged((self.first + at) & 0xFFFFFFFF))

    def accounted(self) -> tuple[int, int]:
        """What the ledger and the queue account for; bytes handed on are counted here."""
        delivered = len(self.out)  # tests that use this have no gaps
        return (
            self.ledger.segments.settled() + self.memory.segments,
            self.ledger.bytes.settled() + self.memory.bytes + delivered,
        )


def test_data_behind_several_fins_follows_the_data_before_them() -> None:
    """As tcp_try_coalesce() joins them: each FIN has a number, none has a byte."""
    stream = Stream()
    stream.seg(10, b"a" * 10, fin=True)
    stream.seg(21, b"", fin=True)
    stream.seg(22, b"xyzw")
    stream.seg(0, b"0123456789")
    assert (stream.out, stream.ended) == (b"0123456789" + b"a" * 10 + b"xyzw", True)
    assert stream.memory.entries == stream.memory.segments == stream.memory.bytes == 0
    assert all(count >= 0 for count in stream.ledger.bytes.filtered.values())
    assert stream.accounted() == tuple(stream.given)


# schedule of (offset, data) -> what the application reads
SCHEDULES = {
    "in order": ([(0, b"abc"), (3, b"def")], b"abcdef"),
    "out of order": ([(3, b"def"), (0, b"abc")], b"abcdef"),
    "three reversed": ([(6, b"ghi"), (3, b"def"), (0, b"abc")], b"abcdefghi"),
    "retransmission": ([(0, b"abc"), (0, b"abc"), (3, b"def")], b"abcdef"),
    "retransmission with more": ([(0, b"abc"), (0, b"XXXdef")], b"abcdef"),
    "overlap in order, first wins": ([(0, b"abcd"), (2, b"XXef")], b"abcdef"),
    "held, then covered from the front: front wins": ([(2, b"XXef"), (0, b"abcd")], b"abcdef"),
    "held twice, same start, shorter second": ([(3, b"defg"), (3, b"XX"), (0, b"abc")], b"abcdefg"),
    "held twice, same start, longer second replaces": ([(3, b"XX"), (3, b"defg"), (0, b"abc")], b"abcdefg"),
    "held, covered by an earlier and longer one": ([(4, b"X"), (3, b"defg"), (0, b"abc")], b"abcdefg"),
    "held, inside an older one": ([(3, b"defg"), (4, b"X"), (0, b"abc")], b"abcdefg"),
    "held, partial overlap: the earlier start wins": ([(5, b"XXh"), (3, b"defg"), (0, b"abc")], b"abcdefgh"),
    "held, partial overlap, newer begins later": ([(3, b"defg"), (5, b"XXh"), (0, b"abc")], b"abcdefgh"),
    "one covers two": ([(3, b"X"), (5, b"X"), (3, b"def"), (0, b"abc")], b"abcdef"),
    "keep-alive probe": ([(0, b"abc"), (2, b"X"), (3, b"def")], b"abcdef"),
    "old data only": ([(0, b"abcdef"), (1, b"XX")], b"abcdef"),
}


@pytest.mark.parametrize("first", [1000, 0, 0xFFFFFFFF, 0xFFFFFFFD, 0x7FFFFFFE])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str, first: int) -> None:
    schedule, want = SCHEDULES[name]
    stream = Stream(first)
    for at, data in schedule:
        stream.seg(at, data)
    assert stream.out == want
    assert stream.memory.bytes == stream.memory.segments == 0
    assert stream.accounted() == tuple(stream.given)


def test_fin_ends_the_stream_at_its_place() -> None:
    stream = Stream()
    stream.seg(3, b"def", fin=True)
    stream.seg(6, b"outside")
    assert not stream.ended
    stream.seg(0, b"abc")
    assert (stream.out, stream.ended) == (b"abcdef", True)
    assert stream.ledger.bytes.filtered[FilterReason.OUTSIDE] == 7


def test_bare_fin_in_order() -> None:
    stream = Stream()
    stream.seg(0, b"abc")
    stream.seg(3, b"", fin=True)
    assert (stream.out, stream.ended) == (b"abc", True)


@pytest.mark.parametrize("first", [1000, 0xFFFFFFFF])
def test_a_fin_alone_and_in_order_is_taken_the_short_way_to_the_same_state(first: int) -> None:
    ways = []
    for short in (True, False):
        ledger = Ledger()
        rx = Receiver(first, ReassemblyMemory(LIMITS), ledger)
        if short:
            rx.finish()
        else:
            assert rx.feed(first, b"", 0, True, 5) == [(End(reset=False), None)]
        late = rx.feed(first, b"x", 1, False, 5)
        ways.append((rx.next, rx.position, rx.ended, rx.simple, rx.waiting, late, ledger.snapshot()))
    assert ways[0] == ways[1]


def test_data_that_reaches_past_a_waiting_fin_voids_it() -> None:
    stream = Stream()
    stream.seg(3, b"", fin=True)
    stream.seg(0, b"abcXX")
    assert (stream.out, stream.ended) == (b"abcXX", False)
    stream.seg(5, b"f", fin=True)
    assert (stream.out, stream.ended) == (b"abcXXf", True)


def test_a_segment_behind_a_held_one_is_joined_to_it() -> None:
    stream = Stream()
    for at, data in ((2, b"cd"), (4, b"ef"), (3, b"XY"), (0, b"ab")):
        stream.seg(at, data)
    assert stream.out == b"abcdef"
    assert stream.accounted() == tuple(stream.given)


def test_a_marked_byte_leaves_the_stream() -> None:
    stream = Stream()
    stream.rx.mark(1000, 3, 2)
    assert not stream.rx.simple
    stream.seg(0, b"abc")
    assert (stream.out, stream.rx.simple) == (b"ac", True)
    stream.rx.mark(1003, 0, 3)
    stream.seg(3, b"de")
    stream.seg(5, b"f")
    assert (stream.out, stream.rx.simple) == (b"acde", True)
    assert stream.ledger.bytes.filtered[FilterReason.URGENT] == 2
    assert stream.accounted() == tuple(stream.given)


@pytest.mark.parametrize(
    ("at", "length", "pointer"), [(-5, 3, 20), (0, 3, 2), (3, 0, 0x10000 << 15)], ids=["old", "passed", "far"]
)
def test_marks_that_count_nothing(at: int, length: int, pointer: int) -> None:
    stream = Stream()
    stream.seg(0, b"abc")
    stream.rx.mark(1000 + at, length, pointer)
    assert stream.rx.simple
    stream.seg(3, bytes(60))
    assert stream.out == b"abc" + bytes(60)


def test_a_connection_of_more_than_4_gib() -> None:
    stream = Stream(first=0xFFFFFF00)
    data = memoryview(bytes(1 << 20))
    place = 0
    for _ in range(5_000):
        stream.take(stream.rx.feed((stream.first + place) & 0xFFFFFFFF, data, len(data), False, 0)[:0])
        place += len(data)
    assert stream.rx.position == place > 1 << 32
    stream.seg(place + 3, b"def")
    stream.seg(place - 5, b"XXXXX")
    stream.seg(place, b"abc")
    assert stream.out == b"abcdef"


def test_hole_is_a_gap_once_production_acknowledged_beyond_it() -> None:
    stream = Stream()
    stream.seg(0, b"abc")
    stream.seg(6, b"ghi")
    stream.ack(3)
    assert stream.out == b"abc"
    stream.ack(9)
    assert stream.out == b"abc<3>ghi"
    assert stream.ledger.events["gap_bytes"] == 3


def test_acknowledgement_of_bytes_of_which_nothing_was_seen() -> None:
    stream = Stream()
    stream.seg(0, b"abc")
    stream.ack(10)
    stream.seg(10, b"k")
    assert stream.out == b"abc<7>k"


def test_acknowledgement_of_the_fin_is_no_gap() -> None:
    stream = Stream()
    stream.seg(0, b"abc", fin=True)
    stream.ack(4)
    assert (stream.out, stream.ended) == (b"abc", True)


def test_hole_before_the_fin() -> None:
    stream = Stream()
    stream.seg(5, b"", fin=True)
    assert stream.rx.waiting
    stream.ack(6)
    assert (stream.out, stream.ended) == (b"<5>", True)


def test_several_holes_and_giving_up() -> None:
    stream = Stream()
    stream.seg(2, b"c")
    stream.seg(5, b"f")
    stream.take(stream.rx.give_up())
    assert stream.out == b"<2>c"
    stream.take(stream.rx.give_up())
    assert stream.out == b"<2>c<2>f"


def test_what_is_further_than_any_window_is_outside() -> None:
    stream = Stream()
    stream.seg(0, b"abc")
    for at in (3 + FAR, 3 - FAR):
        stream.seg(at, b"far")
    beyond = stream.rx.waiting
    assert not beyond
    assert (
        stream.ledger.bytes.filtered[FilterReason.OUTSIDE],
        stream.ledger.segments.filtered[FilterReason.OUTSIDE],
    ) == (6, 2)
    stream.seg(2 + FAR, b"z")  # the last byte of the largest window
    assert stream.rx.waiting
    assert stream.accounted() == tuple(stream.given)


@pytest.mark.parametrize("at", [FAR, -1])
def test_what_is_held_back_is_within_the_window_too(at: int) -> None:
    stream = Stream()
    stream.rx.hold((stream.first + at) & 0xFFFFFFFF, memoryview(b"abc"), 3, False, 0)
    assert (stream.rx.waiting, stream.memory.bytes) == (False, 0)
    assert stream.ledger.bytes.dropped[DropReason.MIDSTREAM] == 3


def test_a_mark_that_is_not_reached_keeps_to_the_long_way() -> None:
    stream = Stream()
    stream.rx.mark(1000, 0, 6)
    stream.seg(0, b"abc")
    assert not stream.rx.simple
    stream.seg(3, b"def")
    assert (stream.out, stream.rx.simple) == (b"abcde", True)


def test_a_reset_belongs_to_the_stream_at_its_edges() -> None:
    stream = Stream()
    stream.seg(0, b"abc")
    assert [at for at in range(-2, 12) if stream.rx.is_edge(1000 + at)] == [3]
    stream.seg(5, b"fg")
    assert [at for at in range(-2, 12) if stream.rx.is_edge(1000 + at)] == [3, 7]
    stream.seg(3, b"de", fin=False)
    stream.seg(7, b"", fin=True)
    assert [at for at in range(-2, 12) if stream.rx.is_edge(1000 + at)] == [7, 8]  # the FIN, and behind it


def test_an_acknowledgement_amid_a_hole_proves_no_more_than_it_says() -> None:
    """What follows it may still be on its way: the client sends it again, and production takes it."""
    stream = Stream()
    stream.seg(6, b"ghi")
    stream.ack(2)
    assert stream.out == b"<2>"
    stream.seg(2, b"cdef")
    assert stream.out == b"<2>cdefghi"
    assert stream.ledger.events["gap_bytes"] == 2


def test_fins_that_waited_take_no_room_afterwards() -> None:
    """They are segments without data: each counts while it is held, and no longer."""
    stream = Stream(limits=msgspec.structs.replace(LIMITS, flow_segments=2))
    for _ in range(2):
        stream.seg(1, b"b", fin=True)
        stream.seg(3, b"", fin=True)  # joined to it
        assert stream.rx.crowded(1) and stream.memory.entries == 2
        stream.rx.discard(DropReason.SHUTDOWN)
        assert not stream.rx.crowded(1) and stream.memory.entries == 0


def test_bounds_of_one_flow_drop_the_newest() -> None:
    stream = Stream(limits=msgspec.structs.replace(LIMITS, flow_bytes=4, flow_segments=3))
    stream.seg(1, b"b")
    stream.seg(3, b"d")
    stream.seg(5, b"f")
    stream.seg(7, b"h")
    assert stream.ledger.bytes.dropped[DropReason.FLOW_LIMIT] == 1
    stream.seg(0, b"a")
    stream.seg(2, b"c")
    assert stream.out == b"abcd"
    stream.seg(10, b"12345")
    assert stream.ledger.bytes.dropped[DropReason.FLOW_LIMIT] == 6


def test_bound_of_all_flows() -> None:
    limits = msgspec.structs.replace(LIMITS, reassembly_bytes=4)
    ledger, memory = Ledger(), ReassemblyMemory(limits)
    one, two = Receiver(0, memory, ledger), Receiver(0, memory, ledger)
    one.feed(1, b"xxx", 3, False, 0)
    two.feed(1, b"yy", 2, False, 0)
    assert ledger.bytes.dropped[DropReason.MEMORY_LIMIT] == 2
    assert memory.bytes == 3
    one.discard(DropReason.SHUTDOWN)
    assert (memory.bytes, memory.segments) == (0, 0)
    assert ledger.bytes.dropped[DropReason.SHUTDOWN] == 3


def test_cut_segment_leaves_a_hole() -> None:
    stream = Stream()
    stream.take(stream.rx.feed(1000, b"ab", 5, False, 0))
    stream.seg(5, b"f")
    stream.ack(6)
    assert stream.out == b"ab<3>f"
    assert stream.ledger.bytes.dropped[DropReason.CUT] == 3


@pytest.mark.parametrize(("to", "base", "want"), [(5, 3, 2), (3, 5, -2), (2, 0xFFFFFFFF, 3), (0xFFFFFFFF, 2, -3)])
def test_distance(to: int, base: int, want: int) -> None:
    assert distance(to, base) == want


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_cover_in_any_order_gives_the_stream(data: st.DataObject) -> None:
    """Permuted, duplicated, re-sliced: whatever covers the stream gives the stream."""
    size = data.draw(st.integers(1, 60))
    text = bytes(i % 251 for i in range(size))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, size - 1)), max_size=8)))
    edges = [0, *[c for c in cuts if c < size], size]
    segments = [(a, text[a:b]) for a, b in pairwise(edges)]
    for _ in range(data.draw(st.integers(0, 6))):
        a = data.draw(st.integers(0, size - 1))
        segments.append((a, text[a : data.draw(st.integers(a + 1, size))]))
    stream = Stream(first=data.draw(st.sampled_from([0, 0xFFFFFFF0, 77])))
    for at, piece in data.draw(st.permutations(segments)):
        stream.seg(at, piece, fin=at + len(piece) == size)
        if not stream.ended:
            assert stream.accounted() == tuple(stream.given)
    assert stream.out == text
    assert stream.ended
    assert stream.memory.bytes == stream.memory.segments == 0


@given(st.lists(st.tuples(st.integers(0, 80), st.binary(max_size=12), st.booleans(), st.booleans()), max_size=40))
@settings(max_examples=300, deadline=None)
def test_bounds_and_identity_hold_after_every_segment(schedule: list[tuple[int, bytes, bool, bool]]) -> None:
    limits = msgspec.structs.replace(LIMITS, flow_bytes=20, flow_segments=4)
    stream = Stream(limits=limits)
    for at, data, fin, ack in schedule:
        if stream.ended:
            break
        before = stream.out
        stream.seg(at, data, fin)
        if ack:
            stream.ack(at)
        assert stream.out.startswith(before)
        assert stream.memory.bytes <= 20
        assert stream.memory.segments <= 4
        delivered = stream.ledger.segments.mirrored
        assert stream.ledger.segments.settled() + stream.memory.segments == stream.given[0]
        assert delivered <= stream.given[0]
