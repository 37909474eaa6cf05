# SPDX-License-Identifier: Apache-2.0
"""What every command says when something is wrong: one line on standard error."""

from __future__ import annotations

import re
from typing import Final, NoReturn

import click

OPTION_OF: Final = {
    "iface": "--iface",
    "ports": "--port",
    "addrs": "--addr",
    "shadow": "--shadow",
    "percent": "--percent",
    "seed": "--seed",
    "decap": "--decap",
    "host": "--host",
}
"""The option that a field of the spec is set by."""


def warn(message: str) -> None:
    """One line of warning."""
    click.echo(f"tapmirror: {message}", err=True)


def fail(message: str, code: int) -> NoReturn:
    """One line of error, and out.  A field of the spec at its beginning is named as the option that sets it."""
    field = re.match(r"([a-z]+)(?:\[\d+\]|\.[a-z]+)*: ", message)
    if field is not None and field[1] in OPTION_OF:
        message = f"{OPTION_OF[field[1]]}: {message[field.end() :]}"
    click.echo(f"tapmirror: error: {message}", err=True)
    raise SystemExit(code)
