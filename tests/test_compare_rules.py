# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from differences import doc


def test_tolerances() -> None:
    one = {"n": 100.0, "t": "2026-01-01T00:00:00Z"}
    other = {"n": 100.5, "t": "2026-01-01T01:00:01.5+01:00"}
    assert doc(one, other) == ["value body.n", "value body.t"]
    assert doc(one, other, float_tolerance=0.01, time_tolerance=2.0) == []
    assert doc(1000, 1001, float_tolerance=0.01) == []
    assert doc({"t": "2026-13-01T00:00:00Z"}, {"t": "2026-01-01T00:00:00Z"}, time_tolerance=1e9) == ["value body.t"]


def test_ignored_patterns() -> None:
    one, other = {"text": "took 12 ms", "b": "x"}, {"text": "took 7 ms", "b": "y"}
    assert doc(one, other, ignore_patterns=(r"\d+ ms",)) == ["value body.b"]
