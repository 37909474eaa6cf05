# SPDX-License-Identifier: Apache-2.0
"""Metrics: valid, complete, bounded, and counters that never fall."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from briefs import brief
from tapmirror.compare.summary import Endpoint, Field, State
from tapmirror.events import DropReason, FilterReason
from tapmirror.governor import ERRORS
from tapmirror.ledger import Account
from tapmirror.supervisor.metrics import TapMetrics

DEPLOY = Path(__file__).parent.parent / "deploy"


def account(seen: int, mirrored: int, lost: int = 0) -> dict[str, Any]:
    one = Account()
    one.seen, one.mirrored = seen, mirrored
    one.dropped[DropReason.RING_FULL] = lost
    one.filtered[FilterReason.LOOP] = seen - mirrored - lost
    return one.snapshot(0)


def snapshot(name: str = "shop", seen: int = 10, pid: int = 7, cpu: float = 1.5, **changes: Any) -> dict[str, Any]:
    shadow = {
        "bytes": account(seen, seen),
        "requests": account(seen, seen),
        "events": {"shadow_connects": 3, "connect_ECONNREFUSED": 2, "connect_silent": 1, "gaps": 1},
        "answers": {"2xx": 5, "5xx": 1},
        "latency": {"count": 4, "sum_s": 2.5, "buckets": {"0.005": 1, "0.1": 2, "inf": 1}},
        "breaker": "half-open",
        "effective": 2.5,
    }
    return {
        "tap": name,
        "segments": account(seen, seen - 4, 2),
        "bytes": account(seen * 100, seen * 90, 20),
        "requests": account(seen, seen - 2, 1),
        "events": {"flows": 3, "flows_joined": 1, "gaps": 2, "gap_bytes": 99, "delay_records": 40, "delay_us": 50_000},
        "flows": 2,
        "shadows": {"v2:80": shadow},
        "worker": {"pid": pid, "cpu_s": cpu, "rss_kb": 1000},
        "workers": [{"pid": pid, "cpu_s": cpu, "rss_kb": 1000, "restarts": 0}],
        "ring": {"bytes": 1 << 24, "fill": 0.25},
        "share": {"percent": 50.0, "effective": 12.5, "reason": "the capture ring is full"},
        "state": "running",
        "life": 1,
        **changes,
    }


class Taps:
    """What TapMetrics reads; changed by the test."""

    def __init__(self, *snapshots: dict[str, Any]) -> None:
        self.now: Iterable[dict[str, Any]] = snapshots
        self.registry = TapMetrics(lambda: self.now).registry()

    def text(self) -> str:
        return bytes(generate_latest(self.registry)).decode()  # type: ignore[no-untyped-call]

    def samples(self) -> dict[tuple[str, ...], float]:
        """(name, label values by the labels' names) to value; read by the library's own parser."""
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.text())  # type: ignore[no-untyped-call]
            for sample in family.samples
        }


def test_every_number_of_a_snapshot_is_there() -> None:
    found = Taps(snapshot()).samples()
    for expected in {
        ("tapmirror_seen_segments_total", "shop"): 10,
        ("tapmirror_settled_segments_total", "mirrored", "", "shop"): 6,
        ("tapmirror_settled_segments_total", "dropped", "ring_full", "shop"): 2,
        ("tapmirror_settled_bytes_total", "filtered", "loop", "shop"): 80,
        ("tapmirror_unaccounted_requests", "shop"): 0,
        ("tapmirror_in_flight_bytes", "shop"): 0,
        ("tapmirror_flows_total", "joined", "shop"): 1,
        ("tapmirror_flows_open", "shop"): 2,
        ("tapmirror_gap_bytes_total", "shop"): 99,
        ("tapmirror_shadow_settled_requests_total", "mirrored", "", "v2:80", "shop"): 10,
        ("tapmirror_shadow_answers_total", "5xx", "v2:80", "shop"): 1,
        ("tapmirror_shadow_connects_total", "v2:80", "shop"): 3,
        ("tapmirror_shadow_connect_errors_total", "ECONNREFUSED", "v2:80", "shop"): 2,
        ("tapmirror_shadow_connect_errors_total", "silent", "v2:80", "shop"): 1,
        ("tapmirror_ring_fill_ratio", "shop"): 0.25,
        ("tapmirror_ring_delay_seconds_count", "shop", "0"): 40,
        ("tapmirror_ring_delay_seconds_sum", "shop", "0"): 0.05,
        ("tapmirror_worker_cpu_seconds_total", "shop"): 1.5,
        ("tapmirror_worker_memory_bytes", "shop"): 1_024_000,
        ("tapmirror_spec_share_ratio", "shop"): 0.5,
        ("tapmirror_effective_share_ratio", "shop"): 0.125,
        ("tapmirror_tap_state", "running", "shop"): 1,
        ("tapmirror_tap_state", "paused", "shop"): 0,
    }.items():
        assert expected in found.items()


def test_the_identity_holds_in_the_metrics() -> None:
    found = Taps(snapshot()).samples()
    for unit in ("segments", "bytes", "requests"):
        settled = sum(value for key, value in found.items() if key[0] == f"tapmirror_settled_{unit}_total")
        waiting = found[(f"tapmirror_in_flight_{unit}", "shop")] + found[(f"tapmirror_unaccounted_{unit}", "shop")]
        assert found[(f"tapmirror_seen_{unit}_total", "shop")] == settled + waiting


def test_what_was_not_captured_is_told_also_before_the_first_ledger() -> None:
    found = Taps(
        {**snapshot(), "uncaptured_s": 2.5}, {"tap": "new", "state": "starting", "uncaptured_s": 0.0}
    ).samples()
    name = "tapmirror_uncaptured_seconds_total"
    assert (found[(name, "shop")], found[(name, "new")]) == (2.5, 0.0)


def test_each_worker_s_delay_is_told() -> None:
    each = [
        {"cpu_s": 1.0, "rss_kb": 10, "delay_records": n, "delay_us": us} for n, us in ((1000, 1000), (10, 5_000_000))
    ]
    found = Taps(snapshot(workers=each)).samples()
    name = "tapmirror_ring_delay_seconds"
    assert [found[(f"{name}_{part}", "shop", "1")] for part in ("count", "sum")] == [10, 5.0]
    assert [found[(f"{name}_{part}", "shop", "0")] for part in ("count", "sum")] == [1000, 0.001]


def test_units_and_help() -> None:
    for family in text_string_to_metric_families(Taps(snapshot()).text()):  # type: ignore[no-untyped-call]
        assert family.documentation
        assert family.name.endswith(family.unit)


def test_latency_is_a_histogram() -> None:
    found = Taps(snapshot()).samples()
    name = "tapmirror_shadow_latency_seconds"
    wanted = {"0.003": 0, "0.005": 1, "0.0075": 1, "0.1": 3, "60.0": 3}
    assert {bound: found[(f"{name}_bucket", bound, "v2:80", "shop")] for bound in wanted} == wanted
    assert found[(f"{name}_bucket", "+Inf", "v2:80", "shop")] == 4
    assert found[(f"{name}_sum", "v2:80", "shop")] == 2.5


def falls(before: dict[tuple[str, ...], float], after: dict[tuple[str, ...], float]) -> set[tuple[str, ...]]:
    counters = {key for key in before if key[0].endswith(("_total", "_bucket", "_sum", "_count"))}
    return {key for key in counters if after.get(key, 0) < before[key]}


def test_counters_go_on_when_a_worker_is_replaced() -> None:
    taps = Taps(snapshot(seen=100, pid=7, cpu=5.0))
    before = taps.samples()
    taps.now = [snapshot(seen=120, pid=8, cpu=5.1)]  # the supervisor's sums go on; the process is another
    after = taps.samples()
    assert not falls(before, after)
    assert after[("tapmirror_worker_cpu_seconds_total", "shop")] == 5.1
    assert after[("tapmirror_seen_segments_total", "shop")] == 120


def test_counters_go_on_when_a_tap_begins_anew() -> None:
    taps = Taps(snapshot(seen=100))
    before = taps.samples()
    taps.now = [snapshot(seen=30, pid=7, cpu=0.5, life=2)]
    after = taps.samples()
    assert not falls(before, after)
    assert after[("tapmirror_seen_segments_total", "shop")] == 130
    assert after[("tapmirror_worker_cpu_seconds_total", "shop")] == 2.0
    assert taps.samples() == after, "a second scrape counts nothing twice"


def test_counters_go_on_while_what_follows_has_no_ledger_yet_and_where_it_has_soon_seen_more() -> None:
    taps = Taps(snapshot(seen=100))
    before = taps.samples()
    taps.now = [{"tap": "shop", "state": "starting", "life": 0}]
    assert not falls(before, taps.samples())
    taps.now = [snapshot(seen=250, cpu=2.0, life=2)]
    after = taps.samples()
    assert after[("tapmirror_seen_segments_total", "shop")] == 350
    assert after[("tapmirror_worker_cpu_seconds_total", "shop")] == 3.5


def test_a_count_that_is_a_little_late_is_no_new_beginning() -> None:
    taps = Taps(snapshot())
    before = taps.samples()
    late = snapshot()
    late["events"]["flows"] = 2
    taps.now = [late]
    assert taps.samples() == before


def test_a_tap_that_is_gone_is_forgotten() -> None:
    taps = Taps(snapshot("a"), snapshot("b"))
    taps.samples()
    taps.now = [snapshot("b")]
    assert not any("a" in key for key in taps.samples())
    taps.now = [snapshot("a", seen=5)]
    assert taps.samples()[("tapmirror_seen_segments_total", "a")] == 5


def test_what_was_counted_after_the_last_scrape_of_a_life_is_not_lost() -> None:
    taps = Taps(snapshot(seen=100))
    before = taps.samples()
    seen = ("tapmirror_seen_segments_total", "shop")
    over = [snapshot(seen=140, over=True), snapshot(seen=30, life=2, over=True)]  # the second was never scraped
    taps.now = [*over, {"tap": "shop", "state": "starting", "life": 0}]
    assert taps.samples()[seen] == 170
    taps.now = [*over, snapshot(seen=5, life=3)]
    for _ in range(2):  # by two that scrape
        assert taps.samples()[seen] == 175 and not falls(before, taps.samples())
    taps.now = [*over, snapshot(seen=9, life=3, over=True)]
    found = taps.samples()
    assert found[seen] == 179, "it was stopped: counters alone are left of it"
    assert not any(name in ("tapmirror_tap_state", "tapmirror_worker_memory_bytes") for name, *_ in found)
    taps.now = []
    assert not any("shop" in key for key in taps.samples())


def test_a_tap_that_did_not_start_has_its_state() -> None:
    found = Taps({"tap": "new", "state": "waiting"}).samples()
    assert found[("tapmirror_tap_state", "waiting", "new")] == 1
    assert sum(value for key, value in found.items() if key[0] == "tapmirror_tap_state") == 1


def test_names_that_a_worker_made_up_make_no_series() -> None:
    """A worker reads the network: what it says is not believed."""
    one = snapshot()
    for i in range(1000):
        one["requests"]["dropped"][f"made_up_{i}"] = 1
        one["shadows"]["v2:80"]["answers"][f"{i}xx"] = 1
        one["shadows"]["v2:80"]["events"][f"connect_E{i}"] = 1
        one["events"][f"event_{i}"] = 1
    assert len(Taps(one).samples()) < 100


def test_names_of_taps_are_escaped() -> None:
    name = 'a"b\\c{}'
    assert Taps(snapshot(name)).samples()[("tapmirror_flows_open", name)] == 2


# --- what is in deploy/


def compared(**pairs: int) -> dict[str, Any]:
    """A snapshot with a comparison of these end points: half of their exchanges differ."""
    found = {}
    for name, count in pairs.items():
        endpoint = Endpoint(pairs=count, compared=count)
        endpoint.fields["value body.x"] = Field(raw=count // 2)
        endpoint.signatures["value body.x"] = count // 2
        endpoint.production.statuses = {200: count}
        endpoint.shadow.statuses = {200: count - 1, 500: 1}
        for side in (endpoint.production, endpoint.shadow):
            for _ in range(count):
                side.last.add(3e6)
        found[f"POST /{name}"] = endpoint
    state = State(requests=100, endpoints=found, unpaired={"gap": 2}, failures={"closed": 1})
    return snapshot(compare={"shadows": {"v2:80": brief(state)}, "capture": {}})


def known() -> set[str]:
    """Every name of a series."""
    return {key[0] for key in Taps(compared(a=10)).samples()}


def labels() -> set[str]:
    text = Taps(copy.deepcopy(compared(a=10))).text()
    return set(re.findall(r"[{,]([a-z]+)=", text)) | {"le", "instance", "job"}


def test_how_each_shadows_breaker_is() -> None:
    text = Taps(snapshot()).text()
    found = dict(
        re.findall(r'^tapmirror_shadow_breaker\{shadow="v2:80",state="([a-z-]+)",tap="shop"\} ([01])\.0$', text, re.M)
    )
    assert found == {"closed": "0", "open": "0", "half-open": "1"}
    assert 'tapmirror_shadow_effective_share_ratio{shadow="v2:80",tap="shop"} 0.025\n' in text
    begins = snapshot()
    del begins["shadows"]["v2:80"]["breaker"]  # nobody has looked yet
    assert "tapmirror_shadow_breaker{" not in Taps(begins).text()


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    found += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    rules = [
        rule for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    assert all(rule["annotations"]["summary"] and rule["annotations"]["description"] for rule in rules)
    return found + [rule["expr"] for rule in rules]


def test_every_metric_of_the_dashboard_and_the_alerts_exists() -> None:
    found = expressions()
    assert len(found) > 15
    for expression in found:
        names = set(re.findall(r"\btapmirror_\w+", expression))
        assert names <= known(), expression
        assert names, expression
        for group in re.findall(r"(?:by|on|without) \(([a-z, ]+)\)", expression):
            assert set(group.replace(" ", "").split(",")) <= labels(), expression


def test_what_the_governor_takes_for_errors_the_alert_does_too() -> None:
    (rule,) = [found for found in expressions() if 'class=~"' in found and "tapmirror_shadow_answers_total{" in found]
    (classes,) = re.findall(r'class=~"([^"]+)"', rule)
    assert set(classes.split("|")) == set(ERRORS)


@pytest.mark.parametrize(
    ("fails", "gets", "left_alone", "dead"),
    [
        pytest.param(True, True, True, True, id="it died a moment ago"),
        pytest.param(True, False, True, True, id="it is dead"),
        pytest.param(True, False, False, True, id="too few connections come to keep its breaker open"),
        pytest.param(True, True, False, False, id="some fail"),
        pytest.param(False, True, True, False, id="its responses are errors"),
        pytest.param(False, False, False, False, id="nothing comes"),
    ],
)
def test_which_shadow_is_dead(fails: bool, gets: bool, left_alone: bool, dead: bool) -> None:
    (rule,) = [found for found in expressions() if "shadow_breaker" in found]
    series = (
        r"(?:sum|max) by \([a-z, ]+\) \((?:rate\()?tapmirror_shadow_(\w+)(?:\{[^}]*\})?(?:\[5m\]\))?\) (?:> 0|== 0)"
    )
    said = re.sub(series, r"\1", rule).replace("unless", "and not")
    names = {"connect_errors_total": fails, "settled_bytes_total": gets, "breaker": left_alone}
    assert eval(said, names) is dead


def test_the_alerts_are_those_that_matter() -> None:
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    assert {rule["alert"] for group in groups for rule in group["rules"]} == {
        "TapmirrorDaemonDown",
        "TapmirrorLoss",
        "TapmirrorShadowDead",
        "TapmirrorShadowErrors",
        "TapmirrorShadowDiffers",
        "TapmirrorRingFilling",
        "TapmirrorThrottled",
        "TapmirrorTapDown",
        "TapmirrorWorkerRestarts",
        "TapmirrorUnaccounted",
    }
