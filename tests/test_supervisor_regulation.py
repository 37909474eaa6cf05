# SPDX-License-Identifier: Apache-2.0
"""The share of one running tap, by its own governor and that of all taps."""

from __future__ import annotations

from typing import Any

import pytest

from scripted_tap import Script, alone
from tapmirror.spec import TapSpec, parse_shadow
from tapmirror.spec.budget import Budget
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor.regulation import Regulation
from tapmirror.supervisor.together import Together

SPEC = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("s.test:80"),), name="web")


@pytest.fixture
def script() -> Script:
    return Script()


def test_of_two_shadows_the_one_that_is_down_is_told_in_ledger_and_log(script: Script) -> None:
    """The share stays whole, for the other one is well, and of it this one gets nothing."""
    told: list[str] = []
    tap = script(SPEC, told.append, told.append, wait_for_interface=False)
    regulation = Regulation(Budget(host_cpu=100, host_memory=100), alone(), 0.0, told.append)
    sent = failed = 0

    def look(now: int, *, back: bool) -> dict[str, Any]:
        nonlocal sent, failed
        sent, failed = sent + 100, failed + (not back)
        base: dict[str, Any] = {"answers": {}, "latency": {"buckets": {}}}
        well = {**base, "events": {}, "bytes": {"mirrored": sent}}
        dead = {**base, "events": {"connect_ECONNREFUSED": failed}, "bytes": {"mirrored": back * sent}}
        shadows: dict[str, Any] = {"v2": well, "v3": dead}
        ledger = {"shadows": shadows, "events": {}, "worker": {"cpu_s": 0.0, "rss_kb": 0}}
        regulation.observe(tap, ledger, float(now))
        return shadows

    first = look(0, back=False)
    assert first["v3"]["breaker"] == "closed" and first["v3"]["reason"] == ""
    for now in range(1, 30):
        shadows = look(now, back=False)
        assert (shadows["v2"]["breaker"], shadows["v2"]["reason"]) == ("closed", "")
    assert shadows["v3"]["breaker"] in ("open", "half-open")
    assert shadows["v3"]["reason"] == "it cannot be connected to"
    assert told == ["shadow v3: it cannot be connected to"], "once"
    for now in range(30, 90):
        shadows = look(now, back=True)
    assert (shadows["v3"]["breaker"], shadows["v3"]["reason"]) == ("closed", "")
    assert told[1:] == ["shadow v3: it is well again"]
    throttles = [did[1:] for did in tap.did if did[0] == "throttle"]
    assert throttles[0] == (1.0, "", {"v3": 0.0}) and (1.0, "", {"v3": 0.1}) in throttles
    assert throttles[-1] == (1.0, "", {})
    assert all(share == 1.0 and not {*parts} - {"v3"} for share, _, parts in throttles)


def test_the_budgets_of_a_tap_and_of_all_count_one_by_the_other(script: Script) -> None:
    """Also for a shadow that is spared; and of one shadow its tap's share is told, and nothing more."""
    told: list[str] = []
    of_all = Together(AllTaps(memory=64 << 20), 0.0, lambda _: None)
    tap = script(SPEC, told.append, told.append, wait_for_interface=False)
    regulation = Regulation(Budget(memory=64 << 20, host_cpu=100, host_memory=100), of_all, 0.0, told.append)

    def look(now: float, rss_kb: int, **failed: int) -> None:
        base: dict[str, Any] = {"answers": {}, "latency": {"buckets": {}}, "bytes": {}}
        shadows = {label: {**base, "events": {"connect_ECONNREFUSED": count}} for label, count in failed.items()}
        ledger = {"shadows": shadows, "events": {}, "worker": {"cpu_s": 0.0, "rss_kb": rss_kb}}
        regulation.observe(tap, ledger, now)

    look(0.0, 128 << 10)
    look(1.0, 128 << 10)
    assert tap.did[-1][:2] == ("throttle", 0.49), "0.7 of 0.7"
    assert tap.did[-1][2].startswith("all taps: ") and "; the workers hold 128 MiB" in tap.did[-1][2]
    look(1.5, 128 << 10)
    assert len(tap.did) == 1, "a share that did not change is not told anew"
    for now in range(2, 8):
        look(float(now), 0, v2=now, v3=0)
    assert tap.did[-1] == ("throttle", 0.49, tap.did[0][2], {"v2": 0.0})
    for now in range(8, 13):
        look(float(now), 0, v2=7, v3=0)
    assert {"v2": 0.035} in [did[3] for did in tap.did], "the probe's 0.05, of 0.7"
    assert told == [
        "70% of its share: the workers hold 128 MiB; the budget is 64 MiB",
        "shadow v2: it cannot be connected to",
    ]


def test_of_one_shadow_that_is_down_the_share_is_told_alone(script: Script) -> None:
    told: list[str] = []
    tap = script(SPEC, told.append, told.append, wait_for_interface=False)
    regulation = Regulation(Budget(host_cpu=100, host_memory=100), alone(), 0.0, told.append)
    for now in range(8):
        shadow = {"answers": {}, "latency": {"buckets": {}}, "bytes": {}, "events": {"connect_ECONNREFUSED": now}}
        ledger = {"shadows": {"v2": shadow}, "events": {}, "worker": {"cpu_s": 0.0, "rss_kb": 0}}
        regulation.observe(tap, ledger, float(now))
    assert told == ["0% of its share: shadow v2: it cannot be connected to; tried again after 5 s"]
