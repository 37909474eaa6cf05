# SPDX-License-Identifier: Apache-2.0
"""`tapmirror daemon`: taps as a service."""

from __future__ import annotations

from pathlib import Path

import click

from tapmirror.cli.messages import error_line, fail
from tapmirror.spec.errors import shown
from tapmirror.supervisor.endpoint import parse_address
from tapmirror.supervisor.log import to_stderr
from tapmirror.supervisor.places import CONFIG, RUNTIME, STATE, PlaceError, Places
from tapmirror.supervisor.serve import GROUP, group_id, serve

DIRECTORY = click.Path(path_type=Path, file_okay=False, readable=False)
"""Not checked for being readable: a user who is not root is told what the daemon needs, and not of a directory."""


def _address(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """A click callback: where to listen."""
    try:
        return None if value is None else parse_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Run taps as a service, in the foreground.")
@click.option(
    "--runtime-dir",
    type=DIRECTORY,
    default=RUNTIME,
    show_default=True,
    help="Directory of the control socket and the file STOP.",
)
@click.option("--state-dir", type=DIRECTORY, default=STATE, show_default=True, help="Directory in which taps are kept.")
@click.option(
    "--config-dir", type=DIRECTORY, default=CONFIG, show_default=True, help="Directory of daemon.yaml and taps.d."
)
@click.option("--group", default=GROUP, show_default=True, metavar="NAME", help="Group whose members may change taps.")
@click.option(
    "--metrics", metavar="[ADDRESS:]PORT", callback=_address, help="Serve metrics for Prometheus on this port."
)
def daemon(runtime_dir: Path, state_dir: Path, config_dir: Path, group: str, metrics: tuple[str, int] | None) -> None:
    """Run taps as a service, until SIGTERM or Ctrl-C.  The other commands start, change and stop the taps.

    Taps are kept and come back after a restart.  SIGHUP reads daemon.yaml (the budget of all taps together) and
    taps.d/*.yaml again.  While a file STOP exists in the runtime directory, nothing is captured.

    \b
    Examples:
      tapmirror daemon --metrics 9464        # on the loopback
      tapmirror start --name web --iface eth0 --port 80 --shadow staging.internal:8080
      tapmirror status
      touch /run/tapmirror/STOP           # the kill switch

    Exit codes: 0 stopped; 1 broke down; 2 could not start.
    """  # noqa: D301 -- click wants the control character
    if group != GROUP and group_id(group) is None:
        fail(f"--group: there is no group {shown(group)}", 2)
    log = to_stderr()
    try:
        serve(Places(runtime_dir.absolute(), state_dir.absolute(), config_dir.absolute()), log, group, metrics)
    except PlaceError as error:
        log.close()
        for problem in error.problems[:-1]:
            error_line(problem)
        fail(error.problems[-1] if error.problems else str(error), 2)
    finally:
        log.close()
