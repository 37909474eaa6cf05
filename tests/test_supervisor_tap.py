# SPDX-License-Identifier: Apache-2.0
"""The privileged side of a tap: whoever dies, nothing stays; no mirroring to production; the worker is nobody."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from e2e.driven import SHADOW, driven, serve, spec
from e2e.mirror import PATIENCE, Mirror, Talker, connect, endpoint, read_until
from lab import Behaviour, HashSink, Host, Lab, RecordingTcp, Snapshot, identity, load, resident_kb, unchanged, until
from lab import Tap as Command
from lab.snapshot import network_programs, tree
from lab.tap import COMMAND
from tapmirror import privsep
from tapmirror.precedence import NICENESS
from tapmirror.spawn import how_ended
from tapmirror.spec import Budget, Capture, Compare, Limits, parse_shadow
from tapmirror.supervisor import patience, workers
from tapmirror.supervisor.addresses import Address
from tapmirror.supervisor.links import Hold
from tapmirror.supervisor.patience import Scheduled, _Look
from tapmirror.supervisor.sides import ENOUGH
from tapmirror.supervisor.tap import LAST_WAIT, Tap
from tapmirror.supervisor.workers import REPLY_TIME, LoopFound, TapError

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

WORKER_KB = 48_000
"""Memory of a worker that has mirrored nothing yet, with the ring that it maps."""
CAPTURES = ["ebpf", "packet"]
KILLED = f"the worker process ended ({how_ended(-signal.SIGKILL)})"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def bound(host: Host) -> list[str]:
    """Packet sockets of a host that are bound to an interface."""
    rows = [line.split() for line in host.read("packet").splitlines()[1:]]
    return [row[8] for row in rows if row[4] != "0"]


def one(tap: Command, module: str) -> int:
    """The pid of the tap's only process that runs this module."""
    (pid,) = (pid for pid, words in tap.processes().items() if module in words)
    return pid


def gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}/exe")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def exit_of(tap: Command, seconds: float = PATIENCE) -> int:
    until(lambda: not tap.running(), "the end", seconds)
    return int(tap._process.wait())


# --- what it says


@pytest.mark.parametrize("protocol", ["raw", "auto", "http"])
def test_a_short_run_says_too_that_clients_speak_tls(lab: Lab, protocol: str) -> None:
    hello = b"\x16\x03\x01\x00\x05hello"
    target = endpoint(lab.shadow.addr4, 7001)
    with (
        Talker(lab.node, 7000, lambda line: line.send(line.receive())),
        RecordingTcp(lab.shadow, 7001, Behaviour(echo=True)),
        Command(lab.node, port=7000, shadow=target, protocol=protocol) as tap,
    ):
        for _ in range(ENOUGH):
            with connect(lab.client, lab.node.addr4, 7000) as client:
                client.sendall(hello)
                read_until(client, hello)
        assert tap.stop()["events"]["flows_tls"] == ENOUGH
        assert tap.said().count("clients speak TLS here") == 1


# --- when one of them dies


@pytest.mark.parametrize(
    ("capture", "number", "line"),
    [
        ("ebpf", signal.SIGKILL, f"{KILLED}; another one starts in 0.1 s"),
        ("packet", signal.SIGKILL, f"{KILLED}; another one starts in 0.1 s"),
        # it is killed then: how it captures is not asked again
        ("ebpf", signal.SIGSTOP, "the worker process did not answer within 5 s; another one starts in 0.1 s"),
    ],
)
def test_a_worker_that_dies_is_replaced(lab: Lab, capture: str, number: int, line: str) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Mirror(lab.node, shadow=SHADOW, capture=capture) as tap:
        assert load(lab.client, lab.node.addr4, requests=10, connections=2).answered == 10
        shadow.wait_for(10)
        worker = one(tap, "tapmirror.worker")
        said = tap.said()
        os.kill(worker, number)
        until(lambda: gone(worker) and "tapmirror.worker" in "".join(tap.processes().values()), "another", PATIENCE)
        assert load(lab.client, lab.node.addr4, requests=10, connections=2).answered == 10
        shadow.wait_for(20, PATIENCE)
        lines = [text for text in tap.said().removeprefix(said).splitlines() if not text[:1].isdigit()]
        assert lines == [f"tapmirror: {line}"]
        ledger = tap.final()
    # What became of the first ten it may not have told; that there were twenty, the eBPF program's counters know.
    assert 10 <= ledger["requests"]["mirrored"] <= 20
    segments = ledger["segments"]
    assert segments["seen"] == segments["mirrored"] + segments["dropped"].get("worker_lost", 0)
    assert segments["seen"] == 20 if capture == "ebpf" else 10 <= segments["seen"] <= 20
    assert (len(shadow.got), shadow.bad) == (20, [])
    assert ledger["worker"]["restarts"] == 1


@pytest.mark.apart
@pytest.mark.parametrize("capture", CAPTURES)
def test_when_the_supervisor_is_killed_the_worker_drains_and_goes(lab: Lab, capture: str) -> None:
    programs = set(network_programs())
    late = f"shadow: {{to: '{SHADOW}', connect_time: {PATIENCE}}}, limits: {{drain_time: {PATIENCE}}}"
    text = f"{{iface: eth0, port: 80, capture: {capture}, {late}}}"
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Command(lab.node, spec=text) as tap:
        worker = one(tap, "tapmirror.worker")
        with lab.shadow.blocked(80):
            # on one connection: another one that is begun a second later is not even tried
            assert load(lab.client, lab.node.addr4, requests=60, connections=1).answered == 60
            tap.kill()
            if capture == "ebpf":
                until(lambda: not bound(lab.node), "detached though the worker still drains")
                assert not gone(worker)
        shadow.wait_for(60, PATIENCE)
        until(lambda: gone(worker), "the worker's end", PATIENCE)
        until(lambda: not bound(lab.node) and set(network_programs()) <= programs, "nothing is attached")
        assert len(shadow.got) == 60 and shadow.bad == []
        assert "Traceback" not in tap.said()


@pytest.mark.parametrize("capture", CAPTURES)
def test_when_the_supervisor_is_killed_the_worker_does_not_wait_for_ever(lab: Lab, capture: str) -> None:
    limits = Limits(drain_time=1.0)
    spec = (
        f"{{iface: eth0, port: 80, shadow: {SHADOW}, capture: {capture}, limits: {{drain_time: {limits.drain_time}}}}}"
    )
    with HashSink(lab.node), HashSink(lab.shadow), Command(lab.node, spec=spec) as tap:
        worker = one(tap, "tapmirror.worker")
        with lab.shadow.blocked(80):
            assert load(lab.client, lab.node.addr4, requests=60, connections=6).answered == 60
            tap.kill()
            until(lambda: gone(worker), "the worker's end", PATIENCE)
        assert bound(lab.node) == []
        assert "Traceback" not in tap.said()


@pytest.mark.apart
@pytest.mark.parametrize("moment", ["tapmirror.loader", "tapmirror.worker"])
def test_a_supervisor_that_is_killed_at_the_start_leaves_nothing(lab: Lab, tmp_path: Path, moment: str) -> None:
    programs = set(network_programs())
    errors_read, errors_write = os.pipe()
    with HashSink(lab.shadow), os.fdopen(errors_read) as errors:
        command = [str(COMMAND), "run", "--iface=eth0", "--port=80", f"--shadow={SHADOW}"]
        family: dict[int, str] = {}

        def met(folder: Path) -> bool:
            """Start it, and kill it when one of the family runs this; or when that is over, and nobody had looked."""
            # nothing is compiled yet: the loader of a program that is there already is gone before one has looked
            fresh = {"CACHE_DIRECTORY": str(folder)}
            process = lab.node.popen(command, env=fresh, stderr=errors_write, start_new_session=True)

            def seen() -> bool:
                family.update(tree(process.pid))
                return any(moment in words for words in family.values())

            until(lambda: seen() or bool(bound(lab.node)), moment)  # it compiles, and other tests run
            process.kill()
            lab.node.stop(process)
            return any(moment in words for words in family.values())

        until(lambda: met(Path(tempfile.mkdtemp(dir=tmp_path))), moment)
        os.close(errors_write)
        until(lambda: all(gone(pid) for pid in family), "all gone", PATIENCE)
        until(lambda: not bound(lab.node) and set(network_programs()) <= programs, "nothing is attached")
        assert "Traceback" not in errors.read()


def test_two_taps_do_not_know_of_each_other(lab: Lab) -> None:
    other = endpoint(lab.shadow.addr4, 81)
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, HashSink(lab.shadow, 81) as second:
        with Mirror(lab.node, shadow=SHADOW) as tap:
            with Command(lab.node, shadow=other) as victim:
                assert load(lab.client, lab.node.addr4, requests=30, connections=3).answered == 30
                shadow.wait_for(30)
                second.wait_for(30)
                victim.kill()
            assert load(lab.client, lab.node.addr4, requests=30, connections=3).answered == 30
            shadow.wait_for(60)
            assert tap.final()["requests"]["mirrored"] == 60
        assert len(second.got) == 30


# --- who they are


@pytest.mark.parametrize("capture", CAPTURES)
def test_the_worker_has_no_privilege_and_holds_little(lab: Lab, capture: str) -> None:
    with HashSink(lab.shadow), Command(lab.node, shadow=SHADOW, capture=capture) as tap:
        worker = one(tap, "tapmirror.worker")
        uid, gid = privsep.worker_identity()
        found = status(worker)
        assert uid != 0
        assert (set(found["Uid"].split()), set(found["Gid"].split())) == ({str(uid)}, {str(gid)})
        assert found["Groups"] == ""
        assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == "2"  # SECCOMP_MODE_FILTER
        assert os.readlink(f"/proc/{worker}/cwd") == "/"
        assert Path(f"/proc/{worker}/fd").stat().st_uid == 0  # not dumpable: not its own user's
        limits = Path(f"/proc/{worker}/limits").read_text()
        for name in ("Max core file size", "Max processes", "Max file size"):
            assert limits.partition(name)[2].split()[:2] == ["0", "0"]
        assert int(limits.partition("Max data size")[2].split()[0]) == Limits().memory
        assert Path(f"/proc/{worker}/oom_score_adj").read_text() == "1000\n"
        niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))  # whatever the tests run at
        assert os.getpriority(os.PRIO_PROCESS, worker) == niceness
        session = Path(f"/proc/{worker}/autogroup")  # of CONFIG_SCHED_AUTOGROUP
        assert not session.exists() or session.read_text().endswith(f"nice {niceness}\n")
        assert int(limits.partition("Max open files")[2].split()[0]) <= Limits().connections + 64
        files = {number: os.readlink(f"/proc/{worker}/fd/{number}") for number in os.listdir(f"/proc/{worker}/fd")}
        assert len(files) <= 12, files
        kinds = {name.partition("[")[0] for number, name in files.items() if int(number) > 2}
        kinds.remove(f"/proc/{worker}/statm")
        assert kinds == {"anon_inode:", "socket:"} | ({"anon_inode:bpf-map"} if capture == "ebpf" else set()), files
        maps = {
            line
            for number in files
            for line in Path(f"/proc/{worker}/fdinfo/{number}").read_text().splitlines()
            if line.startswith("map_id:")
        }
        assert len(maps) == (3 if capture == "ebpf" else 0)  # ring, counters, wants; not the configuration
        inodes = {name[8:-1] for name in files.values() if name.startswith("socket:[")}
        assert bool(inodes & set(bound(lab.node))) == (capture == "packet")


@pytest.mark.parametrize("capture", CAPTURES)
def test_when_it_runs_nobody_has_the_compiler(lab: Lab, capture: str) -> None:
    with HashSink(lab.shadow), Command(lab.node, shadow=SHADOW, capture=capture) as tap:
        assert len(tap.processes()) == 2
        for pid in tap.processes():
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "LLVM" not in maps and "libbcc" not in maps and "libclang" not in maps


@pytest.mark.parametrize("capture", CAPTURES)
def test_the_workers_memory_after_the_start(
    lab: Lab, capture: str, record_property: Callable[[str, object], None]
) -> None:
    with HashSink(lab.shadow), Command(lab.node, shadow=SHADOW, capture=capture) as tap:
        size = resident_kb(one(tap, "tapmirror.worker"))
        record_property("worker_kb", size)
        assert size < WORKER_KB
        told = tap.stop()["worker"]["rss_kb"]
    assert abs(told - size) < 4_000


# --- the shadow at the start


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("reason", ["refused", "timed out"])
def test_without_a_shadow_it_warns_and_mirrors_later(lab: Lab, capture: str, reason: str) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(HashSink(lab.node))
        if reason == "timed out":
            blocked = stack.enter_context(contextlib.ExitStack())
            blocked.enter_context(lab.shadow.blocked(80))
        tap = stack.enter_context(Command(lab.node, shadow=SHADOW, capture=capture))
        warnings = [line for line in tap.said().splitlines() if line.startswith("tapmirror: the shadow")]
        assert len(warnings) == 1
        assert "the shadow 10.77.2.2 port 80 cannot be reached yet (" in warnings[0] and reason in warnings[0]
        assert warnings[0].endswith("mirroring begins when it can")
        assert load(lab.client, lab.node.addr4, requests=5, connections=1).answered == 5
        if reason == "timed out":
            blocked.close()
        shadow = stack.enter_context(HashSink(lab.shadow))

        def mirrors() -> bool:
            assert load(lab.client, lab.node.addr4, requests=5, connections=5).answered == 5
            return bool(shadow.got)

        until(mirrors, "mirroring", PATIENCE)
        begun = len(shadow.got)
        assert load(lab.client, lab.node.addr4, requests=20, connections=4).answered == 20
        shadow.wait_for(begun + 20)
        ledger = tap.stop()
        identity(ledger)
        assert len(shadow.wait_for(ledger["requests"]["mirrored"])) == ledger["requests"]["mirrored"]
        assert shadow.bad == []


def test_the_probe_sends_nothing(lab: Lab) -> None:
    with RecordingTcp(lab.shadow, 80) as shadow, Command(lab.node, shadow=SHADOW) as tap:
        shadow.wait_ended(1)
        tap.stop()
        assert [(each.length, each.end) for each in shadow.records] == [(0, "eof")]


LOOPS = {
    # the interface, where the client's or the node's address translation leads the shadow's address back
    "by the client": "eth0",
    "by the node": "lo",
    "by the client, without the mark": "eth0",
}


@contextlib.contextmanager
def leads_back(lab: Lab, way: str) -> Iterator[str]:
    """While it lasts, connections to this end point arrive at production; nothing in its address tells."""
    address = "10.99.9.9"
    if way.startswith("by the client"):
        lab.node.run(["ip", "route", "add", address, "via", lab.client.addr4])
        lab.client.sysctl("ipv4.ip_forward", 1)
        host, hook = lab.client, "prerouting"
        after = "add chain ip loop post { type nat hook postrouting priority 100; }; add rule ip loop post masquerade"
        if way.endswith("without the mark"):
            after += "; add chain ip loop clear { type filter hook forward priority 0; }"
            after += "; add rule ip loop clear ip dscp set cs0"
    else:
        lab.node.run(["ip", "route", "add", address, "via", lab.shadow.addr4])
        host, hook, after = lab.node, "output", ""
    chain = f"add table ip loop; add chain ip loop pre {{ type nat hook {hook} priority -100; }}"
    rule = f"add rule ip loop pre ip daddr {address} tcp dport 8080 dnat to {lab.node.addr4}:80"
    try:
        host.run(["nft", f"{chain}; {rule}; {after}".rstrip("; ")])
        yield f"{address}:8080"
    finally:
        host.run(["nft", "delete table ip loop"], check=False)
        lab.node.run(["ip", "route", "del", address])


@pytest.mark.apart
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("way", LOOPS)
@pytest.mark.parametrize("production", ["listens", "is down", "does not accept"])
def test_a_shadow_that_leads_back_to_production_is_refused(lab: Lab, capture: str, way: str, production: str) -> None:
    with contextlib.ExitStack() as stack:
        if production != "is down":
            stack.enter_context(HashSink(lab.node))
        if production == "does not accept":
            stack.enter_context(lab.node.blocked(80))
        shadow = stack.enter_context(leads_back(lab, way))
        before = Snapshot.of(lab.node)
        words = ["--iface", LOOPS[way], "--port=80", f"--shadow={shadow}", f"--capture={capture}", "--duration=0.2"]
        done = lab.node.run([str(COMMAND), "run", *words], check=False)
        unchanged(lab.node, before)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("tapmirror: error: --shadow: connections to it arrive at the tap")
    assert done.stdout == ""


# --- as a library: `Tap`


def descriptors() -> dict[str, str]:
    """Our own open files, without the one that lists them."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


@pytest.mark.apart
@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"iface": "eth7"}, "no interface 'eth7' here"),
        ({"shadow": "no-such-host.invalid:80"}, "cannot resolve"),
        ({"shadow": "localhost:80"}, "is this host's own address and port"),
        ({"addrs": ("10.77.1.9",)}, "10.77.1.9 is not an address of this host"),
        ({"shadow": "224.0.0.1:81"}, "is not the address of one host"),
        ({"loop": True, "capture": Capture.EBPF}, "it leads back to production"),
        ({"loop": True, "capture": Capture.PACKET}, "it leads back to production"),
    ],
    ids=str,
)
def test_a_start_that_fails_leaves_nothing(lab: Lab, change: dict[str, Any], wanted: str) -> None:
    warnings: list[str] = []
    with contextlib.ExitStack() as stack:
        if change.get("loop"):
            stack.enter_context(HashSink(lab.node))
            change = {**change, "shadow": stack.enter_context(leads_back(lab, "by the client"))}
            del change["loop"]
        before = descriptors(), Snapshot.of(lab.node)
        tap = Tap(spec(**change), warnings.append, print)
        with lab.node.enter(), pytest.raises(TapError) as caught:
            tap.start()
        assert wanted in str(caught.value) and "\n" not in str(caught.value)
        unchanged(lab.node, before[1])
        until(lambda: descriptors() == before[0], "the servers' ends of the probe's connections are closed as well")
        tap.close()  # once more does no harm
    assert warnings == []


def test_what_a_name_gets_while_nothing_is_captured_is_probed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused, or without an interface: what comes back would not be seen."""
    old, new = ((socket.AF_INET, (f"192.0.2.{last}", 80)) for last in (1, 2))
    probed: list[Address] = []

    class Over:
        """A probe of which all is known at once."""

        failure = None

        def __init__(self, addresses: list[Address], seq: int) -> None:
            probed.extend(addresses)

        def over(self) -> bool:
            return True

        def close(self) -> None:
            pass

    tap = Tap(spec(), print, print)
    monkeypatch.setattr("tapmirror.supervisor.probing.Probe", Over)
    monkeypatch.setattr("tapmirror.supervisor.tap.refused", lambda spec, index, addresses: None)
    monkeypatch.setattr(tap, "_addresses", [[old]])
    monkeypatch.setattr(tap._probing, "_arrived", lambda: probed.count(new))
    monkeypatch.setattr(tap, "_blind", lambda: False)
    assert not tap._probe(0.0) and tap._probe(1.0) and tap._probe(2.0)
    monkeypatch.setattr(tap, "_blind", lambda: True)
    assert tap._refusal_of_move(0, [new]) is None
    monkeypatch.setattr(tap, "_addresses", [[new]])
    assert tap._probe(3.0)
    assert probed == [old]
    monkeypatch.setattr(tap, "_blind", lambda: False)
    assert not tap._probe(4.0)
    with pytest.raises(TapError, match="leads back"):
        tap._probe(5.0)
    assert probed == [old, new]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"percent": 0.0}, ["nothing is mirrored: percent is 0"]),
        ({"percent": 1.0}, []),
        ({"compare": Compare(noise_probe=5.0)}, ["compare.noise_probe: nothing is compared: set compare to a level"]),
    ],
)
def test_what_has_no_effect_is_said(lab: Lab, more: dict[str, Any], said: list[str]) -> None:
    warnings: list[str] = []
    with lab.node.enter():
        Tap(spec(**more), warnings.append, print).prepare()
    assert warnings == said


def test_memory_is_held_against_the_workers_that_auto_is_here(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapmirror.supervisor.tap.automatic", lambda: 3)
    warnings: list[str] = []
    with lab.node.enter():
        Tap(spec(workers="auto", budget=Budget(memory=100_000_000)), warnings.append, print).prepare()
    assert len(warnings) == 1 and "126 MiB that 3 workers hold" in warnings[0]


@pytest.mark.apart
@pytest.mark.parametrize("capture", CAPTURES)
def test_start_look_stop(lab: Lab, capture: str) -> None:
    warnings: list[str] = []
    with HashSink(lab.node), HashSink(lab.shadow) as shadow:
        before = Snapshot.of(lab.node)
        tap = Tap(spec(capture=Capture(capture), name="one"), warnings.append, print)
        with lab.node.enter():
            tap.start()
        assert tap.capture == capture
        assert len(bound(lab.node)) == 1
        assert load(lab.client, lab.node.addr4, requests=50, connections=5).answered == 50
        shadow.wait_for(50)
        looks = [tap.snapshot() for _ in range(20)]
        for ledger in looks:
            identity(ledger)
            assert (ledger["tap"], ledger["capture"]) == ("one", capture)
        assert select.select(tap.filenos(), [], [], 0)[0] == []
        final = tap.stop()
        identity(final)
        assert final["requests"]["mirrored"] == 50
        assert [final[unit]["in_flight"] for unit in ("segments", "bytes", "requests")] == [0, 0, 0]
        unchanged(lab.node, before)
        assert not any("bpf" in name for name in descriptors().values())
    assert warnings == []


@pytest.mark.parametrize("capture", CAPTURES)
def test_an_interface_that_cannot_be_captured_beside_others_is_told_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capture: str
) -> None:
    hold = Tap._hold

    def refuse(tap: Tap, name: str) -> Hold:
        if name == "eth1":
            raise OSError(errno.ENOSPC, "no room")
        return hold(tap, name)

    monkeypatch.setattr(Tap, "_hold", refuse)
    warnings: list[str] = []
    with driven(lab.node, warnings.append, iface="eth*", capture=Capture(capture)) as tap:
        assert tap.state == "running"
        tap._next_look = 0.0
        tap.service(time.monotonic())
        identity(tap.stop())
    assert [line for line in warnings if "eth" in line] == ["not captured: eth1: no room"]


@pytest.mark.parametrize("capture", CAPTURES)
def test_the_workers_death_is_readable_and_the_tap_goes_on(lab: Lab, capture: str) -> None:
    warnings: list[str] = []
    with HashSink(lab.shadow), driven(lab.node, warnings.append, capture=Capture(capture)) as tap:
        first = tap.snapshot()["worker"]["pid"]
        os.kill(first, signal.SIGKILL)
        assert select.select(tap.filenos(), [], [], PATIENCE)[0]
        identity(tap.snapshot())
        assert (tap.state, tap.state_reason) == ("restarting", KILLED)
        serve(tap, lambda: tap.state == "running", "the next")
        assert tap.snapshot()["worker"]["pid"] != first
        assert len(bound(lab.node)) == 1
        identity(tap.stop())
    assert warnings == [f"{KILLED}; another one starts in 0.1 s"]
    until(lambda: not bound(lab.node), "detached")


def test_one_that_dies_at_every_start_ends_the_tap(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FAILURES", 3)
    warnings: list[str] = []
    with HashSink(lab.shadow), driven(lab.node, warnings.append) as tap:
        while tap.state != "stopped":
            serve(tap, lambda: tap.state != "restarting", "its end")
            if tap.state == "running":
                os.kill(tap.snapshot()["worker"]["pid"], signal.SIGSEGV)
                serve(tap, lambda: tap.state != "running", "its death")
        why = "the worker process ended (signal 11) 3 times in a row; the tap is detached"
        assert tap.state_reason == why
        with pytest.raises(TapError, match=re.escape(why)):
            tap.snapshot()
        assert bound(lab.node) == []
        identity(tap.stop())
    assert [line.rpartition(" in ")[2] for line in warnings] == ["0.1 s", "0.2 s"]


@pytest.mark.parametrize("capture", CAPTURES)
def test_stop_keeps_to_the_time_for_draining(lab: Lab, capture: str) -> None:
    """Its own, which is longer than the default: that an end came sooner than another a busy host does not show."""
    limits = Limits(drain_time=Limits().drain_time + 0.5)
    late = parse_shadow(SHADOW, connect_time=PATIENCE)
    with HashSink(lab.node), HashSink(lab.shadow):
        taken = spec(capture=Capture(capture), limits=limits, shadows=(late,))
        tap = Tap(taken, lambda message: pytest.fail(message), print)
        with lab.node.enter():
            tap.start()
        try:
            with lab.shadow.blocked(80):
                assert load(lab.client, lab.node.addr4, requests=8, connections=1).answered == 8
                start = time.monotonic()
                ledger = tap.stop()
                took = time.monotonic() - start
        finally:
            tap.close()
    identity(ledger)
    assert ledger["requests"]["dropped"] == {"shutdown": 8}
    assert took > Limits().drain_time


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_pause_does_not_go_on_capturing_until_a_worker_answers(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capture: str
) -> None:
    captured: list[list[str]] = []
    with HashSink(lab.shadow), driven(lab.node, capture=Capture(capture)) as tap:
        monkeypatch.setattr(workers.WorkerSlot, "tell", lambda *_: captured.append(tap.interfaces()))
        tap.pause()
    assert captured == [[]]


def test_a_pause_does_not_wait_for_a_worker_without_a_cpu(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduled, "look", lambda _: _Look(time.monotonic(), b"R", (5, 5, 5)))
    warned: list[str] = []
    with driven(lab.node, warned.append) as tap:
        os.kill(tap.snapshot()["worker"]["pid"], signal.SIGSTOP)
        hurries = threading.Timer(1.0, tap.hurry)  # as who asks for it does, in another thread
        hurries.start()
        began = time.monotonic()
        tap.service(began + 2.0)
        tap.pause()
        assert time.monotonic() - began < patience.LONGEST
        hurries.join()
        assert "did not answer within 5 s; another one starts" in warned[-1]
        assert not tap._slots[0]._hurried, "the next one has the patience again"


def test_a_loop_ends_a_tap_whatever_became_of_who_found_it() -> None:
    tap = Tap(spec(), lambda message: pytest.fail(message), print)
    slot: Any = SimpleNamespace(lost="it died", loop=LoopFound(0, "10.0.0.1"), hurry=lambda: None)
    tap._slots = [slot]
    tap._end_if_lost()
    assert tap.loops
    assert "comes back to production" in tap.state_reason


def test_workers_that_do_not_end_share_the_time_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap(spec(), print, print)
    clock = SimpleNamespace(now=1000.0)
    waited: list[float] = []

    def drain(wait: float, *, comparison: bool) -> dict[str, Any]:
        waited.append(wait)
        clock.now += wait
        return {}

    slot: Any = SimpleNamespace(
        begin_drain=lambda comparison: None, drain=drain, loop=None, hurry=lambda: None, close=lambda wait: None
    )
    tap._slots = [slot] * 8
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(tap, "_with_facts", lambda parts: {"events": {}, "parts": len(parts)})
    monkeypatch.setattr(tap, "_tell", lambda events, links: None)
    assert tap.stop()["parts"] == 8
    assert sum(waited) <= 2 * spec().limits.drain_time + REPLY_TIME + 7 * LAST_WAIT < 45, "systemd's patience"
    assert min(waited) == LAST_WAIT


def test_an_end_amid_the_start_does_not_wait_for_a_worker_without_a_cpu(lab: Lab) -> None:
    tap = Tap(spec(), lambda message: pytest.fail(message), print)
    with lab.node.enter():
        tap.prepare()
        tap.detach()
        try:
            tap.start()
            assert [slot._hurried for slot in tap._slots] == [True]
        finally:
            tap.close()


def test_a_stop_does_not_wait_for_a_worker_without_a_cpu(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(Scheduled, "look", lambda _: _Look(time.monotonic(), b"R", (5, 5, 5)))
    with driven(lab.node, warnings.append, limits=Limits(drain_time=0.5)) as tap:
        os.kill(tap.snapshot()["worker"]["pid"], signal.SIGSTOP)
        stops = threading.Timer(1.0, tap.detach)  # as Ctrl-C does, while another thread waits for the worker
        stops.start()
        began = time.monotonic()
        with pytest.raises(TapError, match=r"^detached$"):
            tap.snapshot()
        identity(tap.stop())
        assert time.monotonic() - began < patience.LONGEST
        stops.join()


@pytest.mark.parametrize("capture", CAPTURES)
def test_an_interface_that_goes_down_and_up_is_mirrored_again(capture: str) -> None:
    with Lab() as lab, HashSink(lab.node), HashSink(lab.shadow) as shadow:
        node = lab.node
        with Mirror(node, shadow=SHADOW, capture=capture) as tap:
            assert load(lab.client, node.addr4, requests=10, connections=2).answered == 10
            shadow.wait_for(10)
            node.run(["ip", "link", "set", "eth0", "down"])
            node.run(["ip", "link", "set", "eth0", "up"])
            until(lambda: "state UP" in node.run(["ip", "link", "show", "eth0"]).stdout, "the link")
            assert tap.running()
            assert load(lab.client, node.addr4, requests=10, connections=2).answered == 10
            shadow.wait_for(20)
            assert tap.final()["requests"]["mirrored"] == 20


@pytest.mark.parametrize("capture", CAPTURES)
def test_an_interface_that_goes_away_does_not_break_the_end(lab: Lab, capture: str) -> None:
    lab.node.run(["ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1"])
    lab.node.run(["ip", "link", "set", "gone0", "up"])
    with HashSink(lab.shadow), Command(lab.node, shadow=SHADOW, capture=capture, iface="gone0") as tap:
        lab.node.run(["ip", "link", "del", "gone0"])
        identity(tap.stop())
        assert "Traceback" not in tap.said()


def test_a_client_in_conversation_is_not_disturbed_by_start_death_and_end(lab: Lab) -> None:
    with (
        Talker(lab.node, 80, lambda line: _echo(line.receive, line.send)),
        HashSink(lab.shadow),
        connect(lab.client, lab.node.addr4, 80) as client,
    ):

        def works(text: bytes) -> None:
            client.sendall(text + b"\n")
            assert read_until(client, b"\n") == text + b"\n"

        works(b"before")
        with Command(lab.node, shadow=SHADOW) as tap:
            works(b"while")
            tap.kill()
            works(b"killed")
        with Command(lab.node, shadow=SHADOW) as tap:
            os.kill(one(tap, "tapmirror.worker"), signal.SIGKILL)
            works(b"worker killed")
        works(b"after")


def _echo(receive: Callable[[], bytes], send: Callable[[bytes], None]) -> None:
    while data := receive():
        send(data)
