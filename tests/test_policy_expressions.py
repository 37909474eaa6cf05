# SPDX-License-Identifier: Apache-2.0
"""Expressions that are looked for together match what each by itself matches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_cases import Tried, head, request, tap_of
from tapmirror.policy import expressions as module
from tapmirror.policy.expressions import MOST, Expressions
from tapmirror.policy.match import matcher
from tapmirror.policy.request import Request
from tapmirror.spec import Match

PARTS = ["a", "b", ".", "a*", "(a|b)", "[^a]", "^", "$", "(?i)", "\\b", "/", "\xe9", "(?:)", "b{2}"]
TEXTS = st.fixed_dictionaries(
    {"regex": st.lists(st.sampled_from(PARTS), max_size=4).map("".join)},
    optional={"ignore_case": st.booleans(), "invert": st.booleans()},
)
PATHS = st.text(alphabet="abAB/\xe9", max_size=6).map(lambda rest: f"/{rest}")


def matches(texts: list[Any], field: str) -> list[Match]:
    conditions = [{field: text} if field in ("path", "host", "target") else {field: {"n": text}} for text in texts]
    return [rule.match[0] for rule in tap_of(rules=[{"match": each} for each in conditions]).rules]


@settings(max_examples=60)
@given(
    st.lists(TEXTS, min_size=2, max_size=6),
    st.lists(PATHS, min_size=1, max_size=3),
    st.sampled_from(["path", "target", "headers", "query"]),
)
def test_together_as_one_by_one(texts: list[Any], paths: list[str], field: str) -> None:
    known = matches(texts, field)
    together = Expressions(known)
    for path in paths:
        asked = request(f"GET {path}?n={path} HTTP/1.1", f"N: {path}")
        for match in known:
            ours, alone = matcher([match], together), matcher([match])
            assert ours is not None and alone is not None
            assert ours(asked) is alone(asked)


def test_an_absent_field_matches_none() -> None:
    known = matches([{"regex": ".*"}, {"regex": ".*", "invert": True}], "headers")
    together = Expressions(known)
    got = [matcher([match], together) for match in known]
    assert [check and check(request()) for check in got] == [False, True]


def test_each_request_is_looked_at_once_for_a_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes | None] = []
    look = module._Automaton.look

    def counted(self: module._Automaton, asked: Request, value: bytes | None) -> None:
        looked.append(value)
        look(self, asked, value)

    monkeypatch.setattr(module._Automaton, "look", counted)
    rules = [{"match": {"path": {"regex": f"/{n}.*"}}} for n in range(20)]
    found = Tried(rules=rules, shadow={"to": "new:80", "match": {"path": {"regex": ".*9.*"}}})
    assert found.ask(head("GET /19 HTTP/1.1")) != [None]
    assert found.ask(head("GET /18 HTTP/1.1")) == [None]
    assert looked == [b"/19", b"/18"]


def test_more_than_an_automaton_holds() -> None:
    known = matches([{"regex": f"/v{n}/.*"} for n in range(MOST * 2 + 1)], "path")
    together = Expressions(known)
    for n in (0, MOST - 1, MOST, MOST * 2):
        check = matcher([known[n]], together)
        assert check is not None
        assert check(request(f"GET /v{n}/x HTTP/1.1")) and not check(request("GET /x HTTP/1.1"))


def test_expressions_too_large_for_one_automaton_are_tried_alone() -> None:
    texts = [{"regex": f"/{n}(?:[a-z]{{1,100}}x){{9}}"} for n in range(MOST)]
    known = matches(texts, "path")
    path = "/7" + "abx" * 9
    check = matcher([known[7]], Expressions(known))
    assert check is not None and check(request(f"GET {path} HTTP/1.1")) and not check(request("GET /7 HTTP/1.1"))


def test_where_re2_gives_up_each_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns nothing then; what always matches tells it from a path that none matches."""

    class GivesUp:
        def Match(self, value: bytes) -> list[int]:  # noqa: N802 -- RE2's name
            return []

    known = matches([{"regex": "/a"}, {"regex": "/b"}], "path")
    together = Expressions(known)
    for automaton, _ in together._places.values():
        monkeypatch.setattr(automaton, "_set", GivesUp(), raising=True)
    checks = [matcher([match], together) for match in known]
    assert [check and check(request("GET /b HTTP/1.1")) for check in checks] == [False, True]
