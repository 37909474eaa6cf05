# SPDX-License-Identifier: Apache-2.0
"""Numbers and lengths of time as people write them: `90`, `0.5`, `1e3`; `90s`, `15m`, `1h30m`, `2d`, `200ms`.

Python's own `float` and `int` take more than that: `1_000`, digits of every script, `nan`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

_LONGEST: Final = 100
"""Most characters of a number."""
_WHOLE: Final = re.compile(r"[+-]?[0-9]+")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
TIME: Final = r"(?:[0-9]+(?:\.[0-9]+)?(?:d|h|ms|m|s))+"
"""A length of time: one or several numbers, each with its unit."""
_PART: Final = re.compile(r"([0-9.]+)(d|h|ms|m|s)")
_UNITS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

_UNIT: Final = {"unit": "s"}
Seconds: TypeAlias = Annotated[float, Meta(extra=_UNIT)]
"""A number of seconds, which in a file may be written as a length of time."""


def decimal(value: float, digits: int = 6) -> str:
    """A number as text, with `digits` significant digits and without an exponent, which few can read."""
    text = f"{value:.{digits}g}"
    return f"{Decimal(text):f}" if "e" in text else text


def number_of(text: str) -> float | None:
    """The number that a text stands for; None: it is no number."""
    return float(text) if len(text) <= _LONGEST and _NUMBER.fullmatch(text) else None


def whole_of(text: str) -> int | None:
    """The whole number that a text stands for; None: it is no whole number."""
    return int(text) if len(text) <= _LONGEST and _WHOLE.fullmatch(text) else None


def seconds_of(text: str) -> float | None:
    """A length of time in seconds; a number without a unit is in seconds.  None: the text is no length of time."""
    if len(text) > _LONGEST or not re.fullmatch(TIME, text):
        return number_of(text)
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
