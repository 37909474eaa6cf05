# SPDX-License-Identifier: Apache-2.0
"""Every figure that is told is one that the bench measures, and says the README."""

from __future__ import annotations

from pathlib import Path

from lab import bench, bench_core
from tapmirror.spec.costs import POLICY_US, REQUEST_US

README = Path(__file__).parent.parent / "README.md"


def test_the_bench_measures_each() -> None:
    assert set(bench_core.policy_cases()) == set(POLICY_US)
    assert bench.BASE in {case.name for case in bench.CASES}


def test_the_readme_has_the_same() -> None:
    said = README.read_text(encoding="utf-8")
    assert f"| GET, keep-alive, 20,000/s, `http` | {REQUEST_US:g} µs |" in said
    for figure in ("no_rules", "20_rules_2_headers", "20_regexes_2_headers", "strict_redaction"):
        assert f"{POLICY_US[figure]:g} µs" in said
