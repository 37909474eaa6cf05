# SPDX-License-Identifier: Apache-2.0
"""What two responses differ in, as far as it counts."""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec

from tapmirror.compare.rules import Rules

PATH: Final = 200
"""Most characters of a path; names in it are cut at 60."""


class Change(enum.Enum):
    """The kind of a difference."""

    VALUE = "value"
    TYPE = "type"
    MISSING = "missing"
    EXTRA = "extra"
    ORDER = "order"
    LENGTH = "length"
    IDENTIFIER = "identifier"
    """Both values look like identifiers that each side generates (`identifiers`)."""


class Difference(msgspec.Struct, gc=False):
    """One difference; `one` is production's value, `other` the shadow's."""

    change: Change
    path: str
    one: Any = None
    other: Any = None

    @property
    def field(self) -> str:
        """The name that the difference is counted by."""
        return f"{self.change.value} {self.path}"


class Findings:
    """The differences of one comparison, without ignored ones."""

    __slots__ = ("found", "most", "rules")

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.found: list[Difference] = []
        self.most = rules.differences
        """When this many are found, objects and arrays are not searched any further."""

    def add(self, change: Change, path: str, one: Any, other: Any) -> None:
        """Add a difference, if it counts and there is room for it."""
        ignored = self.rules.ignored
        if ignored is not None and ignored.match(path[:PATH]):
            return
        if len(self.found) < self.most:
            if self.rules.shown is not None:
                path = self.rules.shown(path)
            path = path[:PATH]
            self.found.append(Difference(change, path, one, other))
