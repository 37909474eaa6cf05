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
from typing import Any

import click

from tapmirror.cli.compared import all_figures, form_of, limit_options, limits_of, tell_verdict, write_reports
from tapmirror.cli.live import LineView, LiveView, View, print_ledger
from tapmirror.cli.messages import as_option, fail, warn
from tapmirror.cli.options import specs_of, tap_options
from tapmirror.spec import Level
from tapmirror.supervisor import Tap, TapError


def _positive(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """A click callback: a length of time."""
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"{value} is not a number of seconds above 0")
    return value


@click.command(short_help="Mirror traffic of one interface until stopped.")
@tap_options
@click.option("--duration", type=float, callback=_positive, metavar="SECONDS", help="Stop after this.")
@click.option("--report", "report_file", metavar="FILE", help="Write what differs to FILE (.html, .md, .json, .txt).")
@click.option(
    "--verdict", "judge", is_flag=True, help="Judge the shadow at the end: exit code 0, 1 (fail) or 3 (unknown)."
)
@limit_options
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
    report_file: str | None,
    judge: bool,
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
    limits = limits_of(options)
    if report_file is not None:
        form_of(report_file)
    specs = specs_of(context, file, resolve, strict=strict, options=options)
    if (report_file is not None or judge) and not any(spec.compare.level is not Level.OFF for spec in specs):
        fail(f"--{'report' if report_file is not None else 'verdict'}: nothing is compared: give --compare too", 2)
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
    found = all_figures(ledgers, limits)
    if report_file is not None:
        try:
            for path in write_reports(found, report_file):
                click.echo(f"tapmirror: {path} written", err=True)
        except OSError as error:
            fail(f"--report: {report_file}: {error.strerror}", 1)
    if judge:
        raise SystemExit(tell_verdict(found, err=as_json))


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
