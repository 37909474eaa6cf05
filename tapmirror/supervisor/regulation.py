# SPDX-License-Identifier: Apache-2.0
"""The share of one running tap: feeds its ledgers to its own governor and to that of all taps, and sets the share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tapmirror.governor import Decision, Governor, State, measure
from tapmirror.spec.budget import Budget
from tapmirror.supervisor import pressure
from tapmirror.supervisor.tap import Tap
from tapmirror.supervisor.together import Together


class Regulation:
    """Governs one running tap, by its own budget and by that of all taps together."""

    def __init__(self, budget: Budget, together: Together, now: float, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._governor = Governor(budget, now)
        self._together = together
        self._before: tuple[float, dict[str, Any]] | None = None
        self._own = self._applied = Decision(share=1.0, reason="")
        self._unwell: set[str] = set()

    def observe(self, tap: Tap, ledger: dict[str, Any], now: float) -> None:
        """Look at a new ledger, and lower or raise the tap's share.  Raises `TapError`.

        The ledger gets, for each shadow, its `breaker` and what is wrong with it (`reason`).
        """
        before, self._before = self._before, (now, ledger)
        if before is None:
            self._tell_shadows(ledger, tap.unreached)
            return
        found = measure(before[1], ledger, now - before[0], pressure.some("cpu"), pressure.some("memory"))
        own, of_all = self._governor.observe(found, now), self._together.observe(self, found, now)
        self._tell_shadows(ledger, tap.unreached)
        reason = "; ".join(filter(None, (of_all.reason, own.reason)))
        shadows = {label: round(share * of_all.share, 4) for label, share in own.shadows.items()}
        decision = Decision(share=round(own.share * of_all.share, 4), reason=reason, shadows=shadows)
        if decision != self._applied:
            tap.throttle(decision.share, decision.reason, decision.shadows)
        if own.reason != self._own.reason:
            self._tell(f"{own.share:.0%} of its share: {own.reason}" if own.reason else "its whole share")
        self._own, self._applied = own, decision

    def _tell_shadows(self, ledger: dict[str, Any], unreached: Mapping[str, str]) -> None:
        """Report how each shadow is; `unreached` as of `Tap`.

        The share follows the best of several shadows, so it does not show that another one gets less.
        """
        breakers, causes = self._governor.breakers(), self._governor.causes(unreached)
        for label, shadow in ledger["shadows"].items():
            cause = causes.get(label, "")
            shadow |= {"breaker": breakers.get(label, State.CLOSED).value, "reason": cause}
            if bool(cause) == (label in self._unwell):
                continue
            self._unwell ^= {label}
            if len(ledger["shadows"]) > 1:
                self._tell(f"shadow {label}: {cause or 'it is well again'}")
