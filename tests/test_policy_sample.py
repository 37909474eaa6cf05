# SPDX-License-Identifier: Apache-2.0
"""Shares: monotone, deterministic, of the right size, and independent between levels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_cases import Tried, head, key, request
from tapmirror.policy.request import Request
from tapmirror.policy.sample import RULE, SHADOW, TAP, Bucket, SampledConnection, Sampler
from tapmirror.spec import By, Ramp, Sampled
from tapmirror.spec.sampled import FULL

SOME = 6_000


def talks(seed: int, count: int = SOME) -> list[SampledConnection]:
    """Connections of many clients."""
    return [
        SampledConnection(key(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1024 + n % 60_000), seed, 0.0)
        for n in range(count)
    ]


def taken(spec: Sampled, level: int, talks: Iterable[SampledConnection], seed: int = 0) -> set[int]:
    """Which of the connections' second requests are in the share."""
    sampler = Sampler(spec, level, seed)
    found = set()
    for i, talk in enumerate(talks):
        talk.number = 2
        if sampler.takes(Request(head("GET / HTTP/1.1", f"X-User: u{i}"), talk.key), talk, 0.0):
            found.add(i)
    return found


def within(count: int, of: int, percent: float) -> bool:
    """Whether a count is within five standard deviations of a binomial share: one in two million is not."""
    p = percent / 100
    return abs(count - of * p) <= 5 * math.sqrt(of * p * (1 - p)) + 1


@pytest.mark.parametrize(
    ("level", "by", "key_"),
    [
        (level, by, key_)
        for level in (TAP, SHADOW)  # the others differ from the last in their salt alone
        for by, key_ in ((By.CONNECTION, None), (By.REQUEST, None), (By.KEY, "header:X-User"), (By.KEY, "client"))
    ],
)
def test_shares_are_of_their_size_nested_and_the_same_again(level: int, by: By, key_: str | None) -> None:
    known = talks(7)
    before: set[int] = set()
    for percent in (0.0, 0.01, 1.0, 10.0, 50.0, 99.9, 100.0):
        spec = Sampled(percent=percent, by=by, key=key_)
        found = taken(spec, level, known, seed=7)
        assert within(len(found), SOME, percent), (percent, len(found))
        assert before <= found
        before = found
    assert len(before) == SOME
    ten = Sampled(percent=10.0, by=by, key=key_)
    assert taken(ten, level, known, seed=7) == taken(ten, level, talks(7), seed=7)
    assert taken(ten, level, known, seed=7) != taken(ten, level, talks(8), seed=8)


@settings(max_examples=60, deadline=None)
@given(
    a=st.integers(0, FULL).map(lambda steps: steps / 10_000),
    b=st.integers(0, FULL).map(lambda steps: steps / 10_000),
    seed=st.integers(0, 2**32 - 1),
    by=st.sampled_from([By.CONNECTION, By.REQUEST]),
)
def test_any_share_lies_within_any_larger_one(a: float, b: float, seed: int, by: By) -> None:
    known = talks(seed, 300)
    small, large = (taken(Sampled(percent=p, by=by), SHADOW, known, seed) for p in sorted((a, b)))
    assert small <= large


def test_levels_are_independent() -> None:
    """Half of a half is a quarter; two shadows with the same share get the same."""
    known = talks(1)
    half = Sampled(percent=50.0)
    rule, shadow = taken(half, RULE, known, 1), taken(half, SHADOW, known, 1)
    assert within(len(rule & shadow), SOME, 25)
    assert taken(half, SHADOW, known, 1) == shadow


def test_requests_of_one_connection_are_independent() -> None:
    talk = SampledConnection(key(), 0, 0.0)
    sampler = Sampler(Sampled(percent=30.0, by=By.REQUEST), SHADOW, 0)
    count = 0
    for number in range(SOME):
        talk.number = number
        count += sampler.takes(request(), talk, 0.0)
    assert within(count, SOME, 30)


@pytest.mark.parametrize(("percent", "wanted"), [(25.0, 4), (10.0, 10), (33.3333, 3), (0.0, None), (100.0, 1)])
def test_exact_is_evenly_spaced(percent: float, wanted: int | None) -> None:
    sampler = Sampler(Sampled(percent=percent, by=By.EXACT), SHADOW, 0)
    talk = SampledConnection(key(), 0, 0.0)
    hits = [i for i in range(10_000) if sampler.takes(request(), talk, 0.0)]
    assert len(hits) == int(percent * 100 + 1e-6)
    assert {b - a for a, b in itertools.pairwise(hits)} <= ({wanted, (wanted or 0) + 1} if wanted else set())


def test_all_requests_of_a_key_go_together() -> None:
    sampler = Sampler(Sampled(percent=50.0, by=By.KEY, key="cookie:s"), SHADOW, 0)
    for user in range(50):
        decisions = set()
        for number in range(20):
            talk = SampledConnection(key(port=1024 + number), 0, 0.0)
            talk.number = number
            decisions.add(sampler.takes(request("GET / HTTP/1.1", f"Cookie: a=b; s=user{user}"), talk, 0.0))
        assert len(decisions) == 1


def test_without_its_key_a_request_goes_by_its_client() -> None:
    spec = Sampled(percent=50.0, by=By.KEY, key="query:user")
    by_key, by_client = Sampler(spec, SHADOW, 0), Sampler(Sampled(percent=50.0, by=By.KEY, key="client"), SHADOW, 0)
    talk = SampledConnection(key(), 0, 0.0)
    for n in range(100):
        asked = request(client=f"10.0.1.{n}")
        assert by_key.takes(asked, talk, 0.0) == by_client.takes(asked, talk, 0.0)


def test_a_ramp_moves_from_its_start() -> None:
    sampler = Sampler(Sampled(ramp=Ramp(start=10.0, end=60.0, over=100.0), by=By.REQUEST), SHADOW, 0)
    assert [sampler.percent(now) for now in (500.0, 550.0, 600.0, 9000.0)] == [10.0, 35.0, 60.0, 60.0]


def test_a_ramp_of_connections_keeps_what_it_decided() -> None:
    tried = Tried(ramp={"from": 0, "to": 100, "over": 100}, by="connection")
    early = [tried.open(port=1024 + n) for n in range(50)]
    for flow in early:
        assert tried.ask(head(), flow, now=1.0) == [None]
    for flow in early:
        assert tried.ask(head(), flow, now=200.0) == [None]  # as at its beginning
    tried.policy.route([], 0.0)
    assert tried.fates() == {"sampled_out": 100}


def test_buckets() -> None:
    bucket = Bucket(10.0)
    assert [bucket.allows(1.0, 5.0) for _ in range(3)] == [True] * 3
    for _ in range(10):
        assert bucket.allows(1.0, 5.0)
        bucket.take(1.0)
    assert not bucket.allows(1.0, 5.0)
    assert not bucket.allows(1.0, 5.05)
    assert bucket.allows(1.0, 5.11)
    bucket.take(100.0)  # into debt
    assert not bucket.allows(1.0, 14.0)
    assert bucket.allows(1.0, 16.0)


@pytest.mark.parametrize("where", ["tap", "rule", "shadow", "mirror"])
def test_caps_on_every_level(where: str) -> None:
    cap: dict[str, Any] = {"max_requests": 5}
    spec: dict[str, Any] = {
        "tap": cap,
        "rule": {"rules": [cap]},
        "shadow": {"shadow": {"to": "new:80", **cap}},
        "mirror": {"rules": [{"mirror": [{"shadow": "new:80", **cap}]}]},
    }[where]
    tried = Tried(**spec)
    flow = tried.open()
    assert sum(tried.ask(head(), flow, now=1.0) != [None] for _ in range(20)) == 5
    assert sum(tried.ask(head(), flow, now=1.6) != [None] for _ in range(20)) == 3
    assert tried.fates() == {"cap": 32}


def test_a_cap_on_bytes_counts_bodies_too() -> None:
    tried = Tried(shadow={"to": "new:80", "max_bytes": 1000})
    flow = tried.open()
    post = head("POST / HTTP/1.1", "Content-Length: 2000")
    assert tried.ask(post, flow, now=1.0, flags=1) != [None]
    tried.body(flow, bytes(2000), end=True, now=1.0)
    assert tried.ask(head(), flow, now=2.0) == [None]
    assert tried.ask(head(), flow, now=3.2) != [None]
    assert tried.fates() == {"cap": 1}


def test_a_ramp_that_began_before() -> None:
    sampler = Sampler(Sampled(ramp=Ramp(start=10.0, end=60.0, over=100.0), by=By.REQUEST), SHADOW, 0)
    sampler.begin(450.0)
    assert [sampler.percent(now) for now in (500.0, 550.0)] == [35.0, 60.0]


@pytest.mark.parametrize("spec", [{"percent": 100.0}, {"percent": 5.0}, {"ramp": Ramp(start=0.0, end=50.0, over=9.0)}])
def test_a_share_that_is_changed(spec: dict[str, Any]) -> None:
    sampler = Sampler(Sampled(by=By.REQUEST, **spec), SHADOW, 0)
    sampler.set_percent(0.0)
    assert (sampler.percent(100.0), sampler.always) == (0.0, False)
    assert not any(
        sampler.takes(request(), SampledConnection(key("10.0.0.1", port), 0, 0.0), 100.0)
        for port in range(2_000, 2_100)
    )
    sampler.set_percent(100.0)
    assert sampler.always
