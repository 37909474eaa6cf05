# SPDX-License-Identifier: Apache-2.0
"""Every figure that is told is one that the bench measures, and that docs/COSTS.md and the README have."""

from __future__ import annotations

from pathlib import Path

from lab import bench, bench_core
from tapmirror.spec.costs import POLICY_US, REQUEST_US

TOP = Path(__file__).parent.parent


def test_the_bench_measures_each() -> None:
    assert set(bench_core.policy_cases()) == set(POLICY_US)
    assert bench.BASE in {case.name for case in bench.CASES}


def test_the_documents_have_the_same() -> None:
    said = (TOP / "docs" / "COSTS.md").read_text(encoding="utf-8")
    request = f"`http` | {REQUEST_US:g} µs | 14 |"
    assert request in said
    assert request in (TOP / "README.md").read_text(encoding="utf-8")
    for figure in ("no_rules", "20_rules_2_headers", "20_regexes_2_headers", "strict_redaction"):
        assert f"| {POLICY_US[figure]:g} µs |" in said
