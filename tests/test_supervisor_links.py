# SPDX-License-Identifier: Apache-2.0
"""Interfaces that come, go and change their names: what has the name is held, and nothing else, whatever its number."""

from __future__ import annotations

import errno
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import PATIENCE, Lab, until
from tapmirror import loader
from tapmirror.source.filter import MAX_LINKS
from tapmirror.source.live import PACKET_STATISTICS
from tapmirror.source.packet_ring import SOL_PACKET
from tapmirror.source.sockets import open_live, open_shared
from tapmirror.supervisor import links as module
from tapmirror.supervisor.links import Bell, Bound, Hold, Links, Shared, is_up, present


def test_without_descriptors_an_interface_is_taken_to_be_up() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        up = is_up("no_such_one")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert up
    assert not is_up("no_such_one")


def in_the_lab(test: Callable[..., None]) -> Callable[..., None]:
    """It needs root and a network of its own."""
    marked: Callable[..., None] = pytest.mark.e2e(pytest.mark.ebpf(test))
    return marked


class Gated:
    """A hold of an interface that is always there; what it does waits where it is told to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.muted = self.closed = False
        self.closing, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def name(self) -> str:
        return self._name

    def mute(self) -> None:
        self.muted = True

    def close(self) -> None:
        self.closing.set()
        assert self.go_on.wait(PATIENCE)
        self.closed = True


def test_mute_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does who asks what is captured; an interface takes its time to be let go."""
    there = ["a", "b"]
    monkeypatch.setattr(module, "present", lambda patterns: there)
    held: dict[str, Gated] = {}
    links = Links(["*"], lambda name: held.setdefault(name, Gated(name)))
    links.follow()
    assert links.names() == ["a", "b"]
    there.remove("a")
    held["a"].go_on.clear()
    following = threading.Thread(target=links.follow)
    following.start()
    assert held["a"].closing.wait(PATIENCE)

    def ask() -> None:
        links.mute()
        links.names()
        links.waits_for()

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(PATIENCE / 2)
    done, muted = not asking.is_alive(), held["b"].muted
    held["a"].go_on.set()
    following.join(PATIENCE)
    asking.join(PATIENCE)
    assert done and muted
    links.release()
    assert held["a"].closed and held["b"].closed and links.names() == []


def test_time_without_an_interface_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not what passes while nothing is to be captured."""
    there: list[str] = []
    now = 100.0
    monkeypatch.setattr(module, "present", lambda patterns: there)
    monkeypatch.setattr("time.monotonic", lambda: now)
    links = Links(["a"], Gated)

    def after(seconds: float, *names: str) -> float:
        nonlocal now
        there[:] = names
        now += seconds
        links.follow()
        return links.away

    assert [after(0.0), after(1.0), after(2.0, "a"), after(4.0, "a")] == [0.0, 1.0, 3.0, 3.0]
    assert after(8.0) == 3.0
    now += 16.0
    assert links.away == 19.0
    links.suspend(True)
    assert [after(32.0), after(64.0, "a")] == [19.0, 19.0]
    links.suspend(False)
    assert [after(128.0, "a"), after(256.0), after(512.0)] == [19.0, 19.0, 531.0]
    links.release()
    now += 1024.0
    assert links.away == 531.0


def test_time_without_one_of_several_interfaces_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are named: what a pattern matches may come and go."""
    there = ["a", "veth0"]
    now = 100.0
    monkeypatch.setattr(module, "present", lambda patterns: there)
    monkeypatch.setattr("time.monotonic", lambda: now)
    links = Links(["a", "b", "veth*"], Gated)

    def after(seconds: float, *names: str) -> tuple[dict[str, float], str]:
        nonlocal now
        there[:] = names
        now += seconds
        links.follow()
        return links.missing, links.without()

    assert after(0.0, "a", "veth0") == ({}, "b: no such interface")
    assert after(1.0, "a", "b") == ({"b": 1.0}, "")
    assert after(2.0, "veth0") == ({"b": 1.0}, "a, b: no such interface")
    assert after(4.0) == ({"a": 4.0, "b": 5.0}, ""), "without any, it waits"
    links.suspend(True)
    assert after(8.0) == ({"a": 4.0, "b": 5.0}, "")
    links.suspend(False)
    assert after(16.0, "a", "b") == ({"a": 20.0, "b": 21.0}, "")
    assert after(32.0, "b") == ({"a": 20.0, "b": 21.0}, "a: no such interface")
    now += 64.0
    assert links.missing == {"a": 84.0, "b": 21.0}
    assert links.away == 16.0
    links.release()


def test_what_is_muted_amid_a_look_begins_no_more() -> None:
    begun: list[Gated] = []

    def hold(name: str) -> Gated:
        begun.append(Gated(name))
        muting = threading.Thread(target=links.mute)
        muting.start()
        muting.join(PATIENCE / 2)
        assert not muting.is_alive()
        return begun[-1]

    links = Links(["*"], hold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "present", lambda patterns: ["a", "b"])
        links.follow()
        assert [each.name() for each in begun] == ["a"] and begun[0].muted
        links.follow()
    assert begun[0].closed and links.names() == []


def test_the_end_of_one_that_is_muted_lets_no_other_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sockets that share the connections: each end of an interface writes the filter anew."""
    let_in: list[list[int]] = []

    def let(_sockets: object, _ports: object, links: list[int], response_bytes: int = 0) -> None:
        assert response_bytes == 321 or not links
        let_in.append([*links])

    monkeypatch.setattr(module, "present", lambda patterns: ["a", "b", "c"])
    monkeypatch.setattr(module, "let_in", let)
    monkeypatch.setattr(loader, "link_index", lambda name, any_socket: "abc".index(name) + 1)
    numbers: dict[str, int] = {}
    with socket.socket() as sock:
        links = Links(["*"], lambda name: Shared([sock, sock], [80], name, numbers, 321))
        links.follow()
        assert let_in[-1] == [1, 2, 3]
        let_in.clear()
        links.release()
    assert len(let_in) > 3 and not any(let_in)


def test_more_interfaces_than_the_filter_compares_are_refused() -> None:
    numbers = {f"tap{number}": number for number in range(MAX_LINKS)}
    with socket.socket() as sock, pytest.raises(OSError, match=f"more than {MAX_LINKS} interfaces"):
        Shared([sock], [80], "lo", numbers)
    assert len(numbers) == MAX_LINKS


def test_one_that_is_renamed_while_it_is_taken_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was bound is another interface by then, or none."""
    monkeypatch.setattr(module, "present", lambda patterns: ["a"])
    begun = [Gated("b"), Gated(""), Gated("a")]
    holds = iter(begun)
    links = Links(["a"], lambda name: next(holds))
    links.follow()
    assert links.names() == [] and begun[0].closed
    links.follow()
    assert links.names() == [] and begun[1].closed
    links.follow()
    assert links.names() == ["a"] and not begun[2].closed


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


@pytest.fixture
def ip(lab: Lab) -> Iterator[Callable[..., None]]:
    """Runs `ip link` in the node's network, where this thread is too; what it makes is removed."""

    def run(*words: str) -> None:
        lab.node.run(["ip", "link", *words])

    with lab.node.enter():
        before = {name for _, name in socket.if_nameindex()}
        try:
            yield run
        finally:
            for name in {name for _, name in socket.if_nameindex()} - before:
                lab.node.run(["ip", "link", "del", name], check=False)


def sockets(name: str) -> Bound:
    """A packet socket for each interface."""
    return Own(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0), name)


class Own(Bound):
    """One that is closed with its socket."""

    def close(self) -> None:
        self.socket.close()


@in_the_lab
def test_a_name_is_followed(ip: Callable[..., None]) -> None:
    links = Links(["tap0"], sockets)
    links.follow()
    assert links.names() == []
    assert links.waits_for() == "no interface tap0"
    ip("add", "tap0", "type", "veth")
    links.follow()
    assert links.names() == ["tap0"]
    assert links.waits_for() == "tap0 is down"
    ip("set", "tap0", "up")
    links.follow()
    assert links.waits_for() == ""
    ip("set", "tap0", "down")
    ip("set", "tap0", "name", "other0")
    links.follow()
    assert links.names() == []
    ip("add", "tap0", "type", "veth")
    links.follow()
    assert links.names() == ["tap0"]
    ip("del", "tap0")
    links.follow()
    assert links.names() == []
    ip("set", "other0", "name", "tap0")
    links.follow()
    assert links.names() == ["tap0"]
    links.release()
    assert links.names() == []
    links.follow()
    assert links.names() == []


@in_the_lab
def test_a_number_that_is_given_again_is_not_the_same_interface(ip: Callable[..., None]) -> None:
    """Between two looks it is deleted, and another gets its number; or its number and its name."""
    held: list[Bound] = []

    def hold(name: str) -> Bound:
        held.append(sockets(name))
        return held[-1]

    links = Links(["tap0"], hold)
    ip("add", "tap0", "index", "4711", "type", "veth")
    links.follow()
    ip("del", "tap0")
    ip("add", "stranger0", "index", "4711", "type", "veth")
    links.follow()
    assert links.names() == [] and len(held) == 1
    ip("del", "stranger0")
    ip("add", "tap0", "index", "4711", "type", "veth")
    links.follow()
    ip("del", "tap0")
    ip("add", "tap0", "index", "4711", "type", "veth")
    links.follow()
    assert links.names() == ["tap0"]
    assert len(held) == 3 and held[-1].name() == "tap0"
    links.release()


@in_the_lab
def test_one_that_swaps_names_with_another(ip: Callable[..., None]) -> None:
    links = Links(["tap0"], sockets)
    ip("add", "tap0", "index", "801", "type", "veth")
    ip("add", "tap1", "index", "802", "type", "veth")
    links.follow()
    for old, new in (("tap0", "tmp0"), ("tap1", "tap0"), ("tmp0", "tap1")):
        ip("set", old, "name", new)
    links.follow()
    assert links.names() == ["tap0"]
    assert links._held["tap0"].name() == "tap0" and socket.if_nametoindex("tap0") == 802
    links.release()


@in_the_lab
@pytest.mark.parametrize("kind", ["single", "several"])
def test_sockets_of_several_interfaces_follow_the_name_too(ip: Callable[..., None], kind: str) -> None:
    """They are bound to all: what the interface is called now no socket tells."""
    socks = open_shared(2, 1 << 20, loopback=False, block_bytes=1 << 17) if kind == "several" else [raw()]
    numbers: dict[str, int] = {}
    taken: list[int] = []

    def hold(name: str) -> Hold:
        taken.append(socket.if_nametoindex(name))
        return Shared(socks, [80], name, numbers)

    links = Links(["tap*"], hold)
    try:
        ip("add", "tap0", "index", "801", "type", "veth")
        links.follow()
        assert links.names() == ["tap0"]
        ip("set", "tap0", "name", "other0")
        links.follow()
        assert links.names() == []
        assert not numbers
        ip("set", "other0", "name", "tap1")
        links.follow()
        assert links.names() == ["tap1"]
        ip("set", "tap1", "name", "other0")
        ip("add", "tap1", "index", "802", "type", "veth")
        links.follow()
        assert links.names() == ["tap1"]
        assert taken == [801, 801, 802] and numbers == {"tap1": 802}
        ip("del", "tap1")
        links.follow()
        assert links.names() == []
    finally:
        links.release()
        for sock in socks:
            sock.close()


@in_the_lab
def test_one_that_is_moved_to_another_namespace(lab: Lab, ip: Callable[..., None]) -> None:
    links = Links(["tap0"], sockets)
    ip("add", "tap0", "type", "veth")
    links.follow()
    ip("set", "tap0", "netns", str(lab.client.pid))
    try:
        links.follow()
        assert links.names() == []
    finally:
        lab.client.run(["ip", "link", "del", "tap0"])
    links.release()


@in_the_lab
def test_patterns(ip: Callable[..., None]) -> None:
    links = Links(["ta*", "lo"], sockets)
    for name in ("tap0", "tap1", "xtap"):
        ip("add", name, "type", "veth")
    links.follow()
    assert links.names() == ["lo", "tap0", "tap1"]
    ip("del", "tap1")
    links.follow()
    assert links.names() == ["lo", "tap0"]
    assert present(["nothing*"]) == [] and Links(["no*"], sockets).waits_for() == "no interface like no*"
    assert is_up("lo") and not is_up("tap0") and not is_up("nothing")
    links.release()


@in_the_lab
def test_suspended_it_holds_nothing(ip: Callable[..., None]) -> None:
    links = Links(["lo"], sockets)
    links.follow()
    links.suspend(True)
    links.follow()
    assert links.names() == []
    links.suspend(False)
    assert links.names() == ["lo"]
    thread = threading.Thread(target=links.release)
    thread.start()
    thread.join()
    links.suspend(False)
    assert links.names() == []


@in_the_lab
def test_what_cannot_be_held_is_said(ip: Callable[..., None]) -> None:
    def refuse(name: str) -> Bound:
        raise OSError(28, "no room")

    links = Links(["lo"], refuse)
    links.follow()
    assert links.waits_for() == "no interface lo (lo: no room)"


def test_those_that_cannot_be_held_beside_others_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one that is gone again."""
    errors = {"tap1": errno.ENOSPC, "tap2": errno.ENODEV, "tap3": errno.ENOSPC}

    def hold(name: str) -> Gated:
        if name in errors:
            raise OSError(errors[name], "no room")
        return Gated(name)

    monkeypatch.setattr(module, "present", lambda patterns: ["tap0", "tap1", "tap2", "tap3"])
    links = Links(["tap*", "eth0"], hold)
    links.follow()
    assert (links.names(), links.without()) == (["tap0"], "eth0: no such interface; tap1 and 1 more: no room")
    errors.clear()
    links.follow()
    assert (len(links.names()), links.without()) == (4, "eth0: no such interface")


@in_the_lab
def test_one_socket_goes_from_one_interface_to_the_next(ip: Callable[..., None]) -> None:
    """That of a ring, which cannot be made anew: its reader has it mapped."""
    with open_live(None, 1 << 20, loopback=False, ports=[80]) as sock:
        links = Links(["tap0"], lambda name: Bound(sock, name))
        for number in (901, 902):
            ip("add", "tap0", "index", str(number), "type", "veth")
            ip("set", "tap0", "up")
            links.follow()
            assert sock.getsockname()[0] == "tap0"
            ip("del", "tap0")
            links.follow()
            assert sock.getsockname()[0] == ""
        links.release()


@in_the_lab
@pytest.mark.parametrize("kind", ["own", "single", "several"])
def test_what_is_muted_lets_nothing_in_and_stays_so(ip: Callable[..., None], kind: str) -> None:
    """While it is bound yet: to take a socket off takes the kernel its time."""
    socks = open_shared(2, 1 << 20, loopback=True, block_bytes=1 << 17) if kind == "several" else [raw()]
    holds: list[Hold] = []

    def hold(name: str) -> Hold:
        kinds: dict[str, Callable[[], Hold]] = {
            "own": lambda: Bound(socks[0], name),
            "single": lambda: Shared(socks, None, name, {}),
            "several": lambda: Shared(socks, [80], name, {}),
        }
        holds.append(kinds[kind]())
        return holds[-1]

    def came() -> int:
        """How many packets the sockets let in since the last time."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect_ex(("127.0.0.1", 80))  # refused: a SYN and a RST
        found = [sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12) for sock in socks]
        return sum(int.from_bytes(each[:4], sys.byteorder) for each in found)

    links = Links(["lo"], hold)
    try:
        links.follow()
        assert came() > 0
        links.mute()
        assert links.names() == ["lo"] and holds[0].name() == "lo"
        came()
        assert came() == 0
        links.follow()
        assert links.names() == [] and len(holds) == 1
        links.mute()
        assert came() == 0
    finally:
        links.release()
        for sock in socks:
            sock.close()


def raw() -> socket.socket:
    """A packet socket with room for what comes."""
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)


@in_the_lab
def test_the_bell(ip: Callable[..., None]) -> None:
    bell = Bell()
    try:
        assert not bell.rung()
        ip("add", "tap0", "type", "veth")
        until(bell.rung, "the bell")
        assert not bell.rung()
        ip("del", "tap0")
        until(bell.rung, "the bell")
    finally:
        bell.close()


@in_the_lab
def test_messages_that_the_bell_has_no_room_for_ring_it_too(ip: Callable[..., None]) -> None:
    """The kernel tells of them by an error (ENOBUFS), once; what came before and since may be there yet."""
    bell = Bell()
    try:
        bell._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least that there is: a message
        for n in range(20):
            ip("add", f"tap{n}", "type", "veth")
        assert bell._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENOBUFS  # which takes it away
        assert bell.rung()
        for n in range(20):
            ip("del", f"tap{n}")
        assert bell.rung() and not bell.rung()
        ip("add", "tap0", "type", "veth")
        until(bell.rung, "the bell works on")
    finally:
        bell.close()


class Drowned:
    """A netlink socket that has lost messages, and has none."""

    def __init__(self) -> None:
        self.replies: list[OSError] = [OSError(errno.ENOBUFS, "No buffer space available"), BlockingIOError()]

    def recv(self, size: int) -> bytes:
        raise self.replies.pop(0)


def test_lost_messages_alone_ring_the_bell() -> None:
    bell = Bell()
    bell.close()
    drowned: Any = Drowned()
    bell._socket = drowned
    assert bell.rung()
