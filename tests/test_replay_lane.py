# SPDX-License-Identifier: Apache-2.0
"""The books of a lane: whatever is done to it, every byte and request is settled once."""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tapmirror.events import END, START, DropReason
from tapmirror.ledger import Ledger
from tapmirror.replay.lane import GIVEN_UP, IDLE, ITEM_BYTES, OPEN, Lane, QueueMemory

SLOW, CLOSED = DropReason.SHADOW_SLOW, DropReason.SHADOW_CLOSED
WHOLE = START | END


class Books:
    """A lane and what was given to it."""

    def __init__(self, lane_bytes: int = 1500, all_bytes: int = 2250) -> None:
        self.ledger = Ledger()
        self.memory = QueueMemory(lane_bytes, all_bytes)
        self.lane = Lane(1, True, self.memory, self.ledger)
        self.bytes = 0
        self.requests = 0

    def give(self, size: int, flags: int, length: int | None = None) -> None:
        """As the reactor takes in a part that cannot be sent at once, which a rewrite made so long."""
        data = bytes(size if length is None else length)
        self.bytes += size
        self.requests += bool(flags & START)
        lane = self.lane
        if flags & START and lane.state != GIVEN_UP:
            lane.skipping = None
        if lane.skipping is not None:
            lane.drop(size, flags, lane.skipping)
        elif lane.full(len(data)):
            self.overflow(size, flags)
        else:
            lane.enqueue(data, size, flags)

    def begin(self, size: int, flags: int, length: int) -> None:
        """As the reactor sends a part at once, of which half goes."""
        if self.lane.queue or (self.lane.skipping is not None and not flags & START):
            self.give(size, flags, length)
            return
        self.bytes += size
        self.requests += bool(flags & START)
        self.lane.skipping = None
        self.lane.sent_in_part(bytes(length), size, flags, length // 2)

    def lose(self, again: int) -> None:
        """As at the end of a connection, after which so many requests go again."""
        lane = self.lane
        if lane.queue and not lane.begun:
            lane.queue[0].restart()
        lane.drop_begun(CLOSED)
        lane.repeat([(bytes(9), WHOLE)] * again)

    def overflow(self, size: int, flags: int) -> None:
        """As the reactor does at a bound."""
        lane = self.lane
        if flags & START:
            lane.drop(size, flags, SLOW)
            if not flags & END:
                lane.skip(SLOW)
            return
        lane.drop(size, 0, SLOW)
        if lane.drop_last(SLOW):
            lane.drop_all(SLOW)
        if flags & END:
            lane.skipping = None

    def check(self) -> None:
        """The identity, and the bounds."""
        sent, requests = self.ledger.bytes, self.ledger.requests
        assert sent.mirrored + sent.dropped.total() + self.memory.bytes == self.bytes
        assert requests.mirrored + requests.dropped.total() + self.memory.requests == self.requests
        own = [item for item in self.lane.queue if not item.repeated]
        assert self.memory.bytes == sum(item.size for item in own)
        assert self.memory.held == self.lane.queued == sum(len(item.data) for item in own)
        assert self.memory.items == len(self.lane.queue)
        assert self.memory.repeats == self.memory.resend_quota.count == len(self.lane.queue) - len(own)
        assert self.memory.held + (len(own) - 1) * ITEM_BYTES <= self.memory.lane_bytes
        assert self.memory.requests >= 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["part", "end", "begin"]), st.integers(0, 60), st.integers(1, 400)),
        st.tuples(st.just("send"), st.integers(1, 80), st.just(0)),
        st.tuples(st.just("turn"), st.just(0), st.just(0)),
        st.tuples(st.just("lose"), st.integers(0, 3), st.just(0)),
        st.tuples(st.sampled_from(["drop_all", "drop_begun", "drop_last"]), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_every_byte_and_request_is_settled_once(steps: list[tuple[str, int, int]]) -> None:
    books = Books()
    lane = books.lane
    under_way = False
    for step, size, length in steps:
        if step == "part":
            books.give(size, 0 if under_way else START, length)
            under_way = True
        elif step == "end":
            books.give(size, END if under_way else WHOLE, length)
            under_way = False
        elif step == "begin":
            books.begin(size, 0 if under_way else START, length)
            under_way = True
        elif step == "lose":
            books.lose(size)
        elif step == "send":
            lane.end_turn()
            while size and lane.queue and lane.queue[0].answered < 0:
                count = min(size, len(lane.queue[0].data))
                size -= count
                if not lane.advance(count):
                    break
        elif step == "turn":
            if not lane.full(0) and not lane.open_request:
                lane.enqueue_turn(1)
        elif step == "drop_last":
            if lane.drop_last(CLOSED):
                lane.drop_all(CLOSED)
        else:
            getattr(lane, step)(CLOSED)
        books.check()
    lane.drop_all(CLOSED)
    books.check()
    assert (books.memory.bytes, books.memory.held, books.memory.requests) == (0, 0, 0)


def test_a_request_goes_in_parts() -> None:
    books = Books()
    books.give(10, START)
    books.give(20, END)
    account = books.ledger
    told = []
    for count in (4, 6, 20):
        done = books.lane.advance(count)
        told.append((done, books.lane.begun, account.bytes.mirrored, account.requests.mirrored))
    assert told == [(False, True, 4, 0), (True, True, 10, 0), (True, False, 30, 1)]


def test_only_the_request_that_went_in_part_is_dropped_and_the_whole_ones_stay() -> None:
    books = Books()
    books.give(10, WHOLE)
    books.give(10, WHOLE)
    books.lane.advance(5)
    books.lane.drop_begun(CLOSED)
    books.check()
    assert (books.ledger.bytes.mirrored, books.ledger.bytes.dropped[CLOSED]) == (5, 5)
    assert len(books.lane.queue) == 1
    assert books.lane.skipping is None


def test_what_is_still_to_come_of_a_dropped_request_is_dropped_too() -> None:
    books = Books()
    books.give(10, START)
    books.lane.advance(5)
    books.lane.drop_begun(CLOSED)
    assert books.lane.skipping is CLOSED
    books.give(10, END)
    books.give(10, WHOLE)
    books.check()
    assert books.ledger.requests.dropped == {CLOSED: 1}
    assert books.ledger.bytes.dropped[CLOSED] == 15
    assert len(books.lane.queue) == 1


def test_the_last_request_is_torn_only_if_some_of_it_went() -> None:
    untouched, torn = Books(), Books()
    for books in (untouched, torn):
        books.give(10, START)
        books.give(10, 0)
    torn.lane.advance(3)
    assert not untouched.lane.drop_last(SLOW)
    assert torn.lane.drop_last(SLOW)
    untouched.check()
    torn.check()


def test_the_last_request_is_torn_if_its_response_is_expected_and_nothing_of_it_went() -> None:
    books = Books()
    books.requests, books.bytes = 1, 10
    books.lane.sent_in_part(bytes(10), 10, START, 0)
    assert not books.lane.begun
    assert books.lane.drop_last(SLOW)
    books.check()


def test_the_bound_of_all_lanes() -> None:
    memory, ledger = QueueMemory(100 + ITEM_BYTES, 150 + ITEM_BYTES), Ledger()
    one, two = (Lane(flow, True, memory, ledger) for flow in (1, 2))
    one.enqueue(bytes(100), 100, WHOLE)
    assert one.full(1)
    assert not two.full(50)
    assert two.full(51)


def test_when_it_is_ready() -> None:
    changes: list[dict[str, Any]] = [{}, {"state": IDLE}, {"skipping": SLOW}, {"switching": True}]
    ready = []
    for change in changes:
        lane = Books().lane
        lane.state = OPEN
        for name, value in change.items():
            setattr(lane, name, value)
        lane.refresh()
        ready.append(lane.ready)
    assert ready == [True, False, False, False]
    books = Books()
    books.lane.ready = True
    books.give(1, START)
    assert books.lane.ready is False


def test_short_parts_count_what_they_take_in_memory() -> None:
    books = Books(lane_bytes=5000, all_bytes=8000)
    for _ in range(100):
        books.give(1, WHOLE)
    books.check()
    assert len(books.lane.queue) == 5000 // (ITEM_BYTES + 1) + 1
    other = Lane(2, False, books.memory, books.ledger)
    while not other.full(1):
        other.enqueue(b"x", 1, 0)
    assert books.memory.items == len(books.lane.queue) + len(other.queue) == 8000 // (ITEM_BYTES + 1) + 1


def test_what_is_counted_is_what_it_takes_in_memory() -> None:
    books = Books(1 << 20, 1 << 20)
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    tracemalloc.start()
    try:
        while not books.lane.full(len(request)):
            books.lane.enqueue(bytes(bytearray(request)), len(request), WHOLE)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.8 * (1 << 20) <= taken <= 1 << 20


def test_what_a_rewrite_added_counts() -> None:
    books = Books(10_000, 10_000)
    for _ in range(100):
        books.give(28, WHOLE, 1_000)
    books.check()
    assert len(books.lane.queue) == 10_000 // (1_000 + ITEM_BYTES)


def test_what_went_of_a_part_takes_no_memory() -> None:
    """Each connection to a shadow that does not read has one, of up to 64 KiB."""
    books = Books(10_000, 10_000)
    books.give(5_000, WHOLE)
    assert not books.lane.advance(4_000)
    assert sum(len(item.data) for item in books.lane.queue) == books.memory.held == 1_000
    assert books.lane.advance(1_000)


def test_turns_of_what_was_dropped_take_no_room() -> None:
    books = Books()
    books.give(10, WHOLE)
    for _ in range(10):
        books.lane.enqueue_turn(5)
    assert len(books.lane.queue) == 2


def test_a_request_is_announced_once_however_much_of_it_went() -> None:
    lane = Books().lane
    lane.sent_in_part(b"head", 4, START, 0)
    found = [lane.announced()]
    lane.advance(2)
    found.append(lane.announced())
    lane.advance(2)
    found.append(lane.announced())
    lane.sent_whole(1, END)
    assert [*found, lane.announced()] == [1, 1, 1, 1]
