# SPDX-License-Identifier: Apache-2.0
"""The spec refuses what is wrong, with the path of the field in one line."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tapmirror.spec import Capture, Compare, Level, Mirror, Protocol, Rule, Shadow, SpecError, TapSpec, parse_shadow

GOOD: dict[str, Any] = {"iface": "eth0", "ports": (80,), "shadows": (Shadow(host="10.0.0.9", port=80),)}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("iface", {"iface": ""}),
        ("iface", {"iface": "a" * 16}),
        ("iface", {"iface": "a/b"}),
        ("ports", {"ports": ()}),
        ("ports[1]", {"ports": (80, 0)}),
        ("ports[0]", {"ports": (65536,)}),
        ("addrs[0]", {"addrs": ("10.0.0",)}),
        ("shadows", {"shadows": ()}),
        ("shadows[1].name", {"shadows": (Shadow(host="a", port=1),) * 2}),
        (
            "shadows[1].name",
            {"shadows": (Shadow(host="a", port=1, name="web", copies=2), Shadow(host="b", port=1, name="web#2"))},
        ),
        (
            "shadows[1].name",
            {"shadows": (Shadow(host="a", port=1, name="web#3"), Shadow(host="b", port=1, name="web", copies=3))},
        ),
        ("percent", {"percent": 100.1}),
        ("percent", {"percent": -1.0}),
        ("percent", {"percent": float("nan")}),
        ("seed", {"seed": 1 << 32}),
        ("decap", {"decap": True, "capture": Capture.EBPF}),
        (
            "shadows[0].pooled",
            {
                "protocol": Protocol.HTTP,
                "compare": Compare(level=Level.STATUS),
                "shadows": (Shadow(host="a", port=1, pooled=2),),
            },
        ),
        ("workers", {"workers": 0}),
        ("workers", {"workers": 65}),
        ("workers", {"workers": 2, "decap": True}),
        ("workers", {"workers": "auto", "decap": True}),
    ],
)
def test_refused(field: str, change: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        TapSpec(**{**GOOD, **change})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("a.b:80", "a.b", 80), ("10.0.0.1:8080", "10.0.0.1", 8080), ("[::1]:80", "::1", 80)],
)
def test_shadow(text: str, host: str, port: int) -> None:
    assert parse_shadow(text) == Shadow(host=host, port=port)


@pytest.mark.parametrize(
    "text", ["a", "a:", ":80", "a:x", "a:0", "a:65536", "::1:80", "[::1:80", "[::1]", "[x]:80", "a:²"]
)
def test_wrong_shadow(text: str) -> None:
    with pytest.raises(SpecError):
        parse_shadow(text)


def test_threshold() -> None:
    def threshold(percent: float) -> int:
        return TapSpec(**GOOD, percent=percent).threshold()

    assert threshold(100) == 1 << 32
    assert threshold(0) == 0
    assert threshold(50) == 1 << 31
    assert 0 < threshold(0.0001) < threshold(0.0002) < threshold(10) < threshold(20)


def test_spec_survives_the_way_to_another_process() -> None:
    spec = TapSpec(**GOOD, percent=12.5)
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(spec)), TapSpec) == spec


def test_a_worker_has_its_part_of_the_caps() -> None:
    shadow = Shadow(host="10.0.0.9", port=80, max_bytes=3e6)
    rules = (Rule(max_requests=9, mirror=(Mirror(shadow="10.0.0.9:80", max_requests=6),)), Rule())
    whole = TapSpec(**{**GOOD, "shadows": (shadow,), "protocol": Protocol.HTTP, "max_requests": 30, "rules": rules})
    part = whole.of_worker(3)
    assert (part.max_requests, part.max_bytes) == (10, None)
    assert part.rules[0].max_requests == 3 and part.rules[1] == Rule()
    assert part.rules[0].mirror is not None and part.rules[0].mirror[0].max_requests == 2
    assert part.shadows[0].max_bytes == 1e6
    assert whole.of_worker(1) == whole
