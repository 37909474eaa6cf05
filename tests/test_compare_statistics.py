# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random

import pytest

from lab.peeking import (
    bursts,
    false_alarms_in_a_row,
    false_alarms_of_differences,
    false_alarms_of_outages,
    false_alarms_of_quantiles,
    false_alarms_of_shares,
)
from tapmirror.compare.sketch import Sketch
from tapmirror.compare.statistics import (
    LASTING,
    STRETCHES,
    crowd,
    crowd_of_differences,
    difference_evidence,
    difference_interval,
    quantile_interval,
    ratio_interval,
    share_evidence,
    share_interval,
    thinned,
)

ALPHA = 0.05
RUNS = 200


def most(runs: int, alpha: float) -> float:
    """False alarms that a rate of alpha exceeds once in a thousand times."""
    return runs * alpha + 3.1 * math.sqrt(runs * alpha * (1 - alpha))


def test_who_looks_after_every_request_is_seldom_wrong_about_a_share() -> None:
    wrong, usual = false_alarms_of_shares(RUNS, 1000, 0.05, ALPHA, random.Random(1))
    assert wrong <= most(RUNS, ALPHA)
    assert usual > 2 * most(RUNS, ALPHA)  # the simulation does see false alarms where there are some


@pytest.mark.parametrize(("plus", "minus"), [(0.02, 0.02), (0.1, 0.01)])
def test_nor_about_a_difference(plus: float, minus: float) -> None:
    assert false_alarms_of_differences(RUNS // 2, 1000, plus, minus, ALPHA, random.Random(2)) <= most(RUNS // 2, ALPHA)


def test_nor_about_a_quantile() -> None:
    assert false_alarms_of_quantiles(RUNS, 1000, 0.9, ALPHA, random.Random(3)) <= most(RUNS, ALPHA)


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (0, 10), (10, 10), (3, 1000), (500, 1000)])
def test_intervals_of_shares_hold_the_estimate_and_shrink(hits: int, count: int) -> None:
    low, high = share_interval(hits, count, 0.01)
    assert 0 <= low <= (hits / count if count else 0.5) <= high <= 1
    if count:
        wide = high - low
        low, high = share_interval(hits * 100, count * 100, 0.01)
        assert high - low < wide / 4


def test_counts_beyond_the_digits_of_a_float_have_an_interval() -> None:
    """A worker may say any number of up to 63 bits."""
    most = (1 << 63) - 1
    for hits in (0, 1, most // 2, most - 1, most):
        low, high = share_interval(hits, most, 0.01)
        assert 0 <= low <= high <= 1


@pytest.mark.parametrize("alpha", [0.05, 1e-9])
@pytest.mark.parametrize(
    ("hits", "count"),
    [(0, 1), (1, 1), (0, 100_000), (1, 100_000), (300, 100_000), (50_000, 100_000), (99_999, 100_000)],
)
def test_the_ends_of_an_interval_of_a_share_are_on_its_outer_side(hits: int, count: int, alpha: float) -> None:
    enough = -math.log(alpha)
    for edge, inwards in zip(share_interval(hits, count, alpha), (1, -1), strict=True):
        if 0 < edge < 1:
            assert share_evidence(hits, count, edge) >= enough * (1 - 1e-6)
            assert share_evidence(hits, count, edge + inwards * 1e-5 * abs(edge - hits / count)) < enough


def test_the_ends_of_an_interval_are_where_the_evidence_is_enough() -> None:
    low, high = share_interval(30, 1000, 0.01)
    for edge in (low, high):
        assert share_evidence(30, 1000, edge) == pytest.approx(math.log(100), rel=1e-3)
    low, high = difference_interval(40, 10, 1000, 0.01)
    assert difference_evidence(40, 10, 1000, low) == pytest.approx(math.log(200), rel=1e-3)
    assert difference_evidence(10, 40, 1000, -high) == pytest.approx(math.log(200), rel=1e-3)


def test_differences() -> None:
    assert difference_interval(0, 0, 0, 0.01) == (-1.0, 1.0)
    low, high = difference_interval(100, 0, 10_000, 0.01)
    assert 0 < low < 0.01 < high < 0.02
    mirrored = difference_interval(0, 100, 10_000, 0.01)
    assert mirrored == pytest.approx((-high, -low))


def test_pairing_makes_it_sure_sooner() -> None:
    paired = difference_interval(20, 0, 2000, 0.01)
    assert paired[0] > 0
    unpaired = difference_interval(320, 300, 2000, 0.01)  # the same difference, of independent errors
    assert unpaired[0] < 0 < unpaired[1]


def sketch(slower: float, count: int, seed: int) -> Sketch:
    rand = random.Random(seed)
    found = Sketch()
    for _ in range(count):
        found.add(slower * rand.lognormvariate(15, 0.5))
    return found


def test_quantiles_and_their_ratio() -> None:
    production, shadow = sketch(1.0, 20_000, 1), sketch(1.5, 20_000, 2)
    true = math.exp(15 + 0.5 * 2.3263)
    low, high = quantile_interval(production, 0.99, 0.01)
    assert low < true < high < low * 1.3
    low, high = ratio_interval(shadow, production, 0.99, 0.01)
    assert 1.2 < low < 1.5 < high < 1.9
    wider = high - low
    low, high = ratio_interval(shadow, production, 0.99, 0.01, 10.0)
    assert high - low < wider / 2


def test_few_values_tell_nothing_of_a_high_quantile() -> None:
    low, high = quantile_interval(sketch(1.0, 20, 1), 0.99, 0.01)
    assert high == math.inf
    assert ratio_interval(Sketch(), sketch(1.0, 20, 1), 0.5, 0.01) == (0.0, math.inf)
    assert low > 0


def test_who_is_slow_many_times_in_a_row_is_not_said_to_be_slower() -> None:
    wrong, naive = false_alarms_in_a_row(lambda rand: bursts(rand, 3000, 30), 20, 15_000, 300, 0.01)
    assert wrong <= most(20, 0.01)
    assert naive > 2 * most(20, 0.01)


def test_who_has_an_outage_is_not_said_to_have_more_errors() -> None:
    """Of equal versions each fails all requests for 2 s now and then, at times of its own."""
    wrong, naive = false_alarms_of_outages(20_000, 200, 20, 20_000, 100, 0.01)
    assert wrong <= most(20, 0.01)
    assert naive > 2 * most(20, 0.01)
    seen, _ = false_alarms_of_outages(math.inf, 1, 5, 20_000, 100, 0.01, more=0.01)
    assert seen == 5


def test_how_many_errors_come_together() -> None:
    """Of 16 seconds of 1000 exchanges; +1 where only the shadow failed."""
    even = {number: (1000, 10 - number % 2) for number in range(16)}
    assert crowd_of_differences(even, 152, 0, 1.0) == 1.0
    once = {number: (1000, 152 if number == 3 else 0) for number in range(16)}
    assert 100 < crowd_of_differences(once, 152, 0, 1.0) < 200
    both = dict.fromkeys(range(16), (1000, 0))
    assert crowd_of_differences(both, 152, 152, 1.0) == 1.0, "a dependency of both was away"
    few = {number: once[number] for number in range(STRETCHES - 1)}
    assert crowd_of_differences(few, 152, 0, 1.0) == 0.0, "not to be told yet"
    assert crowd_of_differences(few, 0, 0, 1.0) == crowd_of_differences({}, 0, 0, 1.0) == 1.0
    dead = dict.fromkeys(range(16), (1000, 1000))
    assert crowd_of_differences(dead, 16_000, 0, 1.0) == 1.0
    died = {number: (1000, 1000 * (number >= 600)) for number in range(1200)}
    assert crowd_of_differences(died, 600_000, 0, 1.0) == 1000 * LASTING


def test_a_crowd_is_smaller_among_a_part_of_the_values() -> None:
    assert [thinned(101.0, part) for part in (1.0, 0.5, 0.01)] == [101.0, 51.0, 2.0]
    assert [thinned(size, 0.5) for size in (0.0, 1.0)] == [0.0, 1.0]


def test_a_crowd_makes_a_difference_less_certain() -> None:
    low, high = difference_interval(100, 0, 10_000, 0.01)
    wide = difference_interval(100, 0, 10_000, 0.01, 20.0)
    assert wide[0] < low < high < wide[1]
    assert difference_interval(100, 0, 10_000, 0.01, 0.0) == (-1.0, 1.0)


def test_how_many_slow_ones_come_together() -> None:
    """Of 16 stretches of 1000 values, ten or so slow each; then with all of them in two stretches."""
    even = {number: {1: 990, 5: 10 - number % 2} for number in range(16)}
    assert crowd(even, 0.99) == 1.0
    few = {number: {1: 920, 5: 80} if number in (3, 4) else {1: 1000} for number in range(16)}
    assert crowd(few, 0.99) > 50
    assert crowd(few, 0.5) == 1.0
    assert crowd({number: few[number] for number in range(STRETCHES - 1)}, 0.99) == 0.0, "not to be told yet"
    assert crowd({number: {1: 5} for number in range(16)}, 0.99) == 1.0
    assert crowd({}, 0.99) == 0.0


def test_slow_ones_that_come_together_over_many_stretches() -> None:
    """Each second looks a little like the one before: what tells is longer stretches."""
    line = {number: {1: 100, 5: 3 if number % 32 < 16 else 0} for number in range(128)}
    assert crowd(line, 0.99) > 10


def test_a_crowd_makes_the_ratio_less_certain() -> None:
    production, shadow = sketch(1.0, 20_000, 1), sketch(1.5, 20_000, 2)
    low, high = ratio_interval(shadow, production, 0.99, 0.01)
    wide = ratio_interval(shadow, production, 0.99, 0.01, crowds=(10.0, 10.0))
    assert wide[0] < low < high < wide[1]
    assert ratio_interval(shadow, production, 0.99, 0.01, crowds=(0.0, 1.0)) == (0.0, math.inf)
