# SPDX-License-Identifier: Apache-2.0
"""7: SYNs of clients that are not there, by the hundred thousand, beside real requests."""

from __future__ import annotations

import time
from typing import Final

from lab.flood import syns, unanswering
from lab.load import Load, LoadPlan
from lab.network import Lab
from lab.scenarios import Outcome, ended, missing, settled, tap
from lab.servers import Nginx
from lab.snapshot import resident_kb

RATE: Final = 300
CONNECTIONS: Final = 10
SLOW: Final = {"packet": 10_000.0}
"""Half-open connections a second, where the worker itself takes each packet of theirs out of the ring, and makes room
for whatever else the host does (docs/LIMITS.md); 0: as many as the host can send."""
GROWTH: Final = 32
"""MiB that the worker may grow."""
SHARE: Final = 0.99
"""Of the real requests, to be mirrored."""


def flooded(lab: Lab, capture: str, scale: float, count: int) -> Outcome:
    """They cost counters only."""
    outcome, count = Outcome(), round(count * scale)
    with (
        Nginx(lab.node) as production,
        Nginx(lab.shadow) as shadow,
        unanswering(lab),
        tap(lab, capture) as running,
    ):
        worker = running.workers()[0]
        start = resident_kb(worker)
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=CONNECTIONS, rate=RATE)
        load = Load(lab.client, plan)
        production.wait_for(RATE // 3)
        began = time.monotonic()
        syns(lab.client, lab.node.addr4, 80, count, times=1, rate=SLOW.get(capture, 0.0))
        seconds = time.monotonic() - began
        beside = production.requests()
        production.wait_for(beside + RATE // 3)
        result = load.stop()
        settled(shadow.requests)
        grown = (resident_kb(worker, peak=True) - start) / 1024
        ledger = ended(running, outcome)
        got = shadow.requests()
    events = ledger["events"]
    share = got / max(1, result.answered)
    outcome.figures += [
        f"{count:,} half-open ({count / seconds:,.0f} a second)",
        f"{events['kernel_syn']:,} SYNs seen",
        f"{events['flows']} flows, {events['shadow_connects']} connections to the shadow",
        f"{share:.2%} of {result.answered:,} requests mirrored, segments lost: {missing(ledger, 'segments')}",
        f"the worker grew by {grown:.1f} MiB",
    ]
    outcome.hold(result.failed == 0, f"{result.failed} requests of production's failed")
    outcome.hold(events["flows"] <= CONNECTIONS, "flows for half-open connections")
    outcome.hold(events["shadow_connects"] <= CONNECTIONS, "connections to the shadow for half-open ones")
    outcome.hold(share >= SHARE, f"less than {SHARE:.0%} of the requests mirrored")
    outcome.hold(grown <= GROWTH, f"grew by more than {GROWTH} MiB")
    return outcome
