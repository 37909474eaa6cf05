# SPDX-License-Identifier: Apache-2.0
"""A tap that does as it is told: what the daemon does about taps that hang, fail and die at a chosen moment.

The real one is in tests/e2e/test_daemon*.py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tapmirror.compare.summary import SCHEMA
from tapmirror.spec import TapSpec
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor.together import Together
from tapmirror.supervisor.workers import LoopError, TapError


class ScriptedTap:
    """Waits at each step for as long as its event is clear, and fails where there is a text."""

    def __init__(self, spec: TapSpec, warn: Callable[[str], None], wait_for_interface: bool, script: Script) -> None:
        self.spec = spec
        self.warn = warn
        self.wait_for_interface = wait_for_interface
        self.capture = "ebpf"
        self.state, self.state_reason = "running", ""
        self.unreached: dict[str, str] = {}
        self.began = False
        """Whether it is more than one that was only tried out."""
        self.attached = False
        self.muted = False
        self.detached = threading.Event()
        self.closed = False
        self.stopping = False
        self.did: list[tuple[Any, ...]] = []
        self._script = script
        self._read, self._write = os.pipe()

    def prepare(self) -> None:
        self._script.step("prepare")

    def start(self) -> None:
        """Attaches, unless it was detached before."""
        self.began = True
        self._script.step("start")
        for line in self._script.warns.get(self.spec.name, ()):
            self.warn(line)
        if not (self.muted or self.detached.is_set()):
            self.attached = True

    def snapshot(self) -> dict[str, Any]:
        """The least that a ledger has."""
        self._script.step("snapshot")
        if self._script.loops:
            raise LoopError(self._script.loops)
        if self.detached.is_set() and not self.stopping:
            raise TapError("detached")
        return self.with_share(
            {"tap": self.spec.name, "shadows": {}, "events": {}, "worker": {"cpu_s": 0.0, "rss_kb": 0}}
        )

    def with_share(self, ledger: Mapping[str, Any]) -> dict[str, Any]:
        reason = "paused" if self.state == "paused" else ""
        return {**ledger, "share": {"percent": 100.0, "effective": 0.0 if reason else 100.0, "reason": reason}}

    def service(self, now: float) -> None:
        """Counted."""
        self.did.append(("service",))

    def due(self) -> float | None:
        return None

    def filenos(self) -> list[int]:
        return [self._read]

    def set_percent(self, percent: float) -> None:
        self._script.step("set_percent")
        self.did.append(("set_percent", percent))

    def throttle(self, share: float, reason: str = "", shadows: Mapping[str, float] | None = None) -> None:
        self.did.append(("throttle", share, reason, dict(shadows or {})))

    def pause(self) -> None:
        self.did.append(("pause",))
        self.state = "paused"

    def resume(self) -> None:
        self.did.append(("resume",))
        self.state = "running"

    def hurry(self) -> None:
        self.did.append(("hurry",))

    def mute(self) -> None:
        """It captures nothing any more, and is still to be detached."""
        self._script.ends.append(("mute", self.spec.name))
        self.muted = True
        self.attached = False

    def detach(self) -> None:
        self._script.ends.append(("detach", self.spec.name))
        self.attached = False
        self.detached.set()

    def stop(self, *, comparison: bool = True) -> dict[str, Any]:
        self.detach()
        self.stopping = True
        self._script.step("stop")
        return {**self.snapshot(), "final": True, **({"comparison": self.comparison()} if comparison else {})}

    def comparison(self) -> list[dict[str, Any]]:
        """Of one worker that knows nothing."""
        self._script.step("comparison")
        return [{"schema": SCHEMA, "shadows": {"v2": {"requests": 3}}}]

    def close(self) -> None:
        self.detach()
        if not self.closed:
            self.closed = True
            os.close(self._read)
            os.close(self._write)


class Script:
    """Makes taps, and is what they follow."""

    def __init__(self) -> None:
        self.taps: list[ScriptedTap] = []
        self.loops = ""
        """Why what it sends comes back to production, if it does."""
        self.fails: dict[str, str] = {}
        """What a step fails with."""
        self.warns: dict[str, list[str]] = {}
        """What a tap of a name warns of as it starts."""
        self.gates: dict[str, threading.Event] = {}
        """What a step waits for."""
        self.reached: dict[str, threading.Event] = {}
        self.ends: list[tuple[str, str]] = []
        """In which order taps were muted and detached."""
        self.at_a_time = 0
        self.most_at_a_time = 0

    def __call__(
        self, spec: TapSpec, warn: Callable[[str], None], said: Callable[[str], None], *, wait_for_interface: bool
    ) -> Any:  # in the place of a Tap
        tap = ScriptedTap(spec, warn, wait_for_interface, self)
        self.taps.append(tap)
        return tap

    def gate(self, step: str) -> threading.Event:
        """Let this step wait until what is returned is set."""
        self.reached[step] = threading.Event()
        self.gates[step] = threading.Event()
        return self.gates[step]

    def step(self, name: str) -> None:
        """One is here."""
        self.at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        if name in self.gates:
            self.reached[name].set()
            self.gates[name].wait(20)
        self.at_a_time -= 1
        if name in self.fails:
            raise TapError(self.fails[name])

    def begun(self) -> int:
        """How many taps were started, or were about to be."""
        return sum(tap.began for tap in self.taps)

    def attached(self) -> list[str]:
        """The names of the taps that capture, in order."""
        return sorted(tap.spec.name for tap in self.taps if tap.attached)


class NoClaims:
    """In the place of `Claims`: tests that run at the same time do not meet."""

    def __init__(self, spec: TapSpec) -> None:
        self.spec = spec

    def close(self) -> None:
        """Nothing is held."""


def alone() -> Together:
    """No budget for all taps."""
    return Together(AllTaps(), 0.0, lambda _: None)
