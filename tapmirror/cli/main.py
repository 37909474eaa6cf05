# SPDX-License-Identifier: Apache-2.0
"""The `tapmirror` command and how it fails: one line on standard error, exit code 2."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from tapmirror import __version__
from tapmirror.cli import status, taps
from tapmirror.cli.asking import refused
from tapmirror.cli.closed import Closed
from tapmirror.cli.compared import report, verdict
from tapmirror.cli.completion import completion
from tapmirror.cli.daemon import daemon
from tapmirror.cli.doctor import doctor
from tapmirror.cli.install import install, uninstall
from tapmirror.cli.messages import fail
from tapmirror.cli.run import run
from tapmirror.cli.spec import explain, spec
from tapmirror.cli.streams import streams
from tapmirror.cli.top import top
from tapmirror.control import ControlError


class OneLine(click.Group):
    """Wrong use of any command is told in one line, as all else that is wrong."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """The group's own options, of which some print."""
        open_streams()
        with misuse_told():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """A command, its options and what it finds wrong with them; and what a daemon refuses."""
        try:
            with misuse_told(ctx):
                return super().invoke(ctx)
        except ControlError as error:
            refused(error)


@contextlib.contextmanager
def misuse_told(group: click.Context | None = None) -> Iterator[None]:
    """One line and exit code 2 for what click tells in four; `group`: of which a command is invoked."""
    try:
        yield
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2
            raise
        if isinstance(error, click.BadParameter) and error.param is not None and error.message:
            fail(f"{max(error.param.opts, key=len)}: {error.message.rstrip('.')}", 2)
        message = " ".join(error.format_message().split()).rstrip(".")
        fail(f"{message}; see {_misused(error, group)} --help", 2)


def _misused(error: click.UsageError, group: click.Context | None) -> str:
    """The command; click does not say which where it cannot read its options."""
    if error.ctx is not None:
        return error.ctx.command_path
    name = None if group is None else group.invoked_subcommand
    return f"tapmirror {name}" if name else "tapmirror"


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tapmirror")
def main() -> None:
    """Mirror live TCP traffic to a shadow service, with no proxy in the path.

    Exit codes: 0 done; 1 the tap broke down while it ran, or a verdict is: fail; 2 it could not be started;
    3 a verdict is undecided.
    """


def open_streams() -> None:
    """Open what is missing of standard input, output and error, lest another descriptor takes its number.

    What is printed on a standard output that was closed fails: whoever asked for it is told that it did not come.
    Whatever the locale, a file or a pipe gets UTF-8, as reports say of themselves, and a terminal a question mark for
    what it cannot show.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdout is None:
        sys.stdout = Closed()
    elif isinstance(sys.stdout, io.TextIOWrapper):
        if isinstance(sys.stdout.buffer, io.RawIOBase):  # PYTHONUNBUFFERED: what is not written in one go is lost
            buffered = io.BufferedWriter(sys.stdout.buffer)
            sys.stdout = io.TextIOWrapper(buffered, encoding=sys.stdout.encoding, line_buffering=True)
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


main.add_command(run)
main.add_command(report)
main.add_command(verdict)
main.add_command(daemon)
for command in (*taps.COMMANDS, *status.COMMANDS):
    main.add_command(command)
main.add_command(top)
main.add_command(completion)
main.add_command(doctor)
main.add_command(install)
main.add_command(uninstall)
main.add_command(explain)
main.add_command(spec)
main.add_command(streams)
