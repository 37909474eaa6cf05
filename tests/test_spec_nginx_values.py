# SPDX-License-Identifier: Apache-2.0
"""nginx's variables, conditions and addresses."""

from __future__ import annotations

import pytest

from policy_cases import request, tap_of
from tapmirror.policy.match import matcher
from tapmirror.spec.nginx_values import holds, host_port, passing, share_by, template, turned_away


@pytest.mark.parametrize(
    ("variable", "wanted"),
    [
        ("remote_addr", {"by": "key", "key": "client"}),
        ("binary_remote_addr", {"by": "key", "key": "client"}),
        ("connection", {"by": "connection"}),
        ("http_x_user", {"by": "key", "key": "header:x-user"}),
        ("cookie_s_id", {"by": "key", "key": "cookie:s_id"}),
        ("arg_id", {"by": "key", "key": "query:id"}),
        ("request_uri", None),
        ("arg_", None),
    ],
)
def test_keys(variable: str, wanted: dict[str, str] | None) -> None:
    assert share_by(variable) == wanted


@pytest.mark.parametrize(
    ("operator", "value", "band", "away"),
    [
        ("=", "", "", True),
        ("=", "", "b", False),
        ("!=", "b", "b", False),
        ("!=", "b", "", True),
        ("", "", "0", False),
        ("", "", "", False),
        ("", "", "1", True),
        ("~", "^te", "test", True),
        ("!~", "^te", "test", False),
        ("~*", "TE", "test", True),
        ("!~*", "TE", "x", True),
    ],
)
def test_values_that_are_turned_away(operator: str, value: str, band: str, away: bool) -> None:
    assert turned_away(operator, value, band) is away


@pytest.mark.parametrize("operator", ["=", "!=", "~", "!~", "~*", "!~*", ""])
@pytest.mark.parametrize("value", ["", "1", "^a", "A"])
@pytest.mark.parametrize("sent", [None, "0", "1", "a", "10"])
def test_a_condition_of_the_request_passes_what_is_not_turned_away(operator: str, value: str, sent: str | None) -> None:
    """An absent field is empty to nginx."""
    text = passing(operator, value)
    check = matcher(tap_of(rules=[{"match": {"headers": {"x": text}}}]).rules[0].match)
    assert check is not None
    got = check(request("GET / HTTP/1.1", *([f"X: {sent}"] if sent is not None else [])))
    if operator in ("=", "!=", "") or value:  # the empty expression is found in an empty field only by nginx
        assert got is not turned_away(operator, value, sent or "")


def test_a_condition_that_is_none() -> None:
    assert passing("~", "(") is None


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a{b}", "a{{b}}"),
        ("$remote_addr:${remote_port}", "{client}:{client_port}"),
        ("$uri", "/m"),
        ("x$request_id", None),
    ],
)
def test_templates(value: str, wanted: str | None) -> None:
    assert template(value, {"uri": "/m"}) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a", ("a", 80)), ("a:81", ("a", 81)), ("[::1]", ("::1", 80)), ("[::1]:81", ("::1", 81)), ("a:b", ("a:b", 80))],
)
def test_addresses(text: str, wanted: tuple[str, int]) -> None:
    assert host_port(text, 80) == wanted


def test_whether_a_condition_holds() -> None:
    assert holds({"regex": ".*b.*"}, "abc") and holds({"exact": "a"}, "a") and not holds({"suffix": "b"}, "a")
