# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

import lab.exchanges
from lab.exchanges import Feed, Plain
from tapmirror.compare.comparison import Comparison
from tapmirror.compare.figures import Figures, figures, merge
from tapmirror.compare.noise import Nature
from tapmirror.compare.verdict import Outcome, VerdictLimits
from tapmirror.events import NO_BODY, START
from tapmirror.exchange import PROBE, Unpaired
from tapmirror.spec import Compare, Level


def seen(feed: Feed) -> Figures:
    snapshot = json.loads(json.dumps(feed.comparison.snapshot()))  # it is plain data
    ((label, state),) = merge([snapshot], feed.spec).items()
    return figures("shop", label, state, feed.spec, VerdictLimits())


def test_a_state_is_the_same_as_plain_data_and_as_json() -> None:
    comparison = Feed("broken").run(500).comparison
    assert msgspec.json.decode(msgspec.json.encode(comparison.living())) == comparison.snapshot()


def different(found: Figures) -> set[tuple[str, str, str]]:
    return {
        (endpoint.name, field.kind, field.path)
        for endpoint in found.endpoints
        for field in endpoint.fields
        if field.nature is Nature.DIFFERENT
    }


def test_the_same_version_shows_no_difference_in_spite_of_times_ids_and_random_order() -> None:
    feed = Feed("same").run(6000)
    found = seen(feed)
    assert found.paired == found.requests == 6000
    assert different(found) == set()
    assert found.all.differing == 0
    assert 20 < feed.probes < 60
    noise = {field.path for endpoint in found.endpoints for field in endpoint.fields if field.nature is Nature.NOISE}
    assert {"body.time", "body.request", "body.products"} <= noise
    assert {endpoint.name for endpoint in found.endpoints} == {
        "GET /",
        "GET /products",
        "GET /products/{id}",
        "POST /cart",
        "GET /search",
        "GET /users/{id}/orders",
    }


def test_noise_is_known_at_endpoints_without_safe_requests_by_the_others() -> None:
    found = seen(Feed("same").run(2000))
    (cart,) = (endpoint for endpoint in found.endpoints if endpoint.name == "POST /cart")
    assert {field.path: field.noise for field in cart.fields} == {"body.time": None, "body.request": None}
    assert all(field.nature is Nature.NOISE for field in cart.fields)


def test_what_is_broken_is_found_and_named_and_a_sample_shows_it() -> None:
    found = seen(Feed("broken", spec=Compare(level=Level.BODY, noise_probe=5.0)).run(12_000))
    names = different(found)
    assert ("GET /products/{id}", "value", "body.price.amount") in names
    assert ("GET /users/{id}/orders", "value", "status") in names
    assert {name for name in names if name[2].startswith("body")} == {
        ("GET /products/{id}", "value", "body.price.amount")
    }
    (products,) = (endpoint for endpoint in found.endpoints if endpoint.name == "GET /products/{id}")
    (price,) = (field for field in products.fields if field.path == "body.price.amount")
    assert price.rate == pytest.approx(0.01, abs=0.006)
    assert len(price.samples) == 3
    sample = price.samples[0]
    assert sample.curl.startswith("curl -i -H 'Host: shop.example'")
    assert "http://v2.test:8080/products/" in sample.curl
    assert float(sample.other) == pytest.approx(float(sample.one) + 0.01)
    assert '"amount": ' + sample.other in sample.shadow
    assert found.verdict.outcome is Outcome.FAIL


def test_slower_is_found_and_fair() -> None:
    found = seen(Feed("slower", spec=Compare(level=Level.STATUS)).run(20_000))
    assert found.all.p99_ratio.value == pytest.approx(1.2, rel=0.05)
    assert found.all.p50_ratio.value == pytest.approx(1.2, rel=0.05)
    low, high = found.all.p99_ratio.low, found.all.p99_ratio.high
    assert low is not None
    assert high is not None
    assert low < 1.2 < high
    assert found.rtt == pytest.approx(0.3)
    assert not different(found)


def test_workers_add_up() -> None:
    whole = Feed("broken").run(3000)
    parts = [Feed("broken", seed=seed).run(1000) for seed in (1, 2, 3)]
    states = merge([part.comparison.snapshot() for part in parts], whole.spec)
    found = figures("shop", "v2", states["v2"], whole.spec, VerdictLimits())
    assert found.paired == 3000
    assert sum(found.all.shadow.statuses.values()) == 3000
    assert sum(point.requests for point in found.line) == 3000
    assert {endpoint.name for endpoint in found.endpoints} == {endpoint.name for endpoint in seen(whole).endpoints}
    assert all(len(field.samples) <= 3 for endpoint in found.endpoints for field in endpoint.fields)


def test_a_scan_of_paths_of_numbers_leaves_the_endpoints_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed("same").run(300)
    names = {endpoint.name for endpoint in seen(feed).endpoints}
    monkeypatch.setattr(lab.exchanges, "ENDPOINTS", ("/{n}", "/{n}/{n}", "/{n}/{n}/{n}"))
    scanned = {endpoint.name for endpoint in seen(feed.run(20)).endpoints}
    assert scanned == names | {"GET /{id}", "GET /{id}/{id}", "GET /{id}/{id}/{id}"}


def test_the_state_is_bounded_in_time_and_against_hostile_paths_and_responses() -> None:
    spec = Compare(level=Level.BODY, max_endpoints=10, max_fields=5, max_samples=7, noise_probe=0.0)
    comparison = Comparison(spec, [("v2", "")], Plain())
    talk = comparison.opened(1, False)
    sizes = []
    for n in range(4000):
        now = n * 100.0
        word = "".join(chr(97 + (n >> shift) % 16) for shift in (0, 4, 8, 12))
        comparison.request(1, n, f"GET /{word}/{word[::-1]} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), START, now)
        talk.request_ended(n, 1)
        talk.asked(0, n, 0)
        talk.sent(0, n, 1, 0)
        talk.decided(n)
        for side, letter in ((None, "a"), (0, "b")):
            body = json.dumps({f"{letter}{word}{k}": n for k in range(3)}).encode()
            data = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
                200 if n % 3 else 200 + n % 700,
                len(body),
                body,
            )
            if side is None:
                talk.production_data(data, 10 + n)
            else:
                talk.shadow_data(side, data, 20 + n)
        if n % 1000 == 999:
            sizes.append(len(json.dumps(comparison.snapshot())))
    assert sizes[3] < 1.3 * sizes[1]
    ((_, state),) = merge([comparison.snapshot()], spec).items()
    found = figures("x", "v2", state, spec, VerdictLimits())
    assert len(found.endpoints) <= 11
    assert all(len(endpoint.fields) <= 6 for endpoint in found.endpoints)
    assert sum(len(field.samples) for endpoint in found.endpoints for field in endpoint.fields) <= 7
    assert len(found.line) <= 120
    assert found.paired == 4000


def one(comparison: Comparison, number: int, now: float, length: int = 1, theirs: bytes = b"b") -> bool:
    talk = comparison._conversations[1]
    probed = comparison.request(1, number, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", START, now)
    talk.request_ended(number, 5)
    for side in (0, PROBE) if probed else (0,):
        talk.asked(side, number, 0)
        talk.sent(side, number, 5, 0)
    talk.decided(number)
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length
    talk.production_data(data + b"a" * length, 9)
    for side in (0, PROBE) if probed else (0,):
        talk.shadow_data(side, data + theirs * length, 9)
    return probed


def state_of(comparison: Comparison) -> dict[str, Any]:
    state: dict[str, Any] = comparison.snapshot()["shadows"]["v2"]
    return state


def test_above_the_budget_comparison_is_thinned() -> None:
    comparison = Comparison(Compare(level=Level.BODY, max_exchanges=10.0, max_bodies=4.0), [("v2", "")], Plain())
    comparison.opened(1, False)
    for n in range(40):
        one(comparison, n, 1.0 + n // 20)
    state = state_of(comparison)
    endpoint = state["endpoints"]["GET /"]
    assert state["requests"] == 40
    assert (endpoint["pairs"], endpoint["compared"]) == (20, 8)
    assert state["unpaired"] == {"thinned": 20}
    assert state["thinned"] == 12


@pytest.mark.parametrize(("length", "theirs", "want"), [(2048, b"b", 80), (20_480, b"b", 8), (20_480, b"a", 80)])
def test_long_bodies_that_differ_are_as_many_as_they_are_long(length: int, theirs: bytes, want: int) -> None:
    """Pages of 50 KB with the time of day took a worker's whole time from 450 a second on."""
    spec = Compare(level=Level.BODY, max_bodies=40.0, noise_probe=0)
    comparison = Comparison(spec, [("v2", "")], Plain())
    comparison.opened(1, False)
    for n in range(200):
        one(comparison, n, 1.0 + n // 100, length, theirs)
    endpoint = state_of(comparison)["endpoints"]["GET /"]
    assert endpoint["pairs"] == 200
    assert endpoint["compared"] == pytest.approx(want, abs=2)


def test_bodies_that_were_not_compared_do_not_count_as_equal() -> None:
    comparison = Comparison(Compare(level=Level.BODY, body_bytes=10, hash_bytes=0), [("v2", "")], Plain())
    talk = comparison.opened(1, False)
    for number in range(4):
        comparison.request(1, number, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", START, 1.0)
        talk.request_ended(number, 5)
        talk.asked(0, number, 0)
        talk.sent(0, number, 5, 0)
        talk.decided(number)
        data = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n"
        talk.production_data(data + b"a" * 50, 9)
        talk.shadow_data(0, data + b"b" * 50, 9)
    endpoint = state_of(comparison)["endpoints"]["GET /"]
    assert (endpoint["pairs"], endpoint["compared"], endpoint["repeated"]) == (4, 0, 0)
    assert endpoint["skipped"] == {"too long": 4}


def test_probes_and_repeats_are_counted_apart_from_exchanges() -> None:
    comparison = Comparison(Compare(level=Level.BODY, noise_probe=25.0), [("v2", "")], Plain())
    comparison.opened(1, False)
    assert sum(one(comparison, n, 1.0) for n in range(40)) == 10
    endpoint = state_of(comparison)["endpoints"]["GET /"]
    assert (endpoint["pairs"], endpoint["probed"], endpoint["repeated"]) == (40, 10, 19)
    assert endpoint["fields"]["value body"]["raw"] == 40
    assert endpoint["fields"]["value body"]["probes"] == 0


@pytest.mark.parametrize("level", [Level.STATUS, Level.BODY])
def test_errors_of_one_side_alone_are_counted_apart(level: Level) -> None:
    comparison = Comparison(Compare(level=level, noise_probe=0.0), [("v2", "")], Plain())
    talk = comparison.opened(1, False)
    pairs = [(200, 200), (500, 200), (200, 503), (500, 503), (404, 200), (302, 200), (500, 500)]
    for number, statuses in enumerate(pairs):
        comparison.request(1, number, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", START, 1.0)
        talk.request_ended(number, 5)
        talk.asked(0, number, 0)
        talk.sent(0, number, 5, 0)
        talk.decided(number)
        one, other = (b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status for status in statuses)
        talk.production_data(one, 9)
        talk.shadow_data(0, other, 9)
    endpoint = state_of(comparison)["endpoints"]["GET /"]
    assert (endpoint["compared"], endpoint["fields"]["value status"]["raw"], endpoint["erring"]) == (7, 5, 2)
    assert (endpoint["only_production"], endpoint["only_shadow"]) == (1, 1)
    assert endpoint["turned"] == {"404 200": 1, "302 200": 1, "500 503": 1}
    ((_, state),) = merge([comparison.snapshot(), comparison.snapshot()], comparison._spec).items()
    assert state.endpoints["GET /"].erring == 4
    assert state.endpoints["GET /"].discordant == {"404 200": 2, "302 200": 2, "500 503": 2}


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_lengths_that_responses_to_head_tell_are_compared_and_shown(method: bytes) -> None:
    comparison = Comparison(Compare(level=Level.BODY), [("v2", "")], Plain())
    talk = comparison.opened(1, False)
    flags = START | (NO_BODY if method == b"HEAD" else 0)
    comparison.request(1, 1, method + b" / HTTP/1.1\r\nHost: x\r\n\r\n", flags, 1.0)
    talk.request_ended(1, 5)
    talk.asked(0, 1, NO_BODY if method == b"HEAD" else 0)
    talk.sent(0, 1, 5, 0)
    talk.decided(1)
    for side, body in (("production", b"a"), ("shadow", b" a")):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(body)
        data = head if method == b"HEAD" else head + body
        talk.production_data(data, 9) if side == "production" else talk.shadow_data(0, data, 9)
    fields = state_of(comparison)["endpoints"][f"{method.decode()} /"]["fields"]
    if method == b"GET":
        assert fields == {}
    else:
        ((name, field),) = fields.items()
        assert (name, field["samples"][0]["one"], field["samples"][0]["other"]) == (
            "value header.content-length",
            "1",
            "2",
        )


def test_what_waits_too_long_and_what_is_under_way_at_the_end() -> None:
    comparison = Comparison(Compare(level=Level.STATUS, answer_time=10.0), [("v2", ""), ("v3", "")], Plain())
    talk = comparison.opened(1, False)
    for n in range(3):
        comparison.request(1, n, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", START, 1.0 + 9 * n)
        talk.request_ended(n, 5)
        talk.asked(0, n, 0)
        talk.left_out(1, n, Unpaired.NOT_SENT)
        talk.decided(n)
        talk.production_data(b"HTTP/1.1 204 No\r\n\r\n", 9)
        if n == 0:
            comparison.tick(12.0, 99)
    comparison.close()
    state = state_of(comparison)
    assert state["failures"] == {"timeout": 1}
    assert state["unpaired"] == {"shutdown": 2}
    assert comparison.snapshot()["shadows"]["v3"]["unpaired"] == {"not_sent": 1, "shutdown": 2}
