# SPDX-License-Identifier: Apache-2.0
"""4: the worker is stopped under load, and the ring cannot hold what comes meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import Final

from lab.hosts import until
from lab.load import Load, LoadPlan
from lab.network import Lab
from lab.scenarios import Outcome, ended, missing, tap
from lab.sinks import HashSink

SECONDS: Final = 5.0
RATE: Final = 500
"""Requests a second; a production that remembers each of them takes ten times as many, and hardly more."""
BODIES: Final = (0, 3_000)
RETRANSMITTED: Final = ("snmp", "Tcp", "RetransSegs")


def stopped(lab: Lab, capture: str, scale: float, factor: int) -> Outcome:
    """No request is changed, made up or sent twice, and everything that is missing is known to be."""
    outcome = Outcome()
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow, tap(lab, capture) as running:
        retransmitted = lab.client.counter(*RETRANSMITTED)
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=50, rate=RATE * factor, bodies=BODIES)
        load = Load(lab.client, plan)
        shadow.wait_for(200)
        worker = running.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        try:
            time.sleep(SECONDS * scale)
        finally:
            os.kill(worker, signal.SIGCONT)
        count = len(production.got)
        production.wait_for(count + 500)
        result = load.stop()
        last = {got.uri for got in production.got[count:]}
        until(lambda: any(got.uri in last for got in [*shadow.got]), "requests from then on at the shadow")
        ledger = ended(running, outcome)
        retransmitted = lab.client.counter(*RETRANSMITTED) - retransmitted
    sent = {got.uri: (got.head, got.sha256) for got in production.got}
    whole = [got for got in shadow.got if got.whole]
    changed = [got.uri for got in whole if sent.get(got.uri) != (got.head, got.sha256)]
    twice = [uri for uri, times in Counter(got.uri for got in whole).items() if times > 1]
    torn = [bad for bad in shadow.bad if " ended with " not in bad]
    size = sum(len(got.head) + 4 + got.length for got in production.got)
    account = ledger["bytes"]
    restarts = ledger["worker"]["restarts"]
    outcome.figures += [
        f"{result.rate:,.0f} requests/s",
        f"{result.answered:,} sent, {len(whole):,} whole at the shadow",
        f"segments lost: {missing(ledger, 'segments')}",
        f"workers replaced: {restarts}",
    ]
    outcome.hold(result.failed == 0, f"{result.failed} requests of production's failed")
    outcome.hold(not changed, f"never sent like this: {changed[:3]}")
    outcome.hold(not twice, f"twice: {twice[:3]}")
    outcome.hold(not torn, f"torn: {torn[:3]}")
    outcome.hold(
        len(whole) == len(sent) or sum(ledger["segments"]["dropped"].values()) > 0, "requests are missing, no segment"
    )
    if not restarts:
        mirrored = ledger["requests"]["mirrored"]
        outcome.hold(mirrored == len(whole), f"{mirrored} in the ledger, {len(whole)} at the shadow")
    if capture == "ebpf" and not retransmitted:  # of what finds no room, AF_PACKET does not know the size
        outcome.hold(account["seen"] == size, f"{account['seen']} bytes seen, {size} sent")
    return outcome
