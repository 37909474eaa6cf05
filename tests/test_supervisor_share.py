# SPDX-License-Identifier: Apache-2.0
"""What is taken of production's connections, by the tap's share, its governor and a pause."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tapmirror.spec import TapSpec, parse_shadow
from tapmirror.supervisor.share import Share

ALL = 1 << 32
SPEC = TapSpec(
    iface="eth0", ports=(80,), shadows=(parse_shadow("a:1", name="one"), parse_shadow("b:1", name="two")), percent=50
)


@pytest.mark.parametrize(
    ("changes", "threshold", "thresholds"),
    [
        ({}, ALL // 2, []),
        ({"throttle": 0.5}, ALL // 4, []),
        ({"parts": {"one": 1.0, "two": 1.0}}, ALL // 2, []),
        ({"parts": {"two": 0.5}}, ALL // 2, [ALL // 2, ALL // 4]),
        ({"throttle": 0.5, "parts": {"one": 0.75, "two": 0.25}}, ALL // 4, [ALL // 4, ALL // 8]),
        ({"throttle": 0.5, "parts": {"one": 0.0}}, ALL // 4, [0, ALL // 4]),
        ({"paused": True}, 0, [0, 0]),
    ],
)
def test_what_kernel_and_workers_are_told(changes: dict[str, Any], threshold: int, thresholds: list[int]) -> None:
    share = msgspec.structs.replace(Share(SPEC), **changes)
    assert (share.threshold(), share.thresholds()) == (threshold, thresholds)


@pytest.mark.parametrize(
    ("changes", "entered", "shadows"),
    [
        ({}, {"percent": 50, "effective": 50, "reason": ""}, [50, 50]),
        ({"throttle": 0.5, "reason": "busy"}, {"percent": 50, "effective": 25, "reason": "busy"}, [25, 25]),
        ({"parts": {"two": 0.5}}, {"percent": 50, "effective": 50, "reason": ""}, [50, 25]),
        ({"paused": True, "reason": "busy"}, {"percent": 50, "effective": 0, "reason": "paused"}, [0, 0]),
    ],
)
def test_what_the_ledger_says_of_it(changes: dict[str, Any], entered: dict[str, Any], shadows: list[float]) -> None:
    share = msgspec.structs.replace(Share(SPEC), **changes)
    before = {"tap": "web", "shadows": {"one": {"events": {}}, "two": {"events": {}}}, "share": {"percent": 1}}
    found = share.entered(before)
    assert (found["tap"], found["share"]) == ("web", entered)
    assert [found["shadows"][label] for label in ("one", "two")] == [{"events": {}, "effective": n} for n in shadows]
    assert before["share"] == {"percent": 1}, "what was handed in stays"
