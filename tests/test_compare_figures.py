# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from hostile_figures import empty, shop
from tapmirror.compare.figures import figures, merge
from tapmirror.compare.noise import Nature
from tapmirror.compare.summary import Endpoint, Field, Point, State, Summary, state_bounds
from tapmirror.compare.verdict import Outcome, Verdict, VerdictLimits
from tapmirror.exchange import Asked, Delivery, Response
from tapmirror.spec import Compare, Level


def state(**endpoints: Endpoint) -> State:
    line = {number: Point(production={0: 100}, shadow={0: 100}) for number in range(10)}
    return State(level="body", endpoints=endpoints, line=line)


def test_nothing_seen() -> None:
    found = empty()
    assert found.verdict.outcome is Outcome.UNDECIDED
    assert found.all.error_diff.value is None
    assert (found.endpoints, found.line, found.seconds, found.rtt) == ([], [], 0.0, None)


def test_an_exchange_that_differs_in_noise_alone_does_not_count() -> None:
    endpoint = Endpoint(pairs=100, compared=100, probed=100)
    endpoint.fields = {"value body.time": Field(raw=100, probes=100), "missing body.name": Field(raw=30)}
    endpoint.signatures = {"value body.time": 70, "missing body.name\nvalue body.time": 30}
    found = figures("t", "s", state(one=endpoint), Compare(), VerdictLimits())
    assert found.all.differing == found.endpoints[0].differing == 30
    natures = {field.path: (field.kind, field.nature, field.rate) for field in found.endpoints[0].fields}
    assert natures == {"body.time": ("value", Nature.NOISE, 0.0), "body.name": ("missing", Nature.DIFFERENT, 0.3)}


def test_noise_of_one_endpoint_is_known_at_another_without_probes() -> None:
    probed = Endpoint(pairs=100, compared=100, probed=50, fields={"value body.time": Field(raw=100, probes=50)})
    post = Endpoint(pairs=9, compared=9, fields={"value body.time": Field(raw=9), "value body.x": Field(raw=9)})
    found = figures("t", "s", state(one=probed, two=post), Compare(), VerdictLimits())
    (endpoint,) = (each for each in found.endpoints if each.name == "two")
    assert {field.path: field.nature for field in endpoint.fields} == {
        "body.time": Nature.NOISE,
        "body.x": Nature.DIFFERENT,
    }


@pytest.mark.parametrize(
    ("raw", "probed", "want"), [(40, 5, Outcome.UNDECIDED), (2000, 5, Outcome.UNDECIDED), (2000, 200, Outcome.FAIL)]
)
def test_a_field_that_may_be_noise_or_not_decides_nothing(raw: int, probed: int, want: Outcome) -> None:
    endpoint = Endpoint(pairs=4000, compared=4000, probed=probed, fields={"value body.price": Field(raw=raw)})
    endpoint.signatures = {"value body.price": raw}
    limits = VerdictLimits(max_error_diff=None, max_p99_ratio=None)
    found = figures("t", "s", State(level="body", endpoints={"GET /x": endpoint}), Compare(), limits)
    assert found.verdict.outcome is want


def test_another_status_does_not_wait_for_more_probes() -> None:
    endpoint = Endpoint(pairs=1000, compared=1000, probed=10, fields={"value status": Field(raw=5)})
    (field,) = figures("t", "s", state(one=endpoint), Compare(), VerdictLimits()).endpoints[0].fields
    assert field.nature is Nature.DIFFERENT


@pytest.mark.parametrize(
    ("erring", "limits", "want"),
    [
        (200, VerdictLimits(max_p99_ratio=None), Outcome.PASS),
        (150, VerdictLimits(max_p99_ratio=None), Outcome.UNDECIDED),
        (0, VerdictLimits(max_p99_ratio=None), Outcome.FAIL),
        (200, VerdictLimits(max_p99_ratio=None, max_error_diff=None), Outcome.FAIL),
    ],
)
def test_errors_of_one_side_are_judged_by_the_limit_of_errors(
    erring: int, limits: VerdictLimits, want: Outcome
) -> None:
    """Two equal versions with 1 % of errors each were said to fail, for their statuses differ in 2 %."""
    endpoint = Endpoint(pairs=10_000, compared=10_000, erring=erring, only_shadow=100, only_production=100)
    endpoint.fields = {"value status": Field(raw=190), "missing status": Field(raw=10), "value body.x": Field(raw=20)}
    endpoint.signatures = {"value status": 190, "missing status": 10, "value body.x": 20}
    endpoint.probed = 50_000
    found = figures("t", "s", State(level="body", endpoints={"GET /x": endpoint}), Compare(), limits)
    check = found.verdict.checks[-1]
    assert (check.name, check.outcome) == ("difference rate", want)
    counted = 0 if limits.max_error_diff is None else erring
    assert check.estimate == pytest.approx((220 - counted) / 10_000)
    assert found.endpoints[0].differing == found.all.differing == 220


@pytest.mark.parametrize(("more", "want"), [(0, Outcome.PASS), (15, Outcome.PASS), (150, Outcome.FAIL)])
def test_errors_that_are_other_endpoints_on_the_other_side_are_differences(more: int, want: Outcome) -> None:
    """Of both together the sides have as many; by chance an endpoint has a few more on one of them."""

    def endpoint(shadow: int, production: int) -> Endpoint:
        both = shadow + production
        found = Endpoint(pairs=20_000, compared=20_000, erring=both, only_shadow=shadow, only_production=production)
        found.fields, found.signatures = {"value status": Field(raw=both)}, {"value status": both}
        return found

    endpoints = {"GET /a": endpoint(150 + more, 150), "GET /b": endpoint(150, 150 + more)}
    limits = VerdictLimits(max_p99_ratio=None, max_diff_rate=0.001)
    found = figures("t", "s", State(level="body", endpoints=endpoints), Compare(), limits)
    assert [check.outcome for check in found.verdict.checks][-1] is want


def test_errors_that_are_noise_are_taken_off_once() -> None:
    endpoint = Endpoint(pairs=1000, compared=1000, erring=200, probed=1000)
    endpoint.fields = {"value status": Field(raw=200, probes=200), "value body.x": Field(raw=300)}
    endpoint.signatures = {"value status": 200, "value body.x": 300}
    found = figures("t", "s", State(level="body", endpoints={"GET /x": endpoint}), Compare(), VerdictLimits())
    assert found.verdict.checks[-1].estimate == pytest.approx(0.3)
    assert found.all.differing == 300


def test_a_forecast_is_of_requests_and_not_of_those_that_were_compared() -> None:
    limits = VerdictLimits(max_p99_ratio=None, max_diff_rate=None)
    endpoint = Endpoint(pairs=1000, compared=1000)
    all_of_them, one_of_ten = (
        figures("t", "s", State(level="status", requests=requests, endpoints={"one": endpoint}), Compare(), limits)
        for requests in (1000, 10_000)
    )
    assert all_of_them.verdict.more is not None
    assert one_of_ten.verdict.more == pytest.approx(10 * all_of_them.verdict.more, rel=0.1)


def test_errors_come_before_differences_and_these_before_slowness() -> None:
    def endpoint(only_shadow: int, differing: int, slower: float) -> Endpoint:
        rand = random.Random(1)
        found = Endpoint(pairs=5000, compared=5000, only_shadow=only_shadow)
        found.fields = {"value body": Field(raw=differing)} if differing else {}
        found.signatures = {"value body": differing} if differing else {}
        for _ in range(5000):
            value = rand.lognormvariate(15, 0.3)
            found.production.last.add(value)
            found.shadow.last.add(value * slower)
        return found

    found = figures(
        "t",
        "s",
        state(
            fine=endpoint(0, 0, 1.0), slow=endpoint(0, 0, 1.3), other=endpoint(0, 3000, 1.0), bad=endpoint(500, 0, 1.0)
        ),
        Compare(),
        VerdictLimits(),
    )
    assert [each.name for each in found.endpoints] == ["bad", "other", "slow", "fine"]


def test_what_seems_to_be_slower_comes_before_what_does_not() -> None:
    """An endpoint that took 90 times as long stood behind all that are more frequent, for it was not certain yet."""

    def endpoint(pairs: int, slower: float) -> Endpoint:
        found = Endpoint(pairs=pairs, compared=pairs)
        for _ in range(50):
            found.production.last.add(1e6)
            found.shadow.last.add(1e6 * slower)
        return found

    endpoints = {"rare": endpoint(100, 90.0), "some": endpoint(200, 1.9), "often": endpoint(300, 1.0)}
    found = figures("t", "s", state(**endpoints), Compare(), VerdictLimits())
    assert [each.name for each in found.endpoints] == ["rare", "often", "some"]
    assert all(each.p50_ratio.low == 0 for each in found.endpoints)


def test_an_outage_of_one_endpoint_is_one_error_of_it() -> None:
    """It was thinned by the endpoint's share of the requests, as if all had had their part of the errors."""
    line = {number: Point(1000, [0, 50 * (number in (50, 51))]) for number in range(100)}
    found = state(rare=Endpoint(pairs=5_000, only_shadow=100), often=Endpoint(pairs=95_000))
    found.line = line
    endpoints = {each.name: each for each in figures("t", "s", found, Compare(), VerdictLimits()).endpoints}
    assert (endpoints["rare"].error_diff.low or 0) < 0 < (endpoints["rare"].error_diff.value or 0)


def test_bins_hold_every_value() -> None:
    found = shop("slower", 500)
    assert sum(each.production for each in found.all.bins) == sum(each.shadow for each in found.all.bins) == 500
    assert all(a.high == b.low for a, b in zip(found.all.bins, found.all.bins[1:], strict=False))


def test_where_nothing_is_asked_twice_it_is_said_how_to_take_noise_off() -> None:
    def notes(name: str, path: str, raw: int, noise_probe: float = 1.0) -> list[str]:
        endpoint = Endpoint(pairs=100, compared=100, fields={f"value {path}": Field(raw=raw)})
        given = State(level="body", endpoints={name: endpoint}, notes=["a note"])
        return figures("t", "s", given, Compare(level=Level.BODY, noise_probe=noise_probe), VerdictLimits()).notes

    want = "requests are sent only once at POST /a: put what always differs there into ignore_paths or ignore_headers"
    assert notes("POST /a", "body.id", 100) == ["a note", want]
    assert len(notes("GET /a", "body.id", 100, noise_probe=0.0)) == 2
    for name, path, raw in (("GET /a", "body.id", 100), ("POST /a", "body.id", 50), ("POST /a", "status", 100)):
        assert notes(name, path, raw) == ["a note"]


def test_a_report_says_that_the_tap_was_late() -> None:
    given = State(late=1200, endpoints={"GET /a": Endpoint(pairs=5000)})
    (note,) = figures("t", "s", given, Compare(), VerdictLimits()).notes
    assert note.startswith("1,200 of 5,000 exchanges are not timed: the tap was more than 50 ms behind")


def test_a_bin_holds_the_values_between_its_edges() -> None:
    endpoint = Endpoint(pairs=300, compared=300)
    for value, count in ((1e6, 100), (2e6, 60), (8e6, 40)):  # 1, 2 and 8 ms
        for _ in range(count):
            endpoint.production.last.add(value)
    bins = figures("t", "s", state(one=endpoint), Compare(), VerdictLimits()).all.bins
    held = {(each.low, each.high): each.production for each in bins if each.production}
    assert [*held.values()] == [100, 60, 40]
    for (low, high), value in zip(held, (1.0, 2.0, 8.0), strict=True):
        assert 0.98 * low <= value <= 1.02 * high  # as exact as a sketch is
        assert high / low < 1.06


def test_what_a_worker_says_is_checked() -> None:
    good = {"schema": "tapmirror.compare/1", "shadows": {"s": json.loads(msgspec.json.encode(State()))}}
    assert merge([good, good], Compare())["s"].requests == 0
    bad = {**good, "shadows": {"s": {"requests": "many"}}}
    huge = {"a": {"ratio": {"buckets": {"999999999": 1}}}}
    worse = [
        {"endpoints": huge},
        {"endpoints": {"a": {"pairs": -1}}},
        {"width": 0.0},
        {"line": {"0": {"shadow": {"x": 1}}}},
        {"line": {"0": {"errors": [0]}}},
        {"line": {str(1 << 64): {}}},
        {"requests": 1 << 64},
        {"endpoints": {"a": {"shadow": {"last": {"buckets": {"1": 10**400}}}}}},
    ]
    none: tuple[dict[str, Any], ...] = (
        {},
        {"schema": good["schema"]},
        {**good, "shadows": 5},
        {**good, "shadows": {"s": None}},
    )
    for wrong in (*none, {"schema": "x", "shadows": {}}, bad, *({**good, "shadows": {"s": each}} for each in worse)):
        with pytest.raises(msgspec.ValidationError):
            merge([wrong], Compare())


def verdicts(slower: float, rand: random.Random) -> Iterator[Verdict]:
    """Of independent times, the shadow's so many times as long: one for each 5,000 exchanges, 250 a second."""
    summary = Summary(state_bounds(Compare()), "status")
    endpoint = summary.endpoint("GET /a")
    for number in range(1, 100_001):
        took, its = (int(rand.lognormvariate(15, 0.5)) for _ in range(2))
        response, other = (Response(200, first_ns=1 + each, last_ns=1 + each) for each in (took, int(its * slower)))
        asked = Asked(number, b"GET", b"/a", b"", ended_ns=1)
        summary.observe(endpoint, asked, response, Delivery(other, 1), number / 250)
        summary.state.requests = number
        if number % 5000 == 0:
            yield figures("t", "s", summary.state, Compare(), VerdictLimits()).verdict


@pytest.mark.parametrize("seed", range(2))
def test_a_shadow_that_is_a_fifth_slower_fails_by_the_default_limit_and_an_equal_one_never(seed: int) -> None:
    slower = list(verdicts(1.2, random.Random(seed)))
    assert slower[-1].outcome is Outcome.FAIL
    assert "p99 ratio" in slower[-1].reason
    assert Outcome.FAIL not in {each.outcome for each in verdicts(1.0, random.Random(seed))}
