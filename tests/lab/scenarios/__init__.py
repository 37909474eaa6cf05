# SPDX-License-Identifier: Apache-2.0
"""`scripts/scenarios`: faults and abuses in a size for which the tests have no time; each has what must hold.

A scenario is a function of a fresh lab, the way to capture, and the scale: 1 is its size, and what is counted or lasts
is multiplied by it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from lab.hosts import PATIENCE
from lab.network import Lab
from lab.tap import Tap, identity

QUIET: Final = 1.0
"""Seconds without a change after which a count is taken for settled."""


@dataclass
class Outcome:
    """What was seen, and what of it should not be."""

    figures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def hold(self, held: bool, otherwise: str) -> None:
        """One thing that must be; `otherwise` says what is instead."""
        if not held:
            self.wrong.append(otherwise)


Scenario = Callable[[Lab, str, float], Outcome]


def tap(lab: Lab, capture: str, *ports: int, **more: Any) -> Tap:
    """Mirror the node's port 80 to these ports of the shadow, with the limits that everybody has."""
    shadows = [f"{lab.shadow.addr4}:{port}" for port in ports or (80,)]
    spec = {"iface": lab.node.iface, "port": 80, "shadows": shadows, "capture": capture, **more}
    return Tap(lab.node, spec=json.dumps(spec))


def settled(count: Callable[[], int]) -> int:
    """Wait until it does not change any more, a minute at most; what it is then."""
    end = time.monotonic() + PATIENCE
    found, since = count(), time.monotonic()
    while time.monotonic() < min(since + QUIET, end):
        time.sleep(0.05)
        if (now := count()) != found:
            found, since = now, time.monotonic()
    return found


def ended(running: Tap, outcome: Outcome) -> dict[str, Any]:
    """Stop the tap; its ledger, in which everything is to be accounted for."""
    ledger = running.stop(wait=PATIENCE)
    try:
        identity(ledger)
    except AssertionError as error:
        outcome.wrong.append(f"the ledger does not add up: {error}")
    return ledger


def missing(ledger: dict[str, Any], unit: str) -> str:
    """What was seen and not mirrored, in words."""
    found = ledger[unit]["filtered"] | ledger[unit]["dropped"]
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(found.items())) or "none"
