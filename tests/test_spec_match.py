# SPDX-License-Identifier: Apache-2.0
"""Expressions are RE2's."""

from __future__ import annotations

import pytest

from tapmirror.spec.match import regex_error


@pytest.mark.parametrize(
    ("text", "valid"), [("/a.*", True), ("(?i)a", True), ("a(?=b)", False), ("(a", False), (r"\1", False)]
)
def test_expressions(text: str, valid: bool) -> None:
    assert (regex_error(text) is None) is valid
