# SPDX-License-Identifier: Apache-2.0
"""What is compared of two responses, and what does not count.

Numbers are equal within a relative tolerance (two whole numbers only if they are the same), and times (RFC 3339) within
a tolerance in seconds.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from tapmirror.compare.paths import any_of
from tapmirror.spec.compare import IGNORED_HEADERS, ROUNDING, Compare

ENCODED: Final = 4
"""How often, in lengths of the longest body, arrays may be encoded in one comparison to find their order: each level of
arrays that differ takes twice its length, and what is in another order is compared once more."""

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]{0,10}(?:Z|[+-]\d\d:?\d\d)?")


class Expression(Protocol):
    """A compiled expression (RE2)."""

    def sub(self, replacement: str, text: str) -> str:
        """As re.sub."""


class Rules:
    """What is compared, and what does not count."""

    def __init__(
        self, spec: Compare, expressions: Iterable[Expression] = (), shown: Callable[[str], str] | None = None
    ) -> None:
        """`expressions` are `spec.ignore_patterns`, compiled; `shown` takes what must not be shown out of a path."""
        self.shown = shown
        self.level = spec.level
        ignored = () if spec.all_headers else IGNORED_HEADERS
        self.headers = frozenset(name.lower().encode() for name in (*ignored, *spec.ignore_headers))
        self.lengths = "content-length" not in map(str.lower, spec.ignore_headers) and b"content-length" in self.headers
        """Whether the length given by responses to HEAD counts: it is not ignored, nor compared with all other
        fields."""
        self.ignored = any_of(spec.ignore_paths) if spec.ignore_paths else None
        self.expressions = tuple(expressions)
        self.float_tolerance = spec.float_tolerance
        self.time_tolerance = spec.time_tolerance
        self.decoded_bytes = spec.decoded_bytes
        self.encoded_bytes = ENCODED * max(spec.body_bytes, spec.decoded_bytes)
        self.nodes = spec.nodes
        self.differences = spec.differences

    def close(self, one: Any, other: Any) -> bool:
        """Whether two numbers are equal within the tolerance, which by default does not apply to two whole numbers.

        The default tolerance is for rounding in additions; two identifiers or amounts of ten digits that differ in the
        last would be equal within it.
        """
        tolerance = self.float_tolerance
        if tolerance <= ROUNDING and type(one) is int and type(other) is int:
            return one == other
        if one != one or other != other:  # NaN, in invalid JSON
            return bool(one != one and other != other)
        if math.inf in (abs(one), abs(other)):
            return bool(one == other)
        try:
            return bool(one == other or (tolerance and abs(one - other) <= tolerance * max(abs(one), abs(other))))
        except OverflowError:  # an integer longer than any float
            return False

    def same_text(self, one: str, other: str) -> bool:
        """Whether two texts are equal, apart from what does not count."""
        if self.time_tolerance and _TIME.fullmatch(one) and _TIME.fullmatch(other):
            apart = _seconds_between(one, other)
            if apart is not None and apart <= self.time_tolerance:
                return True
        for expression in self.expressions:
            one, other = expression.sub("", one), expression.sub("", other)
        return bool(self.expressions) and one == other


def _seconds_between(one: str, other: str) -> float | None:
    try:
        first, second = datetime.datetime.fromisoformat(one), datetime.datetime.fromisoformat(other)
        return abs((first - second).total_seconds())
    except (ValueError, TypeError, OverflowError):  # there is no such day, or only one of them has a time zone
        return None
