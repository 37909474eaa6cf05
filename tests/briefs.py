# SPDX-License-Identifier: Apache-2.0
"""Briefs of states made by hand."""

from __future__ import annotations

import math
from typing import Any

from tapmirror.compare.brief import Briefing
from tapmirror.compare.summary import State, Summary, state_bounds
from tapmirror.compare.verdict import VerdictLimits
from tapmirror.spec import Compare


def summary(state: State) -> Summary:
    """One that has come to this state."""
    spec = Compare()
    found = Summary(state_bounds(spec), state.level)
    found.state = state
    for endpoint in state.endpoints.values():
        found.production.merge(endpoint.production.last)
        found.shadow.merge(endpoint.shadow.last)
    return found


def brief(state: State) -> dict[str, Any]:
    """Of all that is known."""
    return Briefing(Compare(), VerdictLimits()).brief(summary(state), math.inf)
