# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.compare.sketch import ERROR, KEYS, Sketch

VALUES = st.lists(st.floats(1e-6, 1e13), min_size=1, max_size=200)


def of(values: list[float]) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@given(VALUES, st.floats(0.001, 1))
def test_quantiles_are_within_the_error(values: list[float], share: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert of(values).quantile(share) == pytest.approx(exact, rel=ERROR * 1.001)


@given(VALUES, st.floats(0.001, 1), st.floats(0.001, 1))
def test_edges_lie_around(values: list[float], a: float, b: float) -> None:
    a, b = sorted((a, b))
    low, high = of(values).around(a, b)
    ordered = sorted(values)
    assert low <= ordered[max(1, math.ceil(a * len(values))) - 1] * 1.000001
    assert high >= ordered[max(1, math.ceil(b * len(values))) - 1] * 0.999999


@given(VALUES, VALUES)
def test_sketches_add_up(one: list[float], other: list[float]) -> None:
    merged = of(one)
    merged.merge(of(other))
    whole = of([*one, *other])
    assert (merged.buckets, merged.count) == (whole.buckets, whole.count)


def test_beyond_the_ends() -> None:
    sketch = of([1.0, 2.0])
    assert sketch.around(-0.1, 1.5) == (0.0, math.inf)
    assert Sketch().quantile(0.5) == 0.0


def test_it_is_bounded_and_plain_data() -> None:
    rand = random.Random(1)
    sketch = of([rand.lognormvariate(15, 3) for _ in range(20_000)] + [1e-300, 0.0, -1.0, 1e300, math.inf])
    assert len(sketch.buckets) < 2 * KEYS
    assert msgspec.json.decode(msgspec.json.encode(sketch), type=Sketch) == sketch
    assert sum(count for _, count in sketch.points()) == sketch.count
