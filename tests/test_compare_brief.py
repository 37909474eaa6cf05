# SPDX-License-Identifier: Apache-2.0
"""A comparison in a few numbers: the same as the report says, and those of workers add up."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

import tapmirror.compare.brief as brief_module
from briefs import brief, summary
from lab.exchanges import Feed
from tapmirror.compare.brief import EVERY, WORK, Briefing, judged
from tapmirror.compare.briefs import BEYOND, BOUNDS, NAMED, badness
from tapmirror.compare.figures import Judged, crowds_of, figures, judged_endpoint, merge
from tapmirror.compare.sketch import Sketch
from tapmirror.compare.summary import COARSE, Endpoint, Field, Point, Side, State, merge_endpoint, merged, state_bounds
from tapmirror.compare.verdict import P99, Outcome, VerdictLimits
from tapmirror.ledger import summed
from tapmirror.spec.compare import Compare, Level


@pytest.fixture(scope="module")
def feeds() -> list[Feed]:
    """Two workers of one tap."""
    return [Feed("broken", seed).run(2_000) for seed in (1, 2)]


def test_it_says_what_the_report_says(feeds: list[Feed]) -> None:
    feed = feeds[0]
    found = feed.comparison.brief()["v2"]
    (state,) = merge([feed.comparison.snapshot()], feed.spec).values()
    report = figures("shop", "v2", state, feed.spec, VerdictLimits())
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


def paused(seconds: int, rate: int, *, slow: int = 0) -> State:
    """So many requests a second; in the fourth and fifth second so many are slow at the shadow."""
    quick, late = 700, 900
    line = {}
    for second in range(seconds):
        count = slow if second in (3, 4) else 0
        shadow = {quick >> COARSE: rate - count, **({late >> COARSE: count} if count else {})}
        line[second] = Point(rate, production={quick >> COARSE: rate}, shadow=shadow)
    total = seconds * rate
    sides = [Side(last=Sketch({quick: total - count, late: count})) for count in (0, 2 * slow)]
    return State(
        level="status", endpoints={"a": Endpoint(pairs=total, production=sides[0], shadow=sides[1])}, line=line
    )


def outcome_of_p99(*states: State) -> Outcome:
    verdict = judged(summed([brief(state) for state in states]), VerdictLimits(max_error_diff=None, max_diff_rate=None))
    return verdict.outcome


def test_a_worker_that_has_few_times_leaves_the_verdict_what_it_is() -> None:
    assert outcome_of_p99(paused(20, 1000)) is Outcome.PASS
    assert outcome_of_p99(paused(20, 1000), paused(3, 5), State()) is Outcome.PASS
    assert outcome_of_p99(paused(20, 1000), paused(3, 10_000)) is Outcome.UNDECIDED, "of most times it is not known"
    assert outcome_of_p99(State()) is Outcome.UNDECIDED


def test_a_pause_that_all_workers_see_at_once_is_one_crowd() -> None:
    workers = [paused(20, 1000, slow=90) for _ in range(4)]
    found = summed([brief(state) for state in workers])
    shadow, production = crowds_of(merged(workers, state_bounds(Compare())), P99)
    together = 1 + found["crowds"]["shadow"], 1 + found["crowds"]["production"]
    assert together == pytest.approx((shadow, production), rel=0.02)
    assert shadow > 100


def failing(second: int | None, *, seconds: int = 20, rate: int = 1000) -> State:
    """So many requests a second; in one of them the shadow fails a tenth."""
    line = {at: Point(rate, [0, rate // 10 * (at == second)]) for at in range(seconds)}
    endpoint = Endpoint(pairs=seconds * rate, only_shadow=0 if second is None else rate // 10)
    return State(level="status", endpoints={"a": endpoint}, line=line)


def test_an_outage_is_one_error_in_the_report_and_in_the_brief() -> None:
    limits = VerdictLimits(max_p99_ratio=None, max_diff_rate=None)

    def outcome(*states: State) -> Outcome:
        return judged(summed([brief(state) for state in states]), limits).outcome

    assert outcome(failing(3)) is Outcome.UNDECIDED
    assert figures("t", "s", failing(3), Compare(), limits).verdict.outcome is Outcome.UNDECIDED
    assert outcome(failing(None), failing(3)) is outcome(failing(3), failing(3)) is Outcome.UNDECIDED
    assert outcome(failing(None)) is outcome(failing(None), failing(None, seconds=3)) is Outcome.PASS
    assert outcome(failing(1, seconds=5)) is Outcome.UNDECIDED, "it is not known yet whether they come together"
    assert outcome(failing(None, seconds=100), failing(1, seconds=5, rate=10_000)) is Outcome.UNDECIDED, "nor by others"


def test_a_brief_of_an_older_daemon_is_understood() -> None:
    old = summed([brief(failing(3))])
    del old["outages"]
    limits = VerdictLimits(max_p99_ratio=None, max_diff_rate=None)
    assert judged(old, limits).outcome is Outcome.UNDECIDED


def test_after_a_brief_of_all_the_next_one_looks_again() -> None:
    of = summary(State(endpoints={"GET /": Endpoint(pairs=1)}))
    briefing = Briefing(Compare(), VerdictLimits())
    briefing.brief(of, math.inf)
    of.state.endpoints["GET /"].pairs = 2
    assert briefing.brief(of, 100.0)["all"]["pairs"] == 2


def test_a_place_is_kept_and_there_are_few() -> None:
    of = summary(State(endpoints={f"GET /{n}": Endpoint(pairs=100 + n) for n in range(30)}))
    briefing = Briefing(Compare(), VerdictLimits())
    first = briefing.brief(of, math.inf)
    assert [*first["endpoints"]] == [f"GET /{n}" for n in range(29, 29 - NAMED, -1)]
    of.state.endpoints["GET /0"].pairs = 10_000
    again = briefing.brief(of, math.inf)
    assert [*again["endpoints"]] == [*first["endpoints"]]
    assert again["all"]["pairs"] == sum(each.pairs for each in of.state.endpoints.values())
    of.state.endpoints["GET /1"].pairs += of.state.endpoints.pop("GET /29").pairs
    briefing.folded({"GET /29": "GET /1"})
    assert "GET /0" in briefing.brief(of, math.inf)["endpoints"]


def hostile(endpoints: int) -> State:
    """As many fields as there may be at each endpoint: half of them are noise, the others differ."""
    state = State(level="body")
    for n in range(endpoints):
        endpoint = state.endpoints[f"GET /{n}"] = Endpoint(pairs=1000 + n, compared=1000 + n, probed=100, repeated=200)
        for m in range(64):
            noise = 50 * (m % 2)
            endpoint.fields[f"value body.{n}.{m}"] = Field(raw=500, probes=noise, repeats=2 * noise)
            endpoint.signatures[f"value body.{n}.{m}"] = 10
    return state


def test_one_brief_looks_at_a_few_endpoints_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def counted(name: str, *rest: Any) -> Judged:
        looked.append(name)
        return judged_endpoint(name, *rest)

    monkeypatch.setattr(brief_module, "judged_endpoint", counted)
    of = summary(hostile(20))
    briefing = Briefing(Compare(level=Level.BODY), VerdictLimits())
    now = 100.0
    while len({*looked}) < 20:
        before = len(looked)
        found = briefing.brief(of, now, WORK)
        assert 0 < (len(looked) - before) * 64 <= WORK + 64
        assert found["paired"] == found["all"]["pairs"] == sum(of.state.endpoints[name].pairs for name in {*looked})
        assert found["all"]["differing"] == found["possible"] == 320 * len({*looked})
        now += 1.0
    assert [*looked] == [*of.state.endpoints], "none twice while others wait"
    whole = Briefing(Compare(level=Level.BODY), VerdictLimits()).brief(of, math.inf)
    assert found == {**whole, "endpoints": found["endpoints"], "worst": found["worst"]}
    for each in of.state.endpoints.values():
        each.pairs += 1
    assert briefing.brief(of, now + EVERY, WORK)["paired"] > found["paired"], (
        "those that were looked at first are again"
    )


def test_endpoints_of_which_nothing_is_due_are_not_looked_at() -> None:
    of = summary(State(endpoints={"GET /a": Endpoint(pairs=5)}))
    briefing = Briefing(Compare(), VerdictLimits())
    briefing.brief(of, 10.0, WORK)
    of.state.endpoints["GET /a"].pairs = 6
    assert briefing.brief(of, 10.0 + EVERY / 2, WORK)["paired"] == 5
    assert briefing.brief(of, 10.0 + EVERY, WORK)["paired"] == 6


def test_no_count_falls_when_endpoints_become_one() -> None:
    state = hostile(3)
    of = summary(state)
    briefing = Briefing(Compare(level=Level.BODY), VerdictLimits())
    before = briefing.brief(of, 0.0)
    merge_endpoint(state.endpoints["GET /2"], state.endpoints.pop("GET /1"))
    briefing.folded({"GET /1": "GET /2", "GET /9": "GET /8"})
    after = briefing.brief(of, 1.0, WORK)
    assert {**after, "endpoints": {}, "worst": {}} == {**before, "endpoints": {}, "worst": {}}
    assert after["endpoints"].keys() == {"GET /0", "GET /2"}
    merge_endpoint(state.endpoints.setdefault("GET /new", Endpoint()), state.endpoints.pop("GET /0"))
    briefing.folded({"GET /0": "GET /new"})
    assert briefing.brief(of, 2.0, WORK)["all"] == before["all"]


def test_the_seldom_have_no_place() -> None:
    state = State(endpoints={"GET /a": Endpoint(pairs=1000), "GET /b": Endpoint(pairs=5), "other": Endpoint(pairs=500)})
    assert [*brief(state)["endpoints"]] == ["GET /a"]


def test_nothing_compared_is_nothing_known() -> None:
    found = brief(State())
    assert (found["worst"], found["endpoints"], found["all"]["pairs"]) == ({}, {}, 0)
    assert judged(found).outcome.value == "undecided"


def test_it_is_plain_data(feeds: list[Feed]) -> None:
    found = feeds[0].comparison.brief()
    assert msgspec.json.decode(msgspec.json.encode(found)) == found
