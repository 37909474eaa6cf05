# SPDX-License-Identifier: Apache-2.0
"""`tapmirror run`: taps in the foreground, until they are stopped."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

import click
from click.core import ParameterSource

from tapmirror.cli.files import read_file
from tapmirror.cli.live import LineView, LiveView, View, print_ledger
from tapmirror.cli.messages import as_option, fail, warn
from tapmirror.spec import Capture, Compare, Level, Pacing, Protocol, Rewrite, SpecError, TapSpec, parse_shadow
from tapmirror.supervisor import Tap, TapError


def _positive(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """A click callback: a length of time."""
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"{value} is not a number of seconds above 0")
    return value


@click.command(short_help="Mirror traffic of one interface until stopped.")
@click.option(
    "-f",
    "--file",
    metavar="FILE",
    help="Taps of a YAML file instead of the options that describe one; - is standard input.",
)
@click.option(
    "--resolve",
    multiple=True,
    metavar="NAME=HOST:PORT",
    help="Address of a destination (HOST or HOST:SUBSET) of Istio's or the Gateway API's rules in FILE; repeatable.",
)
@click.option("--strict", is_flag=True, help="Refuse what such a FILE has and a mirror beside the path cannot do.")
@click.option("--iface", metavar="IFACE", help="Interface that production's traffic passes.")
@click.option("--port", "ports", type=int, multiple=True, help="Production's port; repeatable.")
@click.option("--addr", "addrs", multiple=True, metavar="ADDRESS", help="Production's local address; repeatable.")
@click.option(
    "--shadow",
    "shadows",
    multiple=True,
    metavar="HOST:PORT",
    help="Where the copies go; IPv6 in brackets; repeatable: each gets every request.",
)
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
@click.option(
    "--compare",
    type=click.Choice([level.value for level in Level]),
    default="off",
    show_default=True,
    help="Compare the shadow's answers with production's, as far as this.",
)
@click.option("--duration", type=float, callback=_positive, metavar="SECONDS", help="Stop after this.")
@click.option("--json", "as_json", is_flag=True, help="Print the final ledger as JSON.")
@click.pass_context
def run(
    context: click.Context,
    /,
    *,
    file: str | None,
    resolve: tuple[str, ...],
    strict: bool,
    duration: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Mirror the traffic of production's port to a shadow until stopped (Ctrl-C).

    \b
    Examples:
      tapmirror run --iface eth0 --port 80 --shadow staging.internal:8080
      tapmirror run --iface eth0 --port 80 --shadow '[2001:db8::7]:80' --percent 5 --duration 60
      tapmirror run --iface lo --port 6379 --shadow 10.0.0.9:6379 --protocol raw --pacing wait
      tapmirror run -f tap.yaml
    """  # noqa: D301 -- click wants the control character
    given = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if file is not None:
        beside = {name: list(options[name]) if name in LISTS else options[name] for name in given & BESIDE}
        if given - BESIDE:
            fail(f"-f and --{OPTION_NAMES.get(min(given - BESIDE), min(given - BESIDE))}: it is in the file", 2)
        specs = read_file(file, beside, resolve, strict=strict)
    elif resolve or strict:
        fail("--resolve and --strict are for files of Kubernetes (-f)", 2)
    else:
        specs = [spec_of(**options)]
    taps = [Tap(spec, warn) for spec in specs]
    stop_read, stop_write = os.pipe()
    catch_signals(stop_write)
    try:
        start(taps)
    except TapError as error:
        fail(as_option(str(error)) if file is None else str(error), 2)
    try:
        ledgers = watch(taps, stop_read, duration)
    except TapError as error:
        fail(str(error), 1)
    try:
        if as_json:
            click.echo(json.dumps(ledgers[0] if len(ledgers) == 1 else {"taps": ledgers}))
        else:
            for ledger in ledgers:
                print_ledger(ledger)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- or the interpreter tries again at its end
        fail(f"the ledger could not be printed: {error.strerror}", 1)


BESIDE: Final = frozenset({"iface", "ports", "addrs", "capture", "seed", "promisc", "decap"})
"""Options that say where to tap: they go with a file of Kubernetes, which does not."""
LISTS: Final = frozenset({"ports", "addrs"})
OPTION_NAMES: Final = {"ports": "port", "addrs": "addr", "shadows": "shadow"}


def spec_of(
    *,
    iface: str | None,
    ports: tuple[int, ...],
    shadows: tuple[str, ...],
    host: str | None,
    protocol: str,
    capture: str,
    pacing: str,
    compare: str,
    **rest: Any,
) -> TapSpec:
    """The tap that options describe."""
    for name, value in (("iface", iface), ("port", ports), ("shadow", shadows)):
        if value is None or value == ():
            raise click.UsageError(f"Missing option '--{name}' (or '-f' with a file).")
    try:
        rewrite = Rewrite(host=host) if host is not None else Rewrite()
        return TapSpec(
            iface=iface or "",
            ports=ports,
            shadows=tuple(parse_shadow(shadow, rewrite=rewrite) for shadow in shadows),
            protocol=Protocol(protocol),
            capture=Capture(capture),
            pacing=Pacing(pacing),
            compare=Compare(level=Level(compare)),
            **rest,
        )
    except SpecError as error:
        for field, message in error.problems:
            click.echo(f"tapmirror: error: {as_option(f'{field}: {message}')}", err=True)
        raise SystemExit(2) from None


def start(taps: Sequence[Tap]) -> None:
    """Start all or none.  Raises `TapError`."""
    for i, tap in enumerate(taps):
        try:
            tap.start()
        except BaseException:
            for begun in taps[:i]:
                begun.close()
            raise


def watch(taps: Sequence[Tap], stop: int, duration: float | None) -> list[dict[str, Any]]:
    """Show the taps' state until `stop` is readable, the time is over or a worker dies; the final ledgers."""
    end = None if duration is None else time.monotonic() + duration
    specs = [tap.spec for tap in taps]
    view: View = LiveView(specs) if sys.stderr and sys.stderr.isatty() else LineView(specs)
    try:
        with view:
            while end is None or time.monotonic() < end:
                view.show([tap.snapshot() for tap in taps])
                wait = view.interval if end is None else min(view.interval, max(0.0, end - time.monotonic()))
                if stop in select.select([stop, *(tap.fileno() for tap in taps)], [], [], wait)[0]:
                    break
        return [tap.stop() for tap in taps]
    finally:
        for tap in taps:
            tap.close()


def catch_signals(write_end: int) -> None:
    """SIGINT and SIGTERM only write a byte; a second one is the default action."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        os.write(write_end, b"x")
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
