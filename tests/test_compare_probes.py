# SPDX-License-Identifier: Apache-2.0
"""How many requests a shadow gets twice, and for what.  What comes of it: `test_comparing`, `test_compare_noise`."""

from __future__ import annotations

import pytest

from tapmirror.compare.probes import CHECKS_SAVED, ProbeAllowance, lacks_pairs, touch, worth_checking
from tapmirror.compare.summary import Endpoint, Field


def test_probes_are_a_share_of_the_safe_requests() -> None:
    allowance = ProbeAllowance(5.0)
    assert [n for n in range(1, 101) if allowance.probes(True)] == [20, 40, 60, 80, 100]
    assert not allowance.checks(), "nothing is saved for checks while there is nothing to check"


def test_what_cannot_be_probed_is_made_up_for() -> None:
    allowance = ProbeAllowance(10.0)
    assert not any(allowance.probes(False) for _ in range(30))
    assert [allowance.probes(True) for _ in range(4)] == [True, True, True, False]


def test_half_is_for_checks_until_enough_is_saved() -> None:
    allowance = ProbeAllowance(20.0)
    allowance.want_checks()
    assert sum(allowance.probes(True) for _ in range(40)) == 4
    assert allowance.checks(4) and not allowance.checks(5)
    for _ in range(4):
        allowance.pay_check()
    assert not allowance.checks()
    for _ in range(50):
        allowance.probes(True)
    assert allowance.checks(CHECKS_SAVED), "that is all that may be saved"
    assert sum(allowance.probes(True) for _ in range(100)) == 20, "and then all goes to probes"
    assert not allowance.checks(CHECKS_SAVED + 1)


def test_a_field_that_seldom_differs_is_worth_a_check_and_all_that_differ_with_it_are_looked_at() -> None:
    rare, common = Field(raw=5), Field(raw=900)
    endpoint = Endpoint(compared=1_000, fields={"value body.a": rare, "value body.b": common})
    names = ["value body.a", "value body.b", "value body.unknown"]
    assert worth_checking(endpoint, names) == ("value body.a", "value body.b")
    assert worth_checking(endpoint, names[1:]) == (), "pairs of any requests tell of what differs often"
    rare.checks = rare.held = 1_000
    assert worth_checking(endpoint, names) == (), "more is not to be known of it"


def test_what_lacks_nothing_but_pairs() -> None:
    checked = Field(raw=100, checks=64, held=64)
    endpoint = Endpoint(compared=1_000, fields={"value body.a": checked})
    assert lacks_pairs(endpoint, [checked])
    assert not lacks_pairs(endpoint, [Field(raw=100)]) and not lacks_pairs(endpoint, [])
    endpoint.probed = endpoint.repeated = 100_000
    assert not lacks_pairs(endpoint, [checked])


@pytest.mark.parametrize(
    ("one", "other", "related"),
    [
        ("body.a", "body.a.b", True),
        ("body.a[]", "body.a", True),
        ("body", "body", True),
        ("body.a", "body.ab", False),
        ("body.a", "body.b", False),
    ],
)
def test_paths_within_each_other_are_one(one: str, other: str, related: bool) -> None:
    assert touch(one, other) is touch(other, one) is related
