# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import msgspec
import pytest

from lab.peeking import Stream, first_verdict
from tapmirror.compare.sketch import Sketch
from tapmirror.compare.verdict import Counts, Outcome, Verdict, VerdictLimits, judge


def stream(slower: float = 1.0, errors: float = 0.0, differing: float = 0.0) -> Stream:
    return Stream(random.Random(1), slower, errors, differing)


ONLY_ERRORS = VerdictLimits(max_p99_ratio=None, max_diff_rate=None)


def test_nothing_seen_is_undecided() -> None:
    found = judge(Counts(0, 0, 0, Sketch(), Sketch(), 0, 0), VerdictLimits())
    assert (found.outcome, found.more) == (Outcome.UNDECIDED, None)
    assert (
        judge(
            Counts(0, 0, 0, Sketch(), Sketch(), 0, 0),
            VerdictLimits(max_error_diff=None, max_p99_ratio=None, max_diff_rate=None),
        ).reason
        == "no limit is given"
    )


@pytest.mark.parametrize(
    ("shadow", "limits", "outcome", "names"),
    [
        (stream(slower=2.0), VerdictLimits(), Outcome.FAIL, "p99 ratio"),
        (stream(errors=0.05), VerdictLimits(), Outcome.FAIL, "error rate difference"),
        (stream(differing=0.05), VerdictLimits(), Outcome.FAIL, "difference rate"),
        (stream(), VerdictLimits(max_p99_ratio=1.5, max_error_diff=0.01), Outcome.PASS, "p99 ratio"),
    ],
)
def test_what_is_plain_is_soon_seen(shadow: Stream, limits: VerdictLimits, outcome: Outcome, names: str) -> None:
    found, requests = first_verdict(shadow, limits, 20_000)
    assert found is outcome
    assert requests < 10_000
    verdict = judge(shadow.counts(), limits)
    assert names in verdict.reason
    assert "\n" not in verdict.reason
    if outcome is Outcome.FAIL:
        assert [check.name for check in verdict.checks if check.outcome is Outcome.FAIL] == [names]


def test_an_undecided_one_says_how_many_more_requests_would_tell() -> None:
    counts = Counts(1000, 0, 0, Sketch(), Sketch(), 0, 0)
    verdict = judge(counts, ONLY_ERRORS)
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.more is not None
    assert f"{verdict.more:,} more requests" in verdict.reason
    after = judge(Counts(1000 + verdict.more, 0, 0, Sketch(), Sketch(), 0, 0), ONLY_ERRORS)
    assert after.outcome is Outcome.PASS
    before = judge(Counts(1000 + verdict.more // 2, 0, 0, Sketch(), Sketch(), 0, 0), ONLY_ERRORS)
    assert before.outcome is Outcome.UNDECIDED


def test_what_differs_and_may_still_be_noise_takes_as_many_requests_again() -> None:
    counts = Counts(1000, 0, 0, Sketch(), Sketch(), 1000, 300, certain=0, possible=300)
    verdict = judge(counts, VerdictLimits(max_error_diff=None, max_p99_ratio=None))
    assert (verdict.outcome, verdict.more) == (Outcome.UNDECIDED, 1000)


def test_one_limit_that_is_broken_is_enough() -> None:
    """Of the p99 ratio nothing is known yet, nor soon; of responses that differ twice what may."""

    def at(count: int) -> Verdict:
        return judge(Counts(count, 0, 0, Sketch(), Sketch(), count, count // 100), VerdictLimits())

    verdict = at(800)
    assert verdict.outcome is Outcome.UNDECIDED
    assert [check.more for check in verdict.checks if check.name == "p99 ratio"] == [None]
    assert verdict.more is not None
    assert f": about {verdict.more:,} more requests would tell" in verdict.reason
    assert at(900 + verdict.more).outcome is Outcome.FAIL
    assert at(800 + verdict.more // 2).outcome is Outcome.UNDECIDED


def test_what_is_compared_or_timed_of_a_part_only_takes_so_many_more_requests() -> None:
    """A forecast is of requests, whatever share of them an observation is had of."""
    seen = stream()
    seen.step(2000)
    counts = seen.counts()
    for limits in (ONLY_ERRORS, VerdictLimits(max_error_diff=None, max_diff_rate=None)):
        all_of_them = judge(counts, limits).more
        one_in_ten = judge(msgspec.structs.replace(counts, requests=20_000), limits).more
        assert all_of_them is not None
        assert one_in_ten == pytest.approx(10 * all_of_them, rel=0.1)
    timed = msgspec.structs.replace(counts, pairs=16_000)  # one of eight
    limits = VerdictLimits(max_error_diff=None, max_diff_rate=None)
    assert judge(timed, limits).more == pytest.approx(8 * (judge(counts, limits).more or 0), rel=0.1)


def test_a_forecast_of_times_that_do_not_come_together_is_as_near_as_it_is() -> None:
    rand = random.Random(1)
    production, shadow = Sketch(), Sketch()
    for _ in range(5000):
        production.add(rand.lognormvariate(15, 0.2))
        shadow.add(rand.lognormvariate(15, 0.2))
    counts = Counts(5000, 0, 0, production, shadow, 0, 0, crowds=(1.0, 1.0))
    limits = VerdictLimits(max_error_diff=None, max_diff_rate=None)
    assert 0 < (judge(counts, limits).more or 0) < 2000
    assert judge(msgspec.structs.replace(counts, crowds=(0.0, 0.0)), limits).more == 5000


def test_a_forecast_is_a_least_one_where_nothing_went_wrong_yet() -> None:
    """With 0.1 % of errors on either side it takes five times what it takes with none."""
    none, some = (judge(Counts(1000, n, n, Sketch(), Sketch(), 0, 0), ONLY_ERRORS) for n in (0, 1))
    assert none.more is not None
    assert some.more is not None
    assert none.more < some.more / 2
    assert f"at least {none.more:,} more requests" in none.reason
    assert f"about {some.more:,} more requests" in some.reason
    rate = VerdictLimits(max_error_diff=None, max_p99_ratio=None)
    for differing, word in ((0, "at least"), (1, "about")):
        assert word in judge(Counts(500, 0, 0, Sketch(), Sketch(), 500, differing), rate).reason


def test_just_at_the_limit_nothing_can_be_foreseen() -> None:
    verdict = judge(Counts(100_000, 600, 500, Sketch(), Sketch(), 0, 0), ONLY_ERRORS)
    assert (verdict.outcome, verdict.more) == (Outcome.UNDECIDED, None)
    assert "cannot be told soon" in verdict.reason


def test_alpha_is_divided_among_the_limits() -> None:
    counts = stream(errors=0.004)
    counts.step(3000)
    alone = judge(counts.counts(), VerdictLimits(max_p99_ratio=None, max_diff_rate=None)).checks[0]
    together = judge(counts.counts(), VerdictLimits()).checks[0]
    assert together.low < alone.low < alone.high < together.high


@pytest.mark.parametrize(
    ("errors", "times", "word"), [(1.0, 1.0, "about"), (0.0, 1.0, "at least"), (1.0, 0.0, "at least")]
)
def test_a_forecast_is_not_sure_before_it_is_known_what_comes_together(errors: float, times: float, word: str) -> None:
    """So within the first eight seconds."""
    seen = stream()
    seen.step(2000)
    counts = msgspec.structs.replace(seen.counts(), only_shadow=1, differing=1)
    counts = msgspec.structs.replace(counts, error_crowd=errors, crowds=(times, times))
    verdict = judge(counts, VerdictLimits(max_p99_ratio=1.2, max_error_diff=0.002))
    assert verdict.outcome is Outcome.UNDECIDED
    assert f": {word} {verdict.more:,} more requests would tell" in verdict.reason
