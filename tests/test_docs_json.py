# SPDX-License-Identifier: Apache-2.0
"""docs/JSON.md names the fields of a report, and no others; those of a daemon's answers are looked at in the lab."""

from __future__ import annotations

import typing
from typing import Any

import msgspec

from documented import named, rows
from tapmirror.compare.figures import EndpointFigures, Figures


def structs(kind: Any) -> set[type[msgspec.Struct]]:
    """The structures that a type is made of."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return {kind}.union(*(structs(hint) for hint in hints.values()))
    return set().union(*(structs(each) for each in typing.get_args(kind)))


def names(*kinds: type[msgspec.Struct]) -> set[str]:
    return {name for kind in kinds for name in kind.__struct_fields__}


def test_every_field_of_a_report_is_named() -> None:
    assert names(*structs(Figures)) - named("A report") == set()


def test_every_row_is_a_field_of_a_report() -> None:
    assert rows("A report") == names(Figures, EndpointFigures) | {"samples"}
