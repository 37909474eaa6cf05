# SPDX-License-Identifier: Apache-2.0
"""`scripts/demo`: nginx mirrored to nginx under a real load, and the ledger beside both servers' counters."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lab.hosts import LabError, leave_on_signals
from lab.load import load
from lab.network import Lab
from lab.servers import Nginx
from lab.tap import Tap
from lab.wrk import WrkResult, command, parse, pause

SECONDS = 10.0
SETTLE_TIME = 5.0
"""Seconds without a request more at the shadow, after which none is expected."""
CONNECTIONS = 40
PAUSE = 4
"""Milliseconds that each connection waits before each request: together they send at most 10,000 a second.  wrk, both
servers and the tap share the processors of this one machine, and the tap, being nice, gets what is left.  Where a
request costs it 40 us, three times what it takes on a fast host, this is less than half of a processor."""
RING_BYTES = 64 << 20
"""Should something else keep the tap off the processors for seconds: the default ring holds 75,000 of these requests,
this one four times as many."""
PACKET_RATE = 2_000
"""Requests a second where the capture is AF_PACKET."""
UNITS = ("segments", "bytes", "requests")


def main() -> int:
    """Run it; 0 if the counts agree."""
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load (%(default)s)")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="of the load (%(default)s)")
    parser.add_argument("--capture", choices=("auto", "ebpf", "packet"), default="auto")
    options = parser.parse_args()
    leave_on_signals()
    say("lab: client, node and shadow in network namespaces, nginx on node (production) and shadow")
    with Lab() as lab, Nginx(lab.node) as production, Nginx(lab.shadow, text="shadow") as shadow:
        target = f"{lab.shadow.addr4}:80"
        spec = (
            f"iface: {lab.node.iface}\nport: 80\nshadow: {target}\ncapture: {options.capture}\n"
            f"limits: {{ring_bytes: {RING_BYTES}}}\n"
        )
        say(f"tap: tapmirror run -f tap.yaml, on the node, with {', '.join(spec.splitlines())}")
        tap = Tap(lab.node, spec=spec, terminal=True)
        if by_ebpf(tap):
            rate = 1000 * options.connections // PAUSE
            say(f"load: wrk on the client, {options.connections} connections, at most {rate:,} requests a second")
            result = paused(lab, options.connections, options.seconds)
        else:
            say(f"load: {PACKET_RATE:,} requests a second: AF_PACKET, which takes every packet, bears no more safely")
            result = bounded(lab, options.connections, options.seconds)
        settle(production, shadow)
        ledger = tap.stop()
        return report(ledger, result, production.requests(), shadow.requests())


def by_ebpf(tap: Tap) -> bool:
    """Whether the tap captures by eBPF: a process of it holds a BPF map then."""
    for pid in tap.processes():
        for name in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "bpf-map" in os.readlink(name):
                    return True
    return False


def paused(lab: Lab, connections: int, seconds: float) -> WrkResult:
    """A load by wrk, each connection of which pauses."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(pause(PAUSE))
        script.flush()
        words = command(f"http://{lab.node.addr4}/", connections=connections, duration=seconds, script=script.name)
        return parse(lab.client.run(words, timeout=seconds + 60).stdout)


def bounded(lab: Lab, connections: int, seconds: float) -> WrkResult:
    """A load at a rate that is given."""
    done = load(
        lab.client,
        lab.node.addr4,
        requests=round(PACKET_RATE * seconds),
        rate=PACKET_RATE,
        connections=connections,
    )
    return WrkResult(requests=done.answered, errors=done.failed, rate=done.rate, p50=done.p50, p99=done.p99)


def settle(production: Nginx, shadow: Nginx) -> None:
    """Wait until both servers have read what is under way: their counts are equal, or the shadow's stands still.

    On a busy machine the tap may be many seconds behind.
    """
    last, since = -1, time.monotonic()
    while (now := shadow.requests()) != production.requests() and time.monotonic() - since < SETTLE_TIME:
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.2)


def report(ledger: dict[str, Any], result: WrkResult, production: int, shadow: int) -> int:
    """Print the ledger beside the counters; 0 if they agree."""
    requests = ledger["requests"]
    rows: list[tuple[str, int, str, int]] = [
        ("production: requests read", production, "requests seen", requests["seen"]),
        ("shadow: requests read", shadow, "requests mirrored", requests["mirrored"]),
    ]
    rows += [("", 0, f"{unit} unaccounted for", ledger[unit]["unaccounted"]) for unit in UNITS]
    table = Table(title="The servers' own counters beside the tap's ledger", title_justify="left")
    for title, justify in (("servers", "left"), ("", "right"), ("ledger", "left"), ("", "right"), ("", "left")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    agreed = True
    for name, count, counter, value in rows:
        same = value == count
        agreed = agreed and same
        table.add_row(
            name,
            f"{count:,}" if name else "",
            counter,
            f"{value:,}",
            "[green]agree[/]" if same else "[red]DISAGREE[/]",
        )
    for unit in ("segments", "requests"):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in ledger[unit]["dropped"].items())
        table.add_row("", "", f"{unit} dropped", f"{sum(ledger[unit]['dropped'].values()):,}", reasons)
    console = Console(highlight=False)
    console.print()
    console.print(table)
    responses = ", ".join(f"{status} {count:,}" for status, count in ledger["answers"].items())
    console.print(
        f"client: {result.requests:,} answered at {result.rate:,.0f}/s, p50 {result.p50:g} ms, p99 {result.p99:g} ms, "
        f"errors {result.errors}   shadow's responses: {responses or 'none'}   capture: {ledger.get('capture', '?')}"
    )
    agreed = agreed and production > 0
    console.print("[bold green]agree[/]" if agreed else "[bold red]DISAGREE[/]")
    return 0 if agreed else 1


def say(text: str) -> None:
    """What is done next."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"demo: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
