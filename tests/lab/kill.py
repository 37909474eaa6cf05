# SPDX-License-Identifier: Apache-2.0
"""`scripts/kill`: the daemon's processes are killed at random moments under load, and what must hold is looked at.

After each death: no request of production's has failed, what is attached is what is to be (after the daemon's own:
nothing), the taps mirror again by themselves, and in every ledger everything seen is accounted for.  In the end both
shadows have got nothing that was not sent, and nothing twice.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lab.daemon import Daemon
from lab.hosts import PATIENCE, LabError, leave_on_signals, until
from lab.load import Load, LoadPlan, LoadResult
from lab.network import Lab
from lab.sinks import HashSink
from lab.snapshot import Snapshot, unchanged
from lab.tap import identity
from tapmirror.control.client import ControlError
from tapmirror.control.messages import Start, Status, Stop
from tapmirror.spec import Capture, Limits, TapSpec, parse_shadow

ROUNDS: Final = 100
RATE: Final = 300
"""Requests a second: each is remembered by three servers."""
VICTIMS: Final = ("worker", "loader", "supervisor")


CONNECTIONS: Final = 20


@dataclass
class Report:
    """What was seen."""

    deaths: Counter[str] = field(default_factory=Counter)
    detached: list[float] = field(default_factory=list)
    """Seconds from each death of the supervisor until nothing was attached."""
    back: list[float] = field(default_factory=list)
    """Seconds from each death until both taps mirrored again."""
    ledgers: int = 0
    """That were looked at, and added up."""
    mirrored: int = 0
    """Requests, of those ledgers that were the last of their tap."""
    dropped: Counter[str] = field(default_factory=Counter)
    got: int = 0
    """Whole requests at the shadows."""
    production: LoadResult | None = None

    def lines(self) -> list[str]:
        """For people."""
        assert self.production is not None
        deaths = ", ".join(f"{count} of a {victim}" for victim, count in sorted(self.deaths.items()))
        production = self.production
        times = f"p50 {production.p50:g} ms, p99 {production.p99:g} ms"
        last = f"{self.mirrored:,} requests mirrored, dropped {dict(self.dropped) or 'none'}"
        return [
            f"deaths: {deaths}",
            f"production: {production.answered:,} requests answered, {production.failed} failed, {times}",
            f"nothing attached after a supervisor's death: within {max(self.detached, default=0.0):.2f} s",
            f"both taps mirror again: within {max(self.back, default=0.0):.1f} s of each death",
            f"ledgers: {self.ledgers:,} looked at, all add up; in the last of each tap {last}",
            f"shadows: {self.got:,} whole requests, none twice, none that was not sent",
        ]


class Kills:
    """Two taps under load: by eBPF with two workers, and by AF_PACKET."""

    def __init__(self, lab: Lab, seed: int, say: Callable[[str], None]) -> None:
        self._lab = lab
        self._random = random.Random(seed)
        self._say = say
        self.report = Report()

    def run(self, victims: Sequence[str]) -> Report:
        """Kill one after the other.  Raises AssertionError or `LabError` where something does not hold."""
        lab = self._lab
        self._before = Snapshot.of(lab.node)
        with (
            HashSink(lab.node) as production,
            HashSink(lab.shadow) as first,
            HashSink(lab.shadow, port=81) as second,
            Daemon(lab.node) as self._daemon,
        ):
            self._sinks = (first, second)
            self._daemon.ask(Start(taps=[tap("ebpf", 80, workers=2), tap("packet", 81)]))
            plan = LoadPlan(
                address=lab.node.addr4, requests=10**9, connections=CONNECTIONS, rate=RATE, per_connection=50
            )
            load = Load(lab.client, plan)
            self._until_mirrored()
            for number, victim in enumerate(victims, 1):
                said = len(self._daemon.said())
                try:
                    self._round(victim)
                except (AssertionError, LabError):
                    self._say(f"{number}/{len(victims)}: {victim}; the daemon said:\n{self._daemon.said()[said:]}")
                    raise
                assert load.running(), "the load goes on"
                assert production.bad == [], production.bad
                self._say(f"{number}/{len(victims)}: {victim}, back after {self.report.back[-1]:.1f} s")
            self._end(load, production)
        return self.report

    def _round(self, victim: str) -> None:
        time.sleep(self._random.uniform(0.0, 1.0))
        self.report.deaths[victim] += 1
        kinds = {"worker": self._kill_worker, "loader": self._kill_loader, "supervisor": self._kill_supervisor}
        began = kinds[victim]()
        until(self._runs, "both taps run")
        self._until_mirrored()
        self.report.back.append(time.monotonic() - began)

    def _kill_worker(self) -> float:
        os.kill(self._random.choice(self._daemon.workers()), signal.SIGKILL)
        return time.monotonic()

    def _kill_loader(self) -> float:
        """That of a third tap, which is refused then; or, where it was done already, runs and is stopped."""
        outcome: list[object] = []

        def start() -> None:
            try:
                outcome.append(self._daemon.ask(Start(taps=[tap("third", 82)])))
            except ControlError as error:
                outcome.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        until(lambda: bool(outcome or self._loaders()), "a loader")
        time.sleep(self._random.uniform(0.0, 0.8))
        for pid in self._loaders():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        thread.join(PATIENCE)
        (found,) = outcome
        if isinstance(found, ControlError):
            assert found.code == "failed", found
        else:
            self._daemon.ask(Stop(name="third"))
        assert {each["name"] for each in self._taps()} == {"ebpf", "packet"}
        return began

    def _loaders(self) -> list[int]:
        return [pid for pid, words in self._daemon.processes().items() if "tapmirror.loader" in words]

    def _kill_supervisor(self) -> float:
        """All that it held goes with it; another one begins with what is on disk."""
        workers = self._daemon.workers()
        self._daemon.kill()
        began = time.monotonic()
        unchanged(self._lab.node, self._before)
        self.report.detached.append(time.monotonic() - began)
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), "the workers' end")
        began = time.monotonic()
        self._daemon.start()
        return began

    def _taps(self) -> list[dict[str, Any]]:
        """The taps; each ledger adds up."""
        taps: list[dict[str, Any]] = self._daemon.ask(Status())["taps"]
        for each in taps:
            if each["ledger"] is not None:
                identity(each["ledger"])
                self.report.ledgers += 1
        return taps

    def _runs(self) -> bool:
        return [each["state"] for each in self._taps()] == ["running", "running"]

    def _until_mirrored(self) -> None:
        counts = [len(sink.got) for sink in self._sinks]
        for sink, count in zip(self._sinks, counts, strict=True):
            sink.wait_for(count + 20)

    def _end(self, load: Load, production: HashSink) -> None:
        report = self.report
        report.production = load.stop()
        assert report.production.failed == 0, report.production
        for each in self._daemon.ask(Stop(all=True))["stopped"]:
            identity(each["ledger"])
            report.mirrored += each["ledger"]["requests"]["mirrored"]
            report.dropped.update(each["ledger"]["requests"]["dropped"])
        assert self._daemon.stop() == 0
        unchanged(self._lab.node, self._before)
        sent = {(got.uri, got.sha256, got.length) for got in production.got}
        for sink in self._sinks:
            whole = [(got.uri, got.sha256, got.length) for got in sink.got if got.whole]
            report.got += len(whole)
            twice = [each for each, count in Counter(whole).items() if count > 1]
            assert not twice, f"twice at a shadow: {twice[:5]}"
            assert not set(whole) - sent, f"never sent: {[*(set(whole) - sent)][:5]}"
            ends = [bad for bad in sink.bad if " ended with b'" in bad]  # those of a killed worker may end amid one
            torn = [bad for bad in sink.bad if bad not in ends]
            assert torn == [] and len(ends) <= CONNECTIONS * report.deaths.total(), (torn, ends)


def tap(name: str, port: int, **more: Any) -> TapSpec:
    """A tap of the lab's node; the one called `packet` by AF_PACKET."""
    shadow = parse_shadow(f"10.77.2.2:{port}")
    capture = Capture.PACKET if name == "packet" else Capture.EBPF
    return TapSpec(
        iface="eth0", ports=(80,), shadows=(shadow,), name=name, capture=capture, limits=Limits(drain_time=1.0), **more
    )


def main() -> int:
    """Run it; 0 if everything held."""
    parser = argparse.ArgumentParser(prog="scripts/kill")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="deaths (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the moments")
    options = parser.parse_args()
    leave_on_signals()
    say(f"{options.rounds} deaths, --seed {options.seed}")
    chosen = random.Random(options.seed).choices(VICTIMS, k=options.rounds)
    with Lab() as lab:
        kills = Kills(lab, options.seed, say)
        try:
            report = kills.run(chosen)
        except AssertionError as error:
            say(f"FAILED: {error}")
            return 1
    print("\n".join(report.lines()))
    return 0


def say(text: str) -> None:
    """What is done."""
    print(f"kill: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"kill: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
