# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a spec: each thing with the path of its field, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import msgspec

Found: TypeAlias = Iterator[tuple[str, str]]
"""(path of the field, what is wrong), as the checks of a structure give them."""


class SpecError(ValueError):
    """Values that the spec refuses.  `field` and the message are those of the first, `problems` has them all."""

    def __init__(self, field: str, message: str, more: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.problems = [(field, message), *more]


class Checked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A structure that cannot hold values out of their range."""

    def _check(self) -> Found:
        """What is wrong with its own fields (those of structures within are checked there)."""
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
