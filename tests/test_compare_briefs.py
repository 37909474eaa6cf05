# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tapmirror.compare.briefs import badness


def test_errors_come_first_and_only_those_that_production_has_not() -> None:
    fine = {"pairs": 100, "only_shadow": 0, "only_production": 0, "compared": 100, "differing": 0}
    assert badness(fine) == 0
    assert badness({**fine, "only_shadow": 5, "only_production": 5}) == 0
    assert badness({**fine, "only_production": 5}) == 0
    assert (
        badness({**fine, "only_shadow": 20}) > badness({**fine, "differing": 100}) > badness({**fine, "differing": 9})
    )
    assert badness(dict.fromkeys(fine, 0)) == 0
