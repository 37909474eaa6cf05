# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from collections import Counter

import pytest

from tapmirror.compare.thinning import LATE, SLICE_TIME, Backlog, Draw, Rate, Rotation
from tapmirror.packet import BUCKETS


def test_a_rate_lets_through_the_first_of_each_second() -> None:
    rate = Rate(2.5)
    assert [rate.allows(1.0) for _ in range(4)] == [True, True, False, False]
    assert [rate.allows(2.0) for _ in range(4)] == [True, True, False, False]
    slow = Rate(0.5)
    assert [slow.allows(second / 2) for second in range(10)] == [True] + [False] * 3 + [True] + [False] * 3 + [
        True,
        False,
    ]


def drawn(draw: Draw, second: int, count: int) -> list[int]:
    """Which of so many in one second are taken."""
    return [n for n in range(count) if draw.takes(second + n / count)]


def test_all_are_drawn_where_there_are_few() -> None:
    draw = Draw(100.0)
    for second in range(5):
        assert len(drawn(draw, second, 100)) == 100


@pytest.mark.parametrize("count", [1000, 20_000])
def test_of_many_some_are_drawn_and_each_with_the_same_chance(count: int) -> None:
    draw = Draw(100.0)
    drawn(draw, 0, count)
    found = [drawn(draw, second, count) for second in range(1, 101)]
    total = sum(map(len, found))
    assert 9500 < total < 10_500
    halves = sum(n < count // 2 for each in found for n in each)
    assert 0.47 < halves / total < 0.53
    for period in (2, 5, 50):  # no rhythm: connections that take turns all have their part
        counts = [sum(n % period == rest for each in found for n in each) for rest in range(period)]
        assert min(counts) > 0.6 * total / period


def test_a_second_in_which_the_rate_rises_has_a_bound() -> None:
    draw = Draw(100.0)
    drawn(draw, 0, 10)
    assert len(drawn(draw, 1, 20_000)) == 200


def test_after_a_pause_all_are_drawn_again() -> None:
    draw = Draw(100.0)
    drawn(draw, 0, 20_000)
    assert len(drawn(draw, 5, 80)) == 80


def test_less_than_one_a_second() -> None:
    draw = Draw(0.5)
    for second in range(100):
        assert len(drawn(draw, second, 50)) <= 1


def slices(rotation: Rotation, rate: int, seconds: float, start: float = 1.0) -> list[set[int]]:
    """The buckets of each turn while so many requests come a second."""
    found = []
    now = start
    for _ in range(round(rate * seconds)):
        now += 1 / rate
        if rotation.seen(now) and rotation.next_slice(now):
            found.append({(rotation.first + i) % BUCKETS for i in range(rotation.count)})
    return found


def test_where_there_are_few_requests_all_connections_are_compared() -> None:
    rotation = Rotation(1000)
    assert slices(rotation, 900, 3.0) == []
    assert all(rotation.takes(bucket) for bucket in (0, 1, 0x8000, 0xFFFF))


@pytest.mark.parametrize("rate", [1500, 4000, 50_000])
def test_each_bucket_has_its_part_of_the_time(rate: int) -> None:
    rotation = Rotation(1000)
    found = slices(rotation, rate, 20.0)[10:]
    assert len(found) == pytest.approx(20.0 / SLICE_TIME, abs=30)
    for before, after in itertools.pairwise(found):
        assert len(after) == pytest.approx(BUCKETS * 1000 / rate, rel=0.15)
        if rate > 2500:
            assert not before & after
    count = Counter(bucket for each in found for bucket in each)
    assert set(count) == set(range(BUCKETS))
    assert max(count.values()) - min(count.values()) <= 2
    assert all(rotation.takes(bucket) == (bucket in found[-1]) for bucket in range(0, BUCKETS, 97))


def test_when_there_are_few_again_all_are_compared_after_a_while() -> None:
    rotation = Rotation(1000)
    slices(rotation, 10_000, 2.0)
    assert rotation.count < BUCKETS
    slices(rotation, 100, 5.0, start=3.0)
    assert rotation.count == BUCKETS


def test_a_budget_far_below_the_rate_leaves_one_bucket() -> None:
    rotation = Rotation(0.01)
    slices(rotation, 10_000, 1.0)
    assert rotation.count == 1


@pytest.mark.parametrize("waited", [0.0, -0.01, LATE - 0.001])
def test_what_a_tap_that_keeps_up_sends_is_no_rush(waited: float) -> None:
    backlog = Backlog()
    assert not any(backlog.holds(now, round((now - waited) * 1e9)) for now in (1.0, 1.1, 5.0))


def test_a_rush_is_over_when_the_shadow_had_as_long_again() -> None:
    backlog = Backlog()
    assert not backlog.holds(10.0, 10_000_000_000)
    assert backlog.holds(12.0, 10_000_000_000)  # two seconds late
    assert backlog.holds(12.1, 11_900_000_000)  # less late does not shorten it
    assert backlog.holds(13.9, 13_900_000_000)  # in time, behind them
    assert not backlog.holds(14.0, 14_000_000_000)
