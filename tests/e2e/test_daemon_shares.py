# SPDX-License-Identifier: Apache-2.0
"""What lowers the share of a tap, and gives it back: budgets, and shadows that are not well."""

from __future__ import annotations

import contextlib
import re
from typing import Any, Final

import pytest
from msgspec.structs import replace

from e2e.mirror import PATIENCE
from e2e.served import CALM, SHADOW, WEB, under_load, untorn, web
from lab import (
    Behaviour,
    HashSink,
    Lab,
    Load,
    LoadPlan,
    Nginx,
    RecordingTcp,
    identity,
    load,
    until,
)
from lab.daemon import Daemon
from lab.starve import starved
from tapmirror.control.messages import Start, Status, Stop
from tapmirror.spec import Budget, Limits, Protocol, parse_shadow

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


def test_the_budget_of_all_taps_lowers_their_shares_together_and_gives_them_back(lab: Lab) -> None:
    """Each tap is within its own budget; what they send together is too much."""
    with Daemon(lab.node, start=False) as daemon, HashSink(lab.shadow, port=81) as second:
        settings = daemon.config / "daemon.yaml"
        settings.write_text("budget: {bandwidth: 20000}\n")
        daemon.start()
        with under_load(lab, per_connection=10) as (production, shadow, _running):
            other = (parse_shadow("10.77.2.2:81"),)
            daemon.ask(Start(taps=[web("a"), web("b", shadows=other, percent=50.0)]))

            def shares() -> dict[str, float]:
                taps = daemon.ask(Status())["taps"]
                found = {tap["name"]: (tap["ledger"] or {}).get("share", {}) for tap in taps}
                return {name: each.get("effective", 0.0) / each.get("percent", 1.0) for name, each in found.items()}

            until(lambda: 0 < shares()["a"] == shares()["b"] < 0.6, "less of both")
            why = "bytes/s of all taps go out; the budget is 20,000"
            until(lambda: why in daemon.run("status", "b").stdout, why)
            assert daemon.ask(Status())["daemon"]["all_taps"]["budget"] == {"bandwidth": 20000.0}
            until(lambda: daemon.ask(Status())["daemon"]["all_taps"]["reason"].startswith("all taps: "), "the reason")
            until(lambda: daemon.ask(Status())["daemon"]["all_taps"]["used"]["bandwidth"] < 20000, "less")
            settings.write_text("budget: {bandwidth: 1000000000}\n")
            daemon.run("reload")
            until(lambda: shares() == {"a": 1.0, "b": 1.0}, "all of both again")
            until(
                lambda: "% of their shares: all taps: " in daemon.said() and 'msg="whole shares"' in daemon.said(),
                "the line",
            )
            for each in daemon.ask(Stop(all=True))["stopped"]:
                identity(each["ledger"])
            untorn(production, shadow)
            untorn(production, second)


def test_a_worker_that_gets_too_little_cpu_gets_less_to_do(lab: Lab) -> None:
    """It would be ever later and its ring full at last: fewer connections, each whole, and the shadow is up to date."""
    with Daemon(lab.node) as daemon, Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        daemon.ask(Start(taps=[web(budget=Budget(host_cpu=100.0, host_memory=100.0))]))
        (worker,) = daemon.workers()

        def seen() -> dict[str, Any]:
            (tap,) = daemon.ask(Status())["taps"]
            return dict(tap["ledger"] or {"share": {"reason": ""}})

        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=20, rate=3_000, per_connection=50)
        running = Load(lab.client, plan)
        shares: list[dict[str, Any]] = []

        def behind() -> bool:
            shares.append(seen()["share"])
            return "too little CPU" in shares[-1]["reason"]

        with starved(worker, 0.02):
            until(behind, "less")
        share = shares[-1]
        assert 0 < share["effective"] < 100
        assert re.fullmatch(r"the workers get too little CPU: they are \d+\.\d\d s behind", share["reason"])
        assert running.stop().failed == 0
        (done,) = daemon.ask(Stop(all=True))["stopped"]
        identity(done["ledger"])
        requests = done["ledger"]["requests"]
        assert done["ledger"]["segments"]["sampled_out"] > 0 and shadow.requests() == requests["mirrored"]
        assert set(requests["dropped"]) <= {"share"}
        assert production.requests() > requests["seen"]


def test_a_shadow_that_is_down_at_the_start_is_told_until_it_is_reached(lab: Lab) -> None:
    """Without any traffic, too: the tap runs, and mirrors as soon as there is somebody."""
    down = "shadow 10.77.2.2:80: it is down, or was at the start (Connection refused)"
    with HashSink(lab.node), Daemon(lab.node) as daemon:
        done = daemon.run(*WEB, "--percent", "100")
        line = "tapmirror: web: the shadow 10.77.2.2 port 80 cannot be reached yet (Connection refused)"
        assert done.stdout == "started: web\n"
        assert done.stderr == f"{line}; mirroring begins when it can\n"
        until(lambda: f"  {down}\n" in daemon.run("list").stdout, "the list", PATIENCE)
        assert "shadow 10.77.2.2:80: UNWELL: it is down, or was" in daemon.run("status").stdout
        daemon.run("pause", "web")
        daemon.run("resume", "web")
        assert "at present" not in daemon.run("list").stdout
        with HashSink(lab.shadow) as shadow:
            assert load(lab.client, lab.node.addr4, requests=10, connections=1).failed == 0
            shadow.wait_for(10)
            until(lambda: "shadow 10.77.2.2:80:" not in daemon.run("list").stdout, "it is well", PATIENCE)
        (stopped,) = daemon.json("stop", "--all")["stopped"]
        assert stopped["ledger"]["requests"]["mirrored"] == 10
        assert daemon.run(*WEB[:1], "--percent=0", *WEB[1:]).stderr.splitlines()[0] == (
            "tapmirror: web: nothing is mirrored: percent is 0"
        )


def test_a_shadow_that_dies_is_left_alone_and_taken_up_again_by_itself(lab: Lab) -> None:
    """The breaker opens, tries in vain, and closes; production notices nothing of it."""
    with Daemon(lab.node) as daemon, under_load(lab, per_connection=10) as (production, shadow, _running):
        daemon.ask(Start(taps=[web(budget=replace(CALM, retry=2.0))]))

        def share() -> tuple[float, str]:
            (tap,) = daemon.ask(Status())["taps"]
            assert tap["state"] == "running"
            found = (tap["ledger"] or {}).get("share", {"effective": 100.0, "reason": ""})
            return found["effective"], found["reason"]

        shadow.wait_for(50, PATIENCE)
        shadow.stop()
        for _ in range(2):  # it is tried again, too soon
            until(
                lambda: share()[0] == 0.0 and "it cannot be connected to; tried again" in share()[1], "open", PATIENCE
            )
            until(lambda: share()[0] > 0.0 and "it is tried again" in share()[1], "half-open", PATIENCE)
        with HashSink(lab.shadow) as back:
            back.wait_for(200, PATIENCE)
            until(lambda: share() == (100.0, ""), "closed", PATIENCE)
            (done,) = daemon.ask(Stop(all=True))["stopped"]
            identity(done["ledger"])
            untorn(production, back)
        assert done["ledger"]["requests"]["dropped"].keys() & {"shadow_down", "shadow_closed"}
        until(lambda: "event=share" in daemon.said(), "the line")


def test_a_forwarder_with_nobody_behind_it_is_left_alone_and_taken_up_again_by_itself(lab: Lab) -> None:
    """It takes connections and resets them: each trial fails, after a longer pause, until somebody is there."""
    with Nginx(lab.node) as production, contextlib.ExitStack() as stack:
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=40, per_connection=5, rate=500)
        with RecordingTcp(lab.shadow, 80, Behaviour(reset_after=1)):
            daemon = stack.enter_context(Daemon(lab.node))
            often = Limits(backoff_max=0.1)  # sixteen trials in a row take two seconds
            daemon.ask(Start(taps=[web(budget=replace(CALM, retry=2.0, errors=1.0), limits=often)]))
            running = Load(lab.client, plan)
            said: list[tuple[float, str]] = []

            def share() -> tuple[float, str]:
                (tap,) = daemon.ask(Status())["taps"]
                found = (tap["ledger"] or {}).get("share", {"effective": 100.0, "reason": ""})
                if not said or said[-1][1] != found["reason"]:
                    said.append((found["effective"], found["reason"]))
                return found["effective"], found["reason"]

            until(lambda: share()[0] == 0.0, "open", PATIENCE)
            until(lambda: share()[0] > 0.0 and "it is tried again" in share()[1], "half-open", PATIENCE)
            until(lambda: share()[0] == 0.0, "open", PATIENCE)
            assert re.search(r"it breaks all connections off without a byte; tried again after \d+ s$", said[-1][1]), (
                said
            )
        with Nginx(lab.shadow) as shadow:
            until(lambda: share() == (100.0, ""), "closed", PATIENCE)
            shadow.wait_for(500, PATIENCE)
            result = running.stop()
            until(lambda: production.requests() == result.answered, "the last at production")
            (done,) = daemon.ask(Stop(all=True))["stopped"]
            identity(done["ledger"])
        assert result.failed == 0


BOTS: Final = """
import socket, sys, time
for number in range(int(sys.argv[2])):
    agent = "bot" if number % 5 else "human"
    with socket.create_connection((sys.argv[1], 80), timeout=300) as sock:
        sock.sendall(f"GET /{number} HTTP/1.1\\r\\nHost: a\\r\\nUser-Agent: {agent}\\r\\n\\r\\n".encode())
        assert (sock.recv(100) == b"") is (agent == "bot")
    time.sleep(0.02)
"""
"""Four of five connections are of a client that gets no response."""


def test_a_shadow_that_dismisses_whom_production_does_is_well_and_one_that_answers_nobody_is_not(lab: Lab) -> None:
    with Nginx(lab.node, dismisses="bot"), Daemon(lab.node) as daemon:

        def seen() -> tuple[str, dict[str, Any]]:
            (tap,) = daemon.ask(Status())["taps"]
            ledger = tap["ledger"]
            return ledger.get("share", {}).get("reason", ""), ledger["shadows"][SHADOW]

        bots = ("python3", "-c", BOTS, lab.node.addr4)
        with Nginx(lab.shadow, dismisses="bot") as shadow:
            often = Limits(backoff_max=0.5)  # sixteen trials in a row take eight seconds
            daemon.ask(Start(taps=[web(budget=replace(CALM, retry=2.0), limits=often)]))
            lab.client.run([*bots, "300"])
            until(lambda: shadow.requests() == 300, "all at the shadow", PATIENCE)
            until(lambda: seen()[1]["events"].get("unanswered_alike") == 240, "what is excused", PATIENCE)
            reason, account = seen()
            assert reason == "" and account["answers"] == {"2xx": 60, "unanswered": 240}
            assert "connect_silent" not in account["events"] and not account["requests"]["dropped"]
            assert "event=share" not in daemon.said()
        daemon.ask(Stop(all=True))
        with RecordingTcp(lab.shadow, 80, Behaviour(reset_after=1)):
            daemon.ask(Start(taps=[web(budget=replace(CALM, retry=2.0), limits=often)]))
            lab.client.run([*bots, "600"])
            cause = "it breaks all connections off without a byte; tried again after 2 s"
            until(lambda: cause in daemon.said(), f"{cause} in {daemon.said()}")
            assert "responses are errors" not in daemon.said()


def test_of_two_shadows_the_one_that_answers_errors_is_spared(lab: Lab) -> None:
    """The other one gets everything, and this one all again when it is well."""
    two = (parse_shadow(SHADOW), parse_shadow("10.77.2.2:81"))
    with Daemon(lab.node) as daemon, under_load(lab, per_connection=10) as (production, shadow, running):
        daemon.ask(Start(taps=[web(shadows=two, protocol=Protocol.HTTP, budget=replace(CALM, retry=2.0))]))

        def seen() -> tuple[float, float, str]:
            (tap,) = daemon.ask(Status())["taps"]
            ledger = tap["ledger"]
            if ledger is None or "breaker" not in ledger["shadows"]["10.77.2.2:81"]:
                return 100.0, 100.0, "closed"
            bad = ledger["shadows"]["10.77.2.2:81"]
            return ledger["share"]["effective"], bad["effective"], bad["breaker"]

        with HashSink(lab.shadow, port=81, status=500) as bad:
            until(lambda: seen() == (100.0, 0.0, "open"), "open", PATIENCE)
            until(lambda: "at present 0 %, UNWELL: " in daemon.run("status").stdout, "the state", PATIENCE)
            before = len(bad.got), len(shadow.got)
            until(lambda: seen()[2] == "half-open", "half-open", PATIENCE)
            assert len(bad.got) - before[0] < (len(shadow.got) - before[1]) / 4, "a few connections at most"
        with HashSink(lab.shadow, port=81) as well:
            until(lambda: seen() == (100.0, 100.0, "closed"), "closed", PATIENCE)
            count = len(well.got)
            well.wait_for(count + 100, PATIENCE)
            running.stop()
            (done,) = daemon.ask(Stop(all=True))["stopped"]
            identity(done["ledger"])
            untorn(production, shadow)
            untorn(production, well)
        ledger = done["ledger"]["shadows"]
        assert ledger[SHADOW]["requests"]["sampled_out"] == 0
        assert ledger["10.77.2.2:81"]["requests"]["sampled_out"] > 100
        assert ledger[SHADOW]["requests"]["mirrored"] == len(shadow.got)
