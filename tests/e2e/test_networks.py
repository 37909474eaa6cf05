# SPDX-License-Identifier: Apache-2.0
"""Where the traffic passes and what else is there: links, addresses, firewalls, other programs, other taps, loops."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import bcc
import pytest
from pyroute2 import IPRoute
from scapy.all import IP, TCP, Ether, Raw

from e2e.mirror import PATIENCE, Line, Mirror, Talker, connect, dropped, endpoint
from lab import HashSink, Host, Lab, LabError, Nginx, Snapshot, Span, Tap, load, unchanged, until
from tapmirror import loader

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

CAPTURES = ("ebpf", "packet")


def agree(tap: Mirror, production: Nginx, shadow: Nginx, requests: int) -> None:
    """Shadow and production counted the same, and nothing was given up."""
    shadow.wait_for(requests, PATIENCE)
    ledger = tap.final()
    assert production.requests() == shadow.requests() == requests
    assert ledger["requests"]["mirrored"] == requests
    assert dropped(ledger) == {}


@pytest.mark.parametrize(
    ("capture", "options", "family"),
    [
        ("ebpf", {}, 4),
        ("packet", {}, 6),
        ("ebpf", {"offloads": False}, 6),
        ("packet", {"offloads": False}, 4),
        ("ebpf", {"mtu": 9000}, 4),
        ("packet", {"mtu": 9000}, 4),
        ("ebpf", {"mtu": 9000}, 6),
    ],
)
def test_each_link_and_family(capture: str, options: dict[str, int], family: int) -> None:
    with Lab(**options) as lab, Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:  # type: ignore[arg-type]
        address, target = (lab.node.addr4, lab.shadow.addr4) if family == 4 else (lab.node.addr6, lab.shadow.addr6)
        with Mirror(lab.node, shadow=endpoint(target, 80), capture=capture) as tap:
            for bodies in ((), (0, 3_000, 100_000)):  # GET, POST
                assert load(lab.client, address, requests=150, connections=10, bodies=bodies).failed == 0
            agree(tap, production, shadow, 300)


@pytest.mark.parametrize("capture", CAPTURES)
def test_loopback_shows_each_packet_once(lab: Lab, capture: str) -> None:
    with Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        target = endpoint(lab.shadow.addr4, 80)
        with Mirror(lab.node, shadow=target, capture=capture, iface="lo") as tap:
            for address in ("127.0.0.1", "::1", lab.node.addr4):
                assert load(lab.node, address, requests=100, connections=5, per_connection=10).failed == 0
            agree(tap, production, shadow, 300)
        events = tap.final()["events"]
        assert events["kernel_syn_ack"] == events["kernel_accepted"] >= 30  # production's packets too


@pytest.mark.parametrize(
    ("capture", "options"),
    [("ebpf", {"promisc": True}), ("packet", {"promisc": True}), ("packet", {"decap": True})],
    ids=["ebpf", "packet", "VXLAN"],
)
def test_on_a_mirror_port(capture: str, options: dict[str, Any]) -> None:
    """A tap on another host than production's, to which both directions come in; in VXLAN also in fragments."""
    with (
        Lab(offloads=False) as lab,
        Nginx(lab.node) as production,
        Span(lab, vxlan="decap" in options) as watcher,
        Nginx(watcher, 81) as shadow,
        Mirror(watcher, shadow="127.0.0.1:81", capture=capture, addr=lab.node.addr4, **options) as tap,
    ):
        for bodies in ((), (0, 3_000, 100_000)):
            assert load(lab.client, lab.node.addr4, requests=150, connections=10, bodies=bodies).failed == 0
        agree(tap, production, shadow, 300)


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_shadow_on_the_same_host_and_port(lab: Lab, capture: str) -> None:
    """Production on one loopback address, the shadow on another, the same port, the same interface."""
    counts = {"127.0.0.1": 0, "127.0.0.2": 0}

    def answering(address: str) -> Talker:
        def talk(line: Line) -> None:
            while line.receive_until(b"\r\n\r\n"):
                counts[address] += 1
                line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        return Talker(lab.node, 80, talk, address)

    with answering("127.0.0.1"), answering("127.0.0.2"):
        with Mirror(lab.node, shadow="127.0.0.2:80", capture=capture, iface="lo", addr="127.0.0.1") as tap:
            assert load(lab.node, "127.0.0.1", requests=200, connections=5, per_connection=10).failed == 0
            until(lambda: counts["127.0.0.2"] >= 200, "all at the shadow", PATIENCE)
            ledger = tap.final()
        assert set(counts.values()) == {200}
        assert dropped(ledger) == {}


@pytest.mark.parametrize("capture", CAPTURES)
def test_several_ports_and_only_these(lab: Lab, capture: str) -> None:
    with Nginx(lab.node, ports=(80, 81, 82)) as production, Nginx(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), port=(80, 82), capture=capture) as tap:
            for port in (80, 81, 82):
                assert load(lab.client, lab.node.addr4, port=port, requests=50, connections=5).failed == 0
            shadow.wait_for(100, PATIENCE)
            ledger = tap.final()
        assert (production.requests(), shadow.requests()) == (150, 100)
        assert ledger["requests"]["seen"] == 100


@pytest.mark.parametrize("capture", CAPTURES)
def test_what_a_firewall_or_nobody_answers_is_not_mirrored(lab: Lab, capture: str) -> None:
    with Nginx(lab.shadow) as shadow, HashSink(lab.shadow, 81) as other:
        target = endpoint(lab.shadow.addr4, 80)
        with Mirror(lab.node, shadow=target, capture=capture, protocol="raw") as tap:  # raw: opened when accepted
            with pytest.raises(ConnectionRefusedError), connect(lab.client, lab.node.addr4, 80):
                pass  # nothing listens
            with Nginx(lab.node), lab.node.blocked(80), lab.client.enter():
                sock = socket.socket()
                with sock:
                    sock.settimeout(1.5)
                    with pytest.raises(TimeoutError):
                        sock.connect((lab.node.addr4, 80))
            ledger = tap.final()
        assert shadow.requests() == 0
        assert other.connections == 0
        assert ledger["events"]["kernel_syn"] >= 2
        assert ledger["events"].get("shadow_connects", 0) == 0


@pytest.mark.parametrize("capture", CAPTURES)
def test_fast_open_where_the_client_has_a_response_before_its_handshake_is_seen(capture: str) -> None:
    """RFC 7413: production answers the SYN's data at once.  Bare acknowledgements are lost, as to a filter of them."""
    request, response, connections = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n", 5

    def serve() -> None:
        for _ in range(1 + connections):
            peer, _ = server.accept()
            with peer:
                while peer.recv(4096):
                    peer.sendall(response)

    def talk() -> None:
        with lab.client.enter():
            client = socket.socket()
        with client:
            client.sendto(request, socket.MSG_FASTOPEN, address)
            assert client.recv(4096) == response
            client.sendall(request)
            assert client.recv(4096) == response

    with Lab() as lab, Nginx(lab.shadow) as shadow:
        address = lab.node.addr4, 80
        for host in (lab.client, lab.node):
            host.sysctl("ipv4.tcp_fastopen", 3)
        with lab.node.enter():
            server = socket.create_server(address)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        thread = threading.Thread(target=serve)
        thread.start()
        talk()  # gets the cookie
        lab.client.run(["nft", "add table ip t; add chain ip t out { type filter hook output priority 0; }"])
        lab.client.run(["nft", "add rule ip t out tcp dport 80 tcp flags == ack meta length < 80 drop"])
        with server, Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as tap:
            for _ in range(connections):
                talk()
            shadow.wait_for(2 * connections, PATIENCE)
            thread.join(PATIENCE)
            events = tap.final()["events"]
        assert events["kernel_accepted"] == events["flows"] == connections


@pytest.mark.parametrize("capture", CAPTURES)
def test_who_writes_under_anothers_address_gets_nothing_to_the_shadow(lab: Lab, capture: str) -> None:
    """He does not see production's SYN-ACK, and has to guess its number: production refuses what he sends."""
    count = 100
    near, far = (host.json("ip", "-j", "link", "show", "eth0")[0]["address"] for host in (lab.client, lab.node))
    network = lab.client.addr4.rpartition(".")[0]
    lab.node.run(["ip", "neigh", "replace", f"{network}.77", "lladdr", near, "dev", "eth0"])
    forged = Ether(src=near, dst=far) / IP(src=f"{network}.77", dst=lab.node.addr4)
    with lab.client.enter():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with Nginx(lab.node) as production, Nginx(lab.shadow) as shadow, sock:
        sock.bind(("eth0", 0))
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as tap:
            for number in range(count):
                port = 20_000 + number
                sock.send(bytes(forged / TCP(sport=port, dport=80, flags="S", seq=1_000)))
                time.sleep(0.002)
                ack = number * ((1 << 32) // count)  # a quarter of them is within 1 GiB of it
                segment = TCP(sport=port, dport=80, flags="PA", seq=1_001, ack=ack)
                sock.send(bytes(forged / segment / Raw(b"GET / HTTP/1.1\r\nHost: forged\r\n\r\n")))
            assert load(lab.client, lab.node.addr4, requests=20, connections=20, per_connection=1).failed == 0
            shadow.wait_for(20, PATIENCE)
            ledger = tap.final()
        assert (production.requests(), shadow.requests()) == (20, 20)
        assert ledger["events"]["kernel_syn_ack"] >= count
        assert ledger["events"]["kernel_accepted"] == ledger["requests"]["seen"] == 20


FOREIGN = b"""
BPF_ARRAY(seen, u64, 2);
int classify(struct __sk_buff *skb) { int i = 0; seen.increment(i); return -1; }
int express(struct xdp_md *frame) { int i = 1; seen.increment(i); return XDP_PASS; }
"""


@contextlib.contextmanager
def programs_of_others(host: Host) -> Iterator[Any]:
    """A tc and an XDP program on eth0 that count packets; their table."""
    with pytest.MonkeyPatch.context() as patch, loader.headers() as view:
        if view is not None:
            patch.setenv("BCC_KERNEL_SOURCE", view)
        programs = bcc.BPF(text=FOREIGN)
        classify = programs.load_func(b"classify", bcc.BPF.SCHED_CLS)
        express = programs.load_func(b"express", bcc.BPF.XDP)
    with host.enter(), IPRoute() as netlink:
        index = netlink.link_lookup(ifname="eth0")[0]
        netlink.tc("add", "clsact", index)
        try:
            netlink.tc(
                "add-filter", "bpf", index, ":1", fd=classify.fd, name="other", parent="ffff:fff2", direct_action=True
            )
            netlink.link("set", index=index, xdp_fd=express.fd)
            yield programs[b"seen"]
        finally:
            netlink.link("set", index=index, xdp_fd=-1)
            netlink.tc("del", "clsact", index)
            programs.cleanup()


@pytest.mark.apart
def test_two_taps_and_programs_of_others_on_one_interface(lab: Lab) -> None:
    """Each tap gets everything; what is attached there before stays and works."""
    node = lab.node
    with programs_of_others(node) as seen, Nginx(node) as production, Nginx(lab.shadow, ports=(80, 81)) as shadow:
        before = Snapshot.of(node)
        with (
            Mirror(node, shadow=endpoint(lab.shadow.addr4, 80), capture="ebpf") as one,
            Mirror(node, shadow=endpoint(lab.shadow.addr4, 81), capture="ebpf") as two,
        ):
            assert load(lab.client, node.addr4, requests=500, connections=10).failed == 0
            shadow.wait_for(1_000, PATIENCE)
            ledgers = one.final(), two.final()
        assert (production.requests(), shadow.requests()) == (500, 1_000)
        assert all(ledger["requests"]["mirrored"] == 500 for ledger in ledgers)
        assert all(count.value >= 500 for count in seen.values())
        unchanged(node, before)


@pytest.mark.parametrize("capture", CAPTURES)
def test_two_taps_that_mirror_to_each_other_make_no_loop(lab: Lab, capture: str) -> None:
    """A to B and B to A: each sees the client's requests once, and the other's copies are not copied."""
    with Nginx(lab.node) as a, Nginx(lab.shadow) as b:
        with (
            Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as there,
            Mirror(lab.shadow, shadow=endpoint("10.77.2.1", 80), capture=capture) as back,
        ):
            assert load(lab.client, lab.node.addr4, requests=200, connections=4, per_connection=20).failed == 0
            b.wait_for(200, PATIENCE)
            forth, again = there.final(), back.final()
        assert (a.requests(), b.requests()) == (200, 200)
        assert forth["requests"]["mirrored"] == 200
        assert again["requests"]["seen"] == 0
        assert again["bytes"]["filtered"]["loop"] == again["bytes"]["seen"] > 0


@pytest.mark.parametrize("shadow", ["10.77.1.2:80", "127.0.0.1:80", "[::ffff:10.77.1.2]:80", "10.77.2.1:80"])
def test_a_shadow_that_is_production_is_refused(lab: Lab, shadow: str) -> None:
    with Nginx(lab.node) as production:
        with pytest.raises(LabError, match=r"error: --shadow: .*(production|own address and port)"):
            Tap(lab.node, shadow=shadow)
        assert production.requests() == 0


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_shadow_that_address_translation_leads_back_is_refused(lab: Lab, capture: str) -> None:
    node, shadow = lab.node, lab.shadow
    shadow.run(["nft", "add table ip back; add chain ip back pre { type nat hook prerouting priority -100; }"])
    shadow.run(["nft", "add rule ip back pre tcp dport 8080 dnat to 10.77.2.1:80"])
    shadow.run(["nft", "add chain ip back post { type nat hook postrouting priority 100; }"])
    shadow.run(["nft", "add rule ip back post masquerade"])
    shadow.sysctl("ipv4.ip_forward", 1)
    try:
        with Nginx(node) as production:
            with pytest.raises(LabError, match="leads back to production"):
                Mirror(node, shadow=endpoint(shadow.addr4, 8080), capture=capture, iface="eth1")
            assert production.requests() == 0
    finally:
        shadow.run(["nft", "delete table ip back"])
        shadow.sysctl("ipv4.ip_forward", 0)


@pytest.mark.parametrize("capture", CAPTURES)
def test_production_on_many_addresses_through_a_bridge_is_mirrored_once(capture: str) -> None:
    """The client's link is a port of a bridge; the tap is on the bridge. IPv4, IPv6 and link-local clients."""
    with Lab() as lab, Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        node = lab.node
        node.run(["ip", "link", "add", "br0", "type", "bridge"])
        node.run(["ip", "addr", "flush", "dev", "eth0"])
        node.run(["ip", "link", "set", "eth0", "master", "br0"])
        node.run(["ip", "link", "set", "br0", "up"])
        node.run(["ip", "addr", "add", "10.77.1.2/24", "dev", "br0"])
        node.run(["ip", "addr", "add", "10.77.1.99/24", "dev", "br0"])
        node.run(["ip", "addr", "add", "fd77:1::2/64", "dev", "br0", "nodad"])
        with Mirror(node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture, iface="br0") as tap:
            for address in ("10.77.1.2", "10.77.1.99", "fd77:1::2"):
                assert load(lab.client, address, requests=100, connections=4, per_connection=10).failed == 0
            agree(tap, production, shadow, 300)


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_tuple_that_is_used_again_at_once_mixes_nothing(lab: Lab, capture: str) -> None:
    """The same client port, connection after connection, ended by RST; every second ends unseen by the tap's peer."""
    count = 60
    with HashSink(lab.node) as production, HashSink(lab.shadow) as shadow:
        with Mirror(lab.node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as tap:
            for number in range(count):
                with lab.client.enter():
                    sock = socket.socket()
                with sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    sock.settimeout(PATIENCE)
                    sock.bind(("", 30_000))
                    sock.connect((lab.node.addr4, 80))
                    sock.sendall(b"GET /%d HTTP/1.1\r\nHost: %d.test\r\n\r\n" % (number, number))
                    assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
                    if number % 2:
                        sock.sendall(b"GET /half HTTP/1.1\r\nX: ")
            shadow.wait_for(count, PATIENCE)
            ledger = tap.final()
        assert [got.uri for got in shadow.got if got.whole] == [f"/{n}" for n in range(count)]
        assert {got.head for got in shadow.got} == {got.head for got in production.got}
        assert ledger["requests"]["mirrored"] == count
        assert set(dropped(ledger).get("bytes", {})) <= {"incomplete"}
        assert shadow.bad == []


@pytest.mark.parametrize("capture", CAPTURES)
def test_multipath_tcp_is_left_out_and_plain_tcp_to_the_same_server_is_not(lab: Lab, capture: str) -> None:
    """With two paths, of which each has pieces of a request."""
    client, node = lab.client, lab.node

    def talk(line: Line) -> None:
        while line.receive_until(b"end\r\n"):
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    for host in (client, node):
        with contextlib.suppress(FileNotFoundError):
            host.sysctl("mptcp.enabled", 1)
        host.run(["ip", "mptcp", "limits", "set", "subflow", "1", "add_addr_accepted", "1"], check=False)
    client.run(["ip", "addr", "add", "10.77.1.11/24", "dev", "eth0"])
    try:
        client.run(["ip", "mptcp", "endpoint", "add", "10.77.1.11", "dev", "eth0", "subflow"], check=False)
        try:
            production = Talker(node, 80, talk, multipath=True)
        except OSError:
            pytest.skip("no Multipath TCP in this kernel")
        with (
            production,
            HashSink(lab.shadow) as shadow,
            Mirror(node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture) as tap,
        ):
            for number in range(8):
                with client.enter():  # a socket stays in the network that it was made in
                    sock = socket.socket(proto=socket.IPPROTO_MPTCP if number % 2 else 0)
                with contextlib.closing(sock):
                    sock.settimeout(PATIENCE)
                    sock.connect((node.addr4, 80))
                    for size in (10, 2_000_000):
                        body = bytes(size - 5) + b"end\r\n"
                        sock.sendall(b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (number, size))
                        sock.sendall(body)
                        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
            shadow.wait_for(8, PATIENCE)
            ledger = tap.final()
        assert sorted(got.uri for got in shadow.got) == sorted(f"/{n}" for n in (0, 2, 4, 6) for _ in range(2))
        assert ledger["requests"]["mirrored"] == ledger["requests"]["seen"] == 8
        assert set(dropped(ledger)) == {"segments", "bytes"}
        assert set(dropped(ledger)["bytes"]) == {"multipath"}
        assert dropped(ledger)["bytes"]["multipath"] >= 4 * 2_000_000
        assert shadow.bad == []
    finally:
        client.run(["ip", "mptcp", "endpoint", "flush"], check=False)
        client.run(["ip", "addr", "del", "10.77.1.11/24", "dev", "eth0"])


ONE_SIDED = "side is seen, and nothing of its clients"


@pytest.mark.parametrize("capture", CAPTURES)
def test_at_a_port_of_a_bridge_it_is_told_that_clients_are_not_seen(capture: str) -> None:
    """Their frames are for the bridge's station.  Of bridge and port together each is seen once."""
    with Lab() as lab, Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        node = lab.node
        node.run(["ip", "link", "add", "br0", "address", "02:00:00:00:00:01", "type", "bridge"])
        node.run(["ip", "addr", "flush", "dev", "eth0"])
        node.run(["ip", "link", "set", "eth0", "master", "br0"])
        node.run(["ip", "link", "set", "br0", "up"])
        node.run(["ip", "addr", "add", "10.77.1.2/24", "dev", "br0"])
        with Mirror(node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture, iface="eth0") as tap:
            assert load(lab.client, "10.77.1.2", requests=30, connections=3, per_connection=1).failed == 0
            until(lambda: ONE_SIDED in tap.said(), "a warning", PATIENCE)
            assert tap.said().count(ONE_SIDED) == 1
            assert tap.final()["segments"]["seen"] == 0
        with Mirror(node, shadow=endpoint(lab.shadow.addr4, 80), capture=capture, iface="eth0,br0") as tap:
            assert load(lab.client, "10.77.1.2", requests=100, connections=3, per_connection=5).failed == 0
            shadow.wait_for(100, PATIENCE)
            assert tap.final()["requests"]["mirrored"] == 100
            assert ONE_SIDED not in tap.said()
        assert (production.requests(), shadow.requests()) == (130, 100)


def test_responses_that_leave_by_another_interface_are_missed_and_it_is_told() -> None:
    with Lab() as lab, Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        client, node = lab.client, lab.node
        lab.wire(client, "eth9", node, "eth9")
        for host, last in ((client, 1), (node, 2)):
            for name in ("all", "eth0", "eth9"):
                host.sysctl(f"ipv4.conf.{name}.rp_filter", 0)
            host.run(["ip", "addr", "add", f"10.77.9.{last}/24", "dev", "eth9"])
        node.run(["ip", "route", "add", "10.77.1.1/32", "via", "10.77.9.1", "dev", "eth9"])
        with Mirror(node, shadow=endpoint(lab.shadow.addr4, 80), iface="eth0") as tap:
            assert load(client, node.addr4, requests=30, connections=3, per_connection=1).failed == 0
            until(lambda: "nothing of production:" in tap.said(), "a warning", PATIENCE)
            assert tap.final()["requests"]["mirrored"] == 0
        with Mirror(node, shadow=endpoint(lab.shadow.addr4, 80), iface="eth9") as tap:
            assert load(client, node.addr4, requests=30, connections=3, per_connection=1).failed == 0
            until(lambda: ONE_SIDED in tap.said(), "a warning", PATIENCE)
            tap.final()
        with Mirror(node, shadow=endpoint(lab.shadow.addr4, 80), iface="eth0,eth9") as tap:
            assert load(client, node.addr4, requests=100, connections=3, per_connection=5).failed == 0
            shadow.wait_for(100, PATIENCE)
            assert tap.final()["requests"]["mirrored"] == 100
            assert "side is seen" not in tap.said()
        assert (production.requests(), shadow.requests()) == (160, 100)
