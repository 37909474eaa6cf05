# SPDX-License-Identifier: Apache-2.0
"""Snapshots of taps as metrics for Prometheus, in OpenMetrics or its older text format.

The names are an interface: `deploy/` has a dashboard and alerts that use them.  Labels are names of taps and shadows
from the spec, and words of closed sets (fates, reasons, classes): nothing that comes from the network, but for the
endpoints of a comparison, of which there are at most `NAMED` for each shadow (`compared`).

Counters never fall while a tap exists, even if its worker is replaced or the tap is restarted with another spec: what
was counted before is added (`_Total`).  Only those of a comparison begin at zero with the tap.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from tapmirror import __version__, histogram
from tapmirror.events import DropReason, FilterReason
from tapmirror.governor import State
from tapmirror.ledger import CONNECT_FAILED, CONNECT_SILENT, waits
from tapmirror.supervisor.compared import Compared, add_times, families

Snapshot: TypeAlias = Mapping[str, Any]

STATES: Final = ("starting", "running", "paused", "waiting", "restarting", "failed", "stopping", "stopped")
RESPONSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx", "other", "garbage", "unanswered")
REASONS: Final = frozenset(reason.value for reason in (*DropReason, *FilterReason))
UNITS: Final = {
    "segments": "TCP segments with data that the tap saw",
    "bytes": "Bytes of production's clients that the tap saw",
    "requests": "Requests that the tap saw",
}
"""Units of the ledger, and what each counts."""


class _Total:
    """Totals that continue when their source begins at zero again."""

    __slots__ = ("_before", "_last")

    def __init__(self) -> None:
        self._before: dict[tuple[str, ...], float] = {}
        self._last: dict[tuple[str, ...], float] = {}

    def begin_anew(self) -> None:
        """Say that the source begins at zero: what it counts from now on is added."""
        for key, value in self._last.items():
            self._before[key] = self._before.get(key, 0) + value
        self._last.clear()

    def add(self, key: tuple[str, ...], value: float) -> None:
        """Set the source's present total of one series."""
        self._last[key] = max(value, self._last.get(key, 0))

    def of(self, key: tuple[str, ...]) -> float:
        """The total of one series."""
        return self._before.get(key, 0) + self._last.get(key, 0)

    def keys(self, name: str) -> list[tuple[str, ...]]:
        """The series of a name."""
        return sorted(key for key in self._before.keys() | self._last.keys() if key[0] == name)

    def whole(self, name: str) -> float:
        """All series of a name together."""
        return sum(self.of(key) for key in self.keys(name))


class _History:
    """The state of one tap's counters between collections."""

    def __init__(self) -> None:
        self.total = _Total()
        self.cpu = _Total()
        """By worker slot: the figures of a worker include those of its predecessors."""
        self.compared: dict[str, Compared] = {}
        """Counters of each shadow's comparison, by label."""
        self._life = 0

    def take(self, snapshot: Snapshot) -> None:
        """Take a snapshot.  A later life than the last one counts from zero; an earlier one is known and is ignored."""
        life = snapshot["life"]
        if life < self._life:
            return
        if life != self._life:
            self.total.begin_anew()
            self.cpu.begin_anew()
            self.compared.clear()
        self._life = life
        for label, found in ((snapshot.get("compare") or {}).get("shadows") or {}).items():
            self.compared.setdefault(label, Compared()).take(found)
        for key, value in _counted(snapshot):
            self.total.add(key, value)
        for index, worker in enumerate(workers(snapshot)):
            self.cpu.add(("cpu", str(index)), worker["cpu_s"])


def workers(snapshot: Snapshot) -> Sequence[Mapping[str, Any]]:
    """Each worker of a tap; if the snapshot has no separate workers, all of them as one."""
    found: Sequence[Mapping[str, Any]] = snapshot.get("workers") or [snapshot["worker"]]
    return found


def _counted(snapshot: Snapshot) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every total of a snapshot: ((metric, label values …), value)."""
    for unit in UNITS:
        yield (f"{unit}_seen",), snapshot[unit]["seen"]
        for fate, reason, count in _fates(snapshot[unit]):
            yield (f"{unit}_settled", fate, reason), count
    events = snapshot["events"]
    yield ("flows", "new"), events.get("flows", 0)
    yield ("flows", "joined"), events.get("flows_joined", 0)
    yield ("gaps",), events.get("gaps", 0)
    yield ("gap_bytes",), events.get("gap_bytes", 0)
    for place, (records, waited) in enumerate(waits(snapshot)):
        yield ("delay_records", str(place)), records
        yield ("delay_us", str(place)), waited
    yield ("restarts",), sum(worker.get("restarts", 0) for worker in workers(snapshot))
    for label, shadow in snapshot["shadows"].items():
        for unit in ("bytes", "requests"):
            for fate, reason, count in _fates(shadow[unit]):
                yield (f"shadow_{unit}", label, fate, reason), count
        for kind, count in shadow["answers"].items():
            yield ("answers", label, kind if kind in RESPONSES else "other"), count
        for name, count in shadow["latency"]["buckets"].items():
            yield ("latency", label, name), count
        yield ("latency_sum", label), shadow["latency"]["sum_s"]
        yield ("connects", label), shadow["events"].get("shadow_connects", 0)
        for name, count in shadow["events"].items():
            if name.startswith(CONNECT_FAILED):
                reason = name.removeprefix(CONNECT_FAILED)
                known = name == CONNECT_SILENT or reason in errno.errorcode.values()
                yield ("connect_errors", label, reason if known else "other"), count


def _fates(account: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    for fate in ("mirrored", "sampled_out"):
        yield fate, "", account[fate]
    for fate in ("filtered", "dropped"):
        for reason, count in account[fate].items():
            yield fate, reason if reason in REASONS else "other", count


class TapMetrics(Collector):
    """The metrics of all taps, made from their last snapshots at each collection.

    A snapshot of a tap that has not counted anything yet may be only {"tap", "state"}.  With a ledger comes "life", a
    number that grows whenever the ledger begins at zero.  Snapshots of lives that are "over" come first, in their
    order, and may come again: they have what was counted after the last collection.  The counters of a tap that is gone
    stay as long as such snapshots come.

    `snapshots` is called for each collection, in the thread that scrapes.  It must be quick and thread-safe: it returns
    the last snapshots and makes no new ones.  Only one thread may collect at a time.
    """

    def __init__(self, snapshots: Callable[[], Iterable[Snapshot]]) -> None:
        self._snapshots = snapshots
        self._histories: dict[str, _History] = {}

    def registry(self) -> CollectorRegistry:
        """A registry with nothing else in it."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry

    def describe(self) -> list[Metric]:
        """Return nothing; without this method, `register` would collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metric families, each with the samples of every tap."""
        found = [*self._snapshots()]
        known = {str(snapshot["tap"]): snapshot for snapshot in found if "over" not in snapshot}
        taps = {name: snapshot for name, snapshot in known.items() if "segments" in snapshot}
        counted = [(str(snapshot["tap"]), snapshot) for snapshot in found if "segments" in snapshot]
        # A tap that begins again has no snapshot for a while; its totals continue.
        names = dict.fromkeys([*(name for name, _ in counted), *(name for name in known if name in self._histories)])
        self._histories = {name: self._histories.get(name) or _History() for name in names}
        for name, snapshot in counted:
            self._histories[name].take(snapshot)
        yield InfoMetricFamily("tapmirror_build", "What runs", value={"version": __version__})
        yield from self._ledger(taps)
        yield from self._traffic(taps)
        yield from self._shadows(taps)
        each = [(tap, label, of) for tap, history in self._histories.items() for label, of in history.compared.items()]
        yield from families(each)
        yield from self._workers(taps)
        yield from _shares(taps)
        yield _states(known)
        yield _uncaptured(known)

    def _counter(self, name: str, text: str, labels: Sequence[str], series: str, unit: str = "") -> CounterMetricFamily:
        """A counter of all taps from the series of that name."""
        family = CounterMetricFamily(f"tapmirror_{name}", text, labels=["tap", *labels], unit=unit)
        for tap, history in self._histories.items():
            for key in history.total.keys(series):
                family.add_metric([tap, *key[1:]], history.total.of(key))
        return family

    def _ledger(self, taps: Mapping[str, Snapshot]) -> Iterator[Metric]:
        for unit, text in UNITS.items():
            yield self._counter(f"seen_{unit}", text, [], f"{unit}_seen", unit)
            yield self._counter(
                f"settled_{unit}", f"{text}, by what became of them", ["fate", "reason"], f"{unit}_settled", unit
            )
            for state, words in (("in_flight", "that wait"), ("unaccounted", "whose fate is unknown: always 0")):
                yield _gauge(
                    f"{state}_{unit}",
                    f"{text}, {words}",
                    {(tap,): of[unit][state] for tap, of in taps.items()},
                    unit=unit,
                )

    def _traffic(self, taps: Mapping[str, Snapshot]) -> Iterator[Metric]:
        yield self._counter(
            "flows", "Connections followed; joined: they existed when the tap began", ["class"], "flows"
        )
        yield _gauge("flows_open", "Connections in the flow table", {(tap,): of["flows"] for tap, of in taps.items()})
        yield self._counter("gaps", "Holes in streams", [], "gaps")
        yield self._counter("gap_bytes", "Bytes that production got and the tap did not", [], "gap_bytes", "bytes")

    def _shadows(self, taps: Mapping[str, Snapshot]) -> Iterator[Metric]:
        each = [(tap, label, shadow) for tap, of in taps.items() for label, shadow in of["shadows"].items()]
        for unit in ("bytes", "requests"):
            yield self._counter(
                f"shadow_settled_{unit}",
                f"{UNITS[unit]}, by what became of them for a shadow",
                ["shadow", "fate", "reason"],
                f"shadow_{unit}",
                unit,
            )
            yield _gauge(
                f"shadow_in_flight_{unit}",
                f"{UNITS[unit]}, that wait for a shadow",
                {(tap, label): shadow[unit]["in_flight"] for tap, label, shadow in each},
                ["shadow"],
                unit=unit,
            )
        yield self._counter("shadow_answers", "A shadow's responses by class", ["shadow", "class"], "answers")
        yield self._counter("shadow_connects", "Attempts to connect to a shadow", ["shadow"], "connects")
        yield self._counter(
            "shadow_connect_errors", "Of these, those that failed", ["shadow", "reason"], "connect_errors"
        )
        breakers: dict[tuple[str, ...], float] = {
            (tap, label, state.value): float(shadow["breaker"] == state.value)
            for tap, label, shadow in each
            if "breaker" in shadow
            for state in State
        }
        text = "1 for the state of a shadow's breaker: closed (it is well), open, half-open (it is tried again)"
        yield _gauge("shadow_breaker", text, breakers, ["shadow", "state"])
        yield _gauge(
            "shadow_effective_share_ratio",
            "Share of the connections that a shadow is given at present, before its own sampling",
            {(tap, label): shadow["effective"] / 100 for tap, label, shadow in each if "effective" in shadow},
            ["shadow"],
            unit="ratio",
        )
        yield self._latency()

    def _latency(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(
            "tapmirror_shadow_latency_seconds",
            "Time from a request's last byte to its response's, of some requests",
            labels=["tap", "shadow"],
            unit="seconds",
        )
        for tap, history in self._histories.items():
            for name, label in history.total.keys("latency_sum"):
                counts = [history.total.of(("latency", label, bound)) for bound in histogram.NAMES]
                add_times(family, [tap, label], histogram.NAMES[:-1], counts, history.total.of((name, label)))
        return family

    def _workers(self, taps: Mapping[str, Snapshot]) -> Iterator[Metric]:
        ring = {tap: of["ring"] for tap, of in taps.items() if "ring" in of}
        yield _gauge(
            "ring_size_bytes",
            "Capture ring of a worker",
            {(tap,): of["bytes"] for tap, of in ring.items()},
            unit="bytes",
        )
        yield _gauge(
            "ring_fill_ratio",
            "How full it is, of the worst worker",
            {(tap,): of["fill"] for tap, of in ring.items()},
            unit="ratio",
        )
        delay = SummaryMetricFamily(
            "tapmirror_ring_delay_seconds",
            "Time that segments waited in it, each as long as the first of its batch",
            labels=["tap", "worker"],
            unit="seconds",
        )
        for tap, history in self._histories.items():
            for name, place in history.total.keys("delay_records"):
                records, waited = history.total.of((name, place)), history.total.of(("delay_us", place))
                delay.add_metric([tap, place], int(records), waited / 1e6)
        yield delay
        cpu = CounterMetricFamily(
            "tapmirror_worker_cpu_seconds", "CPU time of the workers", labels=["tap"], unit="seconds"
        )
        for tap, history in self._histories.items():
            cpu.add_metric([tap], history.cpu.whole("cpu"))
        yield cpu
        yield _gauge(
            "worker_memory_bytes",
            "Resident memory of the workers",
            {(tap,): sum(each["rss_kb"] for each in workers(of)) * 1024 for tap, of in taps.items()},
            unit="bytes",
        )
        yield _gauge("workers", "Worker processes", {(tap,): len(workers(of)) for tap, of in taps.items()})
        yield self._counter("worker_restarts", "Workers that died and were replaced", [], "restarts")


def _shares(taps: Mapping[str, Snapshot]) -> Iterator[Metric]:
    shares = {tap: of["share"] for tap, of in taps.items() if "share" in of}
    for name, text, field in (
        ("spec_share_ratio", "Share of the connections that the spec asks for", "percent"),
        ("effective_share_ratio", "Share that is captured", "effective"),
    ):
        yield _gauge(name, text, {(tap,): share[field] / 100 for tap, share in shares.items()}, unit="ratio")


def _states(taps: Mapping[str, Snapshot]) -> Metric:
    values: dict[tuple[str, ...], float] = {
        (tap, state): int(of["state"] == state) for tap, of in taps.items() if "state" in of for state in STATES
    }
    return _gauge("tap_state", "1 for the state that the tap is in", values, ["state"])


def _uncaptured(taps: Mapping[str, Snapshot]) -> Metric:
    """A tap continues this count itself when it begins again."""
    text = "Time in which the tap should have captured and did not, between an end and the next start"
    family = CounterMetricFamily("tapmirror_uncaptured_seconds", text, labels=["tap"], unit="seconds")
    for tap, of in taps.items():
        if "uncaptured_s" in of:
            family.add_metric([tap], of["uncaptured_s"])
    return family


def _gauge(
    name: str, text: str, values: Mapping[tuple[str, ...], float], labels: Sequence[str] = (), unit: str = ""
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"tapmirror_{name}", text, labels=["tap", *labels], unit=unit)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
