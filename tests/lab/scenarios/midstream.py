# SPDX-License-Identifier: Apache-2.0
"""20: a tap begins beside ten thousand connections that are in use."""

from __future__ import annotations

from collections import Counter
from typing import Final

from lab.load import Load, LoadPlan
from lab.network import Lab
from lab.scenarios import Outcome, ended, missing, settled, tap
from lab.servers import Nginx
from lab.sinks import HashSink

CONNECTIONS: Final = 10_000
RATE: Final = 2_000


def joined(lab: Lab, capture: str, scale: float) -> Outcome:
    """Each is mirrored from its first whole request on."""
    outcome, count = Outcome(), round(CONNECTIONS * scale)
    with Nginx(lab.node) as production, HashSink(lab.shadow) as shadow:
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=count, rate=RATE)
        load = Load(lab.client, plan)
        production.wait_for(count + count // 2)
        with tap(lab, capture) as running:
            begun = production.requests()
            production.wait_for(begun + 3 * count)
            result = load.stop()
            settled(lambda: len(shadow.got))
            ledger = ended(running, outcome)
    got = shadow.got
    twice = [uri for uri, times in Counter(each.uri for each in got).items() if times > 1]
    few = result.sent - begun - len(got)
    outcome.figures += [
        f"{count:,} connections, {result.rate:,.0f} requests/s",
        f"{result.sent - begun:,} requests sent since it ran, {few:,} of them not mirrored",
        f"bytes lost: {missing(ledger, 'bytes')}, segments: {missing(ledger, 'segments')}",
    ]
    outcome.hold(result.failed == 0, f"{result.failed} requests of production's failed")
    outcome.hold(not shadow.bad and all(each.whole for each in got), f"partial: {shadow.bad[:3]}")
    outcome.hold(not twice, f"twice: {twice[:3]}")
    outcome.hold(ledger["requests"]["mirrored"] == len(got), f"{ledger['requests']['mirrored']} in the ledger")
    # What a busy host gives the worker too little CPU for is counted, and not a matter of mid-stream.
    seen = "ring_full" not in ledger["segments"]["dropped"]
    outcome.hold(not seen or few <= count, "more missing than one of each connection")
    return outcome
