# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from lab.exchanges import Plain
from tapmirror.compare.comparison import Comparison
from tapmirror.compare.figures import Figures, figures, merge
from tapmirror.compare.findings import Change, Difference
from tapmirror.compare.identifiers import ENOUGH, Identifiers, _moment, form
from tapmirror.compare.noise import Nature
from tapmirror.compare.texts import _line_name
from tapmirror.compare.verdict import Outcome, VerdictLimits
from tapmirror.events import START
from tapmirror.exchange import Asked, Response
from tapmirror.spec import Compare, Level

_HASH = f"[{_line_name('/orders/#')}]"
Order = dict[str, Any]
Fault = Callable[[Order, int, random.Random], None]
BEGAN = datetime(2026, 11, 24, 10, 0, 0, tzinfo=UTC)


class Orders:
    """A version that makes orders."""

    def __init__(self, rand: random.Random, first: int) -> None:
        self.rand = rand
        self.number = first

    def make(self, user: str, second: float) -> tuple[Order, datetime]:
        """One more, and when."""
        rand = self.rand
        self.number += 1
        now = BEGAN + timedelta(seconds=second)
        order: Order = {
            "id": str(uuid.UUID(int=rand.getrandbits(128), version=4)),
            "number": self.number,
            "reference": f"ORD-{self.number:05}",
            "token": f"tok_{rand.getrandbits(96):024x}a1",
            "user": user,
            "created": now.isoformat(),
            "expires": int((now + timedelta(hours=1)).timestamp()),
            "total": 17,
            "lines": [{"id": str(uuid.UUID(int=rand.getrandbits(128), version=4)), "price": 5} for _ in range(2)],
        }
        return order, now


def run(
    fault: Fault | None = None, often: float = 1.0, requests: int = 1000, seed: int = 1, both: Fault | None = None
) -> Figures:
    rand = random.Random(seed)
    spec = Compare(level=Level.BODY)
    comparison = Comparison(spec, [("v2", "http://v2.test")], Plain())
    talk = comparison.opened(1, False)
    old, new = Orders(random.Random(seed + 1), 1000), Orders(random.Random(seed + 2), 5000)
    for number in range(1, requests + 1):
        second = number / 10
        user = str(uuid.UUID(int=rand.getrandbits(128), version=4))
        body = json.dumps({"user": user}).encode()
        head = b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        comparison.request(1, number, head, START, second)
        talk.request_body(number, body)
        asked = int(second * 1e9)
        talk.request_ended(number, asked)
        talk.chosen(0, number, b"")
        talk.asked(0, number, 0)
        talk.sent(0, number, asked + 1000, 900_000)
        talk.decided(number)
        (mine, at), (its, its_at) = old.make(user, second), new.make(user, second + rand.random())
        if both is not None:
            for order in (mine, its):
                both(order, number, rand)
        if fault is not None and rand.random() < often:
            fault(its, number, rand)
        talk.production_data(written(mine, at), asked + 5000)
        talk.shadow_data(0, written(its, its_at), asked + 6000)
    ((_, state),) = merge([json.loads(json.dumps(comparison.snapshot()))], spec).items()
    return figures("t", "v2", state, spec, VerdictLimits(max_p99_ratio=None, max_error_diff=None))


def written(order: Order, at: datetime) -> bytes:
    data = json.dumps(order).encode()
    return (
        f"HTTP/1.1 201 Created\r\nDate: {format_datetime(at.replace(microsecond=0), usegmt=True)}\r\n"
        f"Location: /orders/{order['id']}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    ).encode() + data


def test_what_each_version_gives_anew_is_no_difference_and_the_report_says_what_was_taken_for_it() -> None:
    found = run(requests=2000)
    assert found.verdict.outcome is Outcome.PASS
    assert found.all.differing == 0
    taken = {field.path.replace(_HASH, "") for field in found.endpoints[0].fields}
    names = {
        "body.id",
        "body.number",
        "body.reference",
        "body.token",
        "body.created",
        "body.expires",
        "body.lines[].id",
    }
    assert taken == {*names, "header.location"}
    assert {(field.kind, field.nature) for field in found.endpoints[0].fields} == {("identifier", Nature.NOISE)}
    (note,) = found.notes
    assert note.startswith("taken for identifiers and times that each version generates: POST /orders ")
    assert all(name in note for name in taken)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lines", lambda o, n, r: o["lines"][: n % 3]),
        ("lines", lambda o, n, r: [*map(dict, o["lines"])] if n % 3 else None),
        ("token", lambda o, n, r: o["token"] if n % 3 else None),
        ("token", lambda o, n, r: o["token"] if n % 3 else ""),
    ],
)
def test_an_identifier_that_is_not_in_each_response_is_one(
    name: str, value: Callable[[Order, int, random.Random], Any]
) -> None:
    found = run(both=_set(name, value), requests=2000)
    assert {field.nature for field in found.endpoints[0].fields} == {Nature.NOISE}
    assert found.verdict.outcome is Outcome.PASS


def test_one_that_is_the_same_on_both_sides_only_within_a_list_is_none() -> None:
    def same(order: Order, number: int, rand: random.Random) -> None:
        if number % 4 == 0:
            order["lines"][0]["id"] = order["lines"][1]["id"] = str(uuid.UUID(int=number, version=4))

    found = run(both=same)
    assert {field.path for field in found.endpoints[0].fields if field.nature is Nature.DIFFERENT} == {
        "body.lines[].id"
    }


def test_a_status_is_no_number_that_goes_up() -> None:
    difference = Difference(Change.VALUE, "status", 201, 409)
    (found,) = (
        Identifiers().sort("POST /", Asked(1, b"POST", b"/", b""), Response(201), Response(409), [difference]).found
    )
    assert found is difference


def test_before_there_are_enough_of_them_it_is_too_early_to_tell() -> None:
    found = run(requests=ENOUGH - 1)
    assert {field.nature for field in found.endpoints[0].fields} == {Nature.WAITING}
    assert found.verdict.outcome is Outcome.UNDECIDED


def _set(name: str, value: Callable[[Order, int, random.Random], Any]) -> Fault:
    def fault(order: Order, number: int, rand: random.Random) -> None:
        order[name] = value(order, number, rand)

    return fault


def _swap(one: str, other: str) -> Fault:
    def fault(order: Order, number: int, rand: random.Random) -> None:
        order[one], order[other] = order[other], order[one]

    return fault


FAULTS = {
    "constant token": ("body.id", _set("id", lambda o, n, r: "f47ac10b-58cc-4372-a567-0e02b2c3d479")),
    "null": ("body.id", _set("id", lambda o, n, r: None)),
    "empty": ("body.id", _set("id", lambda o, n, r: "")),
    "shape": ("body.id", _set("id", lambda o, n, r: o["id"].replace("-", ""))),
    "cut": ("body.id", _set("id", lambda o, n, r: o["id"][:-4])),
    "another kind": ("body.id", _set("id", lambda o, n, r: n)),
    "prefix": ("body.token", _set("token", lambda o, n, r: o["token"].replace("tok_", "key_"))),
    "number as text": ("body.number", _set("number", lambda o, n, r: str(o["number"]))),
    "number 0": ("body.number", _set("number", lambda o, n, r: 0)),
    "number by chance": ("body.number", _set("number", lambda o, n, r: r.randrange(10**6))),
    "reference": ("body.reference", _set("reference", lambda o, n, r: f"{o['number']:05}")),
    "user swapped with id": ("body.user", _swap("user", "id")),
    "another user": ("body.user", _set("user", lambda o, n, r: str(uuid.UUID(int=r.getrandbits(128), version=4)))),
    "id is user's": ("body.id", _set("id", lambda o, n, r: o["user"])),
    "zone": ("body.created", _set("created", lambda o, n, r: o["created"].replace("T10", "T11"))),
    "naive": ("body.created", _set("created", lambda o, n, r: o["created"][:10])),
    "never": ("body.created", _set("created", lambda o, n, r: "1970-01-01T00:00:00+00:00")),
    "expires later": ("body.expires", _set("expires", lambda o, n, r: o["expires"] + 60)),
    "milliseconds": ("body.expires", _set("expires", lambda o, n, r: o["expires"] * 1000)),
    "total": ("body.total", _set("total", lambda o, n, r: 18)),
    "total by chance": ("body.total", _set("total", lambda o, n, r: r.randrange(100))),
    "expires much later": ("body.expires", _set("expires", lambda o, n, r: o["expires"] + 10**9)),
    "times swapped": ("body.created", _swap("created", "expires")),
}


@pytest.mark.parametrize("often", [1.0, 0.04])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_what_looks_like_an_identifier_is_found(name: str, often: float) -> None:
    path, fault = FAULTS[name]
    found = run(fault, often, 200 if often == 1.0 else 600)
    assert found.verdict.outcome is Outcome.FAIL
    different = {
        field.path.replace(_HASH, "") for field in found.endpoints[0].fields if field.nature is Nature.DIFFERENT
    }
    assert path in different
    extra = {"header.location"} if path == "body.id" or "swap" in name else set()
    assert different <= {path, *extra, *(("body.id", "body.expires") if "swap" in name else ())}


def test_a_number_that_is_none_is_named_once() -> None:
    """The first of them might be an identifier."""
    found = run(FAULTS["total"][1], 1.0, 200)
    shown = [(field.kind, field.path) for field in found.endpoints[0].fields if field.nature is Nature.DIFFERENT]
    assert shown == [("value", "body.total")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("17", "number"),
        ("ORD-00017", "number ORD-"),
        ("/orders/17", "number /orders/"),
        ("f47ac10b-58cc-4372-a567-0e02b2c3d479", "uuid"),
        ("https://x.test/a/f47ac10b-58cc-4372-a567-0e02b2c3d479", "uuid https://x.test/a/"),
        ("cus_NffrFeUfNV2Hib", "name"),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "ulid"),
        ("507f1f77bcf86cd799439011", "hex 24"),
        ("Alice", None),
        ("hello there 12345", None),
        ("12.50", None),
        ("ae-bcdefabcdef-bcdef", "word"),
        ("abcdefab-aaaa-4bbb-8ccc-dddddddddddd", "uuid"),
        ("v1.2.3", None),
        ("2026-11-24", "word"),
    ],
)
def test_what_an_identifier_looks_like(text: str, kind: str | None) -> None:
    found = form(text)
    assert (None if found is None else found.kind) == kind


@pytest.mark.parametrize("piece", ["a/", "/", "1", "a+", "+/", "a-", "AB/", "a"])
def test_hostile_values_take_no_time(piece: str) -> None:
    """32 of them may differ in one exchange."""
    begun = time.process_time()
    for end in range(32):
        form(piece * (2300 // len(piece)) + f"!{end}")
    assert time.process_time() - begun < 0.25  # some 20 ms where nothing else runs


@pytest.mark.parametrize("counts", [True, False])
def test_numbers_may_come_in_another_order_than_they_were_given(counts: bool) -> None:
    """As a shadow answers that is behind by hundreds of requests on many connections."""
    rand = random.Random(1)
    identifiers = Identifiers()
    exchanges = []
    for number in range(3000):
        mine, its = (number, 7000 + number) if counts else (rand.randrange(10**6), rand.randrange(10**6))
        at = number * 3_000_000
        exchanges.append((at + rand.randrange(900_000_000), mine, its, at))
    believed = 0
    for its_at, mine, its, at in sorted(exchanges):
        one, other = (Response(status=200, head=b"HTTP/1.1 200 OK\r\n\r\n", last_ns=when) for when in (at, its_at))
        ((found,), _) = identifiers.sort(
            "POST /", Asked(1, b"POST", b"/", b""), one, other, [Difference(Change.VALUE, "body.number", mine, its)]
        )
        believed += found.change is Change.IDENTIFIER
    assert believed == 3000 if counts else believed < 2000


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (b"application/json", '{"order.owner": "%s", "n": 1}'),
        (b"application/json", '{"gr\\u00f6sse": "%s"}'),
        (b"application/json", '["%s", 1]'),
        (b"application/soap+xml", '<a xmlns="urn:a"><id>%s</id></a>'),
        (b"text/html", '<input name=t value="%s">'),
        (b"text/csv", "id,token\n1,%s\n2,x\n"),
        (b"text/plain", "your token is %s"),
    ],
)
def test_a_token_that_is_wrong_now_and_then_is_no_identifier(type_: bytes, text: str) -> None:
    """Wherever it stands: nearly always both sides have the same."""
    found = tokens(type_, text, 25)
    assert found.all.differing == 60
    assert found.verdict.outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (b"application/json", '{"a": {"id": "%s"}}'),
        (b"text/xml", '<a xmlns="urn:a"><id>%s</id></a>'),
        (b"application/soap+xml", '<e:a xmlns:e="urn:a"><e:b e:id="%s"/><e:b e:id="x"/></e:a>'),
    ],
)
def test_a_token_that_each_side_gives_anew_is_one(type_: bytes, text: str) -> None:
    found = tokens(type_, text, 1)
    (field,) = found.endpoints[0].fields
    assert (field.kind, field.nature) == ("identifier", Nature.NOISE)
    assert found.all.differing == 0


def tokens(type_: bytes, text: str, every: int) -> Figures:
    """Of responses with a token, of which one in so many is another one at the shadow."""
    rand = random.Random(1)
    spec = Compare(level=Level.BODY)
    comparison = Comparison(spec, [("v2", "")], Plain())
    talk = comparison.opened(1, False)
    for number in range(1, 1501):
        at = number * 100_000_000
        comparison.request(1, number, b"POST /a HTTP/1.1\r\nHost: x\r\n\r\n", START, number / 10)
        talk.request_ended(number, at)
        talk.chosen(0, number, b"")
        talk.asked(0, number, 0)
        talk.sent(0, number, at + 1000, 900_000)
        talk.decided(number)
        token = uuid.UUID(int=rand.getrandbits(128), version=4)
        wrong = token if number % every else uuid.UUID(int=rand.getrandbits(128), version=4)
        for tell, its, when in (
            (talk.production_data, token, 5000),
            (lambda data, ns: talk.shadow_data(0, data, ns), wrong, 6000),
        ):
            body = (text % its).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (type_, len(body))
            tell(head + body, at + when)
    ((_, state),) = merge([json.loads(json.dumps(comparison.snapshot()))], spec).items()
    return figures("t", "v2", state, spec, VerdictLimits(max_p99_ratio=None, max_error_diff=None))


@pytest.mark.parametrize("zone", ["GMT", "+0000", "-0000"])
def test_dates_do_not_depend_on_the_zone_of_this_host(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5322, 3.3: -0000 is UTC of a host that tells no zone."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert _moment(f"Sun, 06 Nov 1994 08:49:37 {zone}".encode()) == 784_111_777
    finally:
        monkeypatch.undo()
        time.tzset()
