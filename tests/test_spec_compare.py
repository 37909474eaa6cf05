# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from tapmirror.spec import Compare, Level, SpecError


def test_the_defaults_are_valid_and_compare_nothing() -> None:
    assert Compare().level is Level.OFF


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("ignore_headers[1]", {"ignore_headers": ("ETag", "E Tag")}),
        ("ignore_paths[0]", {"ignore_paths": ("",)}),
        ("ignore_patterns[0]", {"ignore_patterns": ("(",)}),
        ("endpoints[0]", {"endpoints": ("users",)}),
        ("noise_probe", {"noise_probe": 101.0}),
        ("noise_relative", {"noise_relative": -1.0}),
        ("float_tolerance", {"float_tolerance": float("nan")}),
        ("answer_time", {"answer_time": 0.0}),
        ("max_bodies", {"max_bodies": float("inf")}),
        ("samples", {"samples": -1}),
        ("max_endpoints", {"max_endpoints": 0}),
        ("all_headers", {"all_headers": True}),
        ("all_headers", {"all_headers": True, "level": Level.STATUS}),
    ],
)
def test_values_out_of_range_are_refused(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        Compare(**values)
    assert caught.value.field == field


def test_templates_with_and_without_a_method() -> None:
    assert Compare(endpoints=("/users/{name}", "GET /files/{path...}")).endpoints


def test_what_is_copied_of_a_segment() -> None:
    sizes = [Compare(level=level).captured_bytes for level in (Level.OFF, Level.STATUS, Level.HEADERS, Level.BODY)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[1] > 3000  # a status is known with the end of its head only


@pytest.mark.parametrize(
    ("level", "share", "probes"),
    [(Level.STATUS, 1.0, False), (Level.HEADERS, 1.0, True), (Level.BODY, 1.0, True), (Level.BODY, 0.0, False)],
)
def test_whether_requests_are_sent_twice(level: Level, share: float, probes: bool) -> None:
    assert Compare(level=level, noise_probe=share).probes is probes
