# SPDX-License-Identifier: Apache-2.0
"""A comparison in a few numbers: the same as the report says, and those of workers add up."""

from __future__ import annotations

import msgspec
import pytest

from lab.exchanges import Feed
from tapmirror.compare import Limits, badness, figures, judged, merge
from tapmirror.compare.brief import BEYOND, BOUNDS, NAMED, brief
from tapmirror.compare.summary import Endpoint, State
from tapmirror.ledger import summed
from tapmirror.spec.compare import Compare


@pytest.fixture(scope="module")
def feeds() -> list[Feed]:
    """Two workers of one tap."""
    return [Feed("broken", seed).run(2_000) for seed in (1, 2)]


def test_it_says_what_the_report_says(feeds: list[Feed]) -> None:
    feed = feeds[0]
    found = feed.comparison.brief()["v2"]
    (state,) = merge([feed.comparison.snapshot()], feed.spec).values()
    report = figures("shop", "v2", state, feed.spec, Limits())
    assert judged(found) == report.verdict
    assert (found["requests"], found["paired"]) == (report.requests, report.paired)
    assert (found["all"]["compared"], found["all"]["differing"]) == (report.all.compared, report.all.differing)
    for endpoint in report.endpoints:
        mine = found["endpoints"][endpoint.name]
        assert (mine["pairs"], mine["differing"]) == (endpoint.pairs, endpoint.differing)
        errors = [round(side.error_rate * endpoint.pairs) for side in (endpoint.production, endpoint.shadow)]
        assert [mine["production"]["errors"], mine["shadow"]["errors"]] == errors
        for side in ("production", "shadow"):
            assert [*mine[side]["times"]] == [*BOUNDS, BEYOND]
            assert sum(mine[side]["times"].values()) == sum(bin_.production for bin_ in endpoint.bins)
            assert mine[side]["sum_s"] > 0
    ((worst, counts),) = found["worst"].items()
    assert badness(counts) == max(badness(each) for each in found["endpoints"].values())
    assert worst in found["endpoints"]


def test_those_of_workers_add_up(feeds: list[Feed]) -> None:
    one, other = (feed.comparison.brief()["v2"] for feed in feeds)
    both = summed([one, other])
    assert both["paired"] == one["paired"] + other["paired"] == both["all"]["pairs"]
    checks = {check.name: check for check in judged(both).checks}
    for name in ("difference rate", "error rate difference", "p99 ratio"):
        apart = [{check.name: check for check in judged(each).checks}[name] for each in (one, other)]
        assert min(check.estimate for check in apart) <= checks[name].estimate <= max(check.estimate for check in apart)
        assert checks[name].high - checks[name].low < max(check.high - check.low for check in apart)


def test_a_place_is_kept_and_there_are_few() -> None:
    state = State(endpoints={f"GET /{n}": Endpoint(pairs=100 + n) for n in range(30)})
    named: list[str] = []
    first = brief(state, Compare(), Limits(), named)
    assert [*first["endpoints"]] == named == [f"GET /{n}" for n in range(29, 29 - NAMED, -1)]
    state.endpoints["GET /0"].pairs = 10_000
    again = brief(state, Compare(), Limits(), named)
    assert again["endpoints"].keys() == first["endpoints"].keys()
    assert again["all"]["pairs"] == sum(each.pairs for each in state.endpoints.values())
    del state.endpoints["GET /29"]  # it became a part of a template
    assert "GET /0" in brief(state, Compare(), Limits(), named)["endpoints"]


def test_the_seldom_have_no_place() -> None:
    state = State(endpoints={"GET /a": Endpoint(pairs=1000), "GET /b": Endpoint(pairs=5), "other": Endpoint(pairs=500)})
    assert [*brief(state, Compare(), Limits(), [])["endpoints"]] == ["GET /a"]


def test_nothing_compared_is_nothing_known() -> None:
    found = brief(State(), Compare(), Limits(), [])
    assert (found["worst"], found["endpoints"], found["all"]["pairs"]) == ({}, {}, 0)
    assert judged(found).outcome.value == "undecided"


def test_it_is_plain_data(feeds: list[Feed]) -> None:
    found = feeds[0].comparison.brief()
    assert msgspec.json.decode(msgspec.json.encode(found)) == found
