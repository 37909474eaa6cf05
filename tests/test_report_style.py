# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

from hostile_figures import shop
from tapmirror.report import html
from tapmirror.report.style import STYLE


def test_braces_and_quotes_are_closed_and_nothing_is_fetched() -> None:
    assert STYLE.count("{") == STYLE.count("}")
    assert all(line.count('"') % 2 == 0 for line in STYLE.splitlines())
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_both_schemes_define_the_same_colours() -> None:
    light, dark = re.findall(r":root\{([^}]*)\}", STYLE)
    assert set(re.findall(r"--\w+(?=:)", light)) == set(re.findall(r"--\w+(?=:)", dark))
    assert set(re.findall(r"var\((--\w+)\)", STYLE)) <= set(re.findall(r"--\w+(?=:)", light))


def test_every_class_of_the_page_has_a_rule() -> None:
    names = {name for value in re.findall(r'class="([^"]*)"', html(shop("broken", 1000))) for name in value.split()}
    unknown = {name for name in names if not re.search(rf"\.{name}\b", STYLE)}
    assert unknown <= {"ep", "p50", "bar", "tile", "value", "card"}
