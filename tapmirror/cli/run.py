# SPDX-License-Identifier: Apache-2.0
"""`tapmirror run`: one tap in the foreground, until it is stopped."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time
from types import FrameType
from typing import Any

import click

from tapmirror.cli.live import LineView, LiveView, View, print_ledger
from tapmirror.cli.messages import fail, warn
from tapmirror.spec import Capture, Pacing, Protocol, SpecError, TapSpec, parse_shadow
from tapmirror.supervisor import Tap, TapError


def _positive(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """A click callback: a length of time."""
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"{value} is not a number of seconds above 0")
    return value


@click.command(short_help="Mirror traffic of one interface until stopped.")
@click.option("--iface", required=True, metavar="IFACE", help="Interface that production's traffic passes.")
@click.option("--port", "ports", type=int, multiple=True, required=True, help="Production's port; repeatable.")
@click.option("--addr", "addrs", multiple=True, metavar="ADDRESS", help="Production's local address; repeatable.")
@click.option("--shadow", required=True, metavar="HOST:PORT", help="Where the copies go; IPv6 in brackets.")
@click.option("--percent", type=float, default=100.0, show_default=True, help="Share of the connections.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of connections.")
@click.option(
    "--protocol",
    type=click.Choice([p.value for p in Protocol]),
    default="auto",
    show_default=True,
    help="How the bytes are taken: HTTP/1 by request, raw as they come, auto by the first of each connection.",
)
@click.option(
    "--capture",
    type=click.Choice([c.value for c in Capture]),
    default="auto",
    show_default=True,
    help="By an eBPF program, or packet by packet through AF_PACKET (dearer); auto: eBPF if the host has it.",
)
@click.option(
    "--pacing",
    type=click.Choice([p.value for p in Pacing]),
    default="asap",
    show_default=True,
    help="Send at once, or wait for the shadow's answer where production had answered (stateful protocols).",
)
@click.option("--promisc", is_flag=True, help="Take packets for other stations too: the interface is a mirror port.")
@click.option("--decap", is_flag=True, help="Look into tunnels (VXLAN, GENEVE, GRE, ERSPAN, IP in IP); by AF_PACKET.")
@click.option("--host", metavar="NAME", help="Value of the Host header for the shadow [default: the client's].")
@click.option("--duration", type=float, callback=_positive, metavar="SECONDS", help="Stop after this.")
@click.option("--json", "as_json", is_flag=True, help="Print the final ledger as JSON.")
def run(
    *,
    iface: str,
    ports: tuple[int, ...],
    addrs: tuple[str, ...],
    shadow: str,
    percent: float,
    seed: int,
    protocol: str,
    capture: str,
    pacing: str,
    promisc: bool,
    decap: bool,
    host: str | None,
    duration: float | None,
    as_json: bool,
) -> None:
    """Mirror the traffic of production's port to a shadow until stopped (Ctrl-C).

    \b
    Examples:
      tapmirror run --iface eth0 --port 80 --shadow staging.internal:8080
      tapmirror run --iface eth0 --port 80 --shadow '[2001:db8::7]:80' --percent 5 --duration 60
      tapmirror run --iface lo --port 6379 --shadow 10.0.0.9:6379 --protocol raw --pacing wait
    """  # noqa: D301 -- click wants the control character
    try:
        spec = TapSpec(
            iface=iface,
            ports=ports,
            addrs=addrs,
            shadow=parse_shadow(shadow),
            percent=percent,
            seed=seed,
            protocol=Protocol(protocol),
            capture=Capture(capture),
            pacing=Pacing(pacing),
            promisc=promisc,
            decap=decap,
            host=host,
        )
    except SpecError as error:
        fail(str(error), 2)
    tap = Tap(spec, warn)
    stop_read, stop_write = os.pipe()
    catch_signals(stop_write)
    try:
        tap.start()
    except TapError as error:
        fail(str(error), 2)
    try:
        ledger = watch(tap, stop_read, duration)
    except TapError as error:
        fail(str(error), 1)
    try:
        if as_json:
            click.echo(json.dumps(ledger))
        else:
            print_ledger(ledger)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- or the interpreter tries again at its end
        fail(f"the ledger could not be printed: {error.strerror}", 1)


def watch(tap: Tap, stop: int, duration: float | None) -> dict[str, Any]:
    """Show the tap's state until `stop` is readable, the time is over or the worker dies; the final ledger."""
    end = None if duration is None else time.monotonic() + duration
    view: View = LiveView(tap.spec) if sys.stderr and sys.stderr.isatty() else LineView(tap.spec)
    try:
        with view:
            while end is None or time.monotonic() < end:
                view.show(tap.snapshot())
                wait = view.interval if end is None else min(view.interval, max(0.0, end - time.monotonic()))
                if stop in select.select([stop, tap.fileno()], [], [], wait)[0]:
                    break
    except BaseException:
        tap.close()
        raise
    return tap.stop()


def catch_signals(write_end: int) -> None:
    """SIGINT and SIGTERM only write a byte; a second one is the default action."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        os.write(write_end, b"x")
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
