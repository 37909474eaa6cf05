# SPDX-License-Identifier: Apache-2.0
"""The `tapmirror` command, and how errors end it: one line on standard error, exit code 2."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from tapmirror import __version__
from tapmirror.cli.asking import refused
from tapmirror.cli.closed import Closed
from tapmirror.cli.messages import fail
from tapmirror.control.client import ControlError

COMMANDS: Final = {
    "apply": "taps",
    "completion": "completion",
    "daemon": "daemon",
    "doctor": "doctor",
    "explain": "spec",
    "install": "install",
    "list": "taps:list_",
    "logs": "status",
    "pause": "taps",
    "reload": "taps",
    "report": "compared",
    "resume": "taps",
    "run": "run",
    "set": "taps:set_",
    "spec": "spec",
    "start": "taps",
    "status": "status",
    "stop": "taps",
    "streams": "streams",
    "top": "top",
    "uninstall": "install",
    "verdict": "compared",
}
"""The module of each command, and its name there if it differs."""


class Commands(click.Group):
    """Imports a command only when it is called: importing all takes three times as long as `list` does.

    Wrong use of a command is reported in one line, like any other error.
    """

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """As `click.Group.list_commands`."""
        return [*COMMANDS]

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """As `click.Group.get_command`."""
        return command(name) if name in COMMANDS else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As `click.Group.resolve_command`; suggests a command for an unknown one, as click does for options."""
        if args[0] not in COMMANDS and not ctx.resilient_parsing and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Read the group's own options; `--help` and `--version` print and end here."""
        open_streams()
        with misuse_told():
            return super().make_context(*args, **more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without a command, print the help with the exit code of wrong use, as click does from 8.2 on."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and report wrong options, and what a daemon refuses."""
        try:
            with misuse_told(ctx):
                return super().invoke(ctx)
        except ControlError as error:
            refused(error)


def command(name: str) -> click.Command:
    """The command of this name, of those in `COMMANDS`."""
    module, _, there = COMMANDS[name].partition(":")
    found: click.Command = getattr(importlib.import_module(f"tapmirror.cli.{module}"), there or name)
    return found


@contextlib.contextmanager
def misuse_told(group: click.Context | None = None) -> Iterator[None]:
    """Report click's errors of usage in one line, with exit code 2; `group`: the one whose command is being run."""
    try:
        yield
    except click.UsageError as error:
        if isinstance(error, click.BadParameter) and error.param is not None and error.message:
            fail(f"{max(error.param.opts, key=len)}: {error.message.rstrip('.')}", 2)
        message = " ".join(error.format_message().split()).rstrip(".")
        fail(f"{message}; see {_misused(error, group)} --help", 2)


def _misused(error: click.UsageError, group: click.Context | None) -> str:
    """The name of the command with the error: click does not have it if the options could not be read."""
    if error.ctx is not None:
        return error.ctx.command_path
    name = None if group is None else group.invoked_subcommand
    return f"tapmirror {name}" if name else "tapmirror"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tapmirror")
def main() -> None:
    """Mirror live TCP traffic to a shadow service, with no proxy in the path.

    Exit codes: 0 done; 1 a tap broke down, something failed, or the verdict is "fail"; 2 it could not start, was
    refused, or there is no daemon; 3 the verdict is "undecided".
    """


def open_streams() -> None:
    """Open those of standard input, output and error that are closed, so that no other descriptor gets their numbers.

    Printing to a standard output that was closed fails, so that the user learns that nothing was printed.  Whatever the
    locale, files and pipes get UTF-8, as reports declare; a terminal gets a question mark for what it cannot show.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdout is None:
        sys.stdout = Closed()
    elif isinstance(sys.stdout, io.TextIOWrapper):
        if isinstance(sys.stdout.buffer, io.RawIOBase):  # PYTHONUNBUFFERED: the rest of a partial write is lost
            buffered = io.BufferedWriter(sys.stdout.buffer)
            sys.stdout = io.TextIOWrapper(buffered, encoding=sys.stdout.encoding, line_buffering=True)
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
