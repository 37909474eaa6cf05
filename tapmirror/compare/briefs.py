# SPDX-License-Identifier: Apache-2.0
"""What readers of briefs (`brief`) need: the supervisor imports this module, and none of those that make briefs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NAMED: Final = 10
"""Most endpoints with a place of their own: each has 36 series in a shadow's metrics."""
BOUNDS: Final = ("0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10")
"""Upper bounds of the histograms' buckets in seconds: Prometheus's defaults, and 1 and 2.5 ms below them.  `histogram`
has twice as many, but a shadow has only one of those, and one of these for each side of each endpoint."""
BEYOND: Final = "+Inf"


def badness(counts: Mapping[str, int]) -> float:
    """How bad an endpoint of a brief is, for sorting.

    It is ten times the shadow's surplus of errors, as a share of the pairs, plus the share that differs.  Reports sort
    in this way too, and also by slowness.
    """
    errors = max(0, counts["only_shadow"] - counts["only_production"]) / max(1, counts["pairs"])
    return 10 * errors + counts["differing"] / max(1, counts["compared"])
