# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tapmirror.compare.thinning import Draw, Rate


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
