# SPDX-License-Identifier: Apache-2.0
"""What a daemon's tests share: taps, servers on both sides under load, and what must be true afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from lab import HashSink, Host, Lab, Load, LoadPlan, until
from lab.daemon import Daemon
from tapmirror.control.messages import List
from tapmirror.spec import Budget, TapSpec, parse_shadow

CALM: Final = Budget(host_cpu=100.0, host_memory=100.0, cpu=64.0, delay=60.0, ring=1.0, latency=60.0)
"""No share is lowered for want of this host's CPU: other tests use it as well."""
SHADOW: Final = "10.77.2.2:80"
WEB: Final = ("start", "--name=web", "--iface=eth0", "--port=80", f"--shadow={SHADOW}")


@contextlib.contextmanager
def under_load(lab: Lab, **plan: Any) -> Iterator[tuple[HashSink, HashSink, Load]]:
    """Production, shadow and a load that goes on until it is stopped; no request of production's may fail."""
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        base: dict[str, Any] = {"address": lab.node.addr4, "requests": 10**9, "connections": 10, "rate": 500}
        running = Load(lab.client, LoadPlan(**{**base, **plan}))
        until(lambda: len(production.got) > 20, "the load")
        yield production, shadow, running
        if running.running():
            assert running.stop().failed == 0
        assert production.bad == []


def untorn(production: HashSink, shadow: HashSink, *, killed: bool = False) -> None:
    """Everything whole that the shadow got was sent, byte by byte, and none of it twice.

    `killed`: a worker was, and its connections may have ended amid a request.
    """
    whole = [(got.uri, got.sha256, got.length) for got in shadow.got if got.whole]
    assert len(set(whole)) == len(whole)

    def unsent() -> set[tuple[str, str, int]]:
        return set(whole) - {(got.uri, got.sha256, got.length) for got in [*production.got]}

    until(lambda: not unsent(), f"production's record of {unsent()}")  # it may note a request after the shadow did
    torn = [bad for bad in shadow.bad if not (killed and " ended with b'" in bad)]
    assert torn == [], torn


def attached(host: Host) -> list[str]:
    """The interfaces of the packet sockets of a host that are bound to one."""
    rows = [line.split() for line in host.read("packet").splitlines()[1:]]
    return [row[4] for row in rows if row[4] != "0"]


def web(name: str = "web", **more: Any) -> TapSpec:
    base: dict[str, Any] = {"iface": "eth0", "ports": (80,), "shadows": (parse_shadow(SHADOW),), "name": name}
    return TapSpec(**{**base, "budget": CALM, **more})


def text(name: str = "web", shadow: str = SHADOW, **more: object) -> str:
    """A file with this tap."""
    fields = {"name": name, "iface": "eth0", "port": 80, "shadow": shadow, **more}
    return "".join(f"{field}: {value}\n" for field, value in fields.items())


def states_of(daemon: Daemon) -> dict[str, str]:
    return {tap["name"]: tap["state"] for tap in daemon.ask(List())["taps"]}


def state_of(daemon: Daemon, name: str = "web") -> str:
    return states_of(daemon)[name]
