# SPDX-License-Identifier: Apache-2.0
"""A short run of each fuzz target, without coverage's guidance: `scripts/fuzz` has that, and time."""

from __future__ import annotations

import pytest

from fuzz.run import short_run
from fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_short_run(target: str) -> None:
    """What once went wrong (`tests/fuzz/inputs/`) comes first."""
    short_run(target, 10_000, seed=1)
