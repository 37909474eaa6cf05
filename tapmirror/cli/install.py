# SPDX-License-Identifier: Apache-2.0
"""`tapmirror install` and `tapmirror uninstall`: the service for systemd."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from tapmirror.cli.messages import fail
from tapmirror.install import InstallError, Step, carry_out, install_plan, uninstall_plan

ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default="/",
    show_default=True,
    metavar="DIR",
    help="Root directory of an image.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only print what would be done.")


@click.command(short_help="Install the systemd service.")
@ROOT
@click.option(
    "--command",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The tapmirror command for the service, as seen inside the root [default: this command].",
)
@DRY_RUN
def install(root: Path, command: Path | None, *, dry_run: bool) -> None:
    """Install the systemd unit, the user and group `tapmirror`, and an example of a tap.

    Starts nothing.  Run it again after an update: it replaces its own files, and keeps an example that exists.

    \b
    Examples:
      sudo tapmirror install && sudo systemctl enable --now tapmirror
      tapmirror install --root /mnt/image --command /opt/tapmirror/bin/tapmirror --dry-run
    """  # noqa: D301 -- click wants the control character
    try:
        steps = install_plan(root.absolute(), command or Path(os.path.abspath(sys.argv[0])))
        _go(steps, dry_run=dry_run)
    except InstallError as error:
        fail(str(error), 2)
    except OSError as error:
        _told(error)
    if not dry_run and root == Path("/"):
        click.echo("ready: systemctl enable --now tapmirror")


@click.command(short_help="Remove the systemd service.")
@ROOT
@DRY_RUN
def uninstall(root: Path, *, dry_run: bool) -> None:
    """Stop the service and remove what `install` installed.

    Taps, their state, and the user `tapmirror` are kept: `rm -r /etc/tapmirror /var/lib/tapmirror` and
    `userdel tapmirror` remove them.
    """
    try:
        _go(uninstall_plan(root.absolute()), dry_run=dry_run)
    except InstallError as error:
        fail(str(error), 2)
    except OSError as error:  # of what is only looked at: the cache is root's
        _told(error)


def _told(error: OSError) -> NoReturn:
    """Report an error of a file and end the program.  One without a file is of standard output: `main` reports it."""
    if error.filename is None:
        raise error
    fail(f"{error.filename}: {error.strerror}", 2)


def _go(steps: Sequence[Step], *, dry_run: bool) -> None:
    if not steps:
        click.echo("nothing is installed")
    for step in steps if dry_run else carry_out(steps):
        click.echo(str(step))
