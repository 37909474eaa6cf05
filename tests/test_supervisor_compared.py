# SPDX-License-Identifier: Apache-2.0
"""Counters of comparisons: of few endpoints, never falling, and whole."""

from __future__ import annotations

import pytest

from tapmirror.compare.briefs import NAMED
from test_supervisor_metrics import Taps, compared, falls

COMPARED = "tapmirror_compare"


def test_a_comparison_is_counted_by_end_point_and_side() -> None:
    taps = Taps(compared(a=10, b=20))
    taps.samples()
    taps.now = [compared(a=14, b=30, c=8)]
    found = taps.samples()
    assert taps.samples() == found, "a second scrape counts nothing twice"
    of = ("v2:80", "shop")
    assert {key[1]: value for key, value in found.items() if key[0] == f"{COMPARED}_exchanges_total"} == {
        "POST /a": 14,
        "POST /b": 30,
        "POST /c": 0,
        "other": 8,
    }  # what was there before an end point had a name of its own stays with the others
    assert found[(f"{COMPARED}_differing_total", "POST /b", *of)] == 15
    assert found[(f"{COMPARED}_latency_seconds_bucket", "POST /a", "0.0025", "v2:80", "production", "shop")] == 0
    assert found[(f"{COMPARED}_latency_seconds_bucket", "POST /a", "0.005", "v2:80", "shadow", "shop")] == 14
    assert found[(f"{COMPARED}_latency_seconds_count", "POST /b", "v2:80", "shadow", "shop")] == 30
    assert found[(f"{COMPARED}_latency_seconds_sum", "POST /b", "v2:80", "shadow", "shop")] == pytest.approx(0.09, 0.02)
    assert found[(f"{COMPARED}_unpaired_total", "gap", *of)] == 2
    assert found[(f"{COMPARED}_errors_total", "other", "v2:80", "shadow", "shop")] == 1


def test_noise_that_is_found_out_adds_nothing_until_more_differ() -> None:
    taps = Taps(compared(a=100))
    after = taps.samples()
    less = compared(a=112)
    less["compare"]["shadows"]["v2:80"]["all"]["differing"] = 0
    less["compare"]["shadows"]["v2:80"]["endpoints"]["POST /a"]["differing"] = 0
    taps.now = [less]
    differing = (f"{COMPARED}_differing_total", "POST /a", "v2:80", "shop")
    found = taps.samples()
    assert not falls(after, found)
    assert found[differing] == after[differing] == 50
    for kind in ("all", "endpoints"):
        counted = less["compare"]["shadows"]["v2:80"][kind]
        (counted if kind == "all" else counted["POST /a"])["differing"] = 2
    assert taps.samples()[differing] == 52


def test_an_end_point_that_takes_in_others_counts_nothing_twice() -> None:
    """A template that was learned late: 50 requests of it were `other` until now."""
    taps = Taps(compared(a=10, b=20))
    taps.samples()
    many = compared(a=14, b=30)
    counts = many["compare"]["shadows"]["v2:80"]
    counts["all"] = compared(a=64, b=30)["compare"]["shadows"]["v2:80"]["all"]
    taps.now = [many]
    before = taps.samples()
    taps.now = [compared(a=66, b=31)]
    after = taps.samples()
    assert not falls(before, after)
    for name, total in (("exchanges", 97), ("compared", 97)):
        found = {key[1]: value for key, value in after.items() if key[0] == f"{COMPARED}_{name}_total"}
        assert sum(found.values()) == total, "as many as there were"
    count = f"{COMPARED}_latency_seconds_count"
    assert sum(value for key, value in after.items() if key[0] == count and "shadow" in key) == 97


def test_end_points_are_few_whatever_workers_say_and_their_names_are_labels() -> None:
    taps = Taps(compared(a=10))
    for start in range(0, 60, 5):
        one = compared(a=10)
        found = one["compare"]["shadows"]["v2:80"]
        found["endpoints"] = {f'GET /{n}"\n\\\x1b{"x" * 900}': found["all"] for n in range(start, start + 5)}
        taps.now = [one]
        samples = taps.samples()
    names = {key[1] for key in samples if key[0] == f"{COMPARED}_exchanges_total"}
    assert len(names) == NAMED + 1
    assert all(name.isprintable() and len(name) <= 200 for name in names)
    assert len([key for key in samples if key[0].startswith(COMPARED)]) < 40 * (NAMED + 1)


def test_reasons_that_there_are_not_are_not_counted() -> None:
    one = compared(a=10)
    for kind in ("unpaired", "failures"):
        one["compare"]["shadows"]["v2:80"][kind].update(dict.fromkeys(("made_up", "x\n"), 3))
    found = Taps(one).samples()
    assert {key[1]: value for key, value in found.items() if key[0] == f"{COMPARED}_unpaired_total"} == {
        "gap": 2,
        "closed": 1,
    }


def test_with_a_tap_that_begins_anew_its_comparison_does_too() -> None:
    exchanges = (f"{COMPARED}_exchanges_total", "POST /a", "v2:80", "shop")
    taps = Taps(compared(a=10))
    assert taps.samples()[exchanges] == 10
    taps.now = [{**compared(a=3), "life": compared()["life"] + 1}]
    assert taps.samples()[exchanges] == 3
