# SPDX-License-Identifier: Apache-2.0
"""HTTPRoutes as the Gateway API means them."""

from __future__ import annotations

from typing import Any

import pytest

from tapmirror.spec import TapSpec
from tapmirror.spec.document import Document, FileError
from tapmirror.spec.kubernetes import import_tap
from test_spec_istio import mirrored


def to(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": name, "port": 8080}, **more}}


def tap_of(rules: Any, hostnames: Any = None, version: str = "v1") -> tuple[TapSpec, list[str]]:
    spec = {"rules": rules, **({"hostnames": hostnames} if hostnames else {})}
    data = {"apiVersion": f"gateway.networking.k8s.io/{version}", "kind": "HTTPRoute", "spec": spec}
    tap, warnings = import_tap([Document(data, {}, [])], {"iface": "eth0", "ports": [80]}, {})
    return tap, [str(warning) for warning in warnings]


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_rule_without_matches_has_everything(version: str) -> None:
    tap, warnings = tap_of([{"filters": [to("new")], "backendRefs": [{"name": "old"}]}], version=version)
    assert mirrored(tap, "GET /any HTTP/1.1") == ["new shop.test-shadow"]
    assert tap.shadows[0].end_point == "new:8080" and warnings == []


@pytest.mark.parametrize(
    ("match", "line", "fields", "matches"),
    [
        ({"path": {"value": "/a"}}, "GET /a HTTP/1.1", (), True),
        ({"path": {"value": "/a"}}, "GET /a/b HTTP/1.1", (), True),
        ({"path": {"value": "/a"}}, "GET /ab HTTP/1.1", (), False),
        ({"path": {"value": "/a/"}}, "GET /a HTTP/1.1", (), True),
        ({"path": {"value": "/a.b"}}, "GET /aXb HTTP/1.1", (), False),
        ({"path": {"type": "Exact", "value": "/a"}}, "GET /a/ HTTP/1.1", (), False),
        ({"path": {"type": "RegularExpression", "value": "/a[0-9]"}}, "GET /a1 HTTP/1.1", (), True),
        ({"method": "POST"}, "GET / HTTP/1.1", (), False),
        ({"headers": [{"name": "X", "value": "1"}]}, "GET / HTTP/1.1", ("x: 1",), True),
        (
            {"headers": [{"name": "X", "type": "RegularExpression", "value": "[0-9]"}]},
            "GET / HTTP/1.1",
            ("x: 12",),
            False,
        ),
        ({"queryParams": [{"name": "q", "value": "1"}]}, "GET /?q=1 HTTP/1.1", (), True),
    ],
)
def test_matches(match: Any, line: str, fields: tuple[str, ...], matches: bool) -> None:
    tap, _ = tap_of([{"matches": [match], "filters": [to("new")]}])
    assert bool(mirrored(tap, line, *fields)) is matches


def test_the_most_specific_match_has_the_request() -> None:
    rules = [
        {"filters": [to("all")]},
        {"matches": [{"path": {"value": "/a"}}], "filters": [to("short")]},
        {"matches": [{"path": {"value": "/a/b"}}, {"path": {"type": "Exact", "value": "/x"}}], "filters": [to("long")]},
        {"matches": [{"path": {"value": "/a"}, "method": "POST"}], "filters": [to("post")]},
        {"matches": [{"path": {"value": "/a"}, "headers": [{"name": "X", "value": "1"}]}], "filters": [to("header")]},
    ]
    tap, _ = tap_of(rules)
    asked = {
        "GET /q": "all",
        "GET /a": "short",
        "GET /a/b/c": "long",
        "GET /x": "long",
        "POST /a": "post",
    }
    for line, name in asked.items():
        assert mirrored(tap, f"{line} HTTP/1.1") == [f"{name} shop.test-shadow"]
    assert mirrored(tap, "GET /a HTTP/1.1", "X: 1") == ["header shop.test-shadow"]
    assert mirrored(tap, "POST /a HTTP/1.1", "X: 1") == ["post shop.test-shadow"]


@pytest.mark.parametrize(
    ("share", "percent"),
    [
        ({}, 100.0),
        ({"percent": 10}, 10.0),
        ({"fraction": {"numerator": 1, "denominator": 1000}}, 0.1),
        ({"fraction": {"numerator": 5}}, 5.0),
    ],
)
def test_percent_and_fraction(share: Any, percent: float) -> None:
    tap, _ = tap_of([{"filters": [to("new", **share)]}])
    mirror = tap.rules[0].mirror
    assert mirror is not None and [each.percent for each in mirror] == [percent]


def test_host_names_and_other_namespaces() -> None:
    tap, _ = tap_of([{"filters": [to("new")]}], hostnames=["shop.test", "*.shop.test"])
    assert [bool(mirrored(tap, "GET / HTTP/1.1", host=host)) for host in ("shop.test", "a.shop.test", "x")] == [1, 1, 0]
    there = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "new", "namespace": "b"}}}
    assert tap_of([{"filters": [there]}])[0].shadows[0].end_point == "new.b:80"


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ({"filters": [to("new", percent=5, fraction={"numerator": 1})]}, "only one of percent and fraction"),
        ({"filters": [to("new", percent=101)]}, "101 is not between 0 and 100"),
        ({"filters": [to("new", fraction={"numerator": 2, "denominator": 1})]}, "2 of 1 is no fraction"),
        ({"filters": [to("")]}, "name is missing"),
        ({"filters": [to("new")], "matches": [{"path": {"type": {}}}]}, "{} is not a text"),
        ({"filters": [to("new")], "matches": [{"headers": [{"name": "a b", "value": "x"}]}]}, "is not a field name"),
        ({"filters": [to("new")], "matches": [{"method": "A B"}]}, "methods[0]: 'A B' is not a method"),
        (
            {"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "a", "port": 1e9}}}]},
            "is not a port",
        ),
        ({"filters": [to("new")], "matches": [{"path": {"type": "Glob"}}]}, "'Glob' is none of Exact"),
    ],
)
def test_refused(rule: Any, wanted: str) -> None:
    with pytest.raises(FileError) as caught:
        tap_of([rule])
    assert wanted in str(caught.value)


def test_what_is_not_done_to_a_copy_is_told() -> None:
    filters = [{"type": "URLRewrite"}, to("new"), {"type": "ResponseHeaderModifier"}]
    _, warnings = tap_of([{"filters": filters, "timeouts": {}, "matches": [{"grpc": 1}, {}]}])
    assert [each.split(": ")[0] for each in warnings] == [
        "spec.rules[0].timeouts",
        "spec.rules[0].filters[0].type",
        "spec.rules[0].matches[0].grpc",
    ]
    assert "URLRewrite: the proxy changes its copies so, too; " in warnings[1]


def test_a_rule_that_redirects_mirrors_nothing() -> None:
    redirect = {"filters": [to("new"), {"type": "RequestRedirect"}], "matches": [{"path": {"value": "/a"}}]}
    tap, (warning,) = tap_of([redirect, {"filters": [to("newer")]}])
    assert [shadow.label for shadow in tap.shadows] == ["newer"]
    assert warning.endswith("RequestRedirect: the proxy answers by itself: nothing is mirrored here")
    assert not mirrored(tap, "GET /a HTTP/1.1") and mirrored(tap, "GET /b HTTP/1.1")
