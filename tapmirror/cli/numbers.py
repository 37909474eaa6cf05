# SPDX-License-Identifier: Apache-2.0
"""Types of options for numbers, stricter than `float` and `int`, which accept `1_0` and the digits of all scripts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import click

from tapmirror.spec.numbers import number_of, seconds_of, whole_of


class Parsed(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.4 on, and only for type checkers
    """An option whose text `read` converts; if it returns None, the error is "not `what`"."""

    def __init__(self, name: str, what: str, read: Callable[[str], float | None]) -> None:
        self.name = name
        self._what = what
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As `click.ParamType.convert`; a default value is not converted."""
        found = self._read(value) if isinstance(value, str) else value
        if found is None:
            self.fail(f"{value!r} is not {self._what}", param, ctx)
        return found


def _time_of(text: str) -> float | None:
    found = seconds_of(text)
    return found if found is not None and 0 < found < math.inf else None


def _port_of(text: str) -> int | None:
    found = whole_of(text)
    return found if found is not None and 0 < found < 65536 else None


def _alpha_of(text: str) -> float | None:
    found = number_of(text)
    return found if found is not None and 0 < found <= 0.5 else None


NUMBER: Final = Parsed("number", "a number", number_of)
WHOLE: Final = Parsed("integer", "a whole number", whole_of)
PORT: Final = Parsed("port", "a port (1 to 65535)", _port_of)
ALPHA: Final = Parsed("p", "a probability above 0, up to 0.5", _alpha_of)
TIME: Final = Parsed("time", "a time above 0 like 90, 90s, 15m or 1h30m", _time_of)
"""Type of an option that is a length of time; the value is in seconds."""
