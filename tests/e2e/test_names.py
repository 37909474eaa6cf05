# SPDX-License-Identifier: Apache-2.0
"""Shadows by name, with a name server of the lab's: addresses change, go, hang, and turn to production's."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from e2e.mirror import PATIENCE, Mirror, connect, dropped, read_until
from lab import HashSink, Lab, LabError, NameServer, until

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

OLD, NEW = "10.77.2.2", "10.77.2.3"
BACK = "10.99.9.9"
"""Where connections come back to production, by the client's address translation."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        built.shadow.run(["ip", "addr", "add", f"{NEW}/24", "dev", "eth0"])
        yield built


def ends(lab: Lab) -> set[str]:
    """Addresses of the shadow at which a connection stands."""
    lines = lab.shadow.run(["ss", "-Htn", "state", "established", "sport", "=", "80"]).stdout.splitlines()
    return {line.split()[2].rpartition(":")[0].removeprefix("[::ffff:").removesuffix("]") for line in lines}


def test_a_name_that_changes(lab: Lab) -> None:
    """Scenario 34: new connections go where it points to; whatever fails, the old addresses stay; no wait."""
    spec = textwrap.dedent("""
        iface: eth0
        port: 80
        protocol: http
        shadow: {to: "shadow.test:80", resolve_every: 0.5}
    """)
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, NameServer(lab.node, [OLD]) as names:  # noqa: SIM117
        with Mirror(lab.node, spec=spec, wrapper=names.wrapper) as mirror:
            asked = 0

            def ask(client: object) -> None:
                """One request, which is at the shadow soon: nothing waits for names."""
                nonlocal asked
                asked += 1
                client.sendall(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % asked)  # type: ignore[attr-defined]
                assert read_until(client, b"ok\n")  # type: ignore[arg-type]
                began = time.monotonic()
                shadow.wait_for(asked, PATIENCE)
                assert time.monotonic() - began < 10.0

            def told(text: str, reply: list[str] | None) -> None:
                names.addresses = reply
                until(lambda: text in mirror.said(), text, PATIENCE)

            with connect(lab.client, lab.node.addr4, 80) as first:
                ask(first)
                assert ends(lab) == {OLD}
                told(f"shadow.test is at {NEW} now", [NEW])
                ask(first)
                assert ends(lab) == {OLD}
                with connect(lab.client, lab.node.addr4, 80) as second:
                    ask(second)
                    assert ends(lab) == {OLD, NEW}
            for text, reply in (
                ("shadow.test cannot be resolved again (no such name); its old addresses are kept", []),
                ("shadow.test cannot be resolved again (no answer within 0.5 s)", None),
                ("its old ones are kept", [lab.node.addr4]),
                ("its old ones are kept", [NEW, "10.77.2.1"]),
                ("shadow.test is resolved again", [NEW]),
            ):
                told(text, reply)
                with connect(lab.client, lab.node.addr4, 80) as client:
                    ask(client)
                    assert NEW in ends(lab)
            ledger = mirror.final()
            said = mirror.said()
    assert shadow.bad == [] and dropped(ledger) == {}
    assert ledger["requests"]["mirrored"] == asked == 8
    events = ledger["events"]
    assert events["names_changed"] == 1 and events["names_failed"] >= 2 and events["names_refused"] >= 1
    assert f"{lab.node.addr4} port 80 is this host's own address and port" in said
    told_of = [line for line in said.splitlines() if "shadow.test can" in line or "shadow.test is resolved" in line]
    assert all(a != b for a, b in pairwise(told_of))  # once, though it was asked for again and again


def test_a_shadow_that_moved_is_found(lab: Lab) -> None:
    """Its old address answers no more: what is dropped meanwhile has its reason, then it goes on."""
    spec = 'iface: eth0\nport: 80\nprotocol: http\nshadow: {to: "shadow.test:80", resolve_every: 0.5}\n'
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, NameServer(lab.node, ["10.77.2.9"]) as names:  # noqa: SIM117
        with Mirror(lab.node, spec=spec, wrapper=names.wrapper) as mirror:
            names.addresses = [NEW, OLD]
            until(lambda: "shadow.test is at " in mirror.said(), "the change", PATIENCE)
            sent = 0

            def arrived() -> bool:
                nonlocal sent
                sent += 1
                with connect(lab.client, lab.node.addr4, 80) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert read_until(client, b"ok\n")
                return bool(shadow.got)

            until(arrived, "a request at the new address", PATIENCE)
            ledger = mirror.final()
    assert ledger["requests"]["mirrored"] + ledger["requests"]["dropped"].get("shadow_down", 0) == sent


@contextlib.contextmanager
def leads_back(lab: Lab) -> Iterator[None]:
    """While it lasts, connections to BACK do."""
    lab.node.run(["ip", "route", "add", BACK, "via", lab.client.addr4])
    lab.client.sysctl("ipv4.ip_forward", 1)
    rules = [
        "add table ip back",
        "add chain ip back pre { type nat hook prerouting priority -100; }",
        f"add rule ip back pre ip daddr {BACK} tcp dport 80 dnat to {lab.node.addr4}:80",
        "add chain ip back post { type nat hook postrouting priority 100; }",
        "add rule ip back post masquerade",
    ]
    try:
        lab.client.run(["nft", "; ".join(rules)])
        yield
    finally:
        lab.client.run(["nft", "delete table ip back"], check=False)
        lab.node.run(["ip", "route", "del", BACK])


@pytest.mark.parametrize("addresses", [[BACK, OLD], [OLD, BACK]], ids=str)
def test_of_a_names_addresses_each_is_looked_at(lab: Lab, addresses: list[str]) -> None:
    with (
        leads_back(lab),
        HashSink(lab.node),
        HashSink(lab.shadow),
        NameServer(lab.node, addresses) as names,
        pytest.raises(LabError, match=r"status 2: .*it leads back to production"),
    ):
        Mirror(lab.node, shadow="shadow.test:80", wrapper=names.wrapper)


@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_a_name_that_comes_to_lead_back_keeps_its_old_addresses(lab: Lab, capture: str) -> None:
    spec = f'iface: eth0\nport: 80\ncapture: {capture}\nshadow: {{to: "shadow.test:80", resolve_every: 0.5}}\n'
    with leads_back(lab), HashSink(lab.node), HashSink(lab.shadow) as shadow, NameServer(lab.node, [OLD]) as names:  # noqa: SIM117
        with Mirror(lab.node, spec=spec, wrapper=names.wrapper) as mirror:
            names.addresses = [OLD, BACK]
            until(lambda: "it leads back to production); its old ones are kept" in mirror.said(), "refusal", PATIENCE)
            with connect(lab.client, lab.node.addr4, 80) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert read_until(client, b"ok\n")
                shadow.wait_for(1, PATIENCE)
            ledger = mirror.final()
    assert ledger["requests"]["mirrored"] == 1
    assert ledger["events"].get("names_changed", 0) == 0 and ledger["events"]["names_refused"] >= 1
