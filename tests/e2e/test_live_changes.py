# SPDX-License-Identifier: Apache-2.0
"""What happens to a tap under load: its workers die, its share changes, it is paused, its interface goes and comes."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from typing import Any, Final

import pytest

from e2e.driven import driven, serve, serve_for, serve_until_same
from e2e.mirror import PATIENCE
from lab import Behaviour, HashSink, Host, Lab, Load, LoadPlan, LoadResult, RecordingTcp, identity, until
from lab.snapshot import cpu_seconds
from tapmirror.spec import By, Capture, Limits, Protocol
from tapmirror.supervisor.tap import Tap

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

CAPTURES: Final = (Capture.EBPF, Capture.PACKET)
BODIES: Final = (0, 60_000, 3_000)


def heavy(lab: Lab, **more: Any) -> Load:
    """Load without an end: keep-alive connections, bodies of more than one segment."""
    options = {"requests": 10**9, "connections": 20, "rate": 300, "bodies": BODIES, **more}
    return Load(lab.client, LoadPlan(address=lab.node.addr4, **options))


def untorn(production: HashSink, shadow: HashSink) -> None:
    """Everything that the shadow took for a request is one that production got, byte by byte, and came once.

    A connection may end within a head, or before the server came to look at what it holds: no request is made of that.
    """
    assert [words for words in shadow.bad if " ended with " not in words] == []
    sent = {got.uri: (got.method, got.sha256) for got in production.got}
    whole = [got for got in shadow.got if got.whole]
    assert all(sent[got.uri] == (got.method, got.sha256) for got in whole)
    twice = [uri for uri, count in Counter(got.uri for got in whole).items() if count > 1]
    assert twice == []


def settle(tap: Tap, production: HashSink, running: Load) -> dict[str, Any]:
    """End the load, then the tap; the final ledger, which adds up and holds nothing."""
    return ended(tap, production, running.stop())


def ended(tap: Tap, production: HashSink, result: LoadResult) -> dict[str, Any]:
    """The same behind a load's end."""
    assert result.failed == 0
    until(lambda: len(production.got) >= result.answered, "the last at production", PATIENCE)
    ledger = tap.stop()
    identity(ledger)
    assert [ledger[unit]["in_flight"] for unit in ("segments", "bytes", "requests")] == [0, 0, 0]
    return ledger


@pytest.mark.parametrize("capture", CAPTURES)
def test_workers_that_die_under_load(lab: Lab, capture: Capture) -> None:
    """Nothing reaches the shadow twice or torn, and what was seen is accounted for across three of them."""
    warnings: list[str] = []
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with driven(lab.node, warnings.append, capture=capture, protocol=Protocol.HTTP) as tap:
            running = heavy(lab)
            for _ in range(3):
                ledger, count = tap.snapshot(), len(shadow.got)
                identity(ledger)
                serve(tap, lambda: len(shadow.got) > count + 100, "mirroring")  # noqa: B023
                os.kill(ledger["worker"]["pid"], signal.SIGKILL)
                serve(tap, lambda: tap.state == "restarting", "its death")
                identity(tap.snapshot())
                serve(tap, lambda: tap.state == "running", "the next")
                identity(tap.snapshot())
            ledger = settle(tap, production, running)
        untorn(production, shadow)
    assert ledger["worker"]["restarts"] == 3 == len(warnings)
    got = sum(each.whole for each in shadow.got)
    assert ledger["requests"]["mirrored"] <= got
    if capture is Capture.EBPF:  # whose counters outlive the worker
        assert ledger["bytes"]["dropped"]["worker_lost"] > 0
        sent = sum(len(each.head) + each.length for each in production.got)
        seen = ledger["bytes"]["seen"] - ledger["bytes"]["filtered"].get("duplicate", 0)
        assert sent <= seen <= sent * 1.01  # what was retransmitted while nobody read it is not known to be


def test_a_worker_that_needs_more_memory_than_it_may_have(lab: Lab) -> None:
    """It ends and is replaced; what it held is lost with it, and counted."""
    limits = Limits(memory=32 << 20, drain_time=0.5)
    warnings: list[str] = []
    with HashSink(lab.node) as production, RecordingTcp(lab.shadow, 80) as stalled:
        stalled.behaviour = Behaviour(read=False)
        with driven(lab.node, warnings.append, limits=limits, protocol=Protocol.HTTP) as tap:
            running = heavy(lab, bodies=(200_000,), rate=200)
            serve(tap, lambda: tap.snapshot()["worker"]["restarts"] > 0, "its end")
            result = running.stop()  # or the next ones end too, eight in a row where the host is busy
            serve(tap, lambda: tap.state == "running", "another")
            ledger = ended(tap, production, result)
    assert warnings[0] == "limits.memory: the worker needs more than 32 MiB; another one starts in 0.1 s"
    assert ledger["bytes"]["dropped"]["worker_lost"] > 5 << 20


@pytest.mark.parametrize(
    ("capture", "protocol"),
    [(Capture.EBPF, Protocol.HTTP), (Capture.PACKET, Protocol.HTTP), (Capture.EBPF, Protocol.RAW)],
)
def test_a_share_that_changes_under_load(lab: Lab, capture: Capture, protocol: Protocol) -> None:
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with driven(lab.node, capture=capture, protocol=protocol) as tap:
            running = heavy(lab, connections=40)  # so many that each share has some of them
            serve(tap, lambda: len(shadow.got) > 100, "mirroring")
            flows: list[int] = []
            for percent in (60.0, 20.0, 60.0, 100.0):
                tap.set_percent(percent)
                # in which each connection is used
                serve_until_same(tap, lambda: tap.snapshot()["flows"], production, 360)
                flows.append(tap.snapshot()["flows"])
                identity(tap.snapshot())
                assert tap.snapshot()["share"]["percent"] == percent
            if protocol is Protocol.HTTP:  # a raw stream cannot be joined
                count = len(shadow.got)
                serve(tap, lambda: len(shadow.got) > count + 100, "mirroring again")
            ledger = settle(tap, production, running)
        assert flows[1] < flows[0] < flows[3] == 40
        if protocol is Protocol.HTTP:
            assert flows[0] == flows[2]
            untorn(production, shadow)
            assert ledger["requests"]["mirrored"] == sum(got.whole for got in shadow.got)
        assert ledger["bytes"]["sampled_out"] > 0
        assert set(ledger["requests"]["dropped"]) <= {"share", "midstream"}


def test_share_and_throttle_multiply(lab: Lab) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, driven(lab.node, protocol=Protocol.HTTP) as tap:
        tap.set_percent(50.0)
        tap.throttle(0.5, "the ring fills")
        ledger = tap.snapshot()
        assert ledger["share"] == {"percent": 50.0, "effective": 25.0, "reason": "the ring fills"}
        result = Load(lab.client, LoadPlan(address=lab.node.addr4, requests=200, connections=200)).result()
        assert result.answered == 200
        serve(tap, lambda: tap.snapshot()["segments"]["seen"] == 200, "all of it")
        wanted = tap.snapshot()["segments"]["seen"] - tap.snapshot()["segments"]["sampled_out"]
        serve(tap, lambda: len(shadow.got) == wanted, "the share")
        assert 20 <= wanted <= 80
        identity(tap.stop())


@pytest.mark.parametrize("by", [{"by": By.REQUEST}, {"by": By.KEY, "key": "client"}, {"by": By.EXACT}], ids=str)
def test_a_share_of_requests_that_changes(lab: Lab, by: dict[str, Any]) -> None:
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with driven(lab.node, protocol=Protocol.HTTP, percent=100, **by) as tap:
            running = heavy(lab, rate=800, bodies=(10,))
            serve(tap, lambda: len(shadow.got) > 200, "mirroring")
            tap.set_percent(0)
            serve_until_same(tap, lambda: len(shadow.got), production, 150)
            count = len(shadow.got)
            serve_for(tap, 0.5)
            assert len(shadow.got) == count
            before = tap.snapshot()["requests"]["seen"]
            tap.set_percent(50)
            seen = tap.snapshot()["requests"]["seen"]
            serve(tap, lambda: tap.snapshot()["requests"]["seen"] > seen + 400, "some more")
            ledger = settle(tap, production, running)
        untorn(production, shadow)
    assert ledger["requests"]["dropped"] == {}
    more = len(shadow.got) - count
    assert by["by"] is By.KEY or 100 < more < 0.7 * (ledger["requests"]["seen"] - before)


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_pause_under_load(lab: Lab, capture: Capture) -> None:
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with driven(lab.node, capture=capture, protocol=Protocol.HTTP) as tap:
            running = heavy(lab)
            serve(tap, lambda: len(shadow.got) > 100, "mirroring")
            tap.pause()
            assert (tap.state, tap.snapshot()["share"]["effective"]) == ("paused", 0.0)
            serve_until_same(tap, lambda: len(shadow.got), production, 150)
            before, count = tap.snapshot(), len(shadow.got)
            identity(before)
            assert before["flows"] == 0
            serve_for(tap, 0.5)
            assert tap.snapshot()["segments"] == before["segments"] and len(shadow.got) == count
            tap.resume()
            serve(tap, lambda: len(shadow.got) > count + 100, "mirroring again")
            assert tap.state == "running"
            settle(tap, production, running)
        untorn(production, shadow)


@pytest.mark.parametrize("capture", CAPTURES)
def test_detached_by_another_thread(lab: Lab, capture: Capture) -> None:
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with driven(lab.node, capture=capture, protocol=Protocol.HTTP) as tap:
            running = heavy(lab)
            serve(tap, lambda: len(shadow.got) > 100, "mirroring")
            for _ in range(2):
                thread = threading.Thread(target=tap.detach)
                thread.start()
                thread.join()
            tap.service(0.0)
            assert tap.state == "stopped"
            count = len(production.got)
            until(lambda: len(production.got) > count + 200, "production goes on", PATIENCE)
            ledger = settle(tap, production, running)
        untorn(production, shadow)
    assert ledger["requests"]["seen"] < len(production.got) - 150


@pytest.mark.parametrize("capture", CAPTURES)
def test_an_interface_that_goes_and_comes(capture: Capture) -> None:
    """Down, up, deleted, made again; another takes its name; it is not there at the start."""
    with Lab() as lab, HashSink(lab.node, 80), HashSink(lab.shadow) as shadow:
        node, client = lab.node, lab.client

        def link(*words: str) -> None:
            node.run(["ip", *words])

        def make(name: str, four: str) -> None:
            link("link", "add", name, "type", "veth", "peer", "name", "peer0", "netns", str(client.pid))
            link("link", "set", name, "up")
            link("addr", "add", f"{four}.2/24", "dev", name)
            client.run(["ip", "link", "set", "peer0", "up"])
            client.run(["ip", "addr", "add", f"{four}.1/24", "dev", "peer0"])

        def mirrors(four: str) -> None:
            count = len(shadow.got)
            result = Load(client, LoadPlan(address=f"{four}.2", requests=10, connections=2))
            serve(tap, lambda: len(shadow.got) == count + 10, f"mirroring of {four}")
            assert result.result().failed == 0

        with driven(node, iface="tap0", capture=capture, wait_for_interface=True) as tap:
            assert (tap.state, tap.state_reason) == ("waiting", "no interface tap0")
            make("tap0", "10.78.1")
            serve(tap, lambda: tap.state == "running", "its coming")
            mirrors("10.78.1")
            link("link", "set", "tap0", "down")
            serve(tap, lambda: tap.state == "waiting", "its going down")
            assert tap.state_reason == "tap0 is down"
            worker = tap.snapshot()["worker"]["pid"]
            spent = cpu_seconds([worker])
            serve_for(tap, 0.5)
            assert cpu_seconds([worker]) - spent < 0.2  # ENETDOWN does not keep it busy
            link("link", "set", "tap0", "up")
            serve(tap, lambda: tap.state == "running", "its coming up")
            mirrors("10.78.1")
            link("link", "del", "tap0")
            serve(tap, lambda: tap.state_reason == "no interface tap0", "its end")
            assert tap.state == "waiting"
            make("tap0", "10.78.2")
            serve(tap, lambda: tap.state == "running", "its return")
            mirrors("10.78.2")
            link("link", "set", "tap0", "name", "old0")
            serve(tap, lambda: tap.state_reason == "no interface tap0", "its other name")
            client.run(["ip", "link", "set", "peer0", "name", "peer1"])
            link("link", "set", "old0", "up")
            seen = tap.snapshot()["segments"]["seen"]
            assert Load(client, LoadPlan(address="10.78.2.2", requests=5, connections=1)).result().answered == 5
            make("tap0", "10.78.3")
            serve(tap, lambda: tap.state == "running", "another of that name")
            mirrors("10.78.3")
            ledger = tap.snapshot()
            assert ledger["segments"]["seen"] == seen + 10 and ledger["worker"]["restarts"] == 0
            identity(tap.stop())


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("iface", ["any", "br0,eth*,veth*"])
def test_one_packet_at_several_interfaces_is_mirrored_once(lab: Lab, capture: Capture, iface: str) -> None:
    """The client's link is in a bridge of the node, with a veth to a container's namespace, where production is."""
    with Lab() as own:
        node, box = own.node, own.host("box")
        own.wire(node, "veth0", box, "eth0")
        node.run(["ip", "addr", "flush", "dev", "eth0"])
        node.run(["ip", "link", "add", "br0", "type", "bridge"])
        for name in ("eth0", "veth0"):
            node.run(["ip", "link", "set", name, "master", "br0"])
        node.run(["ip", "link", "set", "br0", "up"])
        node.run(["ip", "addr", "add", "10.77.1.2/24", "dev", "br0"])
        box.run(["ip", "addr", "add", "10.77.1.9/24", "dev", "eth0"])
        sinks = HashSink(node), HashSink(box), HashSink(own.shadow)
        with sinks[0] as here, sinks[1] as boxed, sinks[2] as shadow:
            addrs = ("10.77.1.2", "10.77.1.9", "127.0.0.1")
            with driven(node, iface=iface, capture=capture, addrs=addrs, protocol=Protocol.HTTP) as tap:
                for host, address in ((own.client, "10.77.1.2"), (own.client, "10.77.1.9"), (node, "10.77.1.9")):
                    plan = LoadPlan(address=address, requests=60, connections=6, bodies=(0, 20_000))
                    count = len(shadow.got)
                    running = Load(host, plan)
                    serve(tap, lambda: len(shadow.got) >= count + 60, f"mirroring of {address}")  # noqa: B023
                    assert running.result().answered == 60
                serve_for(tap, 0.3)
                ledger = tap.stop()
                identity(ledger)
            assert len(here.got) + len(boxed.got) == len(shadow.got) == ledger["requests"]["mirrored"] == 180
            assert shadow.bad == [] and ledger["requests"]["dropped"] == {}


@pytest.mark.parametrize("capture", CAPTURES)
def test_containers_of_a_bridge_by_their_veths(capture: Capture) -> None:
    """The bridge has a station address of its own, as those of container hosts do: no veth's is that of its gateway."""
    with Lab() as lab, HashSink(lab.shadow) as shadow:
        node = lab.node
        node.run(["ip", "link", "add", "br0", "address", "02:00:00:00:00:01", "type", "bridge"])
        node.run(["ip", "link", "set", "br0", "up"])
        node.run(["ip", "addr", "add", "172.17.0.1/24", "dev", "br0"])
        node.sysctl("ipv4.ip_forward", 1)
        lab.client.run(["ip", "route", "add", "172.17.0.0/24", "via", lab.node.addr4])
        addrs = ("172.17.0.2", "172.17.0.3")
        with driven(node, lambda _: None, iface="veth*", capture=capture, addrs=addrs, wait_for_interface=True) as tap:
            for number, address in enumerate(addrs):
                box = lab.host(f"box{number}")
                lab.wire(node, f"veth{number}", box, "eth0")
                node.run(["ip", "link", "set", f"veth{number}", "master", "br0"])
                box.run(["ip", "addr", "add", f"{address}/24", "dev", "eth0"])
                box.run(["ip", "route", "add", "default", "via", "172.17.0.1"])
                serve(tap, lambda: len(tap.interfaces()) == number + 1, "its coming")  # noqa: B023
                with HashSink(box):
                    count = len(shadow.got)
                    running = Load(lab.client, LoadPlan(address=address, requests=40, connections=4, per_connection=5))
                    serve(tap, lambda: len(shadow.got) == count + 40, f"mirroring of {address}")  # noqa: B023
                    assert running.result().failed == 0
            ledger = tap.stop()
        identity(ledger)
        assert ledger["requests"]["seen"] == ledger["requests"]["mirrored"] == len(shadow.got) == 80
        assert shadow.bad == []


@pytest.mark.parametrize("capture", CAPTURES)
def test_interfaces_that_come_and_go_under_a_pattern(lab: Lab, capture: Capture) -> None:
    """Beside `lo`, which is read in another way; one that goes does not take the others with it."""
    node, client = lab.node, lab.client
    with HashSink(node), HashSink(lab.shadow) as shadow, driven(node, iface="in*,lo", capture=capture) as tap:

        def mirrors(host: Host, address: str) -> None:
            count = len(shadow.got)
            running = Load(host, LoadPlan(address=address, requests=20, connections=2))
            serve(tap, lambda: len(shadow.got) == count + 20, f"mirroring of {address}")
            assert running.result().failed == 0

        for number in (1, 2):
            name = f"in{number}"
            lab.wire(node, name, client, name)
            for host, last in ((node, 2), (client, 1)):
                host.run(["ip", "addr", "add", f"10.79.{number}.{last}/24", "dev", name])
            serve(tap, lambda: name in tap.interfaces(), "its coming")  # noqa: B023
            mirrors(client, f"10.79.{number}.2")
            mirrors(node, "127.0.0.1")
        assert tap.interfaces() == ["in1", "in2", "lo"]
        node.run(["ip", "link", "del", "in1"])
        serve(tap, lambda: tap.interfaces() == ["in2", "lo"], "its end")
        mirrors(client, "10.79.2.2")
        mirrors(node, "127.0.0.1")
        node.run(["ip", "link", "del", "in2"])
        serve(tap, lambda: tap.interfaces() == ["lo"], "its end")
        assert shadow.bad == []
        identity(tap.stop())


@pytest.mark.parametrize("capture", CAPTURES)
def test_one_of_several_interfaces_that_is_missing_is_told(lab: Lab, capture: Capture) -> None:
    warnings: list[str] = []
    missing = "not captured: late0: no such interface"
    with HashSink(lab.shadow), driven(lab.node, warnings.append, iface="eth0,late0", capture=capture) as tap:
        assert (tap.state, tap.state_reason, warnings) == ("running", missing, [missing])
        lab.node.run(["ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1"])
        serve(tap, lambda: tap.interfaces() == ["eth0", "late0"], "its coming")
        assert (tap.state, tap.state_reason) == ("running", "")
        ledger = tap.stop()
        lab.node.run(["ip", "link", "del", "late0"])
    assert ledger["missing_s"].keys() == {"late0"} and ledger["away_s"] == 0.0


@pytest.mark.parametrize(("capture", "workers"), [(Capture.EBPF, 1), (Capture.PACKET, 1), (Capture.PACKET, 2)])
@pytest.mark.parametrize("fate", [signal.SIGCONT, signal.SIGKILL])
@pytest.mark.parametrize("returns", [False, True])
def test_what_waits_of_an_interface_that_is_gone_is_mirrored(
    lab: Lab, capture: Capture, workers: int, fate: signal.Signals, returns: bool
) -> None:
    """The workers are held up, or others take their places; another interface has the name by then, or none."""
    node, client = lab.node, lab.client

    def make(name: str, four: str) -> None:
        lab.wire(node, name, client, name)
        for host, last in ((node, 2), (client, 1)):
            host.run(["ip", "addr", "add", f"{four}.{last}/24", "dev", name])
        serve(tap, lambda: name in tap.interfaces(), "its coming")

    def sent(four: str) -> None:
        plan = LoadPlan(address=f"{four}.2", requests=40, connections=8)
        assert Load(client, plan).result().answered == 40

    def working() -> set[int]:
        ledger = tap.snapshot()
        return {each["pid"] for each in ledger.get("workers", [ledger["worker"]])}

    def decide() -> None:
        for pid in held:
            os.kill(pid, fate)

    with (
        HashSink(node),
        HashSink(lab.shadow) as shadow,
        driven(node, lambda _: None, iface="in*", capture=capture, workers=workers, wait_for_interface=True) as tap,
    ):
        make("in1", "10.79.1")
        make("in2", "10.79.2")
        sent("10.79.1")
        serve(tap, lambda: len(shadow.got) == 40, "mirroring")
        held = working()
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        sent("10.79.1")
        sent("10.79.2")
        node.run(["ip", "link", "del", "in1"])
        deciding = threading.Timer(0.7, decide)
        deciding.start()
        serve(tap, lambda: tap.interfaces() == ["in2"], "its end")
        if returns:
            make("in1", "10.79.3")
        deciding.join()
        serve(tap, lambda: fate is signal.SIGCONT or not held & working(), "others")
        if returns:
            sent("10.79.3")
            node.run(["ip", "link", "del", "in1"])
        node.run(["ip", "link", "del", "in2"])
        ledger = tap.stop()
    identity(ledger)
    count = 160 if returns else 120
    assert ledger["segments"]["seen"] == count
    if fate is signal.SIGCONT:
        assert ledger["requests"]["mirrored"] == len(shadow.got) == count
