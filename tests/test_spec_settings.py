# SPDX-License-Identifier: Apache-2.0
"""`daemon.yaml`: what it may say, and everything that is wrong is told with its place."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tapmirror.spec import SpecError
from tapmirror.spec.document import FileError
from tapmirror.spec.reading import read_settings
from tapmirror.spec.settings import AllTaps, Settings


def test_what_it_may_say() -> None:
    assert read_settings(b"") == read_settings(b"# nothing\n") == Settings()
    found = read_settings(b"budget: {cpu: 2, memory: 1073741824, bandwidth: 125000000}\n")
    assert found.budget == AllTaps(cpu=2.0, memory=1 << 30, bandwidth=125e6)
    assert read_settings(b"budget: {cpu: 0.5}\n").budget == AllTaps(cpu=0.5)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("budget: {cpu: 0}", r"1: budget\.cpu: 0\.0 is not a number above 0"),
        ("budget: {cpus: 1}", r"budget\.cpus: no such field of the budget of all taps \(did you mean cpu\?\)"),
        ("taps: []", "taps: no such field of daemon.yaml"),
        ("budget: 1", "budget: 1 is not a structure of the budget of all taps"),
        ("budget: {memory: 1.5}", r"budget\.memory: 1\.5 is not a whole number"),
        ("budget: {memory: 512}", r"budget\.memory: 512 bytes are less than the 42 MiB that a worker holds"),
        ("budget: {bandwidth: .nan}", "bandwidth: nan is not a number above 0"),
        ("budget: {}\n---\nbudget: {}", "3: a second document"),
        ("- 1", "is not a structure of daemon.yaml"),
        ("budget: {cpu: 1, cpu: 2}", "given twice"),
    ],
)
def test_what_is_wrong(text: str, wrong: str) -> None:
    with pytest.raises(FileError, match=wrong):
        read_settings(text.encode())


@pytest.mark.parametrize("field", ["cpu", "memory", "bandwidth"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_no_bound_is_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        AllTaps(**{field: value})
    assert caught.value.field == field
