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
    help="The root directory of an image.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


@click.command(short_help="Put the systemd service in place.")
@ROOT
@click.option(
    "--command",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="What the service runs, as seen from within the root [default: this command].",
)
@DRY_RUN
def install(root: Path, command: Path | None, *, dry_run: bool) -> None:
    """Put the systemd unit, the user and group `tapmirror`, and an example of a tap in place.

    Does not start it.  What is there already is left; run it again after an update.

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


@click.command(short_help="Take the systemd service away.")
@ROOT
@DRY_RUN
def uninstall(root: Path, *, dry_run: bool) -> None:
    """Stop the service and remove what `install` put in place.

    Taps, their state, and the user `tapmirror` are left: `rm -r /etc/tapmirror /var/lib/tapmirror` and
    `userdel tapmirror` remove them.
    """
    try:
        _go(uninstall_plan(root.absolute()), dry_run=dry_run)
    except InstallError as error:
        fail(str(error), 2)
    except OSError as error:  # of what is only looked at: the cache is root's
        _told(error)


def _told(error: OSError) -> NoReturn:
    """What is of no file is of standard output, and told elsewhere."""
    if error.filename is None:
        raise error
    fail(f"{error.filename}: {error.strerror}", 2)


def _go(steps: Sequence[Step], *, dry_run: bool) -> None:
    if not steps:
        click.echo("nothing is installed")
    for step in steps if dry_run else carry_out(steps):
        click.echo(str(step))
