# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import random

import msgspec
import pytest

from tapmirror.compare.endpoints import OTHER
from tapmirror.compare.summary import (
    DISCORDANT,
    POINTS,
    SIGNATURES,
    SIGNATURES_LENGTH,
    STATUSES,
    Endpoint,
    Field,
    Sample,
    State,
    StateBounds,
    Summary,
    fold_endpoints,
    merged,
    whole,
)
from tapmirror.exchange import Asked, Delivery, Failure, Response

BOUNDS = StateBounds(endpoints=5, fields=4, samples=2, all_samples=3)
ASKED = Asked(1, b"GET", b"/", b"", ended_ns=1000)


def fed(times: list[float], status: int = 200, other: int = 200, name: str = "a") -> Summary:
    summary = Summary(BOUNDS, "body")
    for now in times:
        delivery = Delivery(Response(other, length=7, first_ns=3000, last_ns=4000), 1000, 90, 10)
        summary.observe(
            summary.endpoint(name), ASKED, Response(status, length=5, first_ns=1500, last_ns=2000), delivery, now
        )
    return summary


def test_times_run_from_the_last_byte_of_the_request_on_each_side() -> None:
    endpoint = fed([1.0]).state.endpoints["a"]
    assert endpoint.production.first.quantile(0.5) == pytest.approx(500, rel=0.011)
    assert endpoint.production.last.quantile(0.5) == pytest.approx(1000, rel=0.011)
    assert endpoint.shadow.first.quantile(0.5) == pytest.approx(2000, rel=0.011)
    assert endpoint.ratio.quantile(0.5) == pytest.approx(3, rel=0.011)
    assert (endpoint.production.bytes, endpoint.shadow.bytes) == (5, 7)


@pytest.mark.parametrize(
    ("since", "least", "want"),
    [
        (0, 10, 3000),
        (900, 10, 3000),  # it was idle
        (2500, 0, 1500),  # it worked on the request before
        (2500, 100, 1600),  # what the network takes is in it as in all others
        (3000, 0, 3000),  # responses that were read together
    ],
)
def test_what_a_request_waits_for_the_one_before_it_is_not_its_own_time(since: int, least: int, want: int) -> None:
    summary = Summary(BOUNDS, "status")
    endpoint = summary.endpoint("a")
    delivery = Delivery(Response(200, first_ns=3000, last_ns=4000, since_ns=since), 1000, 90, least)
    summary.observe(endpoint, ASKED, Response(200, first_ns=1500, last_ns=2000, since_ns=1200), delivery, 1.0)
    assert endpoint.shadow.last.quantile(0.5) == pytest.approx(want, rel=0.011)
    assert endpoint.production.last.quantile(0.5) == pytest.approx(800, rel=0.011)


@pytest.mark.parametrize(
    ("status", "other", "want"), [(200, 200, (0, 0)), (200, 500, (1, 0)), (503, 404, (0, 1)), (500, 502, (0, 0))]
)
def test_errors(status: int, other: int, want: tuple[int, int]) -> None:
    endpoint = fed([1.0], status, other).state.endpoints["a"]
    assert (endpoint.only_shadow, endpoint.only_production) == want


@pytest.mark.parametrize(
    ("exchanges", "crossed", "changed"),
    [
        ([(201, 409), (409, 201)], {"201 409": 1}, {}),
        ([(409, 201), (201, 409)], {"201 409": 1}, {}),
        ([(201, 201), (409, 409)], {}, {"201 409": 1}),
        ([(409, 409), (201, 201)], {}, {"201 409": 1}),
        ([(201, 409), (201, 409)], {}, {}),
        ([(201, 409), (409, 409)], {}, {}),
        ([(201, 409), (409, 404)], {}, {}),
        ([(201, 201), (201, 409), (409, 201)], {}, {}),  # each is held against one other
        ([(201, 201), (201, 201), (201, 409), (409, 201)], {"201 409": 1}, {}),
        ([(201, 409), (503, 201), (201, 503), (409, 201)], {"201 409": 1}, {}),  # errors of one side are none
    ],
)
def test_each_two_exchanges_in_a_row_show_whether_statuses_change_places(
    exchanges: list[tuple[int, int]], crossed: dict[str, int], changed: dict[str, int]
) -> None:
    summary = Summary(BOUNDS, "status")
    for status, other in exchanges:
        summary.observe(summary.endpoint("a"), ASKED, Response(status), Delivery(Response(other), 0), 1.0)
    endpoint = summary.state.endpoints["a"]
    assert (endpoint.crossed, endpoint.changed) == (crossed, changed)
    total = merged([summary.state, summary.state], BOUNDS).endpoints["a"]
    assert (sum(total.crossed.values()), sum(total.changed.values())) == (2 * len(crossed), 2 * len(changed))


def test_which_way_statuses_differ_is_known_of_each_stretch_of_time() -> None:
    summary = Summary(BOUNDS, "status")
    for now, status, other in [
        (0, 201, 409),
        (0, 409, 201),
        (1, 201, 409),
        (1, 500, 503),
        (1, 500, 201),
        (1, 201, 201),
    ]:
        summary.observe(summary.endpoint("a"), ASKED, Response(status), Delivery(Response(other), 0), float(now))
    assert summary.state.discordant == {
        201: {0: [1, 1], 1: [1, 0]},
        409: {0: [1, 1], 1: [0, 1]},
        500: {1: [1, 0]},
        503: {1: [0, 1]},
    }
    before = msgspec.convert({"line": {0: {"pairs": 2}}}, State)  # a state that does not know of them
    total = merged([summary.state, before, summary.state], BOUNDS)
    assert (total.discordant[201], total.discordant[503]) == ({0: [2, 2], 1: [2, 0]}, {1: [0, 2]})


def test_which_way_statuses_differ_gets_coarser_with_the_time_line_and_is_of_so_many_statuses_only() -> None:
    summaries = [Summary(BOUNDS, "status") for _ in range(2)]
    for summary, statuses in zip(summaries, (range(300, 300 + DISCORDANT + 9), (200, 404)), strict=True):
        for now in range(3 * POINTS if summary is summaries[0] else POINTS):
            other = statuses[now % len(statuses)]
            summary.observe(summary.endpoint("a"), ASKED, Response(250), Delivery(Response(other), 0), float(now))
    states = [summary.state for summary in summaries]
    assert [state.width for state in states] == [4.0, 1.0]
    assert len(states[0].discordant) == DISCORDANT
    for order in (states, states[::-1]):
        total = merged(order, BOUNDS)
        assert len(total.discordant) == DISCORDANT
        assert all(ways.keys() <= total.line.keys() for ways in total.discordant.values())
    assert total.discordant[200] == {number: [0, 2] for number in range(POINTS // 4)}
    assert total.discordant[250][0] == [8, 0]


def test_an_exchange_that_is_not_timed_counts_but_for_its_times() -> None:
    summary = Summary(BOUNDS, "status")
    endpoint = summary.endpoint("a")
    asked = Asked(1, b"GET", b"/", b"", timed=False, ended_ns=1000)
    delivery = Delivery(Response(500, length=7, first_ns=3000, last_ns=4000), 1000, 90, 10)
    summary.observe(endpoint, asked, Response(200, first_ns=1500, last_ns=2000), delivery, 1.0)
    assert (endpoint.pairs, endpoint.only_shadow, endpoint.shadow.bytes) == (1, 1, 7)
    assert (endpoint.production.last.count, endpoint.shadow.last.count, endpoint.ratio.count) == (0, 0, 0)
    assert summary.state.rtts == 0


def test_an_exchange_that_the_tap_was_late_for_is_counted_and_has_no_times() -> None:
    summary = fed([1.0])
    endpoint = summary.endpoint("a")
    asked = Asked(1, b"GET", b"/", b"", timed=True, ended_ns=1000, late=True)
    delivery = Delivery(Response(200, first_ns=3000, last_ns=4000), 1000, 90, 10)
    summary.observe(endpoint, asked, Response(200, first_ns=1500, last_ns=2000), delivery, 1.0)
    assert (endpoint.pairs, endpoint.shadow.last.count, summary.state.late) == (2, 1, 1)


def test_no_response_is_an_error_and_has_no_time() -> None:
    summary = Summary(BOUNDS, "status")
    endpoint = summary.endpoint("a")
    delivery = Delivery(Response(0, failure=Failure.CLOSED), 1000)
    summary.observe(endpoint, ASKED, Response(200, first_ns=1500, last_ns=2000), delivery, 1.0)
    assert (endpoint.only_shadow, endpoint.shadow.last.count, endpoint.ratio.count) == (1, 0, 0)
    assert endpoint.production.last.count == 0
    assert summary.state.failures == {"closed": 1}


@pytest.mark.parametrize(
    ("production", "shadow", "sent"),
    [
        (Response(200, first_ns=1, last_ns=2), Response(200, first_ns=1500, last_ns=1600), 1000),
        (Response(200, first_ns=1500, last_ns=2000), Response(200, first_ns=1500, last_ns=1600), 0),
        (Response(200, first_ns=1500, last_ns=2000), Response(200, first_ns=500, last_ns=600), 1000),
    ],
)
def test_a_response_before_the_request_ended_has_no_time(production: Response, shadow: Response, sent: int) -> None:
    summary = Summary(BOUNDS, "status")
    endpoint = summary.endpoint("a")
    summary.observe(endpoint, ASKED, production, Delivery(shadow, sent), 1.0)
    assert (endpoint.pairs, endpoint.ratio.count) == (1, 0)
    assert (endpoint.production.last.count, endpoint.shadow.last.count) == (0, 0)


def test_the_time_line_gets_coarser_and_never_longer() -> None:
    summary = fed([n * 7.0 for n in range(5000)])
    assert len(summary.state.line) <= POINTS
    assert summary.state.width == 512.0
    assert sum(point.pairs for point in summary.state.line.values()) == 5000


def test_endpoints_and_statuses_are_bounded() -> None:
    summary = Summary(BOUNDS, "status")
    for n in range(20):
        summary.endpoint(f"e{n}").pairs += 1
    assert set(summary.state.endpoints) == {*(f"e{n}" for n in range(5)), OTHER}
    summary = fed([1.0])
    endpoint = summary.endpoint("a")
    for status in range(100, 1000):
        delivery = Delivery(Response(status, first_ns=3000, last_ns=4000), 1000)
        summary.observe(endpoint, ASKED, Response(200, first_ns=1500, last_ns=2000), delivery, 1.0)
    assert len(endpoint.shadow.statuses) <= STATUSES + 1
    assert sum(endpoint.shadow.statuses.values()) == 901


def test_fields_signatures_and_samples_are_bounded() -> None:
    summary = Summary(BOUNDS, "body")
    endpoint = summary.endpoint("a")
    kept = 0
    for n in range(2000):
        names = [f"value f{(n * 7 + k * k) % 11}" for k in range(1 + n % 4)]
        for wanted in summary.differed(endpoint, names):
            summary.add_sample(endpoint, wanted, Sample(0.0, "", "", "", "", ""))
            kept += 1
    assert set(endpoint.fields) == {*(f"value f{n}" for n in (0, 7, 8, 3)), OTHER}
    assert len(endpoint.signatures) <= SIGNATURES + 5
    assert sum(endpoint.signatures.values()) == 2000
    assert kept <= 4


def test_what_differs_in_a_pair_beyond_the_fields_that_are_known_counts_once() -> None:
    """Or what stands for them would seem to differ in more pairs than there are, and hide each fault as noise."""
    summary = Summary(BOUNDS, "body")
    endpoint = summary.endpoint("a")
    names = [f"value f{n}" for n in range(20)]
    for probe in (True, False):
        summary.noisy(endpoint, names, probe=probe)
    other = endpoint.fields[OTHER]
    assert (other.probes, other.repeats) == (endpoint.probed, endpoint.repeated) == (1, 1)


def test_a_signature_too_many_is_counted_by_its_least_noisy_field() -> None:
    summary = Summary(StateBounds(1, 200, 0, 0), "body")
    endpoint = summary.endpoint("a")
    for n in range(SIGNATURES):
        summary.differed(endpoint, ["value time", f"value f{n}"])
    summary.noisy(endpoint, ["value time"], probe=True)
    summary.differed(endpoint, ["value time", "value bug"])
    assert endpoint.signatures["value bug"] == 1


def test_long_names_that_differ_in_many_sets_take_no_more_room() -> None:
    """A hostile shadow's made a state of 85 MB, of which a message holds 64."""
    summary = Summary(StateBounds(1, 64, 0, 0), "body")
    endpoint = summary.endpoint("a")
    names = [f"value {'x' * 190}{n}" for n in range(64)]
    for n in range(500):
        summary.differed(endpoint, random.Random(n).sample(names, 32))
    assert sum(map(len, endpoint.signatures)) <= SIGNATURES_LENGTH + sum(map(len, names))
    assert sum(endpoint.signatures.values()) == 500
    total = merged(
        [State(endpoints={"a": msgspec.convert(msgspec.to_builtins(endpoint), Endpoint, str_keys=True)})], BOUNDS
    )
    assert sum(total.endpoints["a"].signatures.values()) == 500


def test_folded_endpoints_keep_the_bounds() -> None:
    summary = Summary(BOUNDS, "body")
    for n in range(4):
        name = "GET /a/{id}" if not n else f"GET /a/x{n}"
        summary.endpoint(name).compared += 1
        summary.differed(summary.endpoint(name), [f"value f{n}{field}" for field in range(4)])
    summary.fold({"/a": []})
    ((name, endpoint),) = summary.state.endpoints.items()
    assert (name, len(endpoint.fields), OTHER in endpoint.fields) == ("GET /a/{id}", 5, True)
    assert sum(field.raw for field in endpoint.fields.values()) == 8
    assert endpoint.fields[OTHER].raw == endpoint.compared == 4
    assert sum(endpoint.signatures.values()) == 4


def test_states_add_up_whatever_their_widths() -> None:
    one, other = fed([n * 1.0 for n in range(500)]), fed([n * 10.0 for n in range(100)], other=500, name="b")
    one.state.raw, other.state.raw = 3, 4
    one.state.late, other.state.late = 5, 6
    states = [
        msgspec.convert(json.loads(msgspec.json.encode(each.state)), State, str_keys=True) for each in (one, other)
    ]
    for order in (states, states[::-1]):
        total = merged(order, BOUNDS)
        assert total.width in (8.0, 16.0)
        assert sum(point.pairs for point in total.line.values()) == 600
        assert len(total.line) <= POINTS
        assert (total.began, total.ended, total.raw, total.late) == (0.0, 990.0, 7, 11)
        everything = whole(total)
        assert (everything.pairs, everything.only_shadow, everything.shadow.last.count) == (600, 100, 600)
        assert (total.rtts, total.rtt_ns) == (600, 6000)


def test_a_merged_state_keeps_its_bounds() -> None:
    states = []
    for worker in range(4):
        endpoints = {f"w{worker} e{n}": Endpoint(pairs=n + 1) for n in range(5)}
        fields = {f"value w{worker} f{n}": Field(raw=n + 1, samples=[Sample(0, "", "", "", "", "")]) for n in range(4)}
        endpoints["same"] = Endpoint(pairs=100, compared=100, fields=fields, signatures=dict.fromkeys(fields, 1))
        states.append(State(endpoints=endpoints))
    total = merged(states, BOUNDS)
    assert len(total.endpoints) == 6
    assert sum(endpoint.pairs for endpoint in total.endpoints.values()) == 4 * 115
    same = total.endpoints["same"]
    assert len(same.fields) == 5
    assert sum(field.raw for field in same.fields.values()) == 40
    assert sum(same.signatures.values()) == 16
    assert sum(len(field.samples) for endpoint in total.endpoints.values() for field in endpoint.fields.values()) <= 3


def test_endpoints_fold_into_templates() -> None:
    endpoints = {"GET /a/{id}": Endpoint(pairs=1), "GET /a/x": Endpoint(pairs=2), "GET /b": Endpoint(pairs=4)}
    assert fold_endpoints(endpoints, {"/a": []}, BOUNDS) == {"GET /a/x": "GET /a/{id}"}
    assert {name: endpoint.pairs for name, endpoint in endpoints.items()} == {"GET /a/{id}": 3, "GET /b": 4}


def test_what_one_worker_has_learned_holds_for_the_others_names() -> None:
    one = State(endpoints={"GET /a/{id}": Endpoint(pairs=1), "GET /a/x": Endpoint(pairs=2)}, places={"/a": ["x"]})
    other = State(endpoints={"GET /a/x": Endpoint(pairs=4), "GET /a/bob": Endpoint(pairs=8)})
    for states in ([one, other], [other, one]):
        total = merged([msgspec.convert(msgspec.to_builtins(each), State, str_keys=True) for each in states], BOUNDS)
        assert {name: endpoint.pairs for name, endpoint in total.endpoints.items()} == {"GET /a/{id}": 9, "GET /a/x": 6}
    third = State(places={"/a": ["y"], "/b": []})
    assert merged([one, third], BOUNDS).places == {"/a": ["x", "y"], "/b": []}
