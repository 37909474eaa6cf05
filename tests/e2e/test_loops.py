# SPDX-License-Identifier: Apache-2.0
"""A proxy at the shadow that leads to production: what it sends there bears no mark, and a tap finds it by itself."""

from __future__ import annotations

import json

import pytest

from e2e.driven import driven
from e2e.mirror import PATIENCE
from e2e.served import CALM
from lab import HashSink, Lab, Load, LoadPlan, Nginx, identity, load, until
from lab.daemon import Daemon
from lab.tap import COMMAND
from tapmirror.control.messages import Resume, Start, Status
from tapmirror.spec import TapSpec, parse_shadow

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

NODE = "10.77.2.1"
"""Production, as the shadow reaches it."""
SECONDS = 60
"""At most; a share of a tenth takes as long as ten seconds at times, all of it a few milliseconds."""


@pytest.mark.parametrize(
    ("options", "keeps", "most"),
    [
        (("--capture=ebpf",), True, 100),
        (("--capture=ebpf",), False, 100),
        (("--capture=packet",), True, 100),
        (("--capture=ebpf", "--workers=2"), True, 100),
        (("--capture=ebpf", "--compare=body"), True, 100),
        (("--capture=ebpf", "--percent=20"), False, 4_000),
    ],
    ids=["all", "connections of their own", "packet", "two workers", "compared", "a share"],
)
def test_a_proxy_that_leads_to_production_ends_the_tap(
    lab: Lab, options: tuple[str, ...], keeps: bool, most: int
) -> None:
    """Before production got more than so many requests from it: of all, as many as come while a host stalls."""
    rate = 300 if "--percent=20" in options else 30
    plan = LoadPlan(address=lab.node.addr4, requests=rate * SECONDS, connections=20, per_connection=50, rate=rate)
    words = [f"--shadow={lab.shadow.addr4}:8080", "--iface=eth0,eth1", "--port=80", "--json", f"--duration={SECONDS}"]
    with Nginx(lab.node) as production, Nginx(lab.shadow, 8080, passes_to=f"{NODE}:80", keeps=keeps):
        clients = Load(lab.client, plan)
        done = lab.node.run([str(COMMAND), "run", *words, *options], check=False, timeout=SECONDS + 60)
        sent = clients.stop()
        asked = production.requests()
    assert done.returncode == 1, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("tapmirror: error: ")]
    assert error.endswith(
        f"what is sent to the shadow {lab.shadow.addr4}:8080 comes back to production, from {lab.shadow.addr4}: "
        "something there passes requests on; the tap is detached"
    )
    ledger = json.loads(done.stdout)
    identity(ledger)
    assert ledger["requests"]["in_flight"] == 0
    assert sent.failed == 0
    assert 0 < asked - sent.answered <= ledger["requests"]["mirrored"] <= most


def test_a_tap_that_is_not_to_look_finds_nothing(lab: Lab) -> None:
    """Production gets what the shadow passes on; not again what comes in at another interface."""
    words = ["--iface=eth0", "--port=80", "--json", "--duration=3", "--no-loop-check"]
    with Nginx(lab.node) as production, Nginx(lab.shadow, 8080, passes_to=f"{NODE}:80"):
        clients = Load(lab.client, LoadPlan(address=lab.node.addr4, requests=10**9, connections=5, rate=200))
        until(lambda: production.requests() > 0, "the load")
        done = lab.node.run([str(COMMAND), "run", f"--shadow={lab.shadow.addr4}:8080", *words], timeout=300)
        sent = clients.stop()
        asked = production.requests()
    ledger = json.loads(done.stdout)
    identity(ledger)
    assert asked - sent.answered == ledger["requests"]["mirrored"] > 0


def test_in_the_daemon_it_stays_off_until_it_is_resumed(lab: Lab) -> None:
    """Where the proxy is still there then it is found again, else the tap runs."""
    shadow = parse_shadow("[fd77:2::2]:8080")
    spec = TapSpec(iface="eth0,eth1", ports=(80,), shadows=(shadow,), name="web", budget=CALM)
    plan = LoadPlan(address=lab.node.addr6, requests=100_000, connections=5, per_connection=20, rate=100)
    why = "what is sent to the shadow [fd77:2::2]:8080 comes back to production, from fd77:2::2: "

    def is_off() -> bool:
        (tap,) = daemon.ask(Status())["taps"]
        return bool(tap["state"] == "failed" and tap["state_reason"].startswith(why))

    with Daemon(lab.node) as daemon, Nginx(lab.node):
        clients = Load(lab.client, plan)
        with Nginx(lab.shadow, 8080, passes_to="[fd77:2::1]:80"):
            daemon.ask(Start(taps=[spec]))
            until(is_off, "it is found", PATIENCE)
            daemon.ask(Resume(name="web"))
            until(lambda: daemon.said().count(why) == 2 and is_off(), "it is found again", PATIENCE)
        with HashSink(lab.shadow, 8080) as shadow_itself:
            until(lambda: len(lab.node.read("packet").splitlines()) == 1, "nothing is attached", PATIENCE)
            assert shadow_itself.got == []
            daemon.ask(Resume(name="web"))
            shadow_itself.wait_for(50, PATIENCE)
            assert daemon.ask(Status())["taps"][0]["state"] == "running"
            assert clients.stop().failed == 0


def test_what_is_found_at_the_end_is_told_too(lab: Lab) -> None:
    """The tap was told to stop before anybody had heard of its worker's find."""
    said: list[str] = []
    shadow = parse_shadow(f"{lab.shadow.addr4}:8080")
    with (
        Nginx(lab.node) as production,
        Nginx(lab.shadow, 8080, passes_to=f"{NODE}:80", keeps=False),
        driven(lab.node, said.append, iface="eth0,eth1", shadows=(shadow,)) as tap,
    ):
        assert load(lab.client, lab.node.addr4, requests=20, connections=1).answered == 20
        until(lambda: production.requests() > 20, "that one comes back")
        before = tap.loops
        identity(tap.stop())
    assert (before, tap.loops) == (False, True)
    assert said[-1].startswith(f"what is sent to the shadow {lab.shadow.addr4}:8080 comes back to production, from ")
