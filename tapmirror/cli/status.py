# SPDX-License-Identifier: Apache-2.0
"""`tapmirror status` and `logs`: the state of the daemon's taps, and their log lines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from tapmirror.cli.amounts import counted, not_counted
from tapmirror.cli.asking import json_option, name_argument, print_json, refused, socket_option, understood
from tapmirror.cli.briefs import load, raw_lines
from tapmirror.cli.live import Rates, behind, shadow_words
from tapmirror.control.client import Client, ControlError
from tapmirror.control.messages import Logs, Status
from tapmirror.spec.numbers import decimal

WATCH: Final = 1.0
"""Seconds between two looks of `status --watch`."""
FOLLOW: Final = 0.5


@click.command(short_help="Show the state of the daemon and its taps.")
@name_argument(required=False)
@click.option("--watch", is_flag=True, help="Repeat every second, until Ctrl-C.")
@json_option
@socket_option
def status(name: str | None, watch: bool, as_json: bool, socket: Path) -> None:
    """Show the state of the daemon and its taps, or of one tap: share, what was mirrored, what was lost and why.

    --json prints the whole ledger of each tap.  --watch adds the rates per second; with --json it prints one document
    per line.

    \b
    Examples:
      tapmirror status
      tapmirror status web --watch
      tapmirror status --json | jq '.taps[].ledger.requests'
    """  # noqa: D301 -- click wants the control character
    rates: dict[str, Rates] = {}
    if watch:
        load()
    try:
        with Client(socket) as client:
            while True:
                done = client.ask(Status(name=name))
                if as_json:
                    print_json(done)
                else:
                    with understood():
                        text = "\n".join(lines(done, rates))
                    click.echo(text)
                if not watch:
                    return
                sys.stdout.flush()
                time.sleep(WATCH)
                if not as_json:
                    click.echo()
    except ControlError as error:
        refused(error)
    except KeyboardInterrupt:
        return


def lines(done: dict[str, Any], rates: dict[str, Rates]) -> list[str]:
    """The status in lines for people; `rates` keeps the totals of the last call."""
    daemon = done["daemon"]
    found = [f"daemon {daemon['version']}, pid {daemon['pid']}, up {duration(daemon['uptime_s'])}"]
    if daemon["killed"]:
        found.append("KILL SWITCH: all capture is off")
    found += [f"error: {daemon[name]}" for name in ("state_error", "reload_error") if daemon[name]]
    if lost := daemon.get("log_lines_lost"):
        found.append(f"error: {lost:,} lines of the log could not be written")
    if all_taps := daemon.get("all_taps", {}).get("reason"):
        found.append(f"{daemon['all_taps']['share']:.0%} of all shares: {all_taps}")
    for tap in done["taps"]:
        found += ["", *tap_lines(tap, rates.setdefault(tap["name"], Rates()))]
    if not done["taps"]:
        found.append("no taps")
    return found


TIMES: Final = ("p50_ms", "p99_ms")
"""Quantiles of response times that are shown, if any response was timed."""


def tap_lines(tap: dict[str, Any], rates: Rates) -> list[str]:
    """One tap in lines for people."""
    reason = f" ({tap['state_reason']})" if tap["state_reason"] else ""
    share = (
        f"{decimal(tap['percent'])} % of {tap['by']}s" if tap["by"] == "connection" else f"{decimal(tap['percent'])} %"
    )
    found = [
        f"{tap['name']}: {tap['state']}{reason}",
        f"  {tap['iface']} port {','.join(map(str, tap['ports']))} -> {', '.join(tap['shadows'])}, {share}",
    ]
    if tap["origin"]:
        found.append(f"  from {tap['origin']}")
    if tap["ends_in"] is not None:
        found.append(f"  ends in {duration(tap['ends_in'])}")
    if tap["losses"]:
        found.append(f"  started again {tap['losses']} times")
    if tap.get("uncaptured_s"):
        found.append(f"  nothing was captured for {tap['uncaptured_s']:.1f} s in all, between ends and starts")
    ledger = tap["ledger"]
    if ledger is None:
        return found
    effective = ledger.get("share") or {}
    if effective and effective["effective"] != effective["percent"]:  # both from the same moment, unlike the tap's own
        found.append(f"  at present {decimal(effective['effective'])} %: {effective['reason']}")
    known = rates.known  # at the first look they are unknown, and would be shown as 0
    rate, size, cpu, delay = rates.of(ledger)
    for unit in (counted(ledger), "segments"):
        account = ledger[unit]
        fates = [f"{account['seen']:,} seen", f"{account['mirrored']:,} mirrored"]
        if account["sampled_out"]:
            fates.append(f"{account['sampled_out']:,} sampled out")
        fates += [
            f"{count:,} {kind} ({why})" for kind in ("filtered", "dropped") for why, count in account[kind].items()
        ]
        if account["in_flight"]:
            fates.append(f"{account['in_flight']:,} waiting")
        unknown = f"; {words}" if unit == "requests" and (words := not_counted(ledger)) else ""
        found.append(f"  {unit}: {', '.join(fates)}{unknown}")
    for label, shadow in ledger["shadows"].items():
        words = shadow_words(shadow, shadow.get("reason", ""), several=len(ledger["shadows"]) > 1)
        if effective and shadow.get("effective", effective["effective"]) != effective["effective"]:
            words = f"at present {decimal(shadow['effective'])} %, {words}"
        latency = shadow.get("latency", {})
        times = ", ".join(f"{name[:3]} {latency[name]:.1f} ms" for name in TIMES if name in latency)
        found.append(f"  shadow {label}: {words}{times and f'; {times}'}")
    found += [f"  {line}" for line in raw_lines(ledger)]
    worker = ledger["worker"]
    speed, load, late = ("", "", "")
    if known:
        speed, load, late = f"{rate:,.0f}/s, {size / 1e6:.1f} MB/s, ", f"{cpu:.0%} CPU ", f", {behind(delay)}"
    memory = f"{worker['rss_kb'] / 1024:.0f} MB"
    found.append(f"  {speed}{ledger['flows']:,} flows, worker {load}{memory}{late}, capture {ledger['capture']}")
    return found


def duration(seconds: float) -> str:
    """A length of time, in its two largest units."""
    rest = int(seconds)
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


@click.command(short_help="Print the log of a tap.")
@name_argument()
@click.option("--follow", is_flag=True, help="Also print new lines as they come, until Ctrl-C.")
@json_option
@socket_option
def logs(name: str, follow: bool, as_json: bool, socket: Path) -> None:
    """Print the last log lines of a tap: starts, warnings, losses, and the reasons for them.

    The complete log, with who did what, is in the journal: journalctl -u tapmirror.

    \b
    Examples:
      tapmirror logs web
      tapmirror logs web --follow
    """  # noqa: D301
    after = 0
    try:
        with Client(socket) as client:
            while True:
                done = client.ask(Logs(name=name, after=after))
                after = done["next"]
                with understood():
                    said = [json.dumps(line) if as_json else log_line(line) for line in done["lines"]]
                for line in said:
                    click.echo(line)
                if not follow:
                    return
                sys.stdout.flush()
                time.sleep(FOLLOW)
    except ControlError as error:
        refused(error)
    except KeyboardInterrupt:
        return


def log_line(line: dict[str, Any]) -> str:
    """A log line with its time, for people."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"]))
    return f"{when} {line['level']}: {line['text']}"
