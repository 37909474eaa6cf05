# SPDX-License-Identifier: Apache-2.0
"""Asks the daemon, for every command that does: where its socket is, and how a refusal is reported."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from tapmirror import __version__
from tapmirror.cli.messages import error_line, fail
from tapmirror.control.client import SOCKET, Client, ControlError
from tapmirror.control.messages import List, Request
from tapmirror.supervisor.places import RUNTIME

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT: Final = RUNTIME / SOCKET
COMPLETION_TIME: Final = 1.0
"""Seconds that a shell waits for names."""


def socket_option(function: Function) -> Function:
    """Give a command the option `--socket`."""
    return click.option(
        "--socket",
        type=click.Path(path_type=Path, readable=False),  # whether it may be used is for the client to report
        default=DEFAULT,
        show_default=True,
        envvar="TAPMIRROR_SOCKET",
        show_envvar=True,
        help="The daemon's control socket.",
    )(function)


def name_argument(**options: Any) -> Callable[[Function], Function]:
    """Give a command the argument NAME, which a shell completes."""
    metavar = "NAME" if options.get("required", True) else "[NAME]"
    return click.argument("name", metavar=metavar, shell_complete=complete, **options)


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")


def ask(socket: Path, request: Request) -> dict[str, Any]:
    """Ask the daemon and return its reply.

    A warning in the reply goes to standard error.  A refusal ends the program with one line and exit code 2, a failure
    with exit code 1.  Ctrl-C ends the waiting, and undoes nothing.
    """
    try:
        with Client(socket) as client:
            reply = client.ask(request)
    except ControlError as error:
        refused(error)
    except KeyboardInterrupt:
        if not request.changes:
            raise
        fail("interrupted: the daemon continues with the request; `tapmirror list` shows the result", 130)
    if "warning" in reply:
        click.echo(f"tapmirror: warning: {reply['warning']}", err=True)
    return reply


def refused(error: ControlError) -> NoReturn:
    """Report why it was not done, and end the program."""
    for problem in error.problems[:-1]:
        error_line(problem)
    fail(error.problems[-1] if error.problems else str(error), 1 if error.code in ("failed", "lost") else 2)


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Wrap code that reads a reply's fields: raises `ControlError` if one is missing or is not what it should be.

    It cannot tell a reply of another version from a mistake in the code that reads it, so the message names both, and
    the place.  The code must not print anything, since it may end half way.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        from traceback import extract_tb  # a millisecond, which each command would take

        what = f"has no {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        at = extract_tb(error.__traceback__)[-1]
        fault = f"or this is a fault of tapmirror {__version__}, in {os.path.basename(at.filename)}:{at.lineno}"
        raise ControlError("version", f"the daemon's response {what}: it is of another version, {fault}") from error


def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the daemon's taps that begin so; none if it cannot be asked."""
    socket = context.params.get("socket") or DEFAULT
    try:
        with Client(socket, COMPLETION_TIME) as client, understood():
            return [
                CompletionItem(tap["name"], help=f"{tap['iface']} -> {', '.join(tap['shadows'])}")
                for tap in client.ask(List(), COMPLETION_TIME)["taps"]
                if tap["name"].startswith(incomplete)
            ]
    except ControlError:
        return []


def print_json(what: Any) -> None:
    """One document on standard output."""
    click.echo(json.dumps(what))
