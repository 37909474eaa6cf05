# SPDX-License-Identifier: Apache-2.0
"""How fates are entered, and which shadows a rule has."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from policy_cases import tap_of
from tapmirror.events import DropReason, FilterReason
from tapmirror.ledger import Ledger
from tapmirror.policy.match import NONE
from tapmirror.policy.plan import RUN, CompiledRule, Destination, finder
from tapmirror.policy.request import Request


def test_each_copy_counts() -> None:
    tap = tap_of(shadow={"to": "a:1", "copies": 3})
    each = Destination(tap.shadows[0], 2, tap, Ledger(), NONE)
    assert list(each.targets) == [2, 3, 4]
    each.settle(None, 10, 1)
    each.settle(FilterReason.RULE, 10, 0)
    each.settle(DropReason.REWRITE, 5, 1)
    assert (each.ledger.bytes.sampled_out, each.ledger.requests.sampled_out) == (30, 3)
    assert dict(each.ledger.bytes.filtered) == {FilterReason.RULE: 30}
    assert not each.ledger.requests.filtered
    assert dict(each.ledger.requests.dropped) == {DropReason.REWRITE: 3}


def test_the_shadows_of_a_rule() -> None:
    tap = tap_of(
        shadows=[{"to": "a:1"}, {"to": "b:2", "name": "b"}],
        rules=[{"mirror": "all"}, {"mirror": "none"}, {"mirror": [{"shadow": "b", "percent": 5}]}, {"mirror": "a:1"}],
    )
    known = [Destination(shadow, i, tap, Ledger(), NONE) for i, shadow in enumerate(tap.shadows)]
    rules = [CompiledRule(rule, tap, known, NONE) for rule in tap.rules]
    assert [[each.spec.label for each, _ in rule.mirrors] for rule in rules] == [["a:1", "b"], [], ["b"], ["a:1"]]
    assert [[each.spec.label for each in rule.others] for rule in rules] == [[], ["a:1", "b"], ["a:1"], ["b"]]
    assert rules[2].mirrors[0][1] is not None and rules[3].mirrors[0][1] is None


PATHS = st.text("/ab.", max_size=4).map(lambda text: "/" + text)
RULES = st.lists(
    st.one_of(
        st.builds(lambda path: {"match": {"path": {"prefix": path}}}, PATHS),
        st.builds(lambda path: {"match": {"path": {"exact": path}}}, PATHS),
        st.builds(lambda path: {"match": {"path": {"prefix": path, "invert": True}}}, PATHS),
        st.builds(lambda path: {"match": {"path": {"prefix": path, "ignore_case": True}}}, PATHS),
        st.builds(lambda path: {"match": {"path": {"prefix": path}, "methods": ["GET"]}}, PATHS),
        st.builds(lambda one, two: {"match": [{"path": {"prefix": one}}, {"path": {"exact": two}}]}, PATHS, PATHS),
        st.just({"match": {"methods": ["PUT"]}}),
        st.just({"mirror": "all"}),
    ),
    min_size=1,
    max_size=8,
)


@given(RULES, PATHS, st.sampled_from(["GET", "PUT"]))
def test_rules_that_are_looked_for_together_are_found_as_one_by_one(rules: Any, path: str, method: str) -> None:
    tap = tap_of(shadow="a:1", rules=rules)
    known = [Destination(tap.shadows[0], 0, tap, Ledger(), NONE)]
    compiled = [CompiledRule(rule, tap, known, NONE) for rule in tap.rules]
    asked = Request(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), bytes(40))
    one_by_one = next((rule for rule in compiled if rule.check is None or rule.check(asked)), None)
    assert finder(compiled)(asked) is one_by_one


def test_more_rules_than_one_expression_looks_for() -> None:
    tap = tap_of(shadow="a:1", rules=[{"match": {"path": {"prefix": f"/{n}/"}}} for n in range(2 * RUN + 3)])
    known = [Destination(tap.shadows[0], 0, tap, Ledger(), NONE)]
    compiled = [CompiledRule(rule, tap, known, NONE) for rule in tap.rules]
    find = finder(compiled)
    for n in (0, RUN - 1, RUN, 2 * RUN + 2):
        assert find(Request(f"GET /{n}/ HTTP/1.1\r\n\r\n".encode(), bytes(40))) is compiled[n]
    assert find(Request(b"GET /x HTTP/1.1\r\n\r\n", bytes(40))) is None


def test_where_a_request_goes_in_any_case() -> None:
    tap = tap_of(
        shadows=[{"to": "a:1"}, {"to": "b:2", "name": "b", "percent": 5}],
        rules=[{"mirror": "a:1"}, {"mirror": "all"}, {"mirror": [{"shadow": "a:1", "percent": 5}]}],
    )
    known = [Destination(shadow, i, tap, Ledger(), NONE) for i, shadow in enumerate(tap.shadows)]
    assert [CompiledRule(rule, tap, known, NONE).plain for rule in tap.rules] == [None, None, None]
    one = tap_of(shadow="a:1", rules=[{}, {"percent": 5}, {"body": {"max": 5, "over": "stream"}}, {"max_requests": 9}])
    first = [Destination(one.shadows[0], 0, one, Ledger(), NONE)]
    assert [CompiledRule(rule, one, first, NONE).plain for rule in one.rules] == [first, None, None, None]
