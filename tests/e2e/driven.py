# SPDX-License-Identifier: Apache-2.0
"""A `Tap` that the test itself drives, as the daemon does."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from e2e.mirror import PATIENCE, ROOM, UNITS
from lab import HashSink, Host, identity
from tapmirror.spec import Limits, TapSpec, parse_shadow
from tapmirror.supervisor.tap import Tap

SHADOW: Final = "10.77.2.2:80"


def spec(**change: Any) -> TapSpec:
    """A tap of the lab's node."""
    shadow = parse_shadow(change.pop("shadow", SHADOW))
    return TapSpec(**{"iface": "eth0", "ports": (80,), "shadows": (shadow,), **change})


@contextlib.contextmanager
def driven(
    node: Host, warn: Callable[[str], None] | None = None, *, wait_for_interface: bool = False, **change: Any
) -> Iterator[Tap]:
    """A running tap; this thread is in the node's network as long as it lasts."""
    warn = warn or (lambda message: pytest.fail(message))
    tap = Tap(spec(**{"limits": Limits(**ROOM), **change}), warn, print, wait_for_interface=wait_for_interface)
    with node.enter():
        tap.start()
        try:
            yield tap
        finally:
            tap.close()


def known_to_be_down(tap: Tap) -> bool:
    """Whether requests are given up at once, and not only after each has been tried."""
    return bool(tap.snapshot()["requests"]["dropped"].get("shadow_down", 0) > 0)


def attempts(tap: Tap) -> int:
    """How often a connection to the shadow was begun up to now."""
    return int(tap.snapshot()["events"].get("shadow_connects", 0))


def serve(tap: Tap, until: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Drive the tap until something holds."""
    end = time.monotonic() + seconds
    while not until():
        now = time.monotonic()
        assert now < end, f"{what}: not within {seconds:g} s ({tap.state}: {tap.state_reason})"
        tap.service(now)
        due = tap.due()
        select.select(tap.filenos(), [], [], 0.05 if due is None else min(0.05, max(0.0, due - now)))


def settled(tap: Tap) -> dict[str, Any]:
    """Stop it; its ledger, in which everything is accounted for and nothing is in flight."""
    ledger = tap.stop()
    identity(ledger)
    assert {unit: ledger[unit]["in_flight"] for unit in UNITS} == dict.fromkeys(UNITS, 0)
    return ledger


def serve_for(tap: Tap, seconds: float) -> None:
    """Drive the tap for a while."""
    end = time.monotonic() + seconds
    serve(tap, lambda: time.monotonic() >= end, "the time")


def serve_until_same(tap: Tap, look: Callable[[], object], production: HashSink, requests: int) -> None:
    """Drive the tap until what is looked at has been the same for so many of production's requests: what was under way
    has come to its end.

    Only a few count of those between two looks, and the worker has answered before each: it may have been held up.
    """
    found, count, passed = look(), len(production.got), 0

    def same() -> bool:
        nonlocal found, count, passed
        tap.snapshot()
        before, found = found, look()
        more, count = len(production.got) - count, len(production.got)
        passed = passed + min(more, 20) if found == before else 0
        return passed >= requests

    serve(tap, same, "no change")
