# SPDX-License-Identifier: Apache-2.0
"""How long a shadow is left alone."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tapmirror.replay.backoff import FIRST, UNANSWERED, Backoff


def test_while_it_is_up_all_may_try() -> None:
    backoff = Backoff(5.0)
    assert not backoff.pause
    assert all(backoff.allows(1.0, 1.0) for _ in range(100))


def test_while_it_is_down_one_at_a_time_after_doubling_pauses() -> None:
    backoff = Backoff(5.0)
    backoff.failed(0.0, 0.0)
    assert backoff.pause
    attempts, now = [], 0.0
    while now < 30.0:
        if backoff.allows(now, now):
            attempts.append(round(now, 2))
            assert not backoff.allows(now, now)
            backoff.failed(now, now)
        now += 0.01
    pauses = [round(b - a, 1) for a, b in pairwise(attempts)]
    assert pauses[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert set(pauses[6:]) == {5.0}
    assert round(attempts[0], 1) == FIRST


def test_the_first_success_ends_it() -> None:
    backoff = Backoff(5.0)
    for _ in range(10):
        backoff.failed(0.0, 0.0)
    assert not backoff.allows(1.0, 1.0)
    backoff.succeeded()
    assert not backoff.pause
    assert backoff.allows(1.0, 1.0)


def test_an_attempt_without_a_reply_counts_for_others() -> None:
    backoff = Backoff(5.0)
    assert backoff.allows(UNANSWERED - 0.01, 0.0)
    assert not backoff.pause
    assert not backoff.allows(UNANSWERED, 0.0)
    assert backoff.pause


def test_many_attempts_that_began_before_fail_as_one() -> None:
    backoff = Backoff(5.0)
    for _ in range(100):
        backoff.failed(3.0, 1.0)
    assert backoff.allows(3.0 + FIRST, 3.0 + FIRST)


def test_the_first_pause_can_be_longer_but_not_than_the_longest() -> None:
    for longest, wanted in ((5.0, 0.3), (0.2, 0.2)):
        backoff = Backoff(longest, 0.3)
        backoff.failed(1.0, 1.0)
        assert not backoff.allows(1.0 + wanted - 0.01, 1.0)
        assert backoff.allows(1.0 + wanted, 1.0)


@given(st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), max_size=200))
def test_never_more_than_ten_a_second(steps: list[tuple[float, bool]]) -> None:
    """From the first failure on, whatever comes when, as long as none succeeds."""
    backoff, now, attempts = Backoff(5.0), 0.0, []
    backoff.failed(now, now)
    for pause, answered in steps:
        now += pause
        if backoff.allows(now, now):
            attempts.append(now)
            if answered:
                backoff.failed(now, now)
    assert all(b - a >= FIRST - 1e-9 for a, b in pairwise(attempts))
