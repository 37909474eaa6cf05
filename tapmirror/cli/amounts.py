# SPDX-License-Identifier: Apache-2.0
"""A ledger in short, for one line: the unit that is counted, and what a shadow answered."""

from __future__ import annotations

from typing import Any, Final

RAW: Final = "responses not counted (raw bytes)"


def counted(ledger: dict[str, Any]) -> str:
    """The unit to count what a shadow gets in: requests, or bytes if there are only raw connections."""
    return "requests" if ledger["requests"]["seen"] or not ledger["bytes"]["seen"] else "bytes"


def not_counted(ledger: dict[str, Any]) -> str:
    """A note that requests in lost segments are not counted.

    "": no segments were lost before reassembly, or requests are not what is counted.
    """
    lost = sum(ledger["segments"]["dropped"].values())
    if not lost or counted(ledger) != "requests":
        return ""
    return f"not counted: those in {lost:,} lost segment{'s' * (lost != 1)}"


def responses(shadow: dict[str, Any]) -> str:
    """What a shadow answered: how many of each class."""
    none = RAW if not shadow["requests"]["seen"] and shadow["bytes"]["mirrored"] else "no responses"
    return ", ".join(f"{name} {count:,}" for name, count in shadow["answers"].items()) or none
