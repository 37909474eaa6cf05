# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from hostile_figures import ATTACKS, empty, hostile, shop
from tapmirror.report import FORMS, plain


def test_all_figures_are_in_it_and_it_is_json_to_the_letter() -> None:
    def refuse(name: str) -> float:
        raise AssertionError(name)

    for figures in (shop("broken", 1000), empty(), hostile()):
        document = json.loads(plain(figures), parse_constant=refuse)
        assert document["schema"] == "tapmirror.report/1"
        assert document["verdict"]["outcome"] in ("pass", "fail", "undecided")
        assert len(document["endpoints"]) == len(figures.endpoints)
    assert {endpoint["name"] for endpoint in json.loads(plain(hostile()))["endpoints"]} == set(ATTACKS)


def test_forms() -> None:
    assert set(FORMS) == {"terminal", "markdown", "json", "html"}
    assert all(form(empty()) for form in FORMS.values())
