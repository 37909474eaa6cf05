# SPDX-License-Identifier: Apache-2.0
"""The fence: where it is needed, and that reading with it is the same.  What it does to memory cannot be seen here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scapy.all import IP, TCP, Raw

from captures import payloads
from program import Program
from tapmirror.source import order


def test_x86_needs_none() -> None:
    assert order.fence_for("x86_64") is None
    fence = order.fence_for("aarch64")
    assert fence is not None
    for _ in range(3):
        fence()  # does not wait for anybody


@pytest.mark.ebpf
def test_between_position_header_and_body_and_before_room_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fence = order.fence_for("aarch64")
    assert fence is not None
    steps: list[str] = []

    def noted(kind: str, then: Callable[[], Any]) -> Callable[[], None]:
        def step() -> None:
            steps.append(kind)
            then()

        return step

    monkeypatch.setattr(order, "FENCE", noted("fence", fence))
    with Program() as program:
        for data in (b"one", b"two"):
            program.run(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=4_000, dport=80, flags="PA") / Raw(data))
        (records,) = program.records()
    assert payloads(records) == [b"one", b"two"]
    assert steps == ["fence"] * 4  # behind the position, each header, and the bodies
