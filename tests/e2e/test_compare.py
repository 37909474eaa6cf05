# SPDX-License-Identifier: Apache-2.0
"""A whole tap that compares, between real servers: what differs is found and named, what differs by itself is not."""

from __future__ import annotations

import statistics
import time
from typing import Any, Final

import pytest

from e2e.mirror import Mirror, dropped
from lab import Lab, load
from lab.operations import NAMES, Operations, ask
from lab.shop import REVIEWS_V2, Shop, SlowShop
from tapmirror.cli.compared import all_figures
from tapmirror.compare.figures import Figures
from tapmirror.compare.noise import Nature
from tapmirror.compare.verdict import Outcome, VerdictLimits
from tapmirror.comparing import PROBE_DELAY

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

PATHS = ("/users/", "/orders/", "/page/")


SPEC = """
iface: eth0
port: 80
protocol: http
capture: {capture}
shadow: "{shadow}:80"
compare: {{level: body, max_exchanges: {most}, noise_probe: 20}}
limits: {{ring_bytes: 268435456, queue_bytes: 67108864, drain_time: 30}}
"""
"""With responses, of which AF_PACKET hands each block over four times as soon: its ring lasts for eight seconds."""
ALL: Final = 100_000
"""A second: where the host stalls the load catches up, and its rate of a moment must not count as too many."""


def compared(lab: Lab, requests: int, level: str, *, wait: float = 0.0, **options: Any) -> Figures:
    """Run a load past a tap, and `wait` seconds; what its comparison says.  Nothing was lost on the way."""
    plan = {name: options.pop(name) for name in ("paths", "rate", "connections") if name in options}
    if "spec" not in options:
        most = {"max_exchanges": ALL, "max_bodies": ALL}
        compare = {"level": level, "noise_probe": options.pop("noise_probe", 0), **most}
        options |= {"shadow": f"{lab.shadow.addr4}:80", "protocol": "http", "compare": compare}
    with Mirror(lab.node, **options) as tap:
        result = load(lab.client, lab.node.addr4, requests=requests, **plan)
        assert (result.answered, result.failed) == (requests, 0)
        time.sleep(wait)
        ledger = tap.final()
    assert dropped(ledger) == {}
    (figures,) = all_figures([ledger], VerdictLimits())
    assert figures.requests == requests
    return figures


@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_the_same_service_differs_in_nothing(lab: Lab, capture: str) -> None:
    """In spite of times, identifiers and random order."""
    spec = SPEC.format(capture=capture, shadow=lab.shadow.addr4, most=ALL)
    with Shop(lab.node), Shop(lab.shadow):
        figures = compared(lab, 5_000, "body", paths=PATHS, rate=750, connections=16, spec=spec)
    assert (figures.paired, figures.unpaired, figures.failures) == (5_000, {}, {})
    assert [endpoint.name for endpoint in figures.endpoints if endpoint.differing] == []
    checks = {check.name: check.outcome for check in figures.verdict.checks}
    assert checks["difference rate"] is Outcome.PASS


def test_a_fault_in_one_of_a_hundred_requests_is_found_and_its_sample_shows_it(lab: Lab) -> None:
    spec = SPEC.format(capture="ebpf", shadow=lab.shadow.addr4, most=ALL)
    paths = ("/orders/", *PATHS, "/orders/", "/orders/")
    with Shop(lab.node), Shop(lab.shadow, broken="1%") as shadow:
        figures = compared(lab, 7_000, "body", paths=paths, rate=800, connections=16, spec=spec)
        (endpoint,) = [endpoint for endpoint in figures.endpoints if endpoint.differing]
        assert endpoint.name == "GET /orders/{id}"
        assert 0.004 < endpoint.differing / endpoint.compared < 0.02
        (field,) = [field for field in endpoint.fields if field.nature is Nature.DIFFERENT]
        assert field.path == "body.total"
        assert field.samples[0].curl.startswith("curl ")
        assert '"total":null' in lab.node.run(["bash", "-c", field.samples[0].curl]).stdout
        assert shadow.pid


def test_an_operation_that_is_broken_is_named_though_all_share_a_path(lab: Lab) -> None:
    rounds = 9  # so few that none is thinned out where all come in one moment to a worker that was held up
    options: dict[str, Any] = {"shadow": f"{lab.shadow.addr4}:80", "protocol": "http", "compare": "body"}
    options["loop_check"] = False  # of what is marked only the status is compared
    with Operations(lab.node), Operations(lab.shadow, broken="getPrice"), Mirror(lab.node, **options) as tap:
        assert ask(lab.client, lab.node.addr4, rounds) == rounds * len(NAMES) * 4
        ledger = tap.final()
    (figures,) = all_figures([ledger], VerdictLimits())
    protocols = {"/graphql": 2 * rounds, "/rpc": rounds, "/soap": rounds}
    assert {each.name: each.pairs for each in figures.endpoints} == {
        f"POST {path} {name}": pairs for path, pairs in protocols.items() for name in NAMES
    }
    assert {each.name: each.differing for each in figures.endpoints if each.differing} == {
        f"POST {path} getPrice": pairs for path, pairs in protocols.items()
    }


def test_the_responses_that_have_more_are_said_to_have_more(lab: Lab) -> None:
    """Bookinfo's reviews, v1 against v2."""
    options: dict[str, Any] = {"paths": ("/reviews/",), "rate": 300, "connections": 4, "noise_probe": 20}
    with Shop(lab.node), Shop(lab.shadow, reviews=REVIEWS_V2):
        # until the second copies are sent: without any, nothing is known of noise
        figures = compared(lab, 600, "body", wait=PROBE_DELAY + 1, **options)
    (endpoint,) = figures.endpoints
    assert endpoint.differing == endpoint.compared == 600 - figures.thinned
    assert 5 <= figures.thinned <= 5 + 600 // 16
    assert [(field.path, field.kind) for field in endpoint.fields] == [("body.reviews[].rating", "extra")]
    assert figures.verdict.outcome is Outcome.FAIL


def times_as_long(lab: Lab, requests: int, **options: Any) -> dict[str, float]:
    """By which factor the shadow is slower, at some quantiles: the median of five rounds, since a host that stalls for
    a tenth of a second delays more requests than there are beyond the 99th percentile of a round.
    """
    rounds: dict[str, list[float]] = {"p50": [], "p99": []}
    for _ in range(5):
        figures = compared(lab, requests, "status", paths=("/a/",), **options)
        assert figures.paired == requests
        (endpoint,) = figures.endpoints
        for name, ratios in rounds.items():
            ratios.append(endpoint.shadow.last[name] / endpoint.production.last[name])
    return {name: statistics.median(ratios) for name, ratios in rounds.items()}


@pytest.mark.alone
def test_a_slower_tail_is_measured(lab: Lab) -> None:
    """20 % at the 99th percentile."""
    with SlowShop(lab.node), SlowShop(lab.shadow, slower=1.2):
        assert times_as_long(lab, 1_000, rate=400, connections=32)["p99"] == pytest.approx(1.2, rel=0.1)


@pytest.mark.alone
def test_requests_that_queue_at_a_slower_shadow_do_not_make_it_slower_still(lab: Lab) -> None:
    """Clients that ask as soon as production has answered: what the shadow cannot follow waits there.

    With the time that they wait for each other, the median was 7 times as long, and the 99th percentile 8 times: it is
    3, and up to 6 where the host is busy and several responses are read at once.
    """
    with SlowShop(lab.node), SlowShop(lab.shadow, slower=3.0):
        found = times_as_long(lab, 1_000, connections=8)
    assert found["p50"] < 1.5 and 2.5 < found["p99"] < 7.0


def test_second_copies_for_connections_that_have_ended_are_paired_right(lab: Lab) -> None:
    """Each comes 1.5 s after the first, and its connection lives shorter here."""
    options: dict[str, Any] = {"protocol": "http", "compare": {"level": "body", "noise_probe": 50}}
    with Shop(lab.node), Shop(lab.shadow), Mirror(lab.node, shadow=f"{lab.shadow.addr4}:80", **options) as tap:
        load(lab.client, lab.node.addr4, requests=2_000, rate=1_000, paths=PATHS, per_connection=20, depth=4)
        time.sleep(PROBE_DELAY + 1)  # until they are sent; none of them would prove nothing
        (state,) = tap.final()["comparison"][0]["shadows"].values()
    endpoints = state["endpoints"]
    assert all(endpoint["probed"] > 50 for endpoint in endpoints.values())
    assert {name: sorted(endpoint["fields"]) for name, endpoint in endpoints.items()} == {
        "GET /users/{id}": ["value body.at", "value body.took", "value body.trace"],
        "GET /orders/{id}": ["order body.colours", "value body.trace"],
        "GET /page/{id}": [
            name for name in endpoints["GET /page/{id}"]["fields"] if name.startswith("value body.lines[")
        ],
    }


def test_several_workers_and_connections_that_end(lab: Lab) -> None:
    with Shop(lab.node), Shop(lab.shadow):
        figures = compared(lab, 1_000, "headers", paths=PATHS, rate=500, workers=2)
    assert (figures.paired, figures.unpaired) == (1_000, {})


@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_beyond_the_budget_connections_take_turns_and_none_is_paired_wrongly(lab: Lab, capture: str) -> None:
    with Shop(lab.node), Shop(lab.shadow):
        spec = SPEC.format(capture=capture, shadow=lab.shadow.addr4, most=30)
        with Mirror(lab.node, spec=spec) as tap:
            result = load(lab.client, lab.node.addr4, requests=2_000, paths=PATHS, rate=500, connections=16)
            assert (result.answered, result.failed) == (2_000, 0)
            ledger = tap.final()
    assert dropped(ledger) == {}
    (figures,) = all_figures([ledger], VerdictLimits())
    assert figures.requests == 2_000 == figures.paired + sum(figures.unpaired.values())
    assert set(figures.unpaired) == {"thinned"}
    # 120 and the turns that are under way, if neither the load nor the tap is kept waiting; 500 a second come
    assert 30 < figures.paired < 1_000
    assert [endpoint.name for endpoint in figures.endpoints if endpoint.differing] == []
