# SPDX-License-Identifier: Apache-2.0
"""Percentages in steps and thresholds, keys, what needs requests."""

from __future__ import annotations

import pytest

from tapmirror.spec import By, Ramp, Sampled
from tapmirror.spec.sampled import FULL, KEY, defaults_only, part_of, steps, threshold


@pytest.mark.parametrize(("percent", "wanted"), [(0, 0), (0.0001, 1), (0.00004, 0), (33.3333, 333_333), (100, FULL)])
def test_steps(percent: float, wanted: int) -> None:
    assert steps(percent) == wanted
    assert threshold(percent) == wanted * (1 << 32) // FULL


@pytest.mark.parametrize(
    ("percent", "part", "wanted"),
    [(100.0, 0.575, 57.5), (50.0, 1 / 3, 16.6667), (33.3333333, 1.0, 33.3333333), (5.0, 0.0, 0.0)],
)
def test_a_part_is_in_steps_and_all_is_all(percent: float, part: float, wanted: float) -> None:
    assert part_of(percent, part) == wanted


@pytest.mark.parametrize(
    ("key", "valid"),
    [
        ("client", True),
        ("header:X-User", True),
        ("jwt:https", True),
        ("query:a[b]", True),
        ("header:", False),
        ("header:a b", False),
        ("body:a", False),
        ("", False),
    ],
)
def test_keys(key: str, valid: bool) -> None:
    assert bool(KEY.fullmatch(key)) is valid


def test_what_needs_requests() -> None:
    assert not Sampled(percent=5.0).needs_requests()
    assert Sampled(by=By.EXACT).needs_requests()
    assert Sampled(max_bytes=1.0).needs_requests()
    assert defaults_only(Sampled()) and not defaults_only(Sampled(percent=99.0))
    assert Sampled(ramp=Ramp(start=50.0, end=10.0, over=1.0)).most() == 50.0
