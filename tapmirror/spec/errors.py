# SPDX-License-Identifier: Apache-2.0
"""The errors of a spec: all of them at once, each with the path of its field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import msgspec

Found: TypeAlias = Iterator[tuple[str, str]]
"""Pairs of (path of the field, what is wrong), which the checks of a structure yield."""


class SpecError(ValueError):
    """Values that the spec refuses.  `field` and the message are those of the first error; `problems` has all of
    them.
    """

    def __init__(self, field: str, message: str, more: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.problems = [(field, message), *more]


class Checked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A structure whose values are always valid."""

    def _check(self) -> Found:
        """What is wrong with the fields of this structure; structures within it check their own."""
        return iter(())

    def __post_init__(self) -> None:
        """Raises `SpecError` with everything that is wrong."""
        found = list(self._check())
        if found:
            raise SpecError(*found[0], found[1:])


def shown(value: Any) -> str:
    """A value as it is quoted in a message: one line, not long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
