# SPDX-License-Identifier: Apache-2.0
"""`scripts/bench`: what a tap costs, beside what the barest sender of the same bytes costs.  Reports, judges nothing.

CPU is user and system time of all processes of the tap, without their start, for each mirrored request.  On veth
it holds the whole way of a request to the shadow's socket and of the response back, since the kernel does that in
the sender's time.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from lab import bench_core, instructions
from lab.hosts import NOFILE_MOST, LabError, leave_on_signals
from lab.load import Load, LoadPlan, load
from lab.network import Lab
from lab.servers import Nginx
from lab.snapshot import resident_kb
from lab.starve import starved
from lab.tap import Tap
from tapmirror.precedence import give_way

SETTLE_TIME: Final = 1.0
"""Seconds before a measurement: connections are made, imports are over."""
DRAIN_TIME: Final = 0.5
CONNECTIONS: Final = 50
PAIRS: Final = 8
PAIR_SECONDS: Final = 2.0
PAIR_RATE: Final = 5_000
STARVED: Final = 0.05


@dataclass(frozen=True)
class Case:
    """One load, one way to mirror it."""

    name: str
    rate: int
    goal: float | None = None
    """Microseconds a request that are aimed at."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the tap."""
    bodies: tuple[int, ...] = ()
    per_connection: int = 0
    path: str = "/"
    floor: bool = False
    """Measure the barest sender too."""

    def plan(self, address: str, seconds: float) -> LoadPlan:
        """The load."""
        return LoadPlan(
            address=address,
            requests=max(20, round(self.rate * seconds)),
            connections=CONNECTIONS if self.rate >= CONNECTIONS * 10 else 4,
            per_connection=self.per_connection,
            rate=self.rate,
            bodies=self.bodies,
            paths=(self.path,),
        )


BASE: Final = "GET, HTTP"
"""The case that rules are measured over, and that `spec.costs.REQUEST_US` states."""
RULES: Final = (
    """
iface: eth0
port: 80
protocol: http
capture: {capture}
shadow:
  to: "{shadow}:80"
  rewrite: {{set_headers: {{X-Shadow: "1", X-Env: test}}}}
rules:
"""
    + "".join(f"  - match: {{{{path: {{{{prefix: /api/v{n}/}}}}}}}}\n" for n in range(19))
    + "  - match: {{path: {{prefix: /}}}}\n"
)
"""Twenty, of which the last matches, and two fields set."""
RULE_GOAL: Final = 5.0
"""Microseconds that these may add to a request."""

JSON: Final = "/file/2k.json?"
CASES: Final = (
    Case("GET, raw", 20_000, 10, {"protocol": "raw"}, floor=True),
    Case(BASE, 20_000, 14, {"protocol": "http"}),
    Case("GET, HTTP, status compared", 20_000, 22, {"protocol": "http", "compare": "status"}),
    Case("GET, HTTP, at 5,000", 5_000, None, {"protocol": "http"}),
    Case("the same, status compared", 5_000, None, {"protocol": "http", "compare": "status"}),
    Case("GET of 2 KB of JSON", 1_500, None, {"protocol": "http"}, path=JSON),
    Case("the same, bodies compared", 1_500, None, {"protocol": "http", "compare": "body"}, path=JSON),
    Case("GET, HTTP, Host rewritten", 20_000, 18, {"protocol": "http", "host": "shadow.test"}),
    Case("GET, a connection each", 5_000, 75, per_connection=1, floor=True),
    Case("POST 4 KiB", 10_000, 20, bodies=(4 << 10,), floor=True),
    Case("POST 64 KiB", 1_000, 60, bodies=(64 << 10,), floor=True),
    Case("GET, low rate", 1_000, None),
    Case("GET, lower rate", 100, None),
)
BARE: Final = CASES[0]
"""The requests that the barest sender sends beside production."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One case, measured."""

    case: str
    rate: float
    requests: int
    lost: int
    cpu_us: float
    """For each request."""
    cpu_percent: float
    """Of one core."""
    floor_us: float | None
    goal_us: float | None
    rss_mb: float
    peak_mb: float


def measure(lab: Lab, case: Case, capture: str, seconds: float) -> Result:
    """Run one case."""
    plan = case.plan(lab.node.addr4, seconds)
    options = {"shadow": f"{lab.shadow.addr4}:80", "capture": capture, **case.options}
    if "spec" in options:  # it says all that
        del options["shadow"], options["capture"]
    with Tap(lab.node, **options) as tap:
        time.sleep(SETTLE_TIME)
        before = tap.cpu()
        result = Load(lab.client, plan).result()
        time.sleep(DRAIN_TIME)
        used = tap.cpu() - before
        (worker,) = tap.workers()
        memory, peak = resident_kb(worker), resident_kb(worker, peak=True)
        ledger = tap.stop()
    if result.failed:
        raise LabError(f"{case.name}: production failed {result.failed} of {result.sent} requests")
    # Raw bytes have no requests: what is lost shows in bytes.
    unit = ledger["requests"] if ledger["requests"]["seen"] else ledger["bytes"]
    wanted = plan.requests if ledger["requests"]["seen"] else ledger["bytes"]["seen"]
    return Result(
        case=case.name,
        rate=result.rate,
        requests=plan.requests,
        lost=wanted - unit["mirrored"],
        cpu_us=used / plan.requests * 1e6,
        cpu_percent=used / result.seconds * 100,
        floor_us=floor(lab, case, seconds) if case.floor else None,
        goal_us=case.goal,
        rss_mb=memory / 1024,
        peak_mb=peak / 1024,
    )


def barest(lab: Lab, plan: LoadPlan) -> subprocess.Popen[bytes]:
    """The barest sender, from the node to the shadow; `lab.node.stop` ends it.

    In a session of its own, as a tap's worker is: `give_way` would make whoever sends the load wait, too.
    """
    return lab.node.popen(
        [sys.executable, "-c", "from lab.floor import main; main()", msgspec.json.encode(plan).decode()],
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
        nofile=NOFILE_MOST,
        start_new_session=True,
        stdout=subprocess.PIPE,
    )


def floor(lab: Lab, case: Case, seconds: float) -> float:
    """CPU of the barest sender in microseconds a request."""
    process = barest(lab, case.plan(lab.shadow.addr4, seconds))
    try:
        output, _ = process.communicate(timeout=seconds * 10 + 30)
    finally:
        code = lab.node.stop(process)
    if code:
        raise LabError(f"the barest sender ended with status {code}")
    return float(output)


def idle(lab: Lab, capture: str, seconds: float) -> float:
    """CPU of a tap without traffic, in percent of a core."""
    with Tap(lab.node, shadow=f"{lab.shadow.addr4}:80", capture=capture) as tap:
        time.sleep(SETTLE_TIME)
        before = tap.cpu()
        time.sleep(seconds)
        return (tap.cpu() - before) / seconds * 100


def production(lab: Lab, capture: str, rounds: int, shadow: Nginx, *, starve: bool = False) -> dict[str, float]:
    """Production's latency untapped, tapped, and beside the barest sender of the same requests to the same shadow, in
    blocks that take turns: medians, and their ratios.

    The shadow, which belongs on another host, gets what CPU the others leave: at nice 19 with the longest slices, so
    that whoever wakes interrupts it, and idle, so that the kernel takes a processor that runs it for a free one
    (sched_idle_cpu()).  What the barest sender adds is not the tap's, but the copies' own.  `starve`: the worker, and
    that sender, get `STARVED` of a CPU only.
    """
    give_way(19, shadow.pid)
    os.sched_setscheduler(shadow.pid, os.SCHED_IDLE, os.sched_param(0))
    starving = partial(starved, share=STARVED) if starve else nullcontext
    found: dict[str, list[float]] = {}

    def block(kind: str) -> None:
        result = load(
            lab.client,
            lab.node.addr4,
            requests=round(PAIR_RATE * PAIR_SECONDS),
            connections=CONNECTIONS,
            rate=PAIR_RATE,
        )
        found.setdefault(f"p50 {kind}", []).append(result.p50)
        found.setdefault(f"p99 {kind}", []).append(result.p99)

    def untapped() -> None:
        block("untapped")

    def tapped() -> None:
        with Tap(lab.node, shadow=f"{lab.shadow.addr4}:80", capture=capture) as tap:
            time.sleep(SETTLE_TIME)
            (worker,) = tap.workers()
            with starving(worker):
                block("tapped")

    def beside_the_barest() -> None:
        seconds = PAIR_SECONDS + 2 * SETTLE_TIME
        sender = barest(lab, dataclasses.replace(BARE, rate=PAIR_RATE).plan(lab.shadow.addr4, seconds))
        try:
            give_way(pid=sender.pid)
            time.sleep(SETTLE_TIME)
            with starving(sender.pid):
                block("barest")
        finally:
            lab.node.stop(sender)

    blocks = [untapped, tapped, beside_the_barest]
    for number in range(rounds):
        for run in blocks[number % 3 :] + blocks[: number % 3]:
            run()
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        **{f"{name}, ms": value for name, value in medians.items()},
        **{
            f"{figure} {kind} over untapped": medians[f"{figure} {kind}"] / medians[f"{figure} untapped"]
            for figure in ("p50", "p99")
            for kind in ("tapped", "barest")
        },
    }


def rules(lab: Lab, capture: str, pairs: int, seconds: float) -> dict[str, float]:
    """Microseconds a request on the whole path, without rules and with twenty and two header rewrites, in blocks that
    alternate: medians.
    """
    without = next(case for case in CASES if case.name == BASE)
    given = {"spec": RULES.format(shadow=lab.shadow.addr4, capture=capture)}
    found: dict[str, list[float]] = {"without": [], "with": []}
    for pair in range(pairs):
        for kind in ("with", "without") if pair % 2 else ("without", "with"):
            case = without if kind == "without" else dataclasses.replace(without, name="rules", options=given)
            result = measure(lab, case, capture, seconds)
            if result.lost:
                raise LabError(f"{result.lost} requests lost {kind} rules")
            found[kind].append(result.cpu_us)
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    return {
        **{f"{kind} rules, us": value for kind, value in medians.items()},
        "added, us": medians["with"] - medians["without"],
        "aim, us": RULE_GOAL,
    }


def show(console: Console, results: list[Result]) -> None:
    """The cases as a table."""
    table = Table(title="CPU for each mirrored request", title_justify="left")
    for name in ("case", "rate/s", "lost", "µs", "aim", "barest", "% of a core", "worker MB", "peak MB"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for r in results:
        table.add_row(
            r.case,
            f"{r.rate:,.0f}",
            f"{r.lost:,}",
            f"{r.cpu_us:.1f}",
            f"{r.goal_us:g}" if r.goal_us else "",
            f"{r.floor_us:.1f}" if r.floor_us else "",
            f"{r.cpu_percent:.1f}",
            f"{r.rss_mb:.0f}",
            f"{r.peak_mb:.0f}",
        )
    console.print(table)


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="What a tap costs.  Takes about two minutes.")
    parser.add_argument("--seconds", type=float, default=5.0, help="of load for each case (%(default)s)")
    parser.add_argument("--capture", choices=("ebpf", "packet"), default="ebpf")
    parser.add_argument("--case", default="", help="only cases whose name has this in it")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of blocks for production's latency; 0: skip it")
    parser.add_argument("--core", action="store_true", help="only decoding and reassembly, without a network")
    parser.add_argument("--instructions", action="store_true", help="only instructions a request, by valgrind")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if options.instructions:
        return instructions.main()
    leave_on_signals()
    console = Console(highlight=False, width=120)
    results: list[Result] = []
    report: dict[str, Any] = {"kernel": platform.release(), "python": platform.python_version()}
    if options.core or not options.case:
        report["core"] = bench_core.measure()
    if options.core:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
        return 0
    with Lab() as lab, Nginx(lab.node), Nginx(lab.shadow) as shadow:
        give_way(0, shadow.pid)  # it stands for another host: that it wakes must not interrupt the tap
        lab.node.sysctl("ipv4.ip_local_port_range", "1024 65535")
        lab.client.sysctl("ipv4.ip_local_port_range", "1024 65535")
        for case in CASES:
            if options.case in case.name:
                print(f"bench: {case.name}, {case.rate:,}/s", file=sys.stderr, flush=True)
                results.append(measure(lab, case, options.capture, options.seconds))
        if not options.case:
            print("bench: idle", file=sys.stderr, flush=True)
            report["idle_percent"] = idle(lab, options.capture, options.seconds)
        if options.pairs and options.case in ("", "rules"):
            print(f"bench: 20 rules and two headers, {options.pairs} pairs of blocks", file=sys.stderr, flush=True)
            report["rules"] = rules(lab, options.capture, options.pairs, PAIR_SECONDS)
        if options.pairs and not options.case:
            print(f"bench: production's latency, {options.pairs} pairs of blocks", file=sys.stderr, flush=True)
            report["production"] = production(lab, options.capture, options.pairs, shadow)
            report["starved"] = production(lab, options.capture, options.pairs, shadow, starve=True)
    report["cases"] = [msgspec.structs.asdict(result) for result in results]
    if options.json:
        print(msgspec.json.encode(report).decode())
        return 0
    show(console, results)
    if "idle_percent" in report:
        console.print(f"idle: {report['idle_percent']:.2f} % of a core")
    for name, figures in report.get("core", {}).items():
        console.print(
            f"{name.replace('_', ' ')}: " + ", ".join(f"{what} {value:,.2f}" for what, value in figures.items())
        )
    for name, value in report.get("rules", {}).items():
        console.print(f"20 rules and two headers, {name}: {value:.1f}")
    for name, value in report.get("production", {}).items():
        console.print(f"production's latency at {PAIR_RATE:,}/s, {name}: {value:.3f}")
    for name, value in report.get("starved", {}).items():
        console.print(f"the same with a worker that gets {STARVED:.0%} of a CPU, {name}: {value:.3f}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"bench: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
