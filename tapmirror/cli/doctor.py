# SPDX-License-Identifier: Apache-2.0
"""`tapmirror doctor`: whether a tap can start here."""

from __future__ import annotations

import json

import click
import msgspec

from tapmirror import doctor as checks
from tapmirror.cli.messages import as_option, fail
from tapmirror.cli.options import joined
from tapmirror.spec import SpecError, parse_shadow
from tapmirror.spec.tap import interface_error


@click.command(short_help="Check whether a tap can start on this host.")
@click.option(
    "--iface",
    multiple=True,
    callback=joined,
    metavar="IFACE",
    help="Also check this interface, those of a pattern (veth*), or any; repeatable.",
)
@click.option(
    "--shadow", "shadows", multiple=True, metavar="HOST:PORT", help="Also try to reach this shadow; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(*, iface: str | None, shadows: tuple[str, ...], as_json: bool) -> None:
    """Check what a tap needs: kernel, privileges, headers, eBPF (by a trial load), limits, interface, shadow, clock.

    Changes nothing.  Without root, it says what it could not check.

    \b
    Example:
      sudo tapmirror doctor --iface eth0 --shadow staging.internal:8080

    Exit codes: 0 a tap can start; 1 it cannot; 2 wrong options.
    """  # noqa: D301 -- click wants the control character
    try:
        wanted = [parse_shadow(shadow) for shadow in shadows]
    except SpecError as error:
        fail(as_option(str(error)), 2)
    for name in [] if iface is None else iface.split(","):
        if message := interface_error(name):
            fail(f"--iface: {message}", 2)
    findings = []
    for finding in checks.examine(iface, wanted):
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.level.value:8}{finding.check:14}{finding.text}")
            if finding.remedy:
                click.echo(f"{'':22}-> {finding.remedy}")
    can = checks.can_start(findings)
    if as_json:
        click.echo(json.dumps({"can_start": can, "findings": msgspec.to_builtins(findings)}))
    else:
        click.echo(f"a tap {'can' if can else 'cannot'} start here")
    raise SystemExit(0 if can else 1)
