# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import statistics

import pytest

from lab.peeking import Kind, believed, clock, fault, flicker, one_of
from tapmirror.compare.noise import (
    Evidence,
    Nature,
    Repeats,
    Thresholds,
    apart_by_either,
    evidence_of,
    nature,
    request_key,
    wanted,
    weigh,
)
from tapmirror.compare.summary import Endpoint, Field
from tapmirror.exchange import Response

DIFFY = Thresholds(0.2, 0.0003)


@pytest.mark.parametrize(
    ("raw", "exchanges", "noisy", "pairs", "want"),
    [
        (100_000, 100_000, 1000, 1000, Nature.NOISE),  # a time of day
        (50_300, 100_000, 490, 1000, Nature.NOISE),  # random order of two
        (1000, 100_000, 0, 2000, Nature.DIFFERENT),  # wrong in 1 %
        (1000, 100_000, 0, 400, Nature.WAITING),  # nobody can tell yet
        (1000, 100_000, 12, 1000, Nature.NOISE),
        (1000, 100_000, 1, 3000, Nature.DIFFERENT),
        (1000, 100_000, 7, 1000, Nature.NOISE),
        (20, 100_000, 0, 100_000, Nature.NOISE),  # below the absolute threshold
        (89_000, 100_000, 600, 1000, Nature.NOISE),  # within the relative one: 0.29 of 1.49
        (95_000, 100_000, 600, 1000, Nature.DIFFERENT),
        (100, 100, 0, 0, Nature.DIFFERENT),
        (100, 100, 0, 20, Nature.DIFFERENT),
        (100, 100, 0, 1, Nature.WAITING),
        (100, 100, 1, 1, Nature.NOISE),
        (0, 100, 0, 0, Nature.NOISE),
        (0, 0, 5, 5, Nature.NOISE),
    ],
)
def test_nature(raw: int, exchanges: int, noisy: int, pairs: int, want: Nature) -> None:
    assert nature(raw, exchanges, Evidence(noisy, pairs), DIFFY) is want


def test_noise_is_what_probes_and_repeats_show_both() -> None:
    assert weigh(5, 1, 10, 5) == (6, 15)
    assert weigh(5, 1, 100, 50) == (50, 100)
    assert weigh(20, 1, 10, 5) == (1, 20)
    assert weigh(20, 1, 100, 50) == (1, 20)
    assert weigh(20, 10, 100, 1) == (1, 100)
    assert weigh(20, 0, 100, 0) == (0, 120)


@pytest.mark.parametrize(
    ("evidence", "want"),
    [
        (Evidence(0, 120, checks=12, held=12), Nature.DIFFERENT),  # it holds, and no probe differs
        (Evidence(0, 120, checks=5, held=5), Nature.WAITING),
        (Evidence(0, 120, checks=60, held=45), Nature.DIFFERENT),  # some of it is noise
        (Evidence(0, 120, checks=60, held=30), Nature.WAITING),
        (Evidence(0, 40, checks=64, held=64), Nature.WAITING),  # may depend on the time
        (Evidence(3, 40, checks=64, held=64), Nature.NOISE),  # does depend on it
        (Evidence(4, 1000, checks=64, held=64), Nature.DIFFERENT),
        (Evidence(0, 2000, checks=8, held=4), Nature.DIFFERENT),  # a shadow that cannot make up its mind
        (Evidence(0, 0, checks=4, held=0), Nature.WAITING),
        (Evidence(0, 0, checks=4, held=4), Nature.DIFFERENT),
        (Evidence(0, 0, coming=True), Nature.WAITING),
    ],
    ids=str,
)
def test_what_holds_when_it_is_asked_for_again_is_different(evidence: Evidence, want: Nature) -> None:
    """It differs in 1 % of the exchanges."""
    assert nature(1000, 100_000, evidence, DIFFY) is want


@pytest.mark.parametrize(
    ("raw", "exchanges", "evidence", "want"),
    [
        (1, 100, Evidence(0, 0), True),
        (1, 1, Evidence(0, 0), False),  # the first of its kind: who knows how often
        (60, 100, Evidence(0, 0), False),  # a few probes will tell
        (10, 100, Evidence(0, 10), True),
        (10, 100, Evidence(2, 10), False),  # noise
        (10, 100, Evidence(1, 100), True),
        (10, 100, Evidence(0, 10, checks=64, held=64), False),  # enough
        (10, 100, Evidence(0, 10, checks=64, held=44), False),  # so many, and still nothing is certain
        (10, 100, Evidence(0, 10, checks=63, held=43), True),
        (10, 100, Evidence(0, 10, checks=4, held=0), False),
        (10, 100, Evidence(0, 10, checks=3, held=0), True),
        (10, 100, Evidence(0, 10, checks=20, held=14), True),
    ],
)
def test_what_is_checked(raw: int, exchanges: int, evidence: Evidence, want: bool) -> None:
    assert wanted(raw, exchanges, evidence) is want


@pytest.mark.parametrize("kind", [flicker(0.005), one_of(2), clock(10, 0.1), clock(1, 0.005)], ids=str)
def test_noise_is_never_said_to_differ_whenever_one_looks(kind: Kind) -> None:
    assert [believed(kind, 20_000, random.Random(seed)) for seed in range(10)] == [(0, 0)] * 10


def test_a_fault_in_one_of_a_hundred_requests_is_seen_with_the_default_share_of_probes() -> None:
    found = [believed(fault(0.01), 60_000, random.Random(seed)) for seed in range(5)]
    assert all(0 < said <= certain for said, certain in found)
    assert statistics.median(said for said, _ in found) < 25_000


@pytest.mark.parametrize(("probes", "repeats", "want"), [(0, 400, True), (400, 0, True), (400, 400, False)])
def test_either_kind_of_pairs_is_enough_to_say_that_a_field_is_no_noise(probes: int, repeats: int, want: bool) -> None:
    endpoint = Endpoint(compared=1000, probed=1000, repeated=1000)
    assert apart_by_either(endpoint, Field(raw=400, probes=probes, repeats=repeats), 0.01) is want


def test_the_evidence_of_a_field_is_of_its_endpoint() -> None:
    field = Field(raw=5, probes=1, repeats=2, checks=4, held=3)
    assert evidence_of(Endpoint(probed=100), field) == Evidence(1, 100, 4, 3)
    assert evidence_of(Endpoint(probed=100), field, probes=True).coming


def test_repeats_are_bounded_by_number_and_bytes() -> None:
    repeats = Repeats(2, 1000)
    one, two, three = (Response(200, b"", bytes(100), 100) for _ in range(3))
    assert repeats.swap(b"1", one) is None
    assert repeats.swap(b"1", two) is one
    repeats.swap(b"2", one)
    repeats.swap(b"3", three)
    assert repeats.swap(b"1", one) is None
    assert repeats.swap(b"3", one) is three
    assert repeats.swap(b"4", Response(200, b"", bytes(2000), 2000)) is None
    assert repeats.swap(b"4", one) is None
    assert repeats._free <= 1000
    repeats = Repeats(9, 1000)
    for key in (b"1", b"2", b"3", b"4"):  # 300 bytes each
        repeats.swap(key, one)
    assert [repeats.swap(key, two) for key in (b"2", b"3", b"4")] == [one] * 3
    assert repeats.swap(b"1", two) is None


def test_requests_that_should_get_the_same_response() -> None:
    head = b"GET /a?b HTTP/1.1\r\nHost: x\r\nCookie: a=1\r\nX-Request-Id: 1\r\n\r\n"
    assert request_key(head) == request_key(head.replace(b"Id: 1", b"Id: 2").replace(b"Host: x\r\n", b"Host: x\r\n"))
    assert request_key(head) != request_key(head.replace(b"a=1", b"a=2"))
    assert request_key(head) != request_key(head.replace(b"?b", b"?c"))


@pytest.mark.parametrize(
    "field", [b"If-None-Match", b"if-modified-since", b"If-Match", b"If-Unmodified-Since", b"If-Range", b"Origin"]
)
def test_requests_on_conditions_are_no_repeats_of_those_without(field: bytes) -> None:
    """Production's 304 to one and 200 to another made a shadow that never answers 304 look like noise."""
    head = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
    keys = {request_key(head.replace(b"Host: x\r\n", b"Host: x\r\n" + line)) for line in (b"", field + b": 1\r\n")}
    assert len(keys) == 2
