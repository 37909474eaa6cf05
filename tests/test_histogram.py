# SPDX-License-Identifier: Apache-2.0
"""Times in buckets: what is counted, added and told of them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.histogram import BOUNDS, NAMES, Histogram, quantile
from tapmirror.ledger import summed


def of(*seconds: float) -> Histogram:
    made = Histogram()
    for each in seconds:
        made.add(each)
    return made


def test_a_bound_is_in_its_own_bucket() -> None:
    assert of(0.0, 0.0005, 0.00051, 1.0, 60.0, 60.1, 1e9).snapshot() == {
        "count": 7,
        "sum_s": pytest.approx(1e9 + 121.10101),
        "buckets": {"0.0005": 2, "0.001": 1, "1": 1, "60": 1, "inf": 2},
    }
    assert Histogram().snapshot() == {"count": 0, "sum_s": 0.0, "buckets": {}}
    assert [*BOUNDS] == sorted({*BOUNDS}) and [float(name) for name in NAMES] == [*BOUNDS, math.inf]


@given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 100)))
def test_sums_are_as_if_all_had_been_counted_in_one(one: list[float], other: list[float]) -> None:
    whole = of(*one, *other).snapshot()
    restored = of(*one)
    restored.restore(json.loads(json.dumps(of(*other).snapshot())))
    for found in (restored.snapshot(), summed([of(*one).snapshot(), of(*other).snapshot()])):
        assert found == {**whole, "sum_s": pytest.approx(whole["sum_s"])}


def test_quantiles_lie_in_their_bucket() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({"0.01": 4}, 0.5) == pytest.approx(0.00875)  # of 7.5 to 10 ms
    assert quantile({"0.01": 4}, 1.0) == 0.01
    assert quantile({"inf": 3}, 0.99) == 60.0
    assert quantile({"0.0005": 1, "0.01": 98, "1": 1}, 0.99) == pytest.approx(0.01)


@given(st.lists(st.floats(0, 59), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_within_the_bucket_of_the_true_one(values: list[float], part: float) -> None:
    true = sorted(values)[math.ceil(part * len(values)) - 1]
    found = quantile(of(*values).snapshot()["buckets"], part)
    edges = [0.0, *BOUNDS]
    at = next(i for i, bound in enumerate(BOUNDS) if true <= bound)
    assert found is not None and edges[at] <= found <= edges[at + 1]
