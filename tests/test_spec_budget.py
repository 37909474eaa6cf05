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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("budget: {memory: 41943040}", "the 42 MiB that a worker holds without any traffic"),
        ("budget: {memory: 512}", "512 bytes are less than the 42 MiB that a worker holds without any traffic"),
        ("workers: 3\nbudget: {memory: 100000000}", "the 126 MiB that 3 workers hold without any traffic"),
    ],
)
def test_less_memory_than_workers_hold_that_are_idle_is_refused(more: str, said: str) -> None:
    """Their share would be at its least for good."""
    with pytest.raises(FileError, match=rf"budget\.memory: \d+ bytes are less than {said}|: {said}"):
        read_taps(TAP + more.encode())
    assert read_taps(TAP + b"workers: auto\nbudget: {memory: 44040192}\n")[0].budget.memory == 42 << 20


def test_memory_that_nobody_bounds_is_enough_for_all_workers() -> None:
    """Twenty of them hold more than two may."""
    (tap,) = read_taps(TAP + b"workers: 20\n")
    assert [tap.budget.memory_of(workers) >> 20 for workers in (1, 2, 3, 20)] == [512, 512, 768, 5120]
    assert Budget(memory=64 << 20).memory_of(20) == 64 << 20
