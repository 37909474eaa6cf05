# SPDX-License-Identifier: Apache-2.0
"""A few random deaths of the daemon's processes under load; `scripts/kill` has a hundred."""

from __future__ import annotations

import pytest

from lab import Lab
from lab.kill import VICTIMS, Kills

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


@pytest.mark.apart
def test_random_deaths_harm_nothing_and_leave_nothing() -> None:
    said: list[str] = []
    with Lab() as lab:
        report = Kills(lab, 1, said.append).run(VICTIMS * 2)
    assert report.deaths.total() == len(said) == 6 and len(report.lines()) == 6
    assert report.ledgers > 6 and report.got > 100 and report.mirrored > 0
