# SPDX-License-Identifier: Apache-2.0
"""What a sweep finds."""

from __future__ import annotations

import pytest

from tapmirror.framing import HeadMemory as Heads
from tapmirror.framing import ResponseFramer
from tapmirror.ledger import Ledger
from tapmirror.replay import sweep
from tapmirror.replay.lane import OPEN, Lane, QueueMemory
from tapmirror.replay.sweep import EVERY, OUTSTANDING, Sweep


def lane(flow: int, *, sent: int = 0, outstanding: int = 0, lazy: bool = False) -> Lane:
    """An open HTTP lane."""
    made = Lane(flow, True, QueueMemory(1000, 1000), Ledger())
    made.state, made.sent, made.lazy = OPEN, sent, lazy
    made.framer = ResponseFramer(1000, Heads(1000))
    for _ in range(outstanding):
        made.framer.expect(0)
    return made


def test_it_is_due_once_a_second() -> None:
    looks = Sweep(0.0)
    assert [now for now in (10.0, 10.5, 10.9, 11.0, 11.5, 30.0) if looks.due(now)] == [10.0, 11.0, 30.0]
    assert looks.next == 30.0 + EVERY


def test_what_is_found() -> None:
    plain, lazy, owing = lane(1), lane(2, lazy=True), lane(3, outstanding=OUTSTANDING + 1)
    looks = Sweep(0.0)
    lanes = [plain, lazy, owing, lane(4, outstanding=OUTSTANDING)]
    assert looks.sluggish(lanes) == [lazy]
    assert looks.unanswered(lanes) == [owing]
    assert looks.idle(lanes, 1e9) == []  # they may stay for ever


def test_what_all_shadow_connections_owe_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "OUTSTANDING_ALL", 100)
    lanes = [lane(number, outstanding=number) for number in range(20)]
    assert sum(range(20)) > 100
    found = Sweep(0.0).unanswered(lanes)
    assert found == lanes[6:]
    assert Sweep(0.0).unanswered(lanes[:6]) == []


def test_idle_is_who_has_nothing_to_send_and_nothing_to_wait_for() -> None:
    looks = Sweep(10.0)
    quiet, waiting, queued, begun, tunnel = (lane(number) for number in range(5))
    waiting.framer.expect(0)  # type: ignore[union-attr]
    queued.enqueue(b"x", 1, 0)
    begun.begun = True
    tunnel.tunnel = True
    lanes = [quiet, waiting, queued, begun, tunnel]
    assert looks.idle(lanes, 100.0) == []  # seen for the first time
    assert looks.idle(lanes, 109.9) == []
    assert looks.idle(lanes, 110.0) == [quiet]


def test_a_request_between_two_sweeps_counts() -> None:
    looks, busy = Sweep(10.0), lane(1)
    looks.idle([busy], 100.0)
    busy.sent += 1
    assert looks.idle([busy], 111.0) == []
    assert looks.idle([busy], 120.9) == []
    assert looks.idle([busy], 121.0) == [busy]
