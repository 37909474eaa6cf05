# SPDX-License-Identifier: Apache-2.0
"""2, 10, 11: shadows that are down, that do not read, and that never stop to answer."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

from lab.hosts import until
from lab.load import Load, LoadPlan
from lab.network import Lab
from lab.scenarios import Outcome, ended, missing, settled, tap
from lab.scenarios.endless import Endless
from lab.servers import Nginx
from lab.sinks import Behaviour, RecordingTcp
from lab.snapshot import cpu_seconds, resident_kb

DOWN: Final = 15.0
"""Seconds, from the start, and again in mid-run."""
RATE: Final = 1_000
CONNECTIONS: Final = 40
ATTEMPTS: Final = 10
"""A second, to a shadow that is down."""
LONGEST: Final = 5.0
"""Seconds: the longest pause between two (`limits.backoff_max`)."""
SLACK: Final = 3.0
"""Seconds that a busy host may take besides."""
FLAT: Final = 8
"""MiB that the worker may grow while the shadow is down."""

READERS: Final = 1_000
UPLOADS: Final = 10_000
UPLOAD_RATE: Final = 200
SIZE: Final = 50_000
BUFFERS: Final = {"ipv4.tcp_wmem": "4096 16384 131072", "ipv4.tcp_rmem": "4096 131072 131072"}
"""Of both ends: of all that is sent the kernel holds less than half."""
ROOM: Final[dict[str, Any]] = {"ring_bytes": 64 << 20, "drain_time": 1.0}
QUEUES: Final = 64 + 64 + 24
"""MiB that the worker may grow: `limits.queues_bytes`, the ring, and what so many connections take besides."""

LATEST: Final = 40.0
"""Seconds after which what is still left of a response is not waited for."""
RESPONSE: Final = 10_000_000_000
MEMORY: Final = 64
"""MiB of the whole worker, of which the ring is a quarter."""


def down(lab: Lab, capture: str, scale: float, how: str) -> Outcome:
    """From the start, and in mid-run; each time it comes back."""
    outcome, seconds = Outcome(), DOWN * scale
    backs: list[float] = []
    grown: list[float] = []
    load: Load | None = None
    got = 0
    with Nginx(lab.node), contextlib.ExitStack() as stack:
        for _ in ("from the start", "in mid-run"):
            with lab.shadow.blocked(80) if how == "black-holed" else contextlib.nullcontext():
                if load is None:
                    running = stack.enter_context(tap(lab, capture))
                    address = lab.node.addr4
                    plan = LoadPlan(
                        address=address, requests=10**9, connections=CONNECTIONS, per_connection=5, rate=RATE
                    )
                    load = Load(lab.client, plan)
                time.sleep(seconds / 3)
                before = resident_kb(running.workers()[0])
                time.sleep(seconds * 2 / 3)
                grown.append((resident_kb(running.workers()[0]) - before) / 1024)
            with Nginx(lab.shadow) as shadow:
                began = time.monotonic()
                until(lambda: shadow.requests() > 0, "requests at the shadow")
                backs.append(time.monotonic() - began)
                time.sleep(seconds / 5)
                got += shadow.requests()
        assert load is not None
        result = load.stop()
        ledger = ended(running, outcome)
    events, requests = ledger["events"], ledger["requests"]
    attempts = sum(count for name, count in events.items() if name.startswith("connect_E"))
    outcome.figures += [
        f"{result.answered:,} requests, {requests['mirrored']:,} mirrored, {got:,} at the shadow",
        f"lost: {missing(ledger, 'requests')}",
        f"{attempts} attempts that failed in {2 * seconds:.0f} s",
        f"back after {max(backs):.1f} s",
        f"the worker grew by {max(grown):.1f} MiB",
    ]
    outcome.hold(result.failed == 0, f"{result.failed} requests of production's failed")
    outcome.hold(requests["dropped"].get("shadow_down", 0) > 0, "nothing was dropped for it")
    # All that begin in the first second do so before one has failed, where nothing answers.
    first = 2 * (RATE // 5 if how == "black-holed" else CONNECTIONS)
    outcome.hold(attempts <= ATTEMPTS * 2 * seconds + first, f"more than {ATTEMPTS} attempts a second")
    outcome.hold(max(backs) <= LONGEST + SLACK, f"back later than after {LONGEST:g} s")
    outcome.hold(max(grown) <= FLAT, f"grew by more than {FLAT} MiB")
    return outcome


def unread(lab: Lab, capture: str, scale: float, read_rate: float) -> Outcome:
    """By a shadow that reads so many bytes a second, 0: none; another shadow of this tap, and another tap, go on."""
    outcome, count = Outcome(), round(UPLOADS * scale)
    for host in (lab.node, lab.shadow):
        for name, value in BUFFERS.items():
            host.sysctl(name, value)
    with (
        Nginx(lab.node),
        RecordingTcp(lab.shadow, 81, Behaviour(read=bool(read_rate), read_rate=read_rate)),
        Nginx(lab.shadow, (80, 82)) as fine,
        tap(lab, capture, 81, 82, limits=ROOM) as stuck,
        tap(lab, capture, 80, limits=ROOM) as other,
    ):
        worker = stuck.workers()[0]
        before = resident_kb(worker)
        plan = LoadPlan(
            address=lab.node.addr4,
            requests=count,
            connections=max(1, round(READERS * scale)),
            rate=UPLOAD_RATE,
            bodies=(SIZE,),
        )
        result = Load(lab.client, plan).result()
        settled(fine.requests)
        grown = (resident_kb(worker, peak=True) - before) / 1024
        others = ended(other, outcome)
        ledger = ended(stuck, outcome)
    slow, beside = (ledger["shadows"][f"{lab.shadow.addr4}:{port}"]["requests"] for port in (81, 82))
    outcome.figures += [
        f"{plan.connections:,} connections, {count * SIZE / 1e6:,.0f} MB, {result.rate * SIZE / 1e6:.0f} MB/s",
        f"to this shadow: {slow['mirrored']:,} of {count:,}, dropped {slow['dropped']}",
        f"to another shadow of the tap: {beside['mirrored']:,}, to another tap's: {others['requests']['mirrored']:,}",
        f"segments lost: {missing(ledger, 'segments')}; by the other tap: {missing(others, 'segments')}",
        f"the worker grew by {grown:.0f} MiB",
        f"CPU: {ledger['worker']['cpu_s']:.1f} s, the other tap's {others['worker']['cpu_s']:.1f} s",
    ]
    outcome.hold(result.failed == 0, f"{result.failed} requests of production's failed")
    # What a busy host gives a worker too little CPU for is lost to all shadows alike, and is not this one's doing.
    seen = "ring_full" not in ledger["segments"]["dropped"]
    outcome.hold("shadow_slow" not in beside["dropped"], "dropped for another shadow of the tap")
    outcome.hold(not seen or beside["mirrored"] == count, "less at another shadow of the tap")
    outcome.hold("shadow_slow" not in others["requests"]["dropped"], "dropped by another tap")
    outcome.hold(not seen or scale < 1 or slow["dropped"].get("shadow_slow", 0) > 0, "nothing was dropped")
    outcome.hold(grown <= QUEUES, f"grew by more than {QUEUES} MiB")
    return outcome


def endless(lab: Lab, capture: str, scale: float, start: bytes, again: bytes) -> Outcome:
    """Responses of `start`, and then `again` and again, 10 GB in all; another shadow of the tap gets what it should."""
    outcome = Outcome()
    with (
        Nginx(lab.node),
        Endless(lab.shadow, 81, start, again, round(RESPONSE * scale)) as server,
        Nginx(lab.shadow) as fine,
        tap(lab, capture, 81, 80) as running,
    ):
        worker = running.workers()[0]
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=2, rate=200)
        load = Load(lab.client, plan)
        began, used = time.monotonic(), cpu_seconds([worker])
        while server.running() and time.monotonic() < began + LATEST * scale:
            time.sleep(0.1)
        seconds, used = time.monotonic() - began, cpu_seconds([worker]) - used
        result = load.stop()
        settled(fine.requests)
        memory = resident_kb(worker, peak=True) / 1024
        sent = server.sent()
        ledger = ended(running, outcome)
    beside = ledger["shadows"][f"{lab.shadow.addr4}:80"]["requests"]
    outcome.figures += [
        f"{sent / 1e9:.1f} GB of responses, {sent / seconds / 1e6:,.0f} MB/s",
        f"to another shadow: {beside['mirrored']:,} of {result.answered:,} requests",
        f"the worker had {memory:.0f} MiB at most, and {used / seconds:.0%} of a CPU",
    ]
    outcome.hold(result.failed == 0, f"{result.failed} requests of production's failed")
    outcome.hold(beside["mirrored"] == result.answered, "less at another shadow of the tap")
    outcome.hold(memory <= MEMORY, f"more than {MEMORY} MiB")
    return outcome
