# SPDX-License-Identifier: Apache-2.0
"""Errors and warnings of all commands: one line on standard error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:  # commands that read no file do not import the YAML reader
    from tapmirror.spec.document import FileError

OPTION_OF: Final = {
    "iface": "--iface",
    "ports": "--port",
    "addrs": "--addr",
    "shadow": "--shadow",
    "percent": "--percent",
    "seed": "--seed",
    "decap": "--decap",
    "workers": "--workers",
    "shadows": "--shadow",
    "host": "--host",
    "shadows.rewrite.host": "--host",
    "compare": "--compare",
    "noise_probe": "--noise-probe",
}
"""The option that sets a field of the spec."""


def refuse_file(file: str, problems: FileError) -> NoReturn:
    """Print a line for each error of a file, and end the program."""
    for problem in problems.found:
        error_line(problem.of(file))
    raise SystemExit(2)


def warn(message: str) -> None:
    """Print one line of warning."""
    click.echo(f"tapmirror: {_one_line(message)}", err=True)


def worker_said(line: str) -> None:
    """Print a line that a worker printed."""
    warn(f"a worker said: {line}")


def error_line(message: str) -> None:
    """Print one line of error, and go on."""
    click.echo(f"tapmirror: error: {_one_line(message)}", err=True)


def fail(message: str, code: int) -> NoReturn:
    """Print one line of error, and end the program with this exit code."""
    error_line(message)
    raise SystemExit(code)


def as_option(message: str) -> str:
    """The message, with the field of the spec at its beginning replaced by the option that sets it."""
    field = re.match(r"([a-z_]+)(?:\[\d+\]|\.[a-z]+)*: ", message)
    if field is None:
        return message
    whole = re.sub(r"\[\d+\]", "", field[0][:-2])
    option = OPTION_OF.get(whole, OPTION_OF.get(field[1]))
    return message if option is None else f"{option}: {message[field.end() :]}"


def _one_line(message: str) -> str:
    """The message in one line: control characters, which names of files may have, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
