# SPDX-License-Identifier: Apache-2.0
"""How fast a worker catches up that was kept off the CPU."""

from __future__ import annotations

import pytest

from tapmirror.worker.restraint import FEWEST, Restraint

MOST = 512
PAUSE = 0.001


@pytest.mark.parametrize(
    ("read", "cpu", "age", "fill", "wanted"),
    [
        pytest.param(2_000, 0.1, 0.02, 0.0, FEWEST, id="little of the CPU: no fewer than the fewest"),
        pytest.param(5_000, 0.1, 0.02, 0.0, 16, id="three times the mean rate and some more, a pause's worth"),
        pytest.param(5_000, 0.1, 0.1, 0.0, 20, id="later: faster"),
        pytest.param(5_000, 0.1, 1.0, 0.0, MOST, id="far too late: all"),
        pytest.param(5_000, 0.9, 0.1, 0.0, MOST, id="it had the CPU: there is more to do than it can"),
        pytest.param(30_000, 0.1, 0.02, 0.0, MOST, id="a high rate"),
        pytest.param(5_000, 0.1, 0.1, 0.2, MOST, id="the ring fills"),
        pytest.param(0, 0.0, 0.02, 0.0, FEWEST, id="it stood still"),
    ],
)
def test_the_next_batch(read: int, cpu: float, age: float, fill: float, wanted: int) -> None:
    """A second's records and CPU, and how late the worker is then."""
    restraint = Restraint(MOST, PAUSE)
    restraint.limit(100.0, 0.0, 0, 0.0, 0.0)

    assert restraint.limit(101.0, age, read, cpu, fill) == wanted


def test_between_two_looks_it_stays() -> None:
    restraint = Restraint(MOST, PAUSE)
    restraint.limit(100.0, 0.0, 0, 0.0, 0.0)
    first = restraint.limit(101.0, 0.02, 5_000, 0.1, 0.0)

    assert restraint.limit(101.05, 0.02, 9_000, 0.1, 0.0) == first == 16
    assert restraint.limit(101.05, 0.02, 9_000, 0.1, 0.2) == MOST, "a full ring at any time"
    assert restraint.limit(101.11, 0.02, 9_000, 0.19, 0.0) == MOST, "it has the CPU again"


def test_a_quiet_worker_that_gets_much_at_once_is_not_held_back() -> None:
    """It had little of the CPU up to then, for it had nothing to do."""
    restraint = Restraint(MOST, PAUSE)
    restraint.limit(100.0, 0.02, 0, 0.0, 0.0)

    assert restraint.limit(160.005, 0.005, 1_712, 0.105, 0.0) == MOST, "in time, and the last batch was full"
    assert restraint.limit(160.015, 0.015, 2_736, 0.115, 0.0) == MOST, "late by now"
    assert restraint.limit(160.11, 0.11, 12_000, 0.205, 0.0) == MOST, "it has the CPU"
    assert restraint.limit(160.22, 0.11, 12_100, 0.215, 0.0) < MOST, "it was kept off it"
