# SPDX-License-Identifier: Apache-2.0
"""What briefs (`brief`) have in common, for who reads them: a supervisor reads them, and none of what makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NAMED: Final = 10
"""Endpoints with a place of their own: each is 36 series of a shadow's metrics."""
BOUNDS: Final = ("0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10")
"""Upper bounds of the histograms' buckets, in seconds: Prometheus' own, and 1 and 2.5 ms below them.  `histogram`
has twice as many, but a shadow has one of those, and of these one for each side of each endpoint."""
BEYOND: Final = "+Inf"


def badness(counts: Mapping[str, int]) -> float:
    """How bad an endpoint of a brief is, to sort by: ten times the shadow's surplus of errors, as a share of the pairs,
    and the share that differs.  Reports sort so too, but by slowness as well.
    """
    errors = max(0, counts["only_shadow"] - counts["only_production"]) / max(1, counts["pairs"])
    return 10 * errors + counts["differing"] / max(1, counts["compared"])
