# SPDX-License-Identifier: Apache-2.0
"""What every command says when something is wrong: one line on standard error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:  # who reads no file does without what reads YAML
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
"""The option that a field of the spec is set by."""


def refuse_file(file: str, problems: FileError) -> NoReturn:
    """A line for each thing that is wrong with a file, and out."""
    for problem in problems.found:
        error_line(problem.of(file))
    raise SystemExit(2)


def warn(message: str) -> None:
    """One line of warning."""
    click.echo(f"tapmirror: {_one_line(message)}", err=True)


def worker_said(line: str) -> None:
    """A line that a worker printed."""
    warn(f"a worker said: {line}")


def error_line(message: str) -> None:
    """One line of error, and on."""
    click.echo(f"tapmirror: error: {_one_line(message)}", err=True)


def fail(message: str, code: int) -> NoReturn:
    """One line of error, and out."""
    error_line(message)
    raise SystemExit(code)


def as_option(message: str) -> str:
    """The message with a field of the spec at its beginning named as the option that sets it."""
    field = re.match(r"([a-z_]+)(?:\[\d+\]|\.[a-z]+)*: ", message)
    if field is None:
        return message
    whole = re.sub(r"\[\d+\]", "", field[0][:-2])
    option = OPTION_OF.get(whole, OPTION_OF.get(field[1]))
    return message if option is None else f"{option}: {message[field.end() :]}"


def _one_line(message: str) -> str:
    """The message with control characters, as a file's name may have them, escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
