# SPDX-License-Identifier: Apache-2.0
"""`daemon.yaml`: the settings of the daemon itself, which belong to no tap."""

from __future__ import annotations

import math

from tapmirror.spec.budget import too_little
from tapmirror.spec.errors import Checked, Found


class AllTaps(Checked, frozen=True, kw_only=True):
    """The most that all taps of a daemon may use together, in addition to the budget of each.  If they use more, the
    shares of all taps are lowered by one factor.  Absent: no limits but those of the taps, because only the operator
    knows what the host can spare.
    """

    cpu: float | None = None
    """Processor cores, of all workers of all taps."""
    memory: int | None = None
    """Bytes of resident memory, of all workers of all taps."""
    bandwidth: float | None = None
    """Bytes a second to all shadows of all taps."""

    def _check(self) -> Found:
        for name in ("cpu", "memory", "bandwidth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                yield name, f"{value} is not a number above 0"
        if self.memory is not None and self.memory > 0 and (message := too_little(self.memory)):
            yield "memory", message


class Settings(Checked, frozen=True, kw_only=True):
    """Everything that `daemon.yaml` may say."""

    budget: AllTaps = AllTaps()
