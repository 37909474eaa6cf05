# SPDX-License-Identifier: Apache-2.0
"""`scripts/soak`: the daemon under a load that never stops, for a day or for minutes, and whether anything grows.

Each minute: 1,000 new connections a second; the files of taps change and are reloaded, so that one tap begins or ends
and another's share changes; the shadow is down for ten seconds.  Every five seconds the metrics are scraped, and in
every scrape everything seen is accounted for.  Memory and descriptors are looked at once a minute, always in the same
part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import statistics
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from lab.daemon import Daemon
from lab.hosts import LabError, leave_on_signals, until
from lab.load import load
from lab.network import Lab
from lab.servers import Nginx
from lab.snapshot import Snapshot, resident_kb
from tapmirror.control.messages import Status

HOURS: Final = 24.0
MINUTE: Final = 60.0
RATE: Final = 1_000
"""New connections a second, of one request each."""
SCRAPE: Final = 5.0
DOWN: Final = 10.0
"""Seconds of each minute for which the shadow is down."""
LOOK: Final = 45.0
"""Seconds into each minute at which memory and descriptors are looked at: the shadow is back, and all has settled."""
WARM: Final = 3_600.0
"""Seconds before memory counts; of a shorter run its first half."""
SLOPE: Final = 1.0
"""MiB an hour that a process may grow, where at least an hour was measured."""
GROWTH: Final = 2.0
"""MiB that a process may grow in the second half of a shorter run."""
LEAST: Final = 0.1
"""Of production's requests; where fewer were mirrored, for the host had no CPU to spare, nothing was shown."""
CLIENTS: Final = 2
"""Descriptors of the daemon for who asks it just then."""
PORT: Final = 9464
EVERYBODYS: Final = ("programs", "maps", "bpf_links")
"""Of a `Snapshot`."""
FATES: Final = ("segments", "bytes", "requests")


@dataclass
class Look:
    """Memory and descriptors at one moment; `worker` is that of the tap that stays."""

    at: float
    """Seconds since the beginning."""
    memory: dict[str, int]
    """KiB by process."""
    files: dict[str, int]


@dataclass
class Report:
    """What was seen."""

    seconds: float = 0.0
    scrapes: int = 0
    wrong: list[str] = field(default_factory=list)
    """Scrapes in which the identity did not hold."""
    requests: int = 0
    failed: int = 0
    reloads: int = 0
    flaps: int = 0
    restarts: int = 0
    left: str = ""
    """In the node's network, when it was over."""
    seen: int = 0
    mirrored: int = 0
    p99: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    """Of the tap that stays, at each scrape, 0 to 1; the shadow's breaker is open part of the time."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why it was not the whole share, at each scrape."""
    looks: list[Look] = field(default_factory=list)

    def warm(self) -> list[Look]:
        """The looks that count."""
        begin = WARM if self.seconds >= 2 * WARM else self.seconds / 2
        return [look for look in self.looks if look.at >= begin]

    def slope(self, process: str) -> float | None:
        """MiB an hour; None: too little was seen."""
        points = [(look.at / 3600, look.memory[process] / 1024) for look in self.warm()]
        if len(points) < 2:
            return None
        return statistics.linear_regression(*zip(*points, strict=True)).slope

    def margin(self, process: str) -> float | None:
        """Two standard errors of `slope`, in MiB an hour; None: too few looks to tell."""
        points = [(look.at / 3600, look.memory[process] / 1024) for look in self.warm()]
        if len(points) < 3:
            return None
        times, sizes = zip(*points, strict=True)
        line = statistics.linear_regression(times, sizes)
        off = sum((size - line.intercept - line.slope * at) ** 2 for at, size in points)
        middle = statistics.fmean(times)
        return 2 * math.sqrt(off / (len(points) - 2) / sum((at - middle) ** 2 for at in times))

    def failures(self) -> list[str]:
        """What did not hold."""
        found = [*self.wrong[:5]]
        if self.failed:
            found.append(f"{self.failed} requests of production's failed")
        if self.mirrored < LEAST * self.requests:
            found.append(f"only {self.mirrored / self.requests:.1%} of the requests were mirrored: is the host busy?")
        if self.left:
            found.append(f"left: {self.left}")
        if self.restarts:
            found.append(f"{self.restarts} workers died")
        looks = self.warm()
        for process in ("daemon", "worker"):
            slope = self.slope(process)
            if slope is None:
                continue
            grown = (looks[-1].memory[process] - looks[0].memory[process]) / 1024
            if looks[-1].at - looks[0].at >= 3600:
                if slope >= SLOPE:
                    found.append(f"the {process} grows by {slope:.2f} MiB an hour")
            elif grown >= GROWTH:
                found.append(f"the {process} grew by {grown:.1f} MiB")
        # Of the daemon alone: a worker has one for each connection that stands at the moment.  The second tap is there
        # every other minute, and a client now and then.
        half = len(self.looks) // 2
        first, last = (
            max((look.files["daemon"] for look in part), default=0) for part in (self.looks[:half], self.looks[half:])
        )
        if half and last > first + CLIENTS:
            found.append(f"the daemon's descriptors grew from {first} to {last}")
        return found

    def lines(self) -> list[str]:
        """For people."""
        p99 = f"p99 {statistics.median(self.p99 or [0.0]):g} ms (the median of its pieces)"
        held = f"the identity held at {self.scrapes - len(self.wrong):,} of {self.scrapes:,} scrapes"
        found = [
            f"{self.seconds / 60:.0f} minutes, {self.reloads} reloads, the shadow was down {self.flaps} times",
            f"production: {self.requests:,} requests on as many connections, {self.failed} failed, {p99}",
            f"ledger: {self.seen:,} requests seen, {self.mirrored:,} mirrored; {held}",
        ]
        reasons = ", ".join(f"{reason} ({count})" for reason, count in self.reasons.most_common(5))
        found.append(f"share: {statistics.fmean(self.shares or [0.0]):.0%} on average; less at scrapes for: {reasons}")
        looks = self.warm()
        for process in ("daemon", "worker"):
            slope = self.slope(process)
            if looks:
                memory = [look.memory[process] / 1024 for look in looks]
                files = [look.files[process] for look in looks]
                margin = self.margin(process)
                exact = "" if margin is None else f" ± {margin:.2f}"
                grows = "not measured" if slope is None else f"{slope:+.2f}{exact} MiB an hour"
                minutes = (looks[-1].at - looks[0].at) / 60
                size = f"{memory[0]:.1f} to {memory[-1]:.1f} MiB in the last {minutes:.0f} minutes ({grows})"
                found.append(f"{process}: {size}, descriptors {files[0]} to {files[-1]}")
        return found


class Soak:
    """One run."""

    def __init__(self, lab: Lab, seconds: float, say: Callable[[str], None]) -> None:
        self._lab = lab
        self._seconds = seconds
        self._say = say
        self._stop = threading.Event()
        self._totals: dict[str, float] = defaultdict(float)
        self.report = Report()

    def run(self) -> Report:
        """Until the time is over.  Raises `LabError` where something breaks."""
        lab, report = self._lab, self.report
        before = Snapshot.of(lab.node)
        with Nginx(lab.node), Daemon(lab.node, more=(f"--metrics={PORT}",)) as daemon:
            shadow = Nginx(lab.shadow)
            self._files(daemon, 0)
            daemon.run("reload")
            self._began = time.monotonic()
            threads = [threading.Thread(target=self._load), threading.Thread(target=self._scrapes, args=(daemon,))]
            for thread in threads:
                thread.start()
            try:
                minute = 0
                while (minute + 1) * MINUTE <= self._seconds:
                    shadow = self._minute(daemon, shadow, minute)
                    minute += 1
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join(2 * MINUTE)
                report.seconds = time.monotonic() - self._began
                shadow.stop()
            self._scrape(daemon)
            daemon.stop()
        with contextlib.suppress(LabError):
            until(lambda: not self._left(before), "nothing is left")
        report.left = self._left(before)
        return report

    def _left(self, before: Snapshot) -> str:
        """What is new or gone in the node's network.

        Programs and maps are the whole kernel's, and in a day others come and go.
        """
        found = Snapshot.of(self._lab.node).difference(before)
        return "; ".join(f"{what}: {names}" for what, names in found.items() if what not in EVERYBODYS)

    def _minute(self, daemon: Daemon, shadow: Nginx, minute: int) -> Nginx:
        start = self._began + minute * MINUTE
        self._wait(start + 5.0)
        self._files(daemon, minute + 1)
        daemon.run("reload")
        self.report.reloads += 1
        self._wait(start + 15.0)
        shadow.stop()
        self._wait(start + 15.0 + DOWN)
        shadow = Nginx(self._lab.shadow)
        self.report.flaps += 1
        self._wait(start + LOOK)
        self._look(daemon)
        self._wait(start + MINUTE)
        last = self.report.looks[-1]
        self._say(f"minute {minute + 1}: {last.memory} KiB, descriptors {last.files}, {len(self.report.wrong)} wrong")
        return shadow

    def _wait(self, until_then: float) -> None:
        time.sleep(max(0.0, until_then - time.monotonic()))

    def _files(self, daemon: Daemon, minute: int) -> None:
        """One tap stays and changes its share, one is there every other minute."""
        common = "iface: eth0\nport: 80\n"
        (daemon.taps / "stays.yaml").write_text(
            f"name: stays\n{common}shadow: 10.77.2.2:80\npercent: {100 - minute % 2 * 10}\ncompare: status\n"
        )
        path = daemon.taps / "comes.yaml"
        if minute % 2:
            path.write_text(f"name: comes\n{common}shadow: 10.77.2.2:81\npercent: 1\ncapture: packet\n")
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _load(self) -> None:
        """In pieces of a few seconds: a load remembers the time of each of its requests."""
        while not self._stop.is_set():
            done = load(
                self._lab.client,
                self._lab.node.addr4,
                requests=RATE * 10,
                rate=RATE,
                connections=100,
                per_connection=1,
            )
            self.report.requests += done.answered
            self.report.failed += done.failed
            self.report.p99.append(done.p99)

    def _scrapes(self, daemon: Daemon) -> None:
        while not self._stop.wait(SCRAPE):
            self._scrape(daemon)

    def _scrape(self, daemon: Daemon) -> None:
        with self._lab.node.enter():
            read = urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10).read().decode()
        found: dict[tuple[str, str], float] = defaultdict(float)
        for family in text_string_to_metric_families(read):
            for sample in family.samples:
                found[sample.name, sample.labels.get("tap", "")] += sample.value
                if sample.name == "tapmirror_settled_requests_total" and sample.labels["fate"] == "mirrored":
                    found["mirrored", sample.labels["tap"]] = sample.value
        self.report.scrapes += 1
        self.report.shares.append(found["tapmirror_effective_share_ratio", "stays"])
        (tap,) = daemon.ask(Status(name="stays"))["taps"]
        reason = ((tap["ledger"] or {}).get("share") or {}).get("reason", "")
        if reason:  # without its numbers: one line for each kind
            self.report.reasons[re.sub(r"[0-9][0-9.,]*", "N", reason)] += 1
        self.report.wrong += [f"scrape {self.report.scrapes}: {each}" for each in violations(found)]
        self.report.seen = int(found["tapmirror_seen_requests_total", "stays"])
        self.report.mirrored = int(found["mirrored", "stays"])
        self.report.restarts = int(found["tapmirror_worker_restarts_total", "stays"])

    def _look(self, daemon: Daemon) -> None:
        taps = {tap["name"]: tap for tap in daemon.json("status")["taps"]}
        pids = {"daemon": daemon.pid, "worker": taps["stays"]["ledger"]["worker"]["pid"]}
        self.report.looks.append(
            Look(
                time.monotonic() - self._began,
                {name: resident_kb(pid) for name, pid in pids.items()},
                {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()},
            )
        )


def violations(found: dict[tuple[str, str], float]) -> Iterator[str]:
    """Where, in the sums of samples by (name, tap), the identity does not hold."""
    for tap in sorted({tap for _, tap in found if tap}):
        for unit in FATES:
            seen = found.get((f"tapmirror_seen_{unit}_total", tap), 0.0)
            settled = found.get((f"tapmirror_settled_{unit}_total", tap), 0.0)
            waits = found.get((f"tapmirror_in_flight_{unit}", tap), 0.0)
            unknown = found.get((f"tapmirror_unaccounted_{unit}", tap), 0.0)
            if seen != settled + waits or unknown:
                yield f"{tap}: {unit}: seen {seen:.0f}, settled {settled:.0f}, in flight {waits:.0f}, {unknown:.0f}"


def main(words: Sequence[str] | None = None) -> int:
    """Run it; 0 if everything held."""
    parser = argparse.ArgumentParser(prog="scripts/soak")
    parser.add_argument("--hours", type=float, default=HOURS, help="(%(default)s)")
    parser.add_argument("--minutes", type=float, help="instead of hours")
    options = parser.parse_args(words)
    seconds = options.hours * 3600 if options.minutes is None else options.minutes * 60
    leave_on_signals()
    with Lab() as lab:
        report = Soak(lab, seconds, say).run()
    print("\n".join(report.lines()))
    for each in report.failures():
        print(f"FAILED: {each}")
    if not report.failures():
        print(f"passed: growth below {SLOPE:g} MiB an hour, in less than an hour below {GROWTH:g} MiB")
    return 1 if report.failures() else 0


def say(text: str) -> None:
    """How it goes."""
    print(f"soak: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"soak: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
