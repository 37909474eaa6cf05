# SPDX-License-Identifier: Apache-2.0
"""The share of production's connections that a tap takes now, and each of its shadows, by spec, governor and pause.

Values only: `Tap` tells the kernel and the workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tapmirror.spec import TapSpec
from tapmirror.spec.sampled import part_of


class Share(msgspec.Struct, frozen=True):
    """A share; to change it, `msgspec.structs.replace` it."""

    spec: TapSpec
    """The tap's, with its own share."""
    throttle: float = 1.0
    """How much of the tap's own share is captured, 0 to 1."""
    reason: str = ""
    """Why not all of it, for people."""
    parts: Mapping[str, float] = {}
    """What is left of `throttle` for single shadows, by label; the others get all of it."""
    paused: bool = False

    def threshold(self) -> int:
        """Hashes of connections below this are captured."""
        return 0 if self.paused else int(self.spec.threshold() * self.throttle)

    def thresholds(self) -> list[int]:
        """The `threshold` of each shadow; an empty list: each gets everything that is captured."""
        parts = [self._part(shadow.label) for shadow in self.spec.shadows]
        if all(part >= self.throttle for part in parts):
            return []
        return [int(self.spec.threshold() * part) for part in parts]

    def _part(self, label: str) -> float:
        """The part of the tap's own share that a shadow gets, 0 to 1."""
        return 0.0 if self.paused else min(self.throttle, self.parts.get(label, 1.0))

    def entered(self, ledger: Mapping[str, Any]) -> dict[str, Any]:
        """The ledger with this share put in."""
        most = self.spec.most()
        return {
            **ledger,
            "shadows": {
                label: {**shadow, "effective": part_of(most, self._part(label))}
                for label, shadow in ledger["shadows"].items()
            },
            "share": {
                "percent": most,
                "effective": part_of(most, 0.0 if self.paused else self.throttle),
                "reason": "paused" if self.paused else self.reason,
            },
        }
