# SPDX-License-Identifier: Apache-2.0
"""Which shadow gets what, as a conversation; the ledger of each shadow is checked after every step."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_cases import Tried, head, sends, tap_of
from tapmirror.events import (
    CONNECT,
    END,
    KEEPING,
    NO_BODY,
    START,
    TUNNEL,
    Abort,
    DropReason,
    Excuse,
    Finish,
    Open,
    Send,
    Turn,
)
from tapmirror.policy import constant_host, is_needed

TWO = [{"to": "a:1", "name": "a"}, {"to": "b:2", "name": "b"}]
POST = "POST / HTTP/1.1"


# --- whether there is anything to decide


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        ({}, False),
        ({"percent": 5}, False),
        ({"shadow": {"to": "a:1", "rewrite": {"host": "x"}}}, False),
        ({"shadow": {"to": "a:1", "rewrite": {"host": "target"}}}, False),
        ({"shadow": {"to": "a:1", "rewrite": {"host": "shadow-suffix"}}}, True),
        ({"shadow": {"to": "a:1", "rewrite": {"host": "x", "marker": "M"}}}, True),
        ({"shadow": {"to": "a:1", "percent": 5}}, True),
        ({"shadow": {"to": "a:1", "copies": 2}}, True),
        ({"shadow": {"to": "a:1", "pooled": 2}}, True),
        ({"shadow": {"to": "a:1", "match": {"methods": ["GET"]}}}, True),
        ({"shadows": TWO}, True),
        ({"by": "request", "percent": 5}, True),
        ({"ramp": {"from": 0, "to": 5, "over": 1}}, True),
        ({"max_requests": 5}, True),
        ({"safe_methods": True}, True),
        ({"rules": [{}]}, True),
        ({"redact": {}}, True),
        ({"hook": "a:b"}, True),
    ],
)
def test_is_needed(spec: dict[str, Any], needed: bool) -> None:
    assert is_needed(tap_of(**spec)) is needed


def test_the_host_that_framing_sets() -> None:
    assert constant_host(tap_of()) is None
    assert constant_host(tap_of(shadow={"to": "a:1", "rewrite": {"host": "target"}})) == b"a:1"
    assert constant_host(tap_of(shadow={"to": "a:1", "rewrite": {"host": "x.y"}})) == b"x.y"


# --- rules


RULES: dict[str, Any] = {
    "shadows": TWO,
    "rules": [
        {"match": {"path": {"prefix": "/health"}}, "mirror": "none"},
        {"match": {"path": {"prefix": "/a"}}, "mirror": "a"},
        {"match": {"path": {"prefix": "/both"}}},
        {"match": {"path": {"prefix": "/both"}, "methods": ["GET"]}, "mirror": "none"},
        {"match": {"path": {"prefix": "/half"}}, "mirror": ["a", {"shadow": "b", "percent": 0}]},
    ],
}


@pytest.mark.parametrize(
    ("path", "a", "b", "fates"),
    [
        ("/health", False, False, ({"rule": 1}, {"rule": 1})),
        ("/a/x", True, False, ({}, {"rule": 1})),
        ("/both", True, True, ({}, {})),
        ("/half", True, False, ({}, {"sampled_out": 1})),
        ("/else", False, False, ({"no_rule": 1}, {"no_rule": 1})),
    ],
)
def test_the_first_rule_that_matches_decides(path: str, a: bool, b: bool, fates: Any) -> None:
    tried = Tried(**RULES)
    got = tried.ask(head(f"GET {path} HTTP/1.1"))
    assert [each is not None for each in got] == [a, b]
    assert (tried.fates(0), tried.fates(1)) == fates


def test_a_shadow_has_a_match_of_its_own() -> None:
    tried = Tried(shadows=[{"to": "a:1", "match": {"methods": ["GET"]}}, {"to": "b:2"}])
    assert tried.ask(head(POST)) == [None, head(POST)]
    assert tried.fates(0) == {"no_match": 1}


@pytest.mark.parametrize(("method", "passes"), [("GET", True), ("HEAD", True), ("OPTIONS", True), ("POST", False)])
def test_safe_methods(method: str, passes: bool) -> None:
    tried = Tried(safe_methods=True)
    assert (tried.ask(head(f"{method} / HTTP/1.1")) != [None]) is passes
    assert tried.fates() == ({} if passes else {"method": 1})


def test_what_follows_of_a_request_shares_its_fate() -> None:
    tried = Tried(**RULES)
    flow = tried.open()
    tried.ask(head("POST /a HTTP/1.1", "Content-Length: 6"), flow, flags=START)
    assert sends(tried.body(flow, b"abc")) == [(0, b"abc")]
    assert sends(tried.body(flow, b"def", end=True)) == [(0, b"def")]
    tried.ask(head("POST /health HTTP/1.1", "Content-Length: 3"), flow, flags=START)
    assert tried.body(flow, b"abc", end=True) == []
    assert tried.finish(flow) == [Finish(flow, 0)]
    assert tried.ledgers[1].bytes.filtered.total() == tried.bytes


def test_a_request_in_one_piece_with_a_large_body() -> None:
    tried = Tried(shadow={"to": "a:1", "rewrite": {"marker": "M"}})
    whole = head(POST, "Content-Length: 100000") + bytes(100_000)
    assert tried.ask(whole) == [head(POST, "Content-Length: 100000", "M: tap") + bytes(100_000)]


# --- several shadows


def test_a_connection_is_opened_where_a_request_goes() -> None:
    tried = Tried(**RULES)
    flow = tried.open()
    tried.ask(head("GET /a HTTP/1.1"), flow)
    tried.ask(head("GET /both HTTP/1.1"), flow)
    tried.finish(flow)
    kinds = [(type(each).__name__, each.target) for each in tried.out]
    assert kinds == [("Open", 0), ("Send", 0), ("Send", 0), ("Open", 1), ("Send", 1), ("Finish", 0), ("Finish", 1)]


def test_round_robin_takes_turns() -> None:
    tried = Tried(shadows=TWO, spread="round-robin")
    got = [tried.ask(head()) for _ in range(6)]
    assert [[each is not None for each in one] for one in got] == [[True, False], [False, True]] * 3
    assert tried.fates(0) == tried.fates(1) == {"turn": 3}


def test_copies_are_targets_of_their_own() -> None:
    tried = Tried(shadows=[{"to": "a:1", "copies": 3}, {"to": "b:2"}])
    assert tried.ask(head()) == [head()] * 4
    assert len({each.target for each in tried.out if isinstance(each, Open)}) == 4


def test_each_shadow_has_its_rewrite() -> None:
    tried = Tried(
        shadows=[
            {"to": "a:1", "rewrite": {"host": "target"}},
            {"to": "b:2", "rewrite": {"host": "shadow-suffix"}},
            {"to": "c:3"},
        ]
    )
    assert tried.ask(head()) == [head(host="a:1"), head(host="shop.test-shadow"), head()]


def test_a_new_method_says_whether_the_response_has_a_body() -> None:
    tried = Tried(shadows=[{"to": "a:1", "rewrite": {"method": "HEAD"}}, {"to": "b:2", "rewrite": {"method": "GET"}}])
    flow = tried.open()
    tried.ask(head(), flow)
    tried.ask(head("HEAD / HTTP/1.1"), flow, flags=START | END | NO_BODY)
    flags = [(each.target, bool(each.flags & NO_BODY)) for each in tried.out if isinstance(each, Send)]
    assert flags == [(0, True), (1, False), (0, True), (1, False)]


def test_a_new_method_of_a_hook_says_so_too() -> None:
    tried = Tried(lambda asked: asked.replace(method="GET" if asked.method == "HEAD" else "HEAD"), hook="a:b")
    flow = tried.open()
    tried.ask(head(), flow)
    tried.ask(head("HEAD / HTTP/1.1"), flow, flags=START | END | NO_BODY)
    assert [bool(each.flags & NO_BODY) for each in tried.out if isinstance(each, Send)] == [True, False]


# --- limits of bodies


@pytest.mark.parametrize(
    ("over", "length", "passes", "fates"),
    [
        ("skip", 10, True, {}),
        ("skip", 11, False, {"body_limit": 1}),
        ("stream", 11, True, {}),
    ],
)
def test_a_limit_of_announced_bodies(over: str, length: int, passes: bool, fates: dict[str, int]) -> None:
    tried = Tried(rules=[{"body": {"max": 10, "over": over}}])
    flow = tried.open()
    assert (tried.ask(head(POST, f"Content-Length: {length}"), flow, flags=START) != [None]) is passes
    tried.body(flow, bytes(length), end=True)
    assert tried.fates() == fates
    assert tried.ledgers[0].events["bodies_over_limit"] == (1 if passes and length > 10 else 0)


@pytest.mark.parametrize(("size", "passes"), [(10, True), (11, False), (100_000, False)])
def test_a_limit_of_chunked_bodies(size: int, passes: bool) -> None:
    tried = Tried(rules=[{"body": {"max": 10}}])
    flow = tried.open()
    first = head(POST, "Transfer-Encoding: chunked")
    assert tried.ask(first, flow, flags=START) == [None]
    data = b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size))
    for at in range(0, len(data), 1000):
        tried.body(flow, data[at : at + 1000], end=at + 1000 >= len(data))
    assert [sent for _, sent in sends(tried.out)] == ([first + data] if passes else [])
    assert tried.fates() == ({} if passes else {"body_limit": 1})
    assert tried.ask(head(), flow) == [head()]


def test_what_is_held_is_bounded_in_all() -> None:
    tried = Tried(redact={"json": {"a": "remove"}}, limits={"held_bytes": 10_000})
    flows = [tried.open() for _ in range(20)]
    for flow in flows:
        tried.ask(head(POST, "Content-Length: 2000"), flow, flags=START)
        tried.body(flow, bytes(1000))
        assert tried.policy._held_bytes <= 10_000
    assert tried.fates()["hold_limit"] > 5
    for flow in flows:
        tried.finish(flow)
    assert tried.policy._held_bytes == 0
    assert tried.policy.destinations[0].held_requests == 0


def test_a_body_that_is_held_takes_no_more_memory_than_is_counted() -> None:
    """Whether it comes in segments of a byte is the client's choice."""
    tried = Tried(redact={"json": {"a": "remove"}})
    flow = tried.open()
    body = b'{"b": "' + bytes(10_000).replace(b"\0", b"x") + b'"}'
    assert tried.ask(head(POST, "Content-Type: application/json", f"Content-Length: {len(body)}"), flow, flags=START)
    parts = [Send(flow, memoryview(body)[at : at + 1], 1, 0) for at in range(len(body) - 1)]
    before = tried.policy.destinations[0].held_bytes
    tracemalloc.start()
    try:
        for part in parts:
            tried.policy.route([part], 1.0)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    tried.bytes += len(parts)
    assert taken < 1.5 * (tried.policy.destinations[0].held_bytes - before)
    ((_, whole),) = sends(tried.body(flow, body[-1:], end=True))
    assert whole.endswith(b'"' + b"x" * 10_000 + b'"}')


# --- ends


@pytest.mark.parametrize("held", [False, True])
def test_a_request_that_breaks(held: bool) -> None:
    """Where it went it is given up; where it was held nothing is known of it."""
    tried = Tried(shadows=TWO, **({"redact": {"json": {"a": "remove"}}} if held else {}))
    flow = tried.open()
    tried.ask(head(POST, "Content-Length: 6"), flow, flags=START)
    tried.body(flow, b"abc")
    found = tried.give(Abort(flow, DropReason.GAP, False))
    assert found == ([] if held else [Abort(flow, DropReason.GAP, False, t) for t in (0, 1)])
    assert tried.fates(0) == ({"gap": 1} if held else {})
    assert all(each is not None for each in tried.ask(head(), flow))
    assert tried.finish(flow) == [Finish(flow, 0), Finish(flow, 1)]
    assert tried.finish(flow) == []


def test_a_reset_reaches_who_knows_of_the_connection() -> None:
    tried = Tried(**RULES)
    flow = tried.open()
    tried.ask(head("GET /a HTTP/1.1"), flow)
    assert tried.give(Abort(flow, DropReason.INCOMPLETE, True)) == [Abort(flow, DropReason.INCOMPLETE, True, 0)]


# --- pooled connections


@pytest.mark.parametrize(
    ("line", "fields", "want", "keeping"),
    [
        ("GET / HTTP/1.1", ("A: 1", "connection: Close", "B: 2"), ("A: 1", "B: 2"), 0),
        ("GET / HTTP/1.1", ("Connection: te", "Connection: x, close"), (), 0),
        ("GET / HTTP/1.1", ("Connection: keep-alive", "A: close"), ("Connection: keep-alive", "A: close"), 0),
        ("GET / HTTP/1.0", ("A: 1",), ("A: 1", "Connection: keep-alive"), KEEPING),
        ("GET / HTTP/1.0", ("Connection: close, keep-alive",), ("Connection: keep-alive",), KEEPING),
        ("GET / HTTP/1.0", ("Connection: Keep-Alive", "A: 1"), ("Connection: Keep-Alive", "A: 1"), 0),
    ],
)
def test_nobody_ends_the_connection_that_all_use(
    line: str, fields: tuple[str, ...], want: tuple[str, ...], keeping: int
) -> None:
    tried = Tried(shadow={"to": "a:1", "pooled": 1})
    assert tried.ask(head(line, *fields)) == [head(line, *want)]
    (sent,) = [each for each in tried.out if isinstance(each, Send)]
    assert sent.flags == START | END | keeping


def test_pooled_requests_are_whole_and_of_one_connection_in_order() -> None:
    tried = Tried(shadow={"to": "a:1", "pooled": 2})
    flows = [tried.open() for _ in range(6)]
    for flow in flows:
        tried.ask(head(POST, "Content-Length: 2"), flow, flags=START)
    for flow in reversed(flows):
        tried.body(flow, b"xy", end=True)
    sent = [each for each in tried.out if isinstance(each, Send)]
    assert {each.flow for each in sent} == {-1, -2}
    assert all(each.flags & (START | END) == START | END for each in sent)
    assert all(bytes(each.data) == head(POST, "Content-Length: 2") + b"xy" for each in sent)
    assert [each.flow for each in tried.out if isinstance(each, Open)] == list(
        dict.fromkeys(each.flow for each in sent)
    )
    for flow in flows:
        assert tried.finish(flow) == []
    assert sorted(each.flow for each in tried.policy.close() if isinstance(each, Finish)) == [-2, -1]


def test_a_pool_carries_no_tunnel_and_nothing_too_long() -> None:
    tried = Tried(shadow={"to": "a:1", "pooled": 2}, limits={"queue_bytes": 5000})
    tried.ask(head("CONNECT a:1 HTTP/1.1"), flags=START | END | TUNNEL | CONNECT)
    tried.ask(head(POST, "Content-Length: 5001"), flags=START)
    assert tried.fates() == {"tunnel": 1, "hold_limit": 1}


# --- raw connections


def test_raw_connections_are_decided_when_they_open() -> None:
    tried = Tried(protocol="raw", shadows=[{"to": "a:1", "name": "a"}, {"to": "b:2", "name": "b", "percent": 30}])
    both = 0
    for n in range(300):
        flow = tried.open(port=2000 + n, http=False)
        got = [target for target, _ in sends(tried.give(Send(flow, b"x", 1, 0)))]
        assert got in ([0], [0, 1])
        both += got == [0, 1]
        assert [each.target for each in tried.give(Turn(flow, 5))] == got
        assert [each.target for each in tried.finish(flow)] == got
    assert 50 < both < 130
    assert tried.ledgers[1].bytes.sampled_out == 300 - both


def test_raw_round_robin() -> None:
    tried = Tried(protocol="auto", shadows=TWO, spread="round-robin")
    flows = [tried.open(http=False) for _ in range(4)]
    assert [[t for t, _ in sends(tried.give(Send(flow, b"x", 1, 0)))] for flow in flows] == [[0], [1], [0], [1]]


# --- what a shadow can take at present


def test_a_shadow_that_can_take_less_gets_fewer_connections() -> None:
    """Of each connection all requests or none, whatever becomes of the other shadow."""
    tried = Tried(shadows=TWO)
    flows = [tried.open() for _ in range(200)]
    tried.policy.set_thresholds([1 << 32, 1 << 30])
    some = {flow for flow in flows if tried.ask(head(), flow)[1] is not None}
    assert 20 < len(some) < 90
    assert {flow for flow in flows if tried.ask(head(), flow)[1] is not None} == some
    tried.policy.set_thresholds([1 << 32, 1 << 29])
    fewer = {flow for flow in flows if tried.ask(head(), flow)[1] is not None}
    assert 5 < len(fewer) < len(some) and fewer < some
    tried.policy.set_thresholds([])
    assert all(tried.ask(head(), flow) == [head(), head()] for flow in flows)
    assert tried.fates(0) == {}
    assert tried.fates(1) == {"sampled_out": 600 - 2 * len(some) - len(fewer)}


def test_a_request_under_way_is_not_torn_when_its_shadow_can_take_no_more() -> None:
    tried = Tried(shadows=TWO)
    flow = tried.open()
    tried.ask(head(POST, "Content-Length: 3"), flow, flags=START)
    tried.policy.set_thresholds([1 << 32, 0])
    assert sends(tried.body(flow, b"abc", end=True)) == [(0, b"abc"), (1, b"abc")]
    assert tried.ask(head(), flow) == [head(), None]
    assert tried.give(Finish(flow, answered=True)) == [Finish(flow, 0, True), Finish(flow, 1, True)]


def test_excused_is_who_got_what_production_left_unanswered() -> None:
    tried = Tried(**RULES)
    flow = tried.open()
    assert tried.give(Excuse(flow)) == []
    tried.ask(head("GET /both HTTP/1.1"), flow)
    tried.ask(head("GET /a HTTP/1.1"), flow)
    assert tried.give(Excuse(flow)) == [Excuse(flow, 0)]
    tried.ask(head("GET /none HTTP/1.1"), flow)
    assert tried.give(Excuse(flow)) == []


def test_a_raw_connection_is_for_its_shadow_to_its_end() -> None:
    tried = Tried(protocol="raw", shadows=TWO)
    before = tried.open(http=False)
    tried.policy.set_thresholds([0, 1 << 32])
    after = tried.open(http=False)
    assert [[t for t, _ in sends(tried.give(Send(flow, b"x", 1, 0)))] for flow in (before, after)] == [[0, 1], [1]]


# --- anything


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # connection
        st.sampled_from(["get", "post", "chunk", "body", "end", "abort", "reset", "finish"]),
        st.integers(0, 3000),
    ),
    max_size=40,
)
SPECS = st.sampled_from(
    [
        {},
        RULES,
        {"shadows": TWO, "redact": {"json": {"a": "remove"}, "body_bytes": 2000}},
        {"shadows": [{"to": "a:1", "pooled": 2}, {"to": "b:2", "percent": 50, "by": "request"}]},
        {"rules": [{"body": {"max": 1000}, "percent": 50, "by": "exact"}]},
        {"shadows": TWO, "spread": "round-robin", "max_bytes": 5000, "limits": {"held_bytes": 4000}},
    ]
)


@settings(deadline=None, max_examples=200)
@given(SPECS, STEPS)
def test_the_identity_holds_whatever_comes(spec: dict[str, Any], steps: Any) -> None:
    """`Tried` asserts it after every command.  Commands come as framing makes them: whole requests in their order."""
    tried = Tried(**spec)
    flows: dict[int, tuple[int, bool]] = {}
    for number, what, size in steps:
        if number not in flows:
            flows[number] = (tried.open(port=2000 + number), False)
        flow, under_way = flows[number]
        if what in ("get", "post", "chunk") and not under_way:
            path = ("/a", "/both", "/health", "/x")[size % 4]
            if what == "get":
                tried.ask(head(f"GET {path} HTTP/1.1"), flow, now=size / 100)
            else:
                framing = "Transfer-Encoding: chunked" if what == "chunk" else f"Content-Length: {size + 1}"
                tried.ask(head(f"POST {path} HTTP/1.1", framing), flow, flags=START, now=size / 100)
                flows[number] = flow, True
        elif what == "body" and under_way:
            tried.body(flow, b"%x\r\n%b\r\n" % (size + 1, bytes(size + 1)))
        elif what == "end" and under_way:
            tried.body(flow, b"0\r\n\r\n", end=True)
            flows[number] = flow, False
        elif what == "abort" and under_way:
            tried.give(Abort(flow, DropReason.GAP, False))
            flows[number] = flow, False
        elif what in ("reset", "finish"):
            if under_way:
                tried.give(Abort(flow, DropReason.INCOMPLETE, False))
            tried.give(Abort(flow, DropReason.INCOMPLETE, True) if what == "reset" else Finish(flow))
            del flows[number]
    for flow, under_way in flows.values():
        if under_way:
            tried.give(Abort(flow, DropReason.INCOMPLETE, False))
        tried.finish(flow)
    assert tried.policy._held_bytes == 0
    assert all(each.held_bytes == each.held_requests == 0 for each in tried.policy.destinations)
