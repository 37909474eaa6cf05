# SPDX-License-Identifier: Apache-2.0
"""When a turn is over, and which lanes wait for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tapmirror.framing import HeadMemory as Heads
from tapmirror.framing import ResponseFramer
from tapmirror.ledger import Ledger
from tapmirror.replay.lane import Lane, QueueMemory
from tapmirror.replay.turns import PROMPT, SILENCE, Turns


def raw(received: int, at: float) -> Lane:
    """A raw lane whose shadow sent so much, the last of it then."""
    lane = Lane(1, False, QueueMemory(1000, 1000), Ledger())
    lane.received, lane.received_at = received, at
    return lane


def http(outstanding: int) -> Lane:
    """An HTTP lane with so many unanswered requests."""
    lane = Lane(1, True, QueueMemory(1000, 1000), Ledger())
    lane.framer = ResponseFramer(1000, Heads(1000))
    for _ in range(outstanding):
        lane.framer.expect(0)
    return lane


@pytest.mark.parametrize(
    ("lane", "done"),
    [
        (raw(10, 100.0), True),
        (raw(9, 100.0), False),
        (raw(9, 99.9 - SILENCE), True),
        (raw(0, 0.0), False),  # silence from the beginning is no response
        (http(0), True),
        (http(1), False),
    ],
)
def test_what_counts_as_a_response(lane: Lane, done: bool) -> None:
    turns = Turns(5.0)
    assert turns.answered(lane, 10, 100.0) is done
    assert turns.waiting() == ([] if done else [(lane, 105.0)])


def test_the_time_runs_from_the_first_look() -> None:
    turns, lane = Turns(5.0), raw(0, 0.0)
    turns.answered(lane, 10, 100.0)
    turns.answered(lane, 10, 103.0)
    assert turns.waiting() == [(lane, 105.0)]


def pass_on(turns: Turns, lane: Lane) -> None:
    turns.pass_on(lane, 0.0)


@pytest.mark.parametrize("over", [pass_on, Turns.forget])
def test_a_lane_that_waits_no_more(over: Callable[[Turns, Lane], None]) -> None:
    turns, lane = Turns(5.0), raw(3, 0.0)
    lane.enqueue_turn(10)
    lane.enqueue(b"next", 4, 0)
    turns.answered(lane, 10, 0.0)
    over(turns, lane)
    assert not turns
    if over is pass_on:
        assert [item.data for item in lane.queue] == [b"next"]
        assert lane.received == 0


@pytest.mark.parametrize(
    ("after", "looks", "exchanges", "behind"),
    [
        (PROMPT / 2, 9, 2, True),
        (PROMPT / 2, 9, 1, False),  # nothing more waits
        (PROMPT * 2, 2, 2, False),  # the shadow is slow, not we
        (PROMPT * 2, 1, 2, True),  # it was not looked at sooner
        (None, 0, 2, True),  # the response was there before its turn came
    ],
)
def test_a_lane_is_behind_if_a_prompt_shadow_has_another_turn_to_come(
    after: float | None, looks: int, exchanges: int, behind: bool
) -> None:
    turns, lane = Turns(5.0), raw(0, 0.0)
    for _ in range(exchanges):
        lane.enqueue_turn(10)
        lane.enqueue(b"next", 4, 0)
    if after is not None:
        turns.look(99.9)
        assert not turns.answered(lane, 10, 100.0)
        for number in range(1, looks + 1):
            turns.look(100.0 + after * number / looks)
    turns.pass_on(lane, 100.0 + (after or 0.0))
    assert turns.behind is behind
    turns.forget(lane)
    assert not turns.behind


def test_parts_of_one_request_are_not_another_turn() -> None:
    turns, lane = Turns(5.0), raw(0, 0.0)
    lane.enqueue_turn(10)
    lane.enqueue(b"next", 4, 0)
    lane.enqueue(b"part", 4, 0)
    turns.pass_on(lane, 0.0)
    assert not turns.behind and not turns


def test_a_lane_is_behind_until_it_has_caught_up() -> None:
    turns, lane = Turns(5.0), raw(0, 0.0)
    for _ in range(3):
        lane.enqueue_turn(10)
        lane.enqueue(b"next", 4, 0)
    found = []
    for number in range(3):
        turns.pass_on(lane, float(number))
        found.append(turns.behind)
        lane.queue.popleft()  # what follows was sent
    assert found == [True, True, False]
