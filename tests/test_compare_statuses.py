# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Final

import pytest

from lab.peeking import Statuses, by_chance, by_request, first_fail, in_bursts, in_turn, in_windows, races, swapping
from tapmirror.compare.figures import figures
from tapmirror.compare.noise import Nature
from tapmirror.compare.summary import Endpoint, Field, Point, State
from tapmirror.compare.verdict import Outcome, VerdictLimits
from tapmirror.spec import Compare


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("discordant", "want", "nature", "differing"),
    [
        ({"200 429": 200, "429 200": 210}, Outcome.PASS, Nature.NOISE, 10),
        ({"200 429": 5, "429 200": 5}, Outcome.PASS, Nature.WAITING, 0),
        ({"200 429": 1}, Outcome.PASS, Nature.DIFFERENT, 1),
        ({"200 429": 900, "429 200": 310}, Outcome.FAIL, Nature.DIFFERENT, 590),
        ({"200 429": 310, "429 200": 900}, Outcome.FAIL, Nature.DIFFERENT, 590),
        ({"200 404": 400}, Outcome.FAIL, Nature.DIFFERENT, 400),
        ({"200 404": 200, "429 200": 200}, Outcome.FAIL, Nature.DIFFERENT, 400),
    ],
)
def test_statuses_that_differ_as_often_the_other_way_round(
    discordant: dict[str, int], want: Outcome, nature: Nature, differing: int, method: str
) -> None:
    """Of two equal versions behind limiters of rates 429 and 200 differ, and their verdict was FAIL."""
    endpoint = _with_discordant(discordant)
    found = figures("t", "s", State(level="body", endpoints={f"{method} /x": endpoint}), Compare(), _RATE)
    assert found.verdict.outcome is want
    assert found.endpoints[0].fields[0].nature is nature
    assert found.all.differing == differing


def test_statuses_that_differ_both_ways_and_are_there_again_are_no_chance() -> None:
    endpoint = _with_discordant({"200 404": 400, "404 200": 400})
    endpoint.probed = 4000
    found = figures("t", "s", State(level="body", endpoints={"GET /x": endpoint}), Compare(), _RATE)
    assert (found.verdict.outcome, found.all.differing) == (Outcome.FAIL, 800)
    endpoint.fields["value status"].probes = 50  # half as often: it is there when asked again
    found = figures("t", "s", State(level="body", endpoints={"GET /x": endpoint}), Compare(), _RATE)
    assert (found.verdict.outcome, found.all.differing) == (Outcome.PASS, 0)


def test_a_limiter_of_rates_turns_away_again_what_it_turned_away() -> None:
    """For as long as its window lasts: equal versions failed."""
    endpoint = _with_discordant({"200 429": 400, "429 200": 400})
    endpoint.repeated, endpoint.fields["value status"].repeats = 4000, 20
    found = figures("t", "s", State(level="body", endpoints={"GET /x": endpoint}), Compare(), _RATE)
    assert (found.verdict.outcome, found.all.differing) == (Outcome.PASS, 0)
    assert found.endpoints[0].fields[0].nature is Nature.NOISE


@pytest.mark.parametrize(
    ("both", "counts", "changed", "want", "nature"),
    [
        ((201, 409), 40, 0, Outcome.FAIL, Nature.DIFFERENT),
        ((201, 409), 40, 40, Outcome.PASS, Nature.NOISE),
        ((201, 409), 4, 0, Outcome.PASS, Nature.NOISE),
        ((201, 409), 9, 0, Outcome.UNDECIDED, Nature.DIFFERENT),
        ((201, 429), 40, 0, Outcome.PASS, Nature.NOISE),
    ],
)
def test_statuses_that_change_places_are_no_chance_though_they_are_as_many_either_way(
    both: tuple[int, int], counts: int, changed: int, want: Outcome, nature: Nature
) -> None:
    """Where nothing is asked twice, a shadow that answers 409 for 201 and 201 for 409 passed."""
    low, high = both
    endpoint = _with_discordant({f"{low} {high}": 205, f"{high} {low}": 195})
    endpoint.crossed = {f"{low} {high}": counts}
    endpoint.changed = {f"{low} {high}": changed}
    found = figures("t", "s", State(level="body", endpoints={"POST /x": endpoint}), Compare(), _RATE)
    assert found.verdict.outcome is want
    assert found.endpoints[0].fields[0].nature is nature
    assert found.all.differing == (400 if nature is Nature.DIFFERENT else 10)


@pytest.mark.parametrize(("rate", "neither", "most"), [(0.1, 0.0, 4000), (0.05, 0.0, 16_000), (0.1, 0.002, 16_000)])
def test_a_shadow_that_takes_what_production_does_not_and_the_other_way_round_fails(
    rate: float, neither: float, most: int
) -> None:
    assert all(first_fail(swapping(random.Random(seed), rate, neither), most, _RATE) for seed in range(5))


@pytest.mark.parametrize(
    "equal",
    [
        *(partial(by_chance, rate=rate) for rate in (0.01, 0.3)),
        by_request,
        *(partial(in_bursts, rate=0.1, size=size) for size in (30, 1000)),
        *(partial(races, rate=0.2, clients=clients) for clients in (2, 3)),
        partial(in_turn, every=3, status=429),
        lambda rand: in_windows(rand, 1000, 0.15, 403, 200, 404),  # the higher one of two, and the lower one
    ],
)
def test_equal_versions_do_not_fail_by_statuses_that_chance_gives(
    equal: Callable[[random.Random], Statuses],
) -> None:
    assert not any(first_fail(equal(random.Random(seed)), 5000, _RATE) for seed in range(5))


@pytest.mark.parametrize(
    ("stretches", "want", "nature"),
    [
        ([10] * 40, Outcome.FAIL, Nature.DIFFERENT),
        ([0] * 30 + [200, 0] + [0] * 6 + [200, 0], Outcome.UNDECIDED, Nature.NOISE),  # 400 of 430 at two times
        ([60] * 7, Outcome.UNDECIDED, Nature.NOISE),  # too short to tell
    ],
)
def test_statuses_that_one_side_has_more_of_count_as_one_where_they_come_together(
    stretches: list[int], want: Outcome, nature: Nature
) -> None:
    """Of two limiters of rates each turns away at times of its own: equal versions failed."""
    endpoint = _with_discordant({"200 429": sum(stretches), "429 200": 30})
    line = {n: Point(1000) for n in range(len(stretches))}
    discordant = {200: {n: [count, int(n % 8 == 3)] for n, count in enumerate(stretches)}}
    discordant[429] = {n: ways[::-1] for n, ways in discordant[200].items()}
    other = Endpoint(pairs=1000)
    state_ = State(level="body", endpoints={"POST /x": endpoint, "POST /y": other}, line=line, discordant=discordant)
    found = figures("t", "s", state_, Compare(), _RATE)
    assert found.verdict.outcome is want
    assert {each.name: each for each in found.endpoints}["POST /x"].fields[0].nature is nature


def test_of_statuses_that_are_too_many_for_the_time_line_the_largest_crowd_is_taken() -> None:
    endpoint = _with_discordant({"200 429": 400, "429 200": 30})
    line = {n: Point(1000) for n in range(40)}
    for bursts, want in ({30: [200, 0], 38: [200, 0]}, Outcome.UNDECIDED), ({n: [10, 0] for n in line}, Outcome.FAIL):
        discordant = {404: {n: [5, 5] for n in line}, 418: bursts}
        state_ = State(level="body", endpoints={"POST /x": endpoint}, line=line, discordant=discordant)
        assert figures("t", "s", state_, Compare(), _RATE).verdict.outcome is want


def test_a_few_more_of_one_side_may_be_too_many_though_pairs_say_that_it_is_noise() -> None:
    endpoint = _with_discordant({"200 404": 2200, "404 200": 1900})
    endpoint.probed, endpoint.fields["value status"].probes = 1000, 100
    found = figures("t", "s", State(level="body", endpoints={"GET /x": endpoint}), Compare(), _RATE)
    assert found.verdict.outcome is Outcome.UNDECIDED


def test_statuses_of_one_side_are_no_noise_though_it_cannot_make_up_its_mind() -> None:
    endpoint = _with_discordant({"200 404": 800, "404 200": 10})
    endpoint.probed, endpoint.fields["value status"].probes = 4000, 40
    found = figures("t", "s", State(level="body", endpoints={"GET /x": endpoint}), Compare(), _RATE)
    assert found.verdict.outcome is Outcome.FAIL
    assert found.endpoints[0].fields[0].nature is Nature.DIFFERENT


_RATE: Final = VerdictLimits(max_p99_ratio=None, max_error_diff=None)


def _with_discordant(discordant: dict[str, int]) -> Endpoint:
    raw = sum(discordant.values())
    endpoint = Endpoint(pairs=40_000, compared=40_000, discordant=discordant, fields={"value status": Field(raw=raw)})
    endpoint.signatures = {"value status": raw}
    return endpoint
