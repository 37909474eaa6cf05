# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest

from differences import doc, found, response


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


@pytest.mark.parametrize(
    ("one", "other", "want"),
    [
        ('{"a":NaN,"b":1}', '{"b":1, "a":NaN}', []),
        ('{"a":NaN,"b":1}', '{"a":NaN,"b":2}', ["value body.b"]),
        ('{"a":NaN}', '{"a":null}', ["type body.a"]),
        ('{"a":NaN}', '{"a":5.0}', ["value body.a"]),
        ('{"a":Infinity}', '{"a":5.0}', ["value body.a"]),
        ('{"a":5}', '{"a":-Infinity}', ["value body.a"]),
        ('{"a":Infinity,"b":1}', '{"b":1,"a":Infinity}', []),
        ('{"a":"NaN","b":1', '{"a":"NaN","b":2', ["value body.lines[]"]),
    ],
)
def test_what_is_no_number(one: str, other: str, want: list[str]) -> None:
    """It is no JSON, but Python writes it so; as text the time in it hid all that differs in digits."""
    names = found(response(one.encode()), response(other.encode()))
    assert [re.sub(r"\[\w+\]", "[]", name) for name in names] == want
