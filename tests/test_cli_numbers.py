# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import click
import pytest

from tapmirror.cli.numbers import NUMBER, PORT, TIME, WHOLE, Parsed


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [(NUMBER, "2.5", 2.5), (WHOLE, "7", 7), (TIME, "1m30s", 90), (TIME, "3", 3), (PORT, "80", 80)],
)
def test_what_is_taken(kind: Parsed, text: str, found: float) -> None:
    assert kind.convert(text, None, None) == found


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (NUMBER, "1_0"),
        (NUMBER, "nan"),
        (WHOLE, "1.5"),
        (WHOLE, "\u0663"),
        (TIME, "0"),
        (TIME, "soon"),
        (PORT, "x"),
        (PORT, "0"),
    ],
)
def test_what_is_refused(kind: Parsed, text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a"):
        kind.convert(text, None, None)


def test_a_default_is_taken_as_it_is() -> None:
    assert (NUMBER.convert(100.0, None, None), WHOLE.convert(0, None, None), TIME.convert(1, None, None)) == (
        100,
        0,
        1,
    )
