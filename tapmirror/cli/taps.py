# SPDX-License-Identifier: Apache-2.0
"""The commands for a daemon's taps: `start`, `stop`, `list`, `apply`, `set`, `pause`, `resume`, `reload`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from tapmirror.cli.account import final
from tapmirror.cli.asking import ask, json_option, name_argument, print_json, socket_option, understood
from tapmirror.cli.files import read_file
from tapmirror.cli.messages import fail, warn
from tapmirror.cli.numbers import TIME, WHOLE
from tapmirror.cli.options import beside, joined, specs_of, tap_options
from tapmirror.control.messages import Apply, List, Pause, Reload, Resume, Set, Start, Stop
from tapmirror.spec import SpecError
from tapmirror.spec.numbers import decimal, number_of

MARKS = {"add": "+", "change": "~", "restart": "!", "remove": "-", "keep": " "}
"""The sign in front of a step of a plan, by its action."""


@click.command(short_help="Start taps in the daemon.")
@tap_options
@click.option("--name", metavar="NAME", help="Name of the tap [default: tap].")
@click.option("--ttl", type=TIME, metavar="TIME", help="End the tap after this time: 90 (seconds), 15m, 2h.")
@click.option("--force", is_flag=True, help="Allow risky taps, such as one on port 22.")
@json_option
@socket_option
@click.pass_context
def start(
    context: click.Context,
    /,
    *,
    file: str | None,
    resolve: tuple[str, ...],
    strict: bool,
    name: str | None,
    ttl: float | None,
    force: bool,
    as_json: bool,
    socket: Path,
    **options: Any,
) -> None:
    """Start taps in the daemon: those of FILE, or one that the options describe.  All start, or none.

    They run until they are stopped, and come back after a restart of the daemon or of the host.

    \b
    Examples:
      tapmirror start --name web --iface eth0 --port 80 --shadow staging.internal:8080 --percent 5
      tapmirror start --name hour --ttl 3600 --iface eth0 --port 80 --shadow staging.internal:8080
      tapmirror start -f tap.yaml

    Exit codes: 0 all run; 1 one could not start; 2 refused.
    """  # noqa: D301 -- click wants the control character
    specs = specs_of(context, file, resolve, strict=strict, options=options)
    given = {field: value for field, value in (("name", name), ("ttl", ttl)) if value is not None}
    if given and len(specs) > 1:
        fail(f"--{min(given)}: the file has {len(specs)} taps", 2)
    if given:
        try:
            specs = [msgspec.structs.replace(specs[0], **given)]
            for field, message in specs[0].slips():
                raise SpecError(field, message)
        except SpecError as error:
            fail(f"--{error}", 2)
    done = ask(socket, Start(taps=specs, force=force))
    if as_json:
        print_json(done)
        return
    with understood():
        line = f"started: {', '.join(done['started'])}"
        notes = notes_of(done)
    click.echo(line)
    for note in notes:
        warn(note)


@click.command(short_help="Stop a tap of the daemon, or all.")
@name_argument(required=False)
@click.option("--all", "everything", is_flag=True, help="Stop all taps at once: the kill switch.")
@json_option
@socket_option
def stop(name: str | None, everything: bool, as_json: bool, socket: Path) -> None:
    """Stop a tap.  Capture ends at once, what was captured is sent, and the final ledger is printed.

    A stopped tap does not come back by itself.  A tap of a file in taps.d comes back at the next reload.

    \b
    Examples:
      tapmirror stop web
      tapmirror stop --all        # all capture ends within a second
    """  # noqa: D301
    if (name is None) != everything:
        fail("give the NAME of a tap, or --all", 2)
    done = ask(socket, Stop(name=name, all=everything))
    if as_json:
        print_json(done)
        return
    with understood():
        ledgers = [(tap["name"], tap["ledger"] and final(tap["ledger"])) for tap in done["stopped"]]
    for name, shown in ledgers:
        if shown is not None:
            Console().print(shown)
        click.echo(f"stopped: {name}")


@click.command("list", short_help="List the daemon's taps.")
@json_option
@socket_option
def list_(as_json: bool, socket: Path) -> None:
    """List the daemon's taps, one line each: what they do and how they are.

    \b
    Examples:
      tapmirror list
      tapmirror list --json | jq -r '.taps[] | select(.state != "running").name'
    """  # noqa: D301
    done = ask(socket, List())
    if as_json:
        print_json(done)
        return
    with understood():
        text = "\n".join(table([HEAD, *map(row, done["taps"])])) if done["taps"] else "no taps"
    click.echo(text)


HEAD: Final = ("NAME", "STATE", "SHARE", "INTERFACE", "PORTS", "SHADOWS", "FROM", "WHY")


def row(tap: dict[str, Any]) -> tuple[str, ...]:
    """A tap in a line of a table."""
    return (
        tap["name"],
        tap["state"],
        f"{decimal(tap['percent'])} %",
        tap["iface"],
        ",".join(map(str, tap["ports"])),
        ", ".join(tap["shadows"]),
        tap["origin"] or "command",
        "; ".join(filter(None, (tap["state_reason"], tap.get("trouble")))),
    )


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """A line for each row, however long: nothing is cut or wrapped, in a pipe or on a narrow terminal."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        yield "  ".join(set_cell_size(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip()


@click.command(short_help="Make the daemon's taps equal to a file.")
@click.option(
    "-f",
    "--file",
    type=click.Path(allow_dash=True, readable=False),
    required=True,
    metavar="FILE",
    help="Read taps from a YAML file; - is standard input.",
)
@click.option("--iface", multiple=True, callback=joined, metavar="IFACE", help="For Kubernetes files, as for `run`.")
@click.option("--port", "ports", type=WHOLE, multiple=True, metavar="PORT", help="For Kubernetes files, as for `run`.")
@click.option("--resolve", multiple=True, metavar="NAME=HOST:PORT", help="For Kubernetes files, as for `run`.")
@click.option("--strict", is_flag=True, help="For Kubernetes files, as for `run`.")
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@click.option("--force", is_flag=True, help="Allow risky taps, such as one on port 22.")
@json_option
@socket_option
def apply(
    *,
    file: str,
    iface: str | None,
    ports: tuple[int, ...],
    resolve: tuple[str, ...],
    strict: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    socket: Path,
) -> None:
    """Make the taps that were started by command equal to those of FILE.

    An unchanged tap is not touched.  A new `percent` takes effect without a restart.  A tap with any other change is
    restarted.  Taps of files in taps.d are not affected.

    \b
    Examples:
      tapmirror apply -f taps.yaml --dry-run
      tapmirror apply -f taps.yaml

    Exit codes: 0 done; 1 a part failed; 2 refused, nothing was done.
    """  # noqa: D301
    specs = read_file(file, beside(iface, ports), resolve, strict=strict)
    planned(ask(socket, Apply(taps=specs, dry_run=dry_run, force=force)), as_json=as_json)


@click.command(short_help="Read the taps in /etc/tapmirror/taps.d again.")
@json_option
@socket_option
def reload(as_json: bool, socket: Path) -> None:
    """Read the files in taps.d again, as SIGHUP does: all of them, or none if anything in them is wrong.

    A new tap whose interface does not exist waits for it; the output says so.

    \b
    Example:
      tapmirror reload
    """  # noqa: D301
    planned(ask(socket, Reload()), as_json=as_json)


def planned(done: dict[str, Any], *, as_json: bool) -> None:
    """Print a plan and what failed; ends the program with exit code 1 if anything did."""
    if as_json:
        print_json(done)
    else:
        with understood():
            lines = [*map(step_line, done["plan"])]
            failures = [f"{name}: {message}" for name, message in done["failed"].items()]
            notes = [f"{name} waits: {reason}" for name, reason in done.get("waits", {}).items()] + notes_of(done)
        click.echo("\n".join(lines) or "no taps")
        for note in notes:
            warn(note)
        for failure in failures:
            click.echo(f"tapmirror: error: {failure}", err=True)
    if done["failed"]:
        raise SystemExit(1)


def notes_of(done: dict[str, Any]) -> list[str]:
    """The warnings of taps from their start, for people."""
    return [f"{name}: {line}" for name, lines in done.get("notes", {}).items() for line in lines]


def step_line(step: dict[str, Any]) -> str:
    """A step of a plan for people."""
    fields = f"  ({', '.join(step['fields'])})" if step["fields"] else ""
    return f"{MARKS[step['action']]} {step['action']:8}{step['name']}{fields}"


@click.command("set", short_help="Change a tap while it runs.")
@name_argument()
@click.argument("setting", metavar="percent=P")
@json_option
@socket_option
def set_(name: str, setting: str, as_json: bool, socket: Path) -> None:
    """Change the share of a tap while it runs.

    Connections that stay in the share are not disturbed; those that fall out end with their request.  The new share
    survives a restart of the daemon.  For a tap of a file, a reload restores what the file says.

    \b
    Example:
      tapmirror set web percent=25
    """  # noqa: D301
    field, sign, value = setting.partition("=")
    if not sign or field != "percent":
        fail(f"{setting!r}: only percent=P can be set", 2)
    percent = number_of(value.removesuffix("%"))
    if percent is None:
        fail(f"percent: {value!r} is not a number", 2)
    if not math.isfinite(percent):  # infinity and NaN: JSON has no such numbers
        fail(f"percent: {value!r} is not between 0 and 100", 2)
    done = ask(socket, Set(name=name, percent=percent))
    if as_json:
        print_json(done)
        return
    with understood():
        line = f"{done['name']}: {decimal(done['percent'])} %"
        notes = notes_of(done)
    click.echo(line)
    for note in notes:
        warn(note)


@click.command(short_help="Pause a tap.")
@name_argument()
@json_option
@socket_option
def pause(name: str, as_json: bool, socket: Path) -> None:
    """Pause a tap: it captures nothing until `resume`, even after a restart of the daemon.

    \b
    Example:
      tapmirror pause web
    """  # noqa: D301
    done = ask(socket, Pause(name=name))
    if as_json:
        print_json(done)
    else:
        click.echo(f"paused: {done['name']}")


@click.command(short_help="Resume a paused tap.")
@name_argument()
@json_option
@socket_option
def resume(name: str, as_json: bool, socket: Path) -> None:
    """Resume a paused tap, or one that ended because its shadow led back to production.

    \b
    Example:
      tapmirror resume web
    """  # noqa: D301
    done = ask(socket, Resume(name=name))
    if as_json:
        print_json(done)
    else:
        click.echo(f"resumed: {done['name']}")
