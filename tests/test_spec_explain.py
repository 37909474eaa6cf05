# SPDX-License-Identifier: Apache-2.0
"""A tap in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from policy_cases import tap_of
from tapmirror.spec.costs import POLICY_US
from tapmirror.spec.explain import explain


def words(**spec: Any) -> str:
    return "\n".join(explain(tap_of(**spec)))


def test_a_whole_tap() -> None:
    assert explain(tap_of(percent=5, addr="10.0.0.1", name="shop")) == [
        "Tap shop: TCP to port 80 of 10.0.0.1 on interface eth0",
        "  In the kernel (what is not captured costs almost nothing):",
        "    5 % of the connections are captured, each completely or not at all (seed 0)",
        "    a connection is mirrored only after production has accepted it",
        "  In the worker, for each request:",
        "    at most one HTTP request a second gets the field Tapmirror-Loop; if it reaches production, the tap ends",
        "  Shadow new:80:",
        "    at new:80",
        "    over one connection for each production connection",
        "    its responses are read, counted and discarded",
        "  Cost:",
        "    about 13 us of CPU for each small request on a keep-alive connection (docs/COSTS.md)",
        "    under the daemon, fewer connections are captured while it uses more than 1 core or 512 MiB of memory",
    ]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"protocol": "raw"}, "connections are mirrored as raw bytes"),
        ({"protocol": "auto", "pacing": "wait"}, "waits for the shadow's response"),
        ({"compare": "status"}, "responses are compared with production's (status and times) and discarded"),
        ({"compare": {"level": "body", "noise_probe": "2%"}}, "gets 2 % of the GET, HEAD and OPTIONS requests twice"),
        (
            {},
            "at most one HTTP request a second gets the field Tapmirror-Loop; if it reaches production, the tap ends",
        ),
        ({"safe_methods": True}, "only GET, HEAD and OPTIONS pass (method)"),
        ({"by": "request", "percent": 0.0001}, "0.0001 % of the requests pass"),
        ({"by": "exact", "percent": 50}, "50 % of the requests (evenly spaced) pass"),
        ({"ramp": {"from": 1, "to": 50, "over": 600}}, "from 1 % to 50 % of the connections, within 600 s, pass"),
        ({"max_requests": 5, "max_bytes": 1e6}, "at most 1,000,000 bytes a second (cap)"),
        ({"decap": True}, "through AF_PACKET"),
        ({"clients": ["10.0.0.0/8"]}, "only clients in 10.0.0.0/8 are captured (client)"),
        ({"rules": [{"match": {"clients": ["10.0.0.0/8"]}}]}, "only clients in 10.0.0.0/8 are captured (client)"),
        ({"ttl": 3600}, "the tap ends by itself after 3600 s"),
        ({"workers": 4}, "more than 1 core or 1,024 MiB of memory"),
        ({"workers": "auto"}, "1 core or 512 MiB of memory (256 MiB for each of more than two workers)"),
        ({"budget": {"cpu": 0.5, "bandwidth": 1e6}}, "0.5 cores, 512 MiB of memory or 1,000,000 bytes a second"),
        ({"workers": 3}, "3 workers share the connections, each with its own limits and ring (16,777,216 bytes)"),
        ({"workers": "auto"}, "half as many workers as processors share"),
        ({"rules": [{"mirror": "none"}]}, "Rule 1: every request: not mirrored (rule)"),
        ({"rules": [{"name": "a"}]}, "Rule 1 (a): every request: mirrored to new:80"),
        (
            {"rules": [{"match": {"methods": ["GET"], "host": {"suffix": ".x"}}}]},
            "method GET and host ends with .x: mirrored to",
        ),
        (
            {"rules": [{"match": [{"path": "/a"}, {"query": {"q": {"regex": "b+"}}}]}]},
            "path is /a or query q matches b+",
        ),
        ({"rules": [{"match": {"cookies": {"c": {"present": False}}}}]}, "cookie c is absent: mirrored to"),
        ({"rules": [{"match": {"headers": {"H": {"prefix": "x", "invert": True}}}}]}, "header H does not begin with x"),
        ({"rules": [{"match": {"clients": ["10.0.0.0/8"], "body": {"max": 5}}}]}, "client in 10.0.0.0/8 and body of"),
        ({"rules": [{"body": {"max": 1000}}]}, "with a body of more than 1,000 bytes it is not mirrored (body_limit)"),
        ({"rules": [{"mirror": [{"shadow": "new:80", "percent": 5}]}]}, "to new:80 (5 % of the connections)"),
        ({"rules": [{"percent": 5}]}, "every request: mirrored to new:80, 5 % of the connections"),
        ({"rules": [{"by": "key", "key": "header:H", "percent": 5}]}, "new:80, 5 % of the values of header H"),
        ({"by": "key", "key": "client", "percent": 5}, "5 % of the clients pass"),
        ({"rules": [{"mirror": "none"}]}, "    one rule decides, if it matches\n"),
        ({"rules": [{"mirror": "none"}]}, "    the rule: "),
        ({"rules": [{"match": {"path": "/a"}}, {}]}, "    the first of the 2 rules that matches decides\n"),
        ({"redact": {"privacy": "strict", "json": {"a.b": "hash"}}}, "(strict), JSON a.b"),
        ({"hook": "a:b"}, "a:b is called; it may"),
        ({"shadow": {"to": "a:1", "tls": {"verify": False}}}, "at a:1 with TLS WITHOUT VERIFICATION"),
        ({"percent": 33.33333}, "    33.3333 % of the connections"),
        ({"percent": 0}, "    0 % of the connections"),
        ({"percent": 100}, "    all connections are captured\n"),
        ({"shadow": {"to": "a:1", "copies": 3}}, "gets each request 3 times"),
        ({"shadow": {"to": "a:1", "pooled": 3}}, "over 3 shared connections"),
        (
            {"shadow": {"to": "a:1", "match": {"methods": ["GET"]}}},
            "gets only requests that match: method GET (no_match)",
        ),
        (
            {
                "shadow": {
                    "to": "a:1",
                    "rewrite": {"host": "target", "path": {"prefix": "/a", "with": ""}, "marker": "M"},
                }
            },
            "rewritten: path: prefix /a is removed, Host is the shadow's name, headers set: M",
        ),
        (
            {"shadows": ["a:1", "b:2"], "spread": "round-robin"},
            "each request goes to one of the shadows of its rule, in turn (turn)",
        ),
    ],
)
def test_what_is_said(spec: dict[str, Any], said: str) -> None:
    found = words(**spec)
    assert said in found
    assert all(line.isprintable() for line in found.splitlines())


def test_costs_are_those_that_the_bench_measures() -> None:
    rules = [{"match": {"path": {"regex": f"/{n}.*"}}} for n in range(20)]
    more = {"rewrite": {"set_headers": {"A": "1"}}, "by": "key", "key": "cookie:c", "percent": 5}
    found = words(rules=rules, shadow={"to": "a:1", **more}, redact={"privacy": "strict"})
    for line in (
        f"deciding what becomes of a request: {POLICY_US['no_rules']:.1f} us",
        f"rules: {POLICY_US['20_rules'] - POLICY_US['no_rules']:.1f} us if only the last of the 20 matches",
        "regular expressions (20 here): ",
        f"key of the request: {POLICY_US['30_percent_by_cookie'] - POLICY_US['no_rules']:.1f} us",
        f"rewrites: {POLICY_US['20_rules_2_headers'] - POLICY_US['20_rules']:.1f} us",
        f"redaction: {POLICY_US['strict_redaction'] - POLICY_US['no_rules']:.1f} us a head; requests with a body",
    ):
        assert line in found
    assert "deciding" not in words()
