# SPDX-License-Identifier: Apache-2.0
"""What deciding costs, as `explain` tells it: microseconds of CPU a request, on one core of the machine of
docs/COSTS.md.

Each figure is one that `scripts/bench` measures, by the same name, and prints beside it.
"""

from __future__ import annotations

from typing import Final

REQUEST_US: Final = 12.7
"""All of a tap's CPU for a small GET on a keep-alive connection, no rules (case "GET, HTTP")."""

POLICY_US: Final = {
    "no_rules": 1.8,
    "20_rules": 2.5,
    "20_rules_2_headers": 3.3,
    "20_regexes_2_headers": 5.7,
    "strict_redaction": 9.7,
    "30_percent_by_cookie": 5.4,
}
"""Deciding alone, if there is anything to decide; without rules, requests do not pass through policy
(`bench_core.policy`)."""
