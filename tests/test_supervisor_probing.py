# SPDX-License-Identifier: Apache-2.0
"""What is known of the shadows' addresses, and that nobody waits for it.

What a probe finds: test_supervisor_tap, e2e/test_names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from e2e.driven import driven, serve
from lab import HashSink, Lab
from tapmirror.spec import Capture, TapSpec, parse_shadow
from tapmirror.supervisor.addresses import Address
from tapmirror.supervisor.probe import PROBE_TIME, Probe
from tapmirror.supervisor.probing import LEADS_BACK, LOOK_TIME, PROBED, RING_TIME, Probing
from tapmirror.supervisor.resolving import Undecided
from tapmirror.supervisor.workers import TapError

BAD, GOOD, DEAD, MORE = ((socket.AF_INET, (f"192.0.2.{last}", 80)) for last in (1, 2, 3, 4))
REFUSED = OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
CAPTURES = ["ebpf", "packet"]


class Wire:
    """What is probed; of each probe all is known at the second look.  What goes to BAD arrives, DEAD refuses."""

    def __init__(self) -> None:
        self.probed: list[list[Address]] = []
        self.said: list[str] = []
        there = tuple(parse_shadow(f"s{index}.test:80") for index in range(3))
        self.probing = Probing(TapSpec(iface="eth0", ports=(80,), shadows=there), self.arrived, self.said.append)

    def arrived(self) -> int:
        return sum(BAD in each for each in self.probed)

    def begin(self, addresses: list[Address], seq: int) -> Begun:
        assert seq == self.probing.seq
        self.probed.append(addresses)
        return Begun(None if {BAD, GOOD, MORE}.intersection(addresses) else REFUSED)

    def find(self, addresses: list[Address], now: float) -> bool:
        """Whether they lead back, as a new probe finds."""
        assert self.probing.found(addresses, now) is None
        for _ in range(2):
            self.probing.look(now)
        return self.known(addresses, now)

    def known(self, addresses: list[Address], now: float) -> bool:
        """Whether they lead back, as is known."""
        found = self.probing.found(addresses, now)
        assert found is not None
        return found.leads_back


class Begun:
    """In the place of a `Probe`."""

    def __init__(self, failure: OSError | None) -> None:
        self.failure = failure
        self.looks = 0

    def over(self) -> bool:
        self.looks += 1
        return self.looks > 1

    def close(self) -> None:
        pass


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    made = Wire()
    monkeypatch.setattr("tapmirror.supervisor.probing.Probe", made.begin)
    return made


def test_what_was_found_lasts_for_a_while(wire: Wire) -> None:
    """A name that leads back to production would have that probed at each look-up."""
    assert wire.find([BAD], 1_000.0)
    assert not wire.find([GOOD], 1_000.0)
    for _ in range(5):
        assert wire.known([GOOD, BAD], 1_001.0) and wire.known([BAD], 1_001.0)
        assert not wire.known([GOOD], 1_001.0)
    assert wire.probed == [[BAD], [GOOD]]
    assert wire.find([BAD], 1_000.0 + PROBED)
    assert wire.probed == [[BAD], [GOOD], [BAD]]


def test_what_is_new_of_a_name_is_probed_at_the_same_time(wire: Wire) -> None:
    assert not wire.find([GOOD], 0.0)
    assert not wire.find([MORE, GOOD, DEAD], 0.0)
    assert wire.probed == [[GOOD], [MORE, DEAD]]
    assert not wire.known([DEAD, GOOD], 0.0)  # of one and the other


def test_who_was_probed_with_one_that_leads_back_is_not_refused_without_it(wire: Wire) -> None:
    assert wire.find([GOOD, BAD], 0.0)
    assert not wire.find([GOOD], 0.0)
    assert wire.known([BAD, GOOD], 0.0) and wire.known([BAD, GOOD, MORE], 0.0)
    assert wire.find([BAD], 0.0)
    assert wire.probed == [[GOOD, BAD], [GOOD], [BAD]]


def test_one_trial_at_a_time(wire: Wire) -> None:
    """What arrives would be taken for the other's."""
    probing = wire.probing
    assert probing.due() is None
    assert probing.found([GOOD], 0.0) is None and probing.found([BAD], 0.0) is None
    assert wire.probed == [[GOOD]]
    probing.look(0.0)
    assert probing.due() == LOOK_TIME
    probing.look(0.0)
    assert probing.due() is None
    assert wire.find([BAD], 0.0) and not wire.known([GOOD], 0.0)


def test_behind_a_ring_it_is_looked_for_longer(wire: Wire) -> None:
    wire.probing.behind_ring = True
    assert wire.probing.found([GOOD], 0.0) is None
    for now in (0.0, 1.0, 1.0 + RING_TIME / 2):
        wire.probing.look(now)
        assert wire.probing.found([GOOD], now) is None
    for _ in range(2):
        assert wire.probing.found([GOOD], 1.2) is None
        wire.probing.look(1.0 + RING_TIME)
    assert not wire.known([GOOD], 1.2)


def test_behind_a_ring_whose_worker_had_no_cpu_it_is_looked_for_twice(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reply behind that time is of before it; the worker reads its ring then."""
    wire.probing.behind_ring = True
    arrived = iter([0, 0, 0, 1])
    monkeypatch.setattr(wire.probing, "_arrived", arrived.__next__)
    assert wire.probing.found([GOOD], 0.0) is None
    for now in (0.0, 1.0, 3.0):
        wire.probing.look(now)
        assert wire.probing.found([GOOD], now) is None
    wire.probing.look(3.0 + LOOK_TIME)
    assert wire.known([GOOD], 3.1)


def test_what_was_given_up_is_not_known(wire: Wire) -> None:
    assert wire.probing.found([GOOD], 0.0) is None
    wire.probing.look(0.0)
    wire.probing.give_up()
    assert wire.probing.due() is None
    assert not wire.find([GOOD], 0.0)
    assert wire.probed == [[GOOD], [GOOD]]


def all_found(wire: Wire, addresses: list[list[Address]], now: float) -> int:
    """After how many turns it is known of all."""
    for turns in range(20):
        wire.probing.look(now)
        if wire.probing.all_found(addresses, now):
            return turns
    raise AssertionError(wire.probed)


def test_all_shadows_are_probed_once(wire: Wire) -> None:
    told = "the shadow s1.test port 80 cannot be reached yet (Connection refused); mirroring begins when it can"
    assert all_found(wire, [[GOOD], [DEAD], [MORE, DEAD]], 0.0) > 3
    assert wire.probed == [[GOOD], [DEAD], [MORE]]
    assert wire.said == [told]
    assert wire.probing.unreached == {"s1.test:80": "Connection refused"}
    assert all_found(wire, [[GOOD], [DEAD], [MORE, BAD]], PROBED) == 0
    wire.probing.forget()
    with pytest.raises(TapError, match=r"^shadows\[2\]: " + LEADS_BACK):
        all_found(wire, [[GOOD], [DEAD], [MORE, BAD]], 0.0)
    assert wire.probed[3:] == [[GOOD], [DEAD], [MORE, BAD]]


def test_of_two_shadows_at_one_address_it_is_told_once_that_it_cannot_be_reached(wire: Wire) -> None:
    there = tuple(parse_shadow("s.test:80", name=name) for name in "ab")
    wire.probing = Probing(TapSpec(iface="eth0", ports=(80,), shadows=there), wire.arrived, wire.said.append)
    all_found(wire, [[DEAD], [DEAD]], 0.0)
    assert len(wire.said) == 1 and wire.probing.unreached.keys() == {"a", "b"}


# --- in the lab: whoever drives a tap waits for nothing


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


class Clock:
    """Time stands still for the probes until the test lets it pass; how long each look at one may wait is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        over = Probe.over

        def noted(probe: Probe, wait: float = 0.0) -> bool:
            self.waits.append(wait)
            return over(probe, wait)

        monkeypatch.setattr(Probe, "over", noted)
        monkeypatch.setattr("tapmirror.supervisor.probe.time", SimpleNamespace(monotonic=lambda: self.now))

    def looked(self, count: int) -> bool:
        """Whether there were so many looks, none of which waited."""
        assert not any(self.waits)
        return len(self.waits) >= count


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize("capture", CAPTURES)
def test_addresses_that_answer_nothing_hold_up_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch, capture: str) -> None:
    """No look at them waits; that they lead nowhere is known soon all the same, of all at the same time."""
    dead = [(socket.AF_INET, (f"10.77.2.{last}", 80)) for last in (97, 98, 99)]
    decided: str | Undecided | None = Undecided()

    def known() -> bool:
        nonlocal decided
        decided = tap._refusal_of_move(0, dead)
        return not isinstance(decided, Undecided)

    with HashSink(lab.shadow), silent(lab, *dead), driven(lab.node, capture=Capture(capture)) as tap:
        clock = Clock(monkeypatch)
        assert not known()
        serve(tap, lambda: clock.looked(5), "looks")
        assert not known()
        clock.now += PROBE_TIME
        serve(tap, known, "what became of them")
        assert clock.looked(6) and tap.due() is None
    assert decided is None


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize("capture", CAPTURES)
def test_an_interface_that_comes_late_holds_up_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch, capture: str) -> None:
    """The shadow answers nothing, and is probed only now."""
    said: list[str] = []
    nobody = "10.77.2.90"
    clock = Clock(monkeypatch)
    with (
        silent(lab, (socket.AF_INET, (nobody, 80))),
        driven(
            lab.node,
            said.append,
            iface="late0",
            shadow=f"{nobody}:80",
            capture=Capture(capture),
            wait_for_interface=True,
        ) as tap,
    ):
        for _ in range(3):
            tap.service(time.monotonic())
        assert said == [] and clock.waits == []
        lab.node.run(["ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1"])
        try:
            for end in ("late0", "late1"):
                lab.node.run(["ip", "link", "set", end, "up"])
            serve(tap, lambda: clock.looked(5), "looks")
            assert said == []
            clock.now += PROBE_TIME
            serve(tap, lambda: bool(said), "what became of it")
            assert clock.looked(6)
        finally:
            lab.node.run(["ip", "link", "del", "late0"])
    assert said == [f"the shadow {nobody} port 80 cannot be reached yet (timed out); mirroring begins when it can"]


@contextlib.contextmanager
def silent(lab: Lab, *addresses: Address) -> Iterator[None]:
    """While it lasts, what is sent there is lost.  (Of addresses that nobody has the kernel would tell after 3 s.)"""
    for _, (host, *_) in addresses:
        lab.node.run(["ip", "neigh", "replace", host, "lladdr", "02:00:00:00:00:99", "dev", "eth1"])
    try:
        yield
    finally:
        for _, (host, *_) in addresses:
            lab.node.run(["ip", "neigh", "del", host, "dev", "eth1"])
