# SPDX-License-Identifier: Apache-2.0
"""How fates are entered, and which shadows a rule has."""

from __future__ import annotations

from policy_cases import tap_of
from tapmirror.events import DropReason, FilterReason
from tapmirror.ledger import Ledger
from tapmirror.policy.match import NONE
from tapmirror.policy.plan import CompiledRule, Destination


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
