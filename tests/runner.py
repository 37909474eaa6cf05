# SPDX-License-Identifier: Apache-2.0
"""A command of ours within the test's process, whatever the version of click."""

from __future__ import annotations

import inspect
from typing import Any, Final

import click.testing

SEPARATED: Final[dict[str, Any]] = (
    {"mix_stderr": False} if "mix_stderr" in inspect.signature(click.testing.CliRunner).parameters else {}
)
"""Before click 8.2 (Debian 12 has 8.1.3) standard error was within standard output, or not in `output` at all."""


class Result(click.testing.Result):
    """As of click 8.2: `stdout`, `stderr`, and both in `output`, here one behind the other."""

    @property
    def output(self) -> str:
        """All that is printed."""
        return self.stdout + self.stderr


class CliRunner(click.testing.CliRunner):
    """As click's own from 8.2 on."""

    def __init__(self) -> None:
        super().__init__(**SEPARATED)

    def invoke(self, *args: Any, **more: Any) -> click.testing.Result:
        """Run a command."""
        done = super().invoke(*args, **more)
        if SEPARATED:
            done.__class__ = Result
        return done
