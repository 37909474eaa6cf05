# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import click
import pytest

from tapmirror.cli.numbers import Number, Time, Whole


@pytest.mark.parametrize(
    ("kind", "text", "found"), [(Number(), "2.5", 2.5), (Whole(), "7", 7), (Time(), "1m30s", 90), (Time(), "3", 3)]
)
def test_what_is_taken(kind: Number | Whole | Time, text: str, found: float) -> None:
    assert kind.convert(text, None, None) == found


@pytest.mark.parametrize(
    ("kind", "text"),
    [(Number(), "1_0"), (Number(), "nan"), (Whole(), "1.5"), (Whole(), "\u0663"), (Time(), "0"), (Time(), "soon")],
)
def test_what_is_refused(kind: Number | Whole | Time, text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a"):
        kind.convert(text, None, None)


def test_a_default_is_taken_as_it_is() -> None:
    assert (Number().convert(100.0, None, None), Whole().convert(0, None, None), Time().convert(1, None, None)) == (
        100,
        0,
        1,
    )
