# SPDX-License-Identifier: Apache-2.0
"""Numbers among the options: `float` and `int` take more than a user means, `1_0` and the digits of all scripts."""

from __future__ import annotations

import math
from typing import Any

import click

from tapmirror.spec.numbers import number_of, seconds_of, whole_of


class Number(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on, and only for type checkers
    """A number; what range it must be in, others say."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As `click.ParamType.convert`."""
        found = number_of(value) if isinstance(value, str) else float(value)
        if found is None:
            self.fail(f"{value!r} is not a number", param, ctx)
        return found


class Whole(click.ParamType):  # type: ignore[type-arg]
    """A whole number."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """As `click.ParamType.convert`."""
        found = whole_of(value) if isinstance(value, str) else int(value)
        if found is None:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        return found


class Time(click.ParamType):  # type: ignore[type-arg]
    """A length of time above 0: `90`, `90s`, `15m`, `1h30m`; in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As `click.ParamType.convert`."""
        found = seconds_of(value) if isinstance(value, str) else float(value)
        if found is None or not 0 < found < math.inf:
            self.fail(f"{value!r} is not a time above 0 like 90, 90s, 15m or 1h30m", param, ctx)
        return found
