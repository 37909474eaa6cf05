# SPDX-License-Identifier: Apache-2.0
"""Which requests are paired with which responses, through pipeline and policy; replay's part is played by the test."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from tapmirror.compare.comparison import Comparison
from tapmirror.compare.pairing import DELIVERY_BYTES, PENDING_BYTES
from tapmirror.comparing import PROBE_DELAY, ComparingPipeline, _head
from tapmirror.events import (
    ACCEPTED,
    ACK,
    FIN,
    FROM_SERVER,
    KEEPING,
    NO_BODY,
    START,
    UNACCEPTED,
    WHOLE,
    Excuse,
    FilterReason,
    Finish,
    Open,
    Send,
)
from tapmirror.exchange import PROBE
from tapmirror.ledger import Ledger
from tapmirror.packet import BUCKETS, flow_hash
from tapmirror.policy import Policy, is_needed
from tapmirror.policy.request import Request
from tapmirror.policy.samples import USUAL, SampleRedactor
from tapmirror.spec import Compare, Level, Match, Protocol, Redact, Rewrite, Rule, Shadow, TapSpec, Text
from tapmirror.tracer import Tracer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BAD = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno"


def key(port: int) -> bytes:
    prefix = bytes(10) + b"\xff\xff\x0a\0\0"
    return prefix + b"\1" + prefix + b"\2" + port.to_bytes(2, "big") + b"\0\x50" + bytes(4)


class Tap:
    """A tap whose shadows answer when the test says so."""

    def __init__(
        self,
        level: Level = Level.STATUS,
        shadows: int = 1,
        probe: float = 0.0,
        redact: Redact | None = None,
        rewrite: Rewrite = Rewrite(),  # noqa: B008
        most: float = 1e9,
        **more: Any,
    ) -> None:
        self.spec = TapSpec(
            iface="lo",
            ports=(80,),
            shadows=tuple(Shadow(host="s", port=1 + i, name=f"s{i}", rewrite=rewrite) for i in range(shadows)),
            compare=Compare(level=level, noise_probe=probe, max_exchanges=most),
            **more,
        )
        names = [(f"s{i}", f"http://s{i}") for i in range(shadows)]
        rules = [USUAL, *([redact] if redact is not None else [])]
        self.comparison = Comparison(self.spec.compare, names, SampleRedactor(rules, b"k"))
        policy = None
        if is_needed(self.spec):
            policy = Policy(self.spec, [Ledger() for _ in self.spec.shadows], secret=b"k")
        self.ledger = Ledger()
        self.pipeline = ComparingPipeline(self.spec, self.ledger, policy, self.comparison)
        self.now = 1.0
        self.sent: list[tuple[int, bytes]] = []
        self.rested = 0
        self.wanted = (0, BUCKETS)
        self.kept: set[bytes] = set()
        self.opened: list[int] = []
        self.finished: list[int] = []
        self.excused = 0
        self.flows: dict[int, int] = {}
        self.at: dict[tuple[int, bool], int] = {}

    def put(self, port: int, flags: int, data: bytes = b"", seen: int | None = None, waited: float = 0.0) -> None:
        """`waited`: so many seconds ago it was captured."""
        server = bool(flags & FROM_SERVER)
        mine = self.at.setdefault((port, server), 1000)
        other = self.at.setdefault((port, not server), 1000)
        self.now += 0.001
        segment = (key(port), flags, mine, other, len(data), memoryview(data)[:seen], int((self.now - waited) * 1e9))
        self.at[port, server] = mine + len(data)
        self.act(self.pipeline.feed(segment, self.now))

    def act(self, commands: Any) -> None:
        for command in commands:
            if isinstance(command, Open):
                self.opened.append(command.target)
            elif isinstance(command, Excuse):
                self.excused += 1
            elif isinstance(command, Finish):
                self.finished.append(command.target)
            elif isinstance(command, Send) and command.flags & START:
                talk = self.pipeline.conversation(command.flow)
                assert talk is not None
                if not command.number:
                    self.rested += 1
                    continue
                self.sent.append((command.target, bytes(command.data).split(b" ")[1]))
                self.flows[command.target] = command.flow
                target = command.target if command.target < len(self.spec.shadows) else PROBE
                talk.asked(target, command.number, command.flags)
                talk.sent(target, command.number, int(self.now * 1e9), 0)

    def batch(self) -> None:
        """What a worker does after a batch."""
        for flow, wanted in self.pipeline.response_wants:
            (self.kept.add if wanted else self.kept.discard)(flow)
        self.pipeline.response_wants.clear()
        if self.pipeline.window is not None:
            self.wanted = self.pipeline.window
            self.pipeline.opened(int(self.now * 1e9))

    def captures(self, port: int) -> bool:
        """Whether what production answers on this connection is captured."""
        first, count = self.wanted
        return key(port) in self.kept or (flow_hash(key(port), 0) - first) % BUCKETS < count

    def accept(self, port: int = 1) -> None:
        self.put(port, ACCEPTED)

    def ask(self, path: str, port: int = 1, method: str = "GET", body: str = "") -> None:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.put(port, ACK, f"{method} {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n{body}".encode())

    def answer(self, data: bytes = OK, port: int = 1, seen: int | None = None) -> None:
        self.put(port, ACK | FROM_SERVER, data, seen)

    def shadow(self, data: bytes = OK, target: int = 0) -> None:
        self.now += 0.001
        talk = self.pipeline.conversation(self.flows[target])
        assert talk is not None
        talk.shadow_data(target if target < len(self.spec.shadows) else PROBE, data, int(self.now * 1e9))

    def flow_of(self, port: int) -> int:
        flow = self.pipeline.flows.get(key(port))
        assert flow is not None
        return flow.id

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.act(self.pipeline.expire(self.now))

    def state(self, shadow: str = "s0") -> Any:
        return self.comparison.snapshot()["shadows"][shadow]

    def pairs(self, shadow: str = "s0") -> dict[str, int]:
        return {name: each["pairs"] for name, each in self.state(shadow)["endpoints"].items()}


def test_a_request_and_both_responses() -> None:
    tap = Tap()
    tap.accept()
    tap.ask("/a")
    tap.answer()
    tap.shadow(BAD)
    (endpoint,) = tap.state()["endpoints"].values()
    assert (endpoint["production"]["statuses"], endpoint["shadow"]["statuses"]) == ({"200": 1}, {"500": 1})
    assert tap.state()["unpaired"] == {}


def test_a_request_that_waited_for_its_acceptance_began_when_it_came() -> None:
    tap = Tap()
    request = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
    tap.put(1, ACK | UNACCEPTED, request)
    tap.now += 0.04
    tap.at[1, False] -= len(request)
    tap.accept()
    tap.at[1, False] += len(request)
    tap.answer()
    tap.shadow(OK)
    (endpoint,) = tap.state()["endpoints"].values()
    slow, quick = (int(*endpoint[side]["first"]["buckets"]) for side in ("production", "shadow"))
    assert slow > quick > 0
    assert tap.state()["unpaired"] == {}


def test_the_shadow_may_answer_first() -> None:
    tap = Tap()
    tap.accept()
    tap.ask("/a")
    tap.shadow()
    tap.answer()
    assert tap.pairs() == {"GET /a": 1}


def test_production_answers_before_the_shadow_is_connected() -> None:
    tap = Tap()
    act = tap.act
    commands: list[Any] = []
    tap.act = commands.extend  # type: ignore[method-assign, assignment]
    tap.accept()
    tap.ask("/a")
    tap.answer()
    act(commands)
    tap.shadow()
    assert tap.pairs() == {"GET /a": 1}


def test_each_shadow_by_itself() -> None:
    tap = Tap(shadows=2)
    tap.accept()
    tap.ask("/a")
    tap.answer()
    tap.shadow(OK, 0)
    tap.shadow(BAD, 1)
    assert tap.sent == [(0, b"/a"), (1, b"/a")]
    assert (tap.pairs("s0"), tap.pairs("s1")) == ({"GET /a": 1}, {"GET /a": 1})


def test_a_request_that_no_rule_passes_keeps_its_place() -> None:
    tap = Tap(protocol=Protocol.HTTP, rules=(Rule(match=(Match(path=Text(prefix="/a")),)),))
    tap.accept()
    tap.ask("/b")
    tap.answer(BAD)
    tap.ask("/a")
    tap.answer(OK)
    tap.shadow(OK)
    (endpoint,) = tap.state()["endpoints"].values()
    assert (endpoint["pairs"], endpoint["production"]["statuses"]) == (1, {"200": 1})
    assert (tap.state()["requests"], tap.state()["unpaired"]) == (2, {"not_sent": 1})


def test_a_body_that_is_not_copied_is_skipped_by_its_length() -> None:
    tap = Tap()
    tap.accept()
    tap.ask("/a")
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"
    for data, length in ((whole, len(whole) + 1400), (b"x", 3600)):
        seq = tap.at[1, True]
        segment = (key(1), ACK | FROM_SERVER, seq, 1, length, memoryview(data), int(tap.now * 1e9))
        tap.at[1, True] = seq + length
        tap.pipeline.feed(segment, tap.now)
    tap.shadow(whole + b"x" * 5000)
    tap.ask("/b")
    tap.answer()
    tap.shadow()
    assert tap.pairs() == {"GET /a": 1, "GET /b": 1}


def test_chunks_whose_sizes_were_not_copied_are_over_when_the_client_asks_again() -> None:
    """As all of a server that compresses as it goes, where only the first bytes of each segment are captured."""
    tap = Tap()
    tap.accept()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for path in ("/a", "/b", "/c"):
        tap.ask(path)
        for data in (head, b"x", b""):
            seq = tap.at[1, True]
            tap.at[1, True] = seq + 3000
            tap.pipeline.feed((key(1), ACK | FROM_SERVER, seq, 1, 3000, memoryview(data), 1), tap.now)
        tap.shadow(OK)
    tap.ask("/d")
    assert tap.state()["unpaired"] == {}
    assert sum(tap.pairs().values()) == 3


def test_a_safe_request_goes_twice_and_the_second_copy_later() -> None:
    tap = Tap(Level.BODY, probe=100.0)
    tap.accept()
    tap.ask("/a")
    tap.ask("/b", method="POST", body="x")
    tap.answer(OK + OK)
    tap.shadow(OK + OK)
    assert tap.sent == [(0, b"/a"), (0, b"/b")]
    tap.later(PROBE_DELAY / 2)
    assert len(tap.sent) == 2
    tap.later(PROBE_DELAY)
    assert tap.sent[2:] == [(1, b"/a")]
    tap.shadow(OK.replace(b"ok", b"k!"), 1)
    endpoint = tap.state()["endpoints"]["GET /a"]
    assert (endpoint["pairs"], endpoint["probed"]) == (1, 1)
    tap.put(1, ACK | FIN)
    assert sorted(tap.finished) == [0, 1]


@pytest.mark.parametrize("field", ["X-HTTP-Method-Override", "x-http-method", "X-Method-Override"])
def test_a_get_that_says_it_is_something_else_goes_once(field: str) -> None:
    tap = Tap(Level.BODY, probe=100.0)
    tap.accept()
    tap.put(1, ACK, f"GET /a HTTP/1.1\r\nHost: x\r\n{field}: DELETE\r\n\r\n".encode())
    tap.answer()
    tap.shadow(BAD)
    tap.later(PROBE_DELAY)
    tap.later(PROBE_DELAY)
    assert tap.sent == [(0, b"/a")]


@pytest.mark.parametrize("ended", [True, False])
def test_a_second_copy_is_sent_after_its_connection_ended_and_not_after_the_tap(ended: bool) -> None:
    tap = Tap(Level.BODY, probe=100.0)
    tap.accept()
    tap.ask("/a")
    tap.answer()
    tap.shadow()
    if ended:
        tap.put(1, ACK | FIN)
        tap.later(PROBE_DELAY)
        assert (tap.sent[1:], tap.finished) == ([(1, b"/a")], [0, 1])
    else:
        tap.act(tap.pipeline.close(tap.now))
        assert tap.pairs() == {"GET /a": 1}


def test_what_production_leaves_unanswered_is_no_error_of_the_shadow() -> None:
    tap = Tap()
    for port in (1, 2):
        tap.accept(port)
        tap.ask("/a", port)
    tap.answer(port=1)
    for port in (1, 2):
        tap.put(port, ACK | FIN | FROM_SERVER)
    assert tap.excused == 1


def test_a_request_behind_production_s_fin_takes_no_pair_away() -> None:
    """Nor a hole there; the shadow answers after that."""
    tap = Tap()
    tap.accept()
    tap.ask("/a")
    tap.put(1, ACK | FIN | FROM_SERVER, b"HTTP/1.1 200 OK\r\n\r\nok")
    tap.at[1, True] += 1
    tap.ask("/b")
    tap.at[1, False] += 9
    tap.ask("/c")
    tap.put(1, ACK | FROM_SERVER)
    tap.ask("/d")
    tap.shadow()
    tap.put(1, ACK | FIN)
    assert tap.sent == [(0, b"/a")]
    assert (tap.pairs(), tap.state()["unpaired"]) == ({"GET /a": 1}, {})
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: 3 * len(b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n")}


def test_what_is_over_is_forgotten() -> None:
    tap = Tap()
    for port in range(1, 20):
        tap.accept(port)
        tap.ask("/a", port)
        tap.answer(OK, port)
        flow = tap.flows[0]
        tap.shadow()
        tap.put(port, ACK | FIN)
        assert tap.pipeline.conversation(flow) is None
    assert tap.pairs() == {"GET /a": 19}


def test_a_response_with_a_head_beyond_what_is_captured_is_no_pair_and_says_why() -> None:
    long = b"HTTP/1.1 200 OK\r\nSet-Cookie: " + b"a" * 5000 + b"\r\nContent-Length: 2\r\n\r\nok"
    tap = Tap(Level.STATUS)
    tap.accept()
    for response in (long, OK, OK):
        tap.ask("/a")
        tap.answer(response, seen=tap.spec.compare.captured_bytes)
        tap.shadow(response)
    tap.put(1, ACK | FIN)
    assert tap.state()["unpaired"] == {"cut": 1}
    assert tap.pairs() == {"GET /a": 2}


@pytest.mark.parametrize("level", [Level.STATUS, Level.HEADERS, Level.BODY])
def test_operations_that_share_a_path_are_endpoints(level: Level) -> None:
    """However the body comes: with its head, after it, in pieces, behind a head that is longer than is kept."""
    tap = Tap(level)
    tap.accept()
    long = json.dumps({"operationName": "Long", "query": "query Long { a }" + " " * 6000}).encode()
    user = json.dumps({"query": "query User { user }"}).encode()
    for body, pieces, field in (
        (long, (9, 3000), b""),
        (user, (0, 20), b""),
        (user, (len(user),), b"C: " + b"x" * 9000),
    ):
        head = b"POST /graphql HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(
            body
        )
        head += field + b"\r\n\r\n" if field else b"\r\n"
        ends = (0, *pieces, len(body))
        for start, end in pairwise(ends):
            if head or end > start:
                tap.put(1, ACK, head + body[start:end])
            head = b""
        tap.answer()
        tap.shadow(BAD if body is user else OK)
    assert tap.pairs() == {"POST /graphql Long": 1, "POST /graphql User": 2}
    endpoints = tap.state()["endpoints"]
    assert [endpoints[name]["only_shadow"] for name in sorted(endpoints)] == [0, 2]
    (sample,) = endpoints["POST /graphql User"]["fields"]["value status"]["samples"][:1]
    assert '\'{"query":"query User { user }"}\'' in sample["curl"]
    assert tap.comparison._memory.free == tap.spec.compare.held_bytes


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (b"GET / HTTP/1.1\r\nA: b\r\n\r\nbody", b"GET / HTTP/1.1\r\nA: b\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nA: b\r\nC: " + b"d" * 9000 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nA: b\r\n\r\n"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 4095 + b"... HTTP/1.1\r\n\r\n"),
        (b"M" * 8180 + b" / HTTP/1.1\r\n\r\n", b"M" * 8180 + b" /... HTTP/1.1\r\n\r\n"),
        (b"M" * 9000 + b" / HTTP/1.1\r\n\r\n", b"M" * 8192 + b" ... HTTP/1.1\r\n\r\n"),
    ],
)
def test_of_a_long_head_no_line_is_torn(data: bytes, want: bytes) -> None:
    assert _head(data) == want
    Request(want, b"")


def test_flows_that_are_given_up_for_a_smaller_share_are_let_go() -> None:
    tap = Tap(Level.HEADERS, probe=100.0)
    for port in (1, 2):
        tap.accept(port)
        tap.ask("/a", port)
    tap.later(PROBE_DELAY)
    assert tap.opened == [0, 0, 1, 1]
    tap.answer(port=1)
    tap.shadow()
    tap.act(tap.pipeline.drop_above(0, tap.now))
    assert tap.finished == [1, 1], "the connections of second copies"
    assert tap.pipeline.conversation(1) is None or tap.pipeline.conversation(2) is None
    tap.later(tap.spec.compare.answer_time + 1)
    tap.later(1.5)
    assert not tap.pipeline._talks
    assert tap.state()["unpaired"] == {"unanswered": 1}


def json_response(text: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
    return f"{head}X-hunter2: a\r\nLocation: /hunter2/x\r\n\r\n{text}".encode()


def test_a_secret_in_a_path_or_in_a_name_is_nowhere() -> None:
    tap = Tap(Level.BODY, redact=Redact(patterns={"hunter2": "***"}, json={"vault.*": "remove"}))
    tap.accept()
    for number in range(40):
        tap.ask(f"/users/hunter2/orders?key=hunter2&n={number}", method="POST", body='{"hunter2": "hunter2"}')
        tap.answer(json_response('{"a": {"hunter2": 1}, "vault": {"swordfish": 1}, "list": ["hunter2"]}'))
        tap.shadow(json_response('{"a": {"hunter2": 2, "hunter2x": 3}, "vault": {"swordfish": 2}, "list": ["b", 1]}'))
    state = tap.comparison.snapshot()
    text = json.dumps([state, tap.comparison.brief()])
    assert "hunter2" not in text
    assert "swordfish" not in text
    ((name, endpoint),) = tap.state()["endpoints"].items()
    assert name == "POST /users/***/orders"
    assert endpoint["fields"].keys() == {
        "identifier body.a.***",  # the first of them might be one
        "identifier body.vault.*",
        "value body.a.***",
        "extra body.a.***x",
        "value body.vault.*",
        "length body.list",
    }
    field = endpoint["fields"]["value body.a.***"]
    assert (field["samples"][0]["one"], field["samples"][0]["other"]) == ("1", "2")
    assert '\'{"***":"***"}\'' in field["samples"][0]["curl"]


@pytest.mark.parametrize("split", [0, 1, 90, 110])
def test_a_short_body_of_a_request_is_in_its_sample_however_it_comes(split: int) -> None:
    tap = Tap()
    tap.accept()
    body = '{"password": "p", "n": [1, 2]}'
    head = f"POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    whole = (head + body).encode()
    for piece in (whole[:split], whole[split:]):
        if piece:
            tap.put(1, ACK, piece)
    tap.answer()
    tap.shadow(BAD)
    (endpoint,) = tap.state()["endpoints"].values()
    assert (
        """--data-raw '{"password":"(redacted)","n":[1,2]}'"""
        in endpoint["fields"]["value status"]["samples"][0]["curl"]
    )


def test_of_a_long_body_nothing_is_kept() -> None:
    tap = Tap()
    tap.accept()
    free = tap.comparison._memory.free
    tap.ask("/a", method="POST", body="x" * 1500)
    head = free - 1500 - tap.comparison._memory.free
    assert 0 < head < PENDING_BYTES + DELIVERY_BYTES + 100
    tap.answer()
    tap.shadow(BAD)
    tap.ask("/a", method="POST", body="x" * 5000)
    assert free - tap.comparison._memory.free == head
    tap.answer()
    tap.shadow(BAD)
    samples = tap.state()["endpoints"]["POST /a"]["fields"]["value status"]["samples"]
    assert ["(too long)" in sample["curl"] for sample in samples] == [False, True]


def asks(tap: Tap, number: int, wrong: bool, path: str = "/a") -> None:
    """A request; the shadow's response is another one if it is to be wrong."""
    tap.ask(f"{path}?{number}")
    tap.answer(json_response('{"a": 1}'))
    tap.shadow(json_response('{"a": 2}' if wrong else '{"a": 1}'))


def again(tap: Tap) -> None:
    """What is to be sent a second time is: nothing else is left in `sent`."""
    tap.sent.clear()
    tap.later(0.1)
    tap.later(PROBE_DELAY + 0.1)


@pytest.mark.parametrize(("path", "name"), [("/a", "GET /a"), ("/graphql?query={stock}", "GET /graphql stock")])
def test_what_differs_seldom_is_asked_for_again_and_what_holds_is_counted(path: str, name: str) -> None:
    tap = Tap(Level.BODY, probe=10.0)
    tap.accept()
    for number in range(100):
        asks(tap, number, number % 20 == 17, path)
        tap.comparison.settle()
    again(tap)
    assert all(target == 1 for target, _ in tap.sent)
    numbers = [int(path.rpartition(b"?")[2]) for _, path in tap.sent]
    checked = [number for number in numbers if number % 20 == 17]
    assert checked == [37, 57, 77, 97]  # at the first there was nothing saved yet
    for number in numbers:
        wrong = number % 20 == 17
        tap.shadow(json_response('{"a": 2}' if wrong and number != 77 else '{"a": 1}'), target=1)
    ((found, endpoint),) = tap.state()["endpoints"].items()
    assert found == name
    field = endpoint["fields"]["value body.a"]
    assert (field["raw"], field["checks"], field["held"]) == (5, 4, 3)
    assert endpoint["pairs"] == endpoint["compared"] == 100
    assert len(numbers) <= 10  # of 100 requests: the share that it is
    assert tap.state()["requests"] == 100
    assert tap.state()["unpaired"] == {}


def test_what_differs_always_and_what_is_not_safe_is_not_asked_for_again() -> None:
    tap = Tap(Level.BODY, probe=50.0)
    tap.accept()
    for number in range(20):
        asks(tap, number, True)
    for number in range(100):
        tap.ask("/b", method="POST", body="x")
        tap.answer(json_response('{"a": 1}'))
        tap.shadow(json_response('{"a": 2}' if number % 20 == 0 else '{"a": 1}'))
    assert not tap.comparison.checks
    again(tap)
    assert not [path for target, path in tap.sent if target and path == b"/b"]


@pytest.mark.parametrize(
    ("method", "body", "options"),
    [
        ("DELETE", "", {}),
        ("POST", "", {}),
        ("POST", "x", {"rules": (Rule(),)}),
        ("DELETE", "", {"rules": (Rule(),)}),
        ("GET", "", {"rewrite": Rewrite(method="POST")}),
    ],
)
def test_what_is_not_safe_at_the_shadow_is_sent_once(method: str, body: str, options: dict[str, Any]) -> None:
    tap = Tap(Level.BODY, probe=10.0, protocol=Protocol.HTTP, **options)
    tap.accept()
    for number in range(200):
        if "rewrite" not in options:
            asks(tap, number, number % 20 == 17)
        tap.ask("/b", method=method, body=body)
        tap.answer(json_response('{"a": 1}'))
        tap.shadow(json_response('{"a": 2}' if number % 20 == 7 else '{"a": 1}'))
    again(tap)
    assert [path for _, path in tap.sent if path == b"/b"] == []
    assert bool(tap.sent) is ("rewrite" not in options)


@pytest.mark.parametrize("options", [{}, {"rules": (Rule(),)}])
def test_a_get_that_says_it_is_something_else_is_not_asked_for_again(options: dict[str, Any]) -> None:
    tap = Tap(Level.BODY, probe=10.0, protocol=Protocol.HTTP, **options)
    tap.accept()
    for number in range(200):
        asks(tap, number, number % 20 == 17)
        tap.put(1, ACK, b"GET /b HTTP/1.1\r\nHost: x\r\nX-HTTP-Method-Override: DELETE\r\n\r\n")
        tap.answer(json_response('{"a": 1}'))
        tap.shadow(json_response('{"a": 2}' if number % 20 == 7 else '{"a": 1}'))
    again(tap)
    assert tap.sent and not [path for _, path in tap.sent if path == b"/b"]


def test_a_head_that_is_asked_for_again_has_no_body_to_wait_for() -> None:
    tap = Tap(Level.HEADERS, probe=10.0)
    tap.accept()
    for number in range(100):
        tap.ask(f"/a?{number}", method="HEAD")
        tap.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        wrong = b"X: 1\r\n" if number % 20 == 7 else b""
        tap.shadow(b"HTTP/1.1 200 OK\r\n" + wrong + b"Content-Length: 9\r\n\r\n")
    assert tap.comparison.checks
    tap.sent.clear()
    tap.later(0.1)
    tap.now += PROBE_DELAY + 0.1
    sends = [command for command in tap.pipeline.expire(tap.now) if isinstance(command, Send)]
    assert sends and all(command.flags & NO_BODY for command in sends)


def test_what_keeps_a_connection_by_http_1_0_does_so_when_it_is_asked_for_again() -> None:
    """The response ends the connection unless it says so too (`KEEPING`): what is sent behind it would be lost."""
    tap = Tap(Level.BODY, probe=10.0)
    tap.accept()
    for number in range(100):
        tap.put(1, ACK, b"GET /a?%d HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" % number)
        tap.answer(json_response('{"a": 1}'))
        tap.shadow(json_response('{"a": 2}' if number % 20 == 17 else '{"a": 1}'))
    checks = len(tap.comparison.checks)
    tap.later(0.1)
    tap.now += PROBE_DELAY + 0.1
    sends = [command for command in tap.pipeline.expire(tap.now) if isinstance(command, Send)]
    assert len(sends) > checks > 0  # what differed, and others
    assert {command.flags for command in sends} == {WHOLE | KEEPING}


def test_a_check_whose_connection_ends_leaves_nothing_and_counts_nowhere() -> None:
    tap = Tap(Level.BODY, probe=50.0)
    tap.accept()
    free = tap.comparison._memory.free
    for number in range(60):
        asks(tap, number, number % 20 == 18)
        tap.comparison.settle()
    assert tap.comparison.checks
    tap.put(1, ACK | FIN)
    tap.put(1, ACK | FIN | FROM_SERVER)
    assert tap.comparison._memory.free < free
    again(tap)
    assert tap.sent  # after the client's end
    for _ in range(2):  # one whose probe was not answered is paired, and checked, only when that has timed out
        tap.later(tap.spec.compare.answer_time + 1)
        tap.later(PROBE_DELAY + 0.1)
    assert tap.comparison._memory.free == free
    assert tap.comparison._conversations == {}
    assert tap.state()["unpaired"] == {}
    (endpoint,) = tap.state()["endpoints"].values()
    assert endpoint["fields"]["value body.a"]["checks"] == 0


def test_connections_of_one_request_are_asked_again_too() -> None:
    tap = Tap(Level.BODY, probe=50.0)
    for number in range(60):
        port = number + 1
        tap.accept(port)
        tap.ask(f"/a?{number}", port)
        tap.answer(json_response('{"a": 1}'), port)
        tap.shadow(json_response('{"a": 2}' if number % 20 == 18 else '{"a": 1}'))
        tap.put(port, ACK | FIN)
        tap.put(port, ACK | FIN | FROM_SERVER)
    again(tap)
    assert (1, b"/a?38") in tap.sent


def test_through_policy_the_shadow_gets_again_what_it_got() -> None:
    rules = (Rule(match=(Match(methods=("GET",)),)),)
    tap = Tap(Level.BODY, probe=50.0, protocol=Protocol.HTTP, rules=rules)
    tap.accept()
    for number in range(60):
        asks(tap, number, number % 20 == 19)
    again(tap)
    assert (1, b"/a?39") in tap.sent


def test_another_status_says_nothing_of_fields() -> None:
    tap = Tap(Level.BODY, probe=50.0)
    tap.accept()
    for number in range(60):
        asks(tap, number, number % 20 == 19)
    again(tap)
    for _ in tap.sent:
        tap.shadow(BAD, target=1)
    (endpoint,) = tap.state()["endpoints"].values()
    assert endpoint["fields"]["value body.a"]["checks"] == 0


# --- more requests than are compared


def busy(tap: Tap, rounds: int, ports: range = range(1, 41), status: int = 200) -> None:
    """Requests on many connections, each answered before the next; what is not captured the tap does not get."""
    for number in range(rounds):
        for port in ports:
            tap.ask(f"/{port}", port)
            tap.batch()
            data = f"HTTP/1.1 {status} OK\r\nContent-Length: 5\r\n\r\n{number % 1000:5}".encode()
            if tap.captures(port):
                tap.answer(data, port)
            else:
                tap.at[port, True] += len(data)
            talk = tap.pipeline.conversation(tap.flow_of(port))
            if talk is not None and talk.owes(0):
                talk.shadow_data(0, data, int(tap.now * 1e9))


def test_beyond_the_budget_connections_take_turns() -> None:
    """A request each millisecond, a fifth of them compared, each connection in its turn; none is paired wrongly."""
    tap = Tap(Level.BODY, most=200)
    for port in range(1, 41):
        tap.accept(port)
    busy(tap, 300)
    tap.later(1.0)
    state = tap.state()
    pairs = tap.pairs()
    assert state["requests"] == 12_000
    assert 0 <= state["unpaired"]["thinned"] - tap.rested < 100, "those of the first turn, before the rate was known"
    told = sum(pairs.values()) + sum(state["unpaired"].values())
    assert 0 <= 12_000 - told <= 40, "the first pair of a turn is certain with the next request"
    assert 1800 < sum(pairs.values()) < 3600
    assert set(state["unpaired"]) == {"thinned"}
    assert not any(field["raw"] for each in state["endpoints"].values() for field in each["fields"].values())
    counts = Counter(path for _, path in tap.sent)
    assert len(counts) == 40 and min(counts.values()) > 10
    assert tap.kept == set()


def test_a_slow_response_is_waited_for_after_the_turn() -> None:
    tap = Tap(most=200)
    for port in range(1, 42):
        tap.accept(port)
    tap.ask("/slow", 41)
    busy(tap, 60)
    assert tap.kept == {key(41)} and tap.captures(41)
    tap.answer(OK, 41)
    tap.shadow()
    busy(tap, 10)
    tap.later(1.0)
    tap.batch()
    assert tap.kept == set()
    assert b"/slow" in [path for _, path in tap.sent]
    assert set(tap.state()["unpaired"]) == {"thinned"}


def test_requests_before_the_source_knows_of_their_turn_are_left_out() -> None:
    tap = Tap(most=200)
    for port in range(1, 41):
        tap.accept(port)
    busy(tap, 60)
    tap.batch = lambda: None  # type: ignore[method-assign]
    before = len(tap.sent)
    busy(tap, 100)
    during = len(tap.sent) - before
    assert during < 60, "those of whom the turn was begun, and none after that"
    del tap.batch
    tap.batch()
    busy(tap, 60)
    assert len(tap.sent) - before - during > 200


def test_who_asks_twice_while_it_rests_is_not_paired_afterwards() -> None:
    tap = Tap(most=200)
    for port in range(1, 41):
        tap.accept(port)
    busy(tap, 60)
    port = next(port for port in range(1, 41) if not tap.captures(port))
    for _ in range(2):
        tap.ask("/twice", port)
    tap.at[port, True] += 10
    before = tap.pairs().get(f"GET /{port}", 0)
    busy(tap, 60)
    assert tap.pairs().get(f"GET /{port}", 0) == before
    assert tap.state()["unpaired"]["order"] > 0


def test_when_there_are_few_requests_again_all_are_compared() -> None:
    tap = Tap(most=200)
    for port in range(1, 41):
        tap.accept(port)
    busy(tap, 60)
    for _ in range(20):
        tap.later(1.0)
        tap.batch()
    assert tap.wanted[1] == BUCKETS
    before = sum(tap.pairs().values())
    tap.rested = 0
    busy(tap, 2, range(1, 11))
    assert tap.rested == 0
    tap.later(1.0)
    assert sum(tap.pairs().values()) - before >= 10, "the last pair of each is certain with the next request"


def test_a_request_that_was_lost_before_the_end_leaves_no_pair_in_doubt() -> None:
    """The first response and the second request were not captured: the second response is not the first's."""
    tap = Tap()
    tap.ask("/a")  # joined mid-stream
    tap.put(1, ACK | FROM_SERVER)
    tap.at[1, True] += len(OK)
    tap.at[1, False] += 33
    tap.answer(BAD)
    tap.shadow(OK)
    tap.put(1, ACK | FIN)
    tap.later(1.0)
    assert tap.pairs() == {}


def test_after_a_hole_in_the_requests_the_end_does_not_make_a_pair_certain() -> None:
    tap = Tap()
    tap.ask("/a")
    tap.put(1, ACK | FROM_SERVER)
    tap.answer(OK)
    tap.shadow(OK)
    tap.at[1, False] += 33
    tap.put(1, ACK | FIN)
    tap.put(1, ACK | FROM_SERVER)
    tap.later(1.0)
    assert tap.pairs() == {}


@pytest.mark.parametrize("handshake", [True, False])
def test_who_asks_twice_behind_a_hole_is_not_paired_after_it(handshake: bool) -> None:
    """Its requests there are not framed, and yet it is known to pipeline."""
    tap = Tap()
    tap.accept()
    if not handshake:
        tap.ask("/0")
        tap.answer()
        tap.shadow()
    tap.at[1, False] += 33  # lost
    tap.ask("/b")
    tap.ask("/c")
    tap.answer(BAD)
    for path in ("/d", "/e", "/f", "/g"):
        tap.ask(path)
        tap.shadow()
        tap.answer(BAD)  # of the second before it
    assert sum(tap.pairs().values()) == (0 if handshake else 1)


def test_of_connections_that_are_over_nothing_is_kept() -> None:
    tap = Tap()
    for port in range(1, 200):
        tap.accept(port)
        tap.ask("/a", port)
        tap.answer(OK, port)
        tap.shadow()
        tap.put(port, ACK | FIN)
        tap.flows.clear()
    tap.later(1.0)
    pipeline = tap.pipeline
    assert (len(pipeline._talks), len(pipeline._active), len(pipeline._late)) == (0, 0, 0)


def test_two_that_wait_in_one_bucket_are_both_heard() -> None:
    """The kernel has one bit for both."""
    tap = Tap(most=200)
    bucket = {flow_hash(key(port), 0) % BUCKETS: port for port in range(50, 60_000)}
    one, other = next(
        (port, bucket[at]) for port in range(50, 60_000) if bucket[at := flow_hash(key(port), 0) % BUCKETS] != port
    )
    for port in range(1, 41):
        tap.accept(port)
    for port in (one, other):
        tap.accept(port)
        tap.ask("/slow", port)
    busy(tap, 60)
    both = {key(one), key(other)}
    assert len(tap.kept & both) == 1 and tap.flow_of(other) in tap.pipeline._late
    tap.answer(OK, one)
    busy(tap, 10)
    tap.later(1.0)
    tap.batch()
    assert tap.flow_of(one) not in tap.pipeline._late
    assert len(tap.kept & both) == 1, "for the other"


def test_a_connection_that_speaks_something_else_is_passed_on_beside_those_that_are_compared() -> None:
    tap = Tap()
    tap.accept(1)
    tap.put(1, ACK, b"PROXY TCP4 10.0.0.1 10.0.0.2 40000 80\r\n")
    tap.ask("/a", 1)
    tap.answer(OK, 1)
    tap.ask("/b", 1)
    tap.accept(2)
    tap.ask("/c", 2)
    tap.answer(OK, 2)
    tap.shadow()
    assert tap.pairs() == {"GET /c": 1}
    assert [tap.state()["raw"], tap.ledger.events["flows_raw"], tap.ledger.events["flows"]] == [1, 1, 2]


@pytest.mark.parametrize("level", [Level.STATUS, Level.HEADERS, Level.BODY])
@pytest.mark.parametrize("policy", [False, True])
def test_of_a_request_that_is_marked_only_status_and_times_are_compared(level: Level, policy: bool) -> None:
    """A shadow may tell in its response what it was asked with."""
    more: dict[str, Any] = {"protocol": Protocol.HTTP, "rules": (Rule(),)} if policy else {}
    tap = Tap(level, **more)
    tap.pipeline._tracer = Tracer(b"0" * 32)
    copies: list[bytes] = []
    act = tap.act

    def keep(commands: Any) -> None:
        copies.extend(bytes(each.data) for each in commands if isinstance(each, Send))
        act(commands)

    tap.act = keep  # type: ignore[method-assign]
    tap.accept()
    for i in range(40):
        tap.ask(f"/a?{i}")
        tap.answer()
        body = copies[-1] if b"Tapmirror" in copies[-1] else b"ok"
        tap.shadow(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    marked = [i for i, copy in enumerate(copies, 1) if b"\r\nTapmirror-Loop: " in copy]
    state = tap.state()
    (endpoint,) = state["endpoints"].values()
    assert marked == [1, 2, 4, 8, 16]
    assert (endpoint["pairs"], state["unpaired"]) == (40, {})
    assert state["thinned"] == (0 if level is Level.STATUS else len(marked))
    assert endpoint["compared"] == 40 - state["thinned"]
    assert endpoint["fields"] == {}


def test_of_a_small_share_no_more_is_marked_than_of_all() -> None:
    """One in sixteen of those that the shadow gets, however many it does not."""
    rules = (Rule(match=(Match(path=Text(prefix="/a")),)),)
    tap = Tap(Level.BODY, protocol=Protocol.HTTP, rules=rules)
    tap.pipeline._tracer = Tracer(b"0" * 32)
    tap.accept()
    for i in range(20_000):
        tap.now += 0.01
        path = f"/a?{i}" if i % 100 == 0 else f"/b?{i}"
        tap.ask(path)
        tap.answer()
        if i % 100 == 0:
            tap.shadow()
    state = tap.state()
    (endpoint,) = state["endpoints"].values()
    assert endpoint["pairs"] == 200
    assert state["thinned"] == 5 + (200 - 16) // 16
    assert endpoint["compared"] == 200 - state["thinned"]


@pytest.mark.parametrize("body", ["", "0123456789"])
def test_what_the_tap_sends_late_is_compared_and_not_timed(body: str) -> None:
    tap = Tap()
    tap.accept()

    def exchange(waited: float) -> None:
        head = f"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for data in filter(None, (head, body.encode())):
            # Of a request in two segments only the last one is late.
            tap.put(1, ACK, data, waited=waited if data == (body.encode() or head) else 0.0)
        tap.answer()
        tap.shadow()

    for waited in (0.0, 0.04, 2.0):
        exchange(waited)
    tap.later(1.5)
    exchange(0.0)  # behind the rush
    tap.later(1.0)
    exchange(0.0)
    state = tap.state()
    (endpoint,) = state["endpoints"].values()
    assert (endpoint["pairs"], state["late"]) == (5, 2)
    assert sum(endpoint["shadow"]["last"]["buckets"].values()) == 3
    assert sum(endpoint["production"]["last"]["buckets"].values()) == 3
