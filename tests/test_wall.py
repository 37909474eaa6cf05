# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from itertools import chain, repeat

import pytest

from tapmirror.wall import TRIES, ahead

SINCE = 1_700_000_000_000_000_000


@pytest.mark.parametrize(
    ("off", "wrong"),
    [
        ((0,), 0),
        ((5_000_000,), 0),
        ((0, 5_000_000), 0),
        ((0, 0, 0, 900_000, 5_000_000), 0),
        ((4_000_000, 0, 0, 40_000, 0, 0, 9_000_000), 20_000),
        (tuple([8_000_000] * 12), 4_000_000),
    ],
    ids=["undisturbed", "at once", "later", "twice", "each time: the least counts", "always: its end"],
)
def test_who_is_put_off_the_processor_between_two_reads_asks_again(
    off: tuple[int, ...], wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`off`: nanoseconds that pass before a read of a clock returns, behind the moment that it is of."""
    now = 1_000_000_000
    passes = chain(off, repeat(0))
    reads = 0

    def monotonic() -> int:
        nonlocal now, reads
        reads += 1
        at = now
        now += 50 + next(passes)
        return at

    monkeypatch.setattr(time, "monotonic_ns", monotonic)
    monkeypatch.setattr(time, "time_ns", lambda: monotonic() + SINCE)
    assert abs(ahead() - SINCE) <= wrong
    assert reads <= 3 * TRIES


def test_it_is_that_of_this_host() -> None:
    before = time.time_ns() - time.monotonic_ns()
    assert ahead() == pytest.approx(before, abs=5_000_000_000)
