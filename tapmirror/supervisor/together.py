# SPDX-License-Identifier: Apache-2.0
"""The budget of all taps together: each tap brings its measurements and gets the share that applies to all.

Each tap has a thread of its own, so all of this is thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tapmirror.governor import Decision, Measure, Overall, together
from tapmirror.spec.settings import AllTaps

PERIOD: Final = 0.9
"""Seconds between two looks at the sums: taps measure once a second, at different moments."""


class Together:
    """The governor of all taps: takes each tap's measurements and has one share for all.

    `tell` receives a line when the share changes for another reason than before.
    """

    def __init__(self, budget: AllTaps, now: float, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._overall = Overall(budget, now)
        self._measures: dict[object, Measure] = {}
        self._looked = 0.0
        self._decision = Decision(share=1.0, reason="")

    def set_budget(self, budget: AllTaps) -> None:
        """Replace the limits; what was learned of the load stays."""
        with self._lock:
            self._overall.budget = budget

    def observe(self, tap: object, found: Measure, now: float) -> Decision:
        """Take a tap's measurements; returns the share of all taps, and the reason if it is below 1."""
        with self._lock:
            self._measures[tap] = found
            if now - self._looked < PERIOD:
                return self._decision
            self._looked = now
            before, self._decision = self._decision, self._overall.observe(self._measures.values(), now)
            decision = self._decision
        if decision.reason != before.reason:
            self._tell(
                f"{decision.share:.0%} of their shares: {decision.reason}" if decision.reason else "whole shares"
            )
        return decision

    def forget(self, tap: object) -> None:
        """Leave out a tap that does not run any more."""
        with self._lock:
            self._measures.pop(tap, None)

    def told(self) -> dict[str, Any]:
        """The budget and its use, as a reply of the control socket has them."""
        with self._lock:
            used = together(self._measures.values())
            return {
                "budget": msgspec.to_builtins(self._overall.budget),
                "used": {
                    "cpu": round(used.cpu_share, 3),
                    "memory": used.rss_bytes,
                    "bandwidth": round(used.shadow_bytes),
                },
                "share": self._decision.share,
                "reason": self._decision.reason,
            }
