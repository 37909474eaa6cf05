# SPDX-License-Identifier: Apache-2.0
"""VirtualServices as Istio means them: which requests each route has, and what comes of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from policy_cases import head, key
from tapmirror.events import END, START, Open, Send
from tapmirror.ledger import Ledger
from tapmirror.policy import Policy
from tapmirror.spec import TapSpec
from tapmirror.spec.document import Document, FileError
from tapmirror.spec.istio import BOTH
from tapmirror.spec.kubernetes import import_tap

TO = {"mirror": {"host": "new"}}


def service(http: Any, hosts: Any = ("shop.test",), version: str = "v1", **spec: Any) -> Document:
    data = {"apiVersion": f"networking.istio.io/{version}", "kind": "VirtualService"}
    data["spec"] = {"hosts": list(hosts), "http": http, **spec}  # type: ignore[assignment]
    return Document(json.loads(json.dumps(data)), {}, [])


def tap_of(*documents: Document, **resolve: str) -> tuple[TapSpec, list[str]]:
    tap, warnings = import_tap(list(documents), {"iface": "eth0", "ports": [80]}, resolve)
    return tap, [str(warning) for warning in warnings]


def mirrored(tap: TapSpec, line: str, *fields: str, host: str = "shop.test") -> list[str]:
    """Which shadows get a request, and with which Host."""
    policy = Policy(tap, [Ledger() for _ in tap.shadows])
    data = head(line, *fields, host=host)
    found = policy.route([Open(1, True, key()), Send(1, data, len(data), START | END)], 0.0)
    got = []
    for command in found:
        if isinstance(command, Send):
            sent = bytes(command.data).partition(b"Host: ")[2].split(b"\r")[0].decode()
            got.append(f"{tap.shadows[command.target].label} {sent}")
    return got


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_versions_and_the_suffix(version: str) -> None:
    tap, warnings = tap_of(service([TO], version=version))
    assert mirrored(tap, "GET / HTTP/1.1", host="shop.test:9080") == ["new shop.test-shadow:9080"]
    assert warnings == []


@pytest.mark.parametrize(
    ("host", "asked", "matches"),
    [
        ("*", "anything", True),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("shop.test", "SHOP.test:80", True),
        ("shop.test", "other.test", False),
        ("reviews", "reviews", True),
        ("reviews", "reviews.default", True),
        ("reviews", "reviews.default.svc", True),
        ("reviews", "reviews.default.svc.cluster.local:9080", True),
        ("reviews", "reviews.other", False),
        ("reviews.ns.svc.cluster.local", "reviews.ns", True),
        ("reviews.ns.svc.cluster.local", "reviewsXns", False),
    ],
)
def test_hosts(host: str, asked: str, matches: bool) -> None:
    tap, _ = tap_of(service([TO], hosts=[host]))
    assert bool(mirrored(tap, "GET / HTTP/1.1", host=asked)) is matches


@pytest.mark.parametrize(
    ("match", "line", "fields", "matches"),
    [
        ({"uri": {"exact": "/a"}}, "GET /a?b HTTP/1.1", (), True),
        ({"uri": {"exact": "/a"}}, "GET /A HTTP/1.1", (), False),
        ({"uri": {"exact": "/a"}, "ignoreUriCase": True}, "GET /A HTTP/1.1", (), True),
        ({"uri": {"prefix": "/a"}}, "GET /ab HTTP/1.1", (), True),
        ({"uri": {"regex": "/a.c"}}, "GET /abc HTTP/1.1", (), True),
        ({"uri": {"regex": "/a"}}, "GET /abc HTTP/1.1", (), False),
        ({"method": {"exact": "POST"}}, "GET / HTTP/1.1", (), False),
        ({"headers": {"end-user": {"exact": "jason"}}}, "GET / HTTP/1.1", ("End-User: jason",), True),
        ({"headers": {"end-user": {"exact": "jason"}}}, "GET / HTTP/1.1", (), False),
        ({"headers": {"end-user": {}}}, "GET / HTTP/1.1", ("End-User: x",), True),
        ({"headers": {"end-user": {}}}, "GET / HTTP/1.1", (), False),
        ({"withoutHeaders": {"x": {}}}, "GET / HTTP/1.1", (), True),
        ({"withoutHeaders": {"x": {}}}, "GET / HTTP/1.1", ("X: 1",), False),
        ({"without_headers": {"x": {"prefix": "a"}}}, "GET / HTTP/1.1", ("X: b",), True),
        ({"queryParams": {"q": {"exact": "1"}}}, "GET /?q=1 HTTP/1.1", (), True),
        ({"queryParams": {"q": {"regex": "[0-9]+"}}}, "GET /?q=x HTTP/1.1", (), False),
        ({"uri": {"regex": "/a"}, "ignoreUriCase": True}, "GET /A HTTP/1.1", (), False),
        ({"scheme": {"exact": "http"}}, "GET / HTTP/1.1", (), True),
        ({"scheme": {"prefix": "http"}, "port": 80}, "GET / HTTP/1.1", (), True),
        ({"method": {"regex": "GET|POST"}}, "POST / HTTP/1.1", (), True),
        ({"method": {"regex": "GET|POST"}}, "PUT / HTTP/1.1", (), False),
        ({"method": {"prefix": "P"}}, "PATCH / HTTP/1.1", (), True),
        ({"authority": {"exact": "shop.test"}}, "GET / HTTP/1.1", (), True),
        ({"authority": {"exact": "shop.test:80"}}, "GET / HTTP/1.1", (), False),
        ({"uri": {"prefix": "/a"}, "headers": {"x": {"exact": "1"}}}, "GET /a HTTP/1.1", (), False),
    ],
)
def test_matches(match: Any, line: str, fields: tuple[str, ...], matches: bool) -> None:
    tap, warnings = tap_of(service([{"match": [match], **TO}]))
    assert bool(mirrored(tap, line, *fields)) is matches
    assert warnings == []


def test_the_first_route_has_the_request_whether_it_mirrors_or_not() -> None:
    routes = [
        {"match": [{"uri": {"prefix": "/static"}}, {"uri": {"exact": "/"}}]},
        {"match": [{"uri": {"prefix": "/a"}}], "mirror": {"host": "a"}},
        {"mirror": {"host": "rest"}},
    ]
    tap, _ = tap_of(service(routes))
    assert [len(mirrored(tap, f"GET {path} HTTP/1.1")) for path in ("/", "/static/x")] == [0, 0]
    assert mirrored(tap, "GET /a HTTP/1.1") == ["a shop.test-shadow"]
    assert mirrored(tap, "GET /b HTTP/1.1") == ["rest shop.test-shadow"]


@pytest.mark.parametrize(
    ("route", "percent"),
    [
        (TO, 100.0),
        ({**TO, "mirrorPercentage": {"value": 0.5}}, 0.5),
        ({**TO, "mirror_percentage": {"value": 12}}, 12.0),
        ({**TO, "mirrorPercent": 30}, 30.0),
        ({**TO, "mirrorPercent": 30, "mirrorPercentage": {"value": 7}}, 7.0),
        ({"mirrors": [{"destination": {"host": "new"}, "percentage": {"value": 25}}]}, 25.0),
        ({"mirrors": [{"destination": {"host": "new"}}]}, 100.0),
    ],
)
def test_percentages(route: Any, percent: float) -> None:
    tap, _ = tap_of(service([route]))
    mirror = tap.rules[0].mirror
    assert mirror is not None and [each.percent for each in mirror] == [percent]


def test_several_mirrors_and_none_at_zero() -> None:
    mirrors = [
        {"destination": {"host": "a", "port": {"number": 8080}}},
        {"destination": {"host": "b"}, "percentage": {"value": 0}},
        {"destination": {"host": "c"}},
    ]
    tap, _ = tap_of(service([{"mirrors": mirrors}]), c="10.0.0.3:33")
    assert [shadow.end_point for shadow in tap.shadows] == ["a:8080", "10.0.0.3:33"]


@pytest.mark.parametrize(
    ("http", "wanted"),
    [
        ([{**TO, "mirrors": [{"destination": {"host": "b"}}]}], f"spec.http[0]: {BOTH}"),
        ([{**TO, "mirrorPercentage": {"value": 101}}], "spec.http[0].mirrorPercentage.value: 101 is not between"),
        ([{**TO, "mirrorPercentage": {"value": 100.0001}}], "spec.http[0].mirrorPercentage.value: 100.0001 is not"),
        ([{**TO, "mirrorPercentage": {"value": "x"}}], "spec.http[0].mirrorPercentage.value: 'x' is not a number"),
        ([{"mirror": {"subset": "v1"}}], "spec.http[0].mirror: host is missing"),
        (
            [{**TO, "match": [{"uri": {"exact": "/a", "prefix": "/b"}}]}],
            "spec.http[0].match[0].uri: needs one of exact",
        ),
        ([{**TO, "match": [{"uri": {"regex": "("}}]}], "spec.http[0].match[0].uri: regex: '(': missing )"),
        ([{**TO, "match": [{"headers": {"a b": {}}}]}], "spec.http[0].match: headers.a b: 'a b' is not a field name"),
        ([{**TO, "match": [{"method": {"exact": "A B"}}]}], "spec.http[0].match: methods[0]: 'A B' is not a method"),
        ([{"mirror": {"host": "a", "port": {"number": 80.5}}}], "spec.http[0].mirror.port.number: 80.5 is not a port"),
        (
            [{"mirror": {"host": "a", "port": {"number": math.nan}}}],
            "spec.http[0].mirror.port.number: nan is not a port",
        ),
        ([{**TO, "match": {}}], "spec.http[0].match: {} is not a list"),
        ("x", "spec.http: 'x' is not a list"),
    ],
)
def test_refused(http: Any, wanted: str) -> None:
    with pytest.raises(FileError) as caught:
        tap_of(service(http))
    assert any(str(problem).startswith(wanted) for problem in caught.value.found), caught.value.found


def test_a_mirror_beside_the_routes_is_told_by_its_field() -> None:
    with pytest.raises(FileError) as caught:
        tap_of(service([{"route": [{"destination": {"host": "a"}}]}], mirror={"host": "a"}))
    assert str(caught.value.found[0]).startswith("spec.mirror: belongs to a route of http")


@pytest.mark.parametrize(
    ("match", "field"),
    [
        ({"scheme": {"exact": "https"}}, "scheme"),
        ({"port": 81}, "port"),
        ({"method": {"prefix": "X"}}, "method"),
    ],
)
def test_a_match_that_nothing_can_meet_is_left_out(match: Any, field: str) -> None:
    tap, warnings = tap_of(service([{"match": [match], **TO}, {"mirror": {"host": "rest"}}]))
    assert [warning.split(": ")[0] for warning in warnings] == [f"spec.http[0].match[0].{field}"]
    assert mirrored(tap, "GET / HTTP/1.1") == ["rest shop.test-shadow"]


@pytest.mark.parametrize("name", ["redirect", "directResponse"])
def test_a_route_that_answers_by_itself_mirrors_nothing(name: str) -> None:
    tap, warnings = tap_of(service([{"match": [{"uri": {"prefix": "/a"}}], name: {"status": 503}, **TO}, TO]))
    assert [warning.split(": ")[0] for warning in warnings] == [f"spec.http[0].{name}"]
    assert not mirrored(tap, "GET /a HTTP/1.1") and mirrored(tap, "GET /b HTTP/1.1")


def test_a_percentage_of_0_alone_is_a_tap_that_is_off() -> None:
    tap, _ = tap_of(service([{**TO, "mirrorPercentage": {"value": 0}}]))
    assert [shadow.label for shadow in tap.shadows] == ["new"]
    assert mirrored(tap, "GET / HTTP/1.1") == []


def test_a_field_that_is_not_known_is_told() -> None:
    _, warnings = tap_of(service([{"match": [{"uri": {"exact": "/"}}], "miror": {"host": "a"}}, TO]))
    assert warnings == ["spec.http[0].miror: no such field is known here"]
    with pytest.raises(FileError) as caught:
        tap_of(service([{"miror": {"host": "a"}}]))
    assert [problem.path for problem in caught.value.found] == ["spec.http[0].miror", ""]


def test_a_version_that_is_not_known() -> None:
    with pytest.raises(FileError) as caught:
        tap_of(service([TO], version="v2"))
    assert str(caught.value).startswith("apiVersion: 'networking.istio.io/v2' is none of networking.istio.io/v1, ")


def test_subsets_of_two_destination_rules() -> None:
    rules = []
    for name in ("v1", "v2"):
        rule = {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule"}
        rule["spec"] = {"host": "new", "subsets": [{"name": name}]}  # type: ignore[assignment]
        rules.append(Document(rule, {}, []))
    tap, _ = tap_of(service([{"mirror": {"host": "new", "subset": "v1"}}]), *rules, **{"new:v1": "a:1"})
    assert tap.shadows[0].label == "new:v1"


def test_a_subset_that_the_destination_rule_does_not_have() -> None:
    rule = {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule"}
    rule["spec"] = {"host": "new", "subsets": [{"name": "v1"}]}  # type: ignore[assignment]
    with pytest.raises(FileError) as caught:
        tap_of(Document(rule, {}, []), service([{"mirror": {"host": "new", "subset": "v2"}}]), **{"new:v2": "a:1"})
    assert "has no subset v2" in str(caught.value)


CHANGED = "the proxy changes its copies so, too; "


@pytest.mark.parametrize(
    ("route", "field", "why"),
    [
        ({**TO, "fault": {}}, "fault", "is done by the proxy in the path, and not to the copies made here"),
        ({**TO, "retries": {}}, "retries", "is done by the proxy in the path, and not to the copies made here"),
        ({**TO, "delegate": {"name": "x"}}, "delegate", "stands for the routes of another VirtualService"),
        ({**TO, "rewrite": {"uri": "/"}}, "rewrite", CHANGED),
        ({**TO, "headers": {"request": {"set": {"x": "y"}}}}, "headers.request", CHANGED),
        (
            {**TO, "route": [{"destination": {}}, {"headers": {"request": {"remove": ["x"]}}}]},
            "route[1].headers.request",
            CHANGED,
        ),
        ({**TO, "whatever": 1}, "whatever", "no such field is known here"),
    ],
)
def test_what_is_not_done_to_a_copy_is_told(route: Any, field: str, why: str) -> None:
    tap, (warning,) = tap_of(service([route]))
    assert warning.startswith(f"spec.http[0].{field}: {why}")
    assert mirrored(tap, "GET / HTTP/1.1")


def test_fields_of_responses_are_nothing_to_a_copy() -> None:
    responses = {"headers": {"response": {"set": {"x": "y"}}}}
    assert tap_of(service([{**TO, **responses, "route": [responses]}]))[1] == []


@pytest.mark.parametrize("name", ["sourceLabels", "sourceNamespace", "gateways", "port", "whatever"])
def test_a_match_on_what_is_not_seen_is_left_out(name: str) -> None:
    """The others of the route stay; a route of which none stays matches nothing."""
    unseen: dict[str, Any] = {name: {"app": "x"}, "uri": {"prefix": "/a"}}
    tap, warnings = tap_of(service([{"match": [unseen, {"uri": {"prefix": "/b"}}], **TO}]))
    assert len(warnings) == 1 and warnings[0].startswith(f"spec.http[0].match[0].{name}: ")
    assert mirrored(tap, "GET /b HTTP/1.1") and not mirrored(tap, "GET /a HTTP/1.1")
    tap, _ = tap_of(service([{"match": [unseen], "mirror": {"host": "a"}}, TO]))
    assert mirrored(tap, "GET /a HTTP/1.1") == ["new shop.test-shadow"]
