# SPDX-License-Identifier: Apache-2.0
"""1: the tap's processes are killed under load, all of them or one alone."""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import Final

from lab.hosts import until
from lab.load import Load, LoadPlan
from lab.network import Lab
from lab.scenarios import Outcome, ended, tap
from lab.servers import Nginx
from lab.snapshot import EVERYBODYS, Snapshot
from lab.tap import Tap
from tapmirror.precedence import give_way

PAIRS: Final = 9
"""Blocks without a tap, and as many in which one dies: production's times are compared in pairs."""
VICTIMS: Final = ("all", "supervisor", "worker")
SECONDS: Final = 2.0
RATE: Final = 2_000
CONNECTIONS: Final = 50
GONE: Final = 1.0
"""Seconds after which nothing of the tap is left."""
RATIO: Final = 1.1
"""Of production's p99."""
BUSY: Final = 1.5
"""If production's p99 without a tap differs more than that between blocks, the host is too busy to tell."""


def killed(lab: Lab, capture: str, scale: float) -> Outcome:
    """Production does not notice, and nothing stays."""
    outcome, times = Outcome(), {"alone": list[float](), "killed": list[float]()}
    left: set[str] = set()
    failed = requests = 0
    with Nginx(lab.node), Nginx(lab.shadow) as shadow:
        give_way(19, shadow.pid)  # it stands for another host
        before = Snapshot.of(lab.node)
        for pair in range(max(1, round(PAIRS * scale))):
            alone = sending(lab).result()
            with tap(lab, capture) as running:
                load = sending(lab)
                mirrored = shadow.requests()
                until(lambda: shadow.requests() > mirrored + RATE * SECONDS / 3, "mirroring")  # noqa: B023
                left |= set(after_death(lab, running, VICTIMS[pair % len(VICTIMS)], before, outcome))
                beside = load.result()
            for kind, result in (("alone", alone), ("killed", beside)):
                times[kind].append(result.p99)
                failed += result.failed
                requests += result.answered
    p99 = {kind: statistics.median(found) for kind, found in times.items()}
    ratio = p99["killed"] / p99["alone"]
    busy = max(times["alone"]) > BUSY * min(times["alone"])
    but = ", but the host is too busy to tell" if busy else ""
    outcome.figures += [
        f"{len(times['killed'])} deaths, {requests:,} requests of production's, {failed} failed",
        f"its p99 {p99['alone']:.2f} ms without a tap, {p99['killed']:.2f} with one that dies: {ratio:.2f} times{but}",
        f"left after {GONE:g} s: {'; '.join(sorted(left)) or 'nothing'}",
    ]
    outcome.hold(failed == 0, "requests of production's failed")
    outcome.hold(not left, "something is left")
    outcome.hold(busy or ratio <= RATIO, f"p99 more than {RATIO} times")
    return outcome


def sending(lab: Lab) -> Load:
    """The load of a block."""
    plan = LoadPlan(address=lab.node.addr4, requests=round(RATE * SECONDS), connections=CONNECTIONS, rate=RATE)
    return Load(lab.client, plan)


def after_death(lab: Lab, running: Tap, victim: str, before: Snapshot, outcome: Outcome) -> list[str]:
    """Kill it; what is left of the tap then.  One whose worker dies has another, and is stopped."""
    pids = {"all": [*running.processes()], "supervisor": [running.pid], "worker": running.workers()}[victim]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    if victim == "worker":
        until(lambda: pids[0] not in running.processes() and len(running.processes()) > 1, "another worker")
        ledger = ended(running, outcome)
        outcome.hold(ledger["worker"]["restarts"] == 1, f"{ledger['worker']['restarts']} workers began anew")
    time.sleep(GONE)
    found = Snapshot.of(lab.node).difference(before)
    return [f"{what} {names}" for what, names in found.items() if what not in EVERYBODYS]
