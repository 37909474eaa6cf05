# SPDX-License-Identifier: Apache-2.0
"""The budget refuses what is no limit, with its field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tapmirror.spec import Budget, SpecError
from tapmirror.spec.document import FileError
from tapmirror.spec.reading import read_taps

TAP = b"iface: eth0\nport: 80\nshadow: a:80\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu", 0.0),
        ("cpu", math.nan),
        ("cpu", math.inf),
        ("memory", -1),
        ("bandwidth", 0.0),
        ("ring", 1.5),
        ("host_cpu", 101.0),
        ("host_memory", 0.0),
        ("errors", 1.1),
        ("latency", -0.1),
        ("retry", 0.5),
        ("retry", 3601.0),
        ("retry", math.nan),
    ],
)
def test_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        Budget(**{field: value})
    assert caught.value.field == field


def test_in_a_file() -> None:
    (tap,) = read_taps(TAP + b"budget: {cpu: 0.5, bandwidth: 1000000}\n")
    assert tap.budget == Budget(cpu=0.5, bandwidth=1e6)
    with pytest.raises(FileError, match=r"budget\.cpu: 0\.0 is not a number above 0"):
        read_taps(TAP + b"budget: {cpu: 0}\n")
