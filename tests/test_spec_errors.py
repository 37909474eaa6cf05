# SPDX-License-Identifier: Apache-2.0
"""A structure tells all that is wrong with it."""

from __future__ import annotations

import pytest

from tapmirror.spec import Shadow, SpecError
from tapmirror.spec.errors import shown


def test_all_problems_of_a_structure() -> None:
    with pytest.raises(SpecError) as caught:
        Shadow(host="", port=0, copies=99)
    assert [field for field, _ in caught.value.problems] == ["port", "host", "copies"]
    assert caught.value.field == "port"
    assert str(caught.value) == "port: 0 is not a port (1 to 65535)"


def test_values_are_quoted_in_one_short_line() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 1000)) == 60
