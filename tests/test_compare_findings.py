# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tapmirror.compare.findings import PATH, Change, Findings
from tapmirror.compare.rules import Rules
from tapmirror.spec import Compare, Level


def test_findings_are_bounded_in_number_and_length() -> None:
    findings = Findings(Rules(Compare(level=Level.BODY, differences=3)))
    for name in ("a" * 500, "b", "c", "d"):
        findings.add(Change.VALUE, f"body.{name}", 1, 2)
    assert [each.path[:6] for each in findings.found] == ["body.a", "body.b", "body.c"]
    assert len(findings.found[0].path) == PATH


def test_what_is_ignored_is_looked_for_before_what_must_not_be_shown_is_taken_out() -> None:
    rules = Rules(
        Compare(level=Level.BODY, ignore_paths=("secret.at",)), shown=lambda path: path.replace("secret", "-")
    )
    findings = Findings(rules)
    findings.add(Change.VALUE, "body.secret.at", 1, 2)
    findings.add(Change.MISSING, "body.secret.to", 1, None)
    assert [each.field for each in findings.found] == ["missing body.-.to"]
