# SPDX-License-Identifier: Apache-2.0
"""What deciding costs, as `explain` tells it: microseconds of CPU a request, on one core of the machine of the README.

Each figure is one that `scripts/bench` measures, by the same name, and prints beside it.
"""

from __future__ import annotations

from typing import Final

REQUEST_US: Final = 9.8
"""All of a tap's CPU for a small GET on a kept connection, no rules (case "GET, HTTP")."""

POLICY_US: Final = {
    "no_rules": 1.9,
    "20_rules": 3.7,
    "20_rules_2_headers": 4.3,
    "20_regexes_2_headers": 4.8,
    "strict_redaction": 6.9,
    "30_percent_by_cookie": 4.6,
}
"""Deciding alone, where there is anything to decide; without rules it is not in the way (`bench_core.policy`)."""
