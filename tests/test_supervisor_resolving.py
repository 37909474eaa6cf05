# SPDX-License-Identifier: Apache-2.0
"""Replies of the resolver, and what becomes of them; e2e/test_names has a real name server."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab import open_to_all, until
from signalled import Ended, met_by_a_signal
from tapmirror.spec import Shadow
from tapmirror.supervisor import resolving
from tapmirror.supervisor.addresses import ADDRESSES, Address
from tapmirror.supervisor.resolving import OUTPUT, Names, ResolveError, Undecided, look_up, parsed

FOUR, SIX = int(socket.AF_INET), int(socket.AF_INET6)
OURSELVES = (os.getuid(), os.getgid())


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (b"10.0.0.1        STREAM a.test\n10.0.0.1        DGRAM\n10.0.0.1        RAW\n", [(FOUR, ("10.0.0.1", 80))]),
        (b"2001:db8::1 STREAM x\n10.0.0.2 STREAM\n", [(SIX, ("2001:db8::1", 80, 0, 0)), (FOUR, ("10.0.0.2", 80))]),
        (b"fe80::1%lo STREAM x\n", [(SIX, ("fe80::1", 80, 0, 1))]),
        (b"fe80::1%7 STREAM x\n", [(SIX, ("fe80::1", 80, 0, 7))]),
        (b"fe80::1%nowhere STREAM x\n", []),
        (b"fe80::1 STREAM x\n169.254.0.1 STREAM\n", [(FOUR, ("169.254.0.1", 80))]),
        (b"10.0.0.1 STREAM\n10.0.0.1 STREAM\n", [(FOUR, ("10.0.0.1", 80))]),
        (b"10.0.0 STREAM x\nSTREAM\n\xff\xfe STREAM\n10.0.0.1\n10.0.0.1 STR", []),
        (b"", []),
    ],
)
def test_what_getent_prints(output: bytes, wanted: list[Address]) -> None:
    assert parsed(output, 80) == wanted


def test_no_more_addresses_than_are_used() -> None:
    output = b"".join(b"10.0.0.%d STREAM x\n" % n for n in range(200))
    assert len(output) < OUTPUT and len(parsed(output, 80)) == ADDRESSES


def test_the_first_reply_is_waited_for() -> None:
    assert look_up(Shadow(host="10.0.0.9", port=81), OURSELVES) == [(FOUR, ("10.0.0.9", 81))]
    assert look_up(Shadow(host="fd00::9", port=81), OURSELVES) == [(SIX, ("fd00::9", 81, 0, 0))]
    with pytest.raises(ResolveError, match="no such name"):
        look_up(Shadow(host="no-such-host.invalid", port=81), OURSELVES)


def test_an_address_takes_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two hundred taps that start at a time, each would have one."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert look_up(Shadow(host="10.0.0.9", port=81), OURSELVES) == [(FOUR, ("10.0.0.9", 81))]
    assert look_up(Shadow(host="169.254.0.9", port=81), OURSELVES) == [(FOUR, ("169.254.0.9", 81))], "it needs none"
    assert look_up(Shadow(host="FD00:0::9", port=81), OURSELVES) == [(SIX, ("fd00::9", 81, 0, 0))]
    with pytest.raises(ResolveError, match="getent: No such file"):
        look_up(Shadow(host="fe80::9%lo", port=81), OURSELVES)


@pytest.mark.parametrize("host", ["fe80::9", "FE80::1:2", "febf::1"])
def test_a_link_local_address_without_an_interface_is_none(host: str) -> None:
    with pytest.raises(ResolveError, match="is one of an interface"):
        look_up(Shadow(host=host, port=81), OURSELVES)


@pytest.fixture
def getent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in the place of getent."""
    path = tmp_path / "getent"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return path


def test_a_signal_while_it_is_asked_leaves_no_process(getent: Path) -> None:
    getent.write_text("#!/bin/sh\nexec sleep 60\n")
    with met_by_a_signal() as begun:
        with pytest.raises(Ended):
            look_up(Shadow(host="shadow.test", port=81), OURSELVES)
        assert [child.returncode for child in begun] == [-signal.SIGKILL]


@pytest.mark.parametrize(
    "script",
    [
        "exec sleep 60",
        "exec >&-; exec sleep 60",
        "echo 10.0.0.1 STREAM; exec sleep 60",
        "while :; do echo x; sleep 0.01; done",
    ],
)
def test_a_first_reply_that_does_not_come(getent: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "FIRST_TIME", 0.2)
    getent.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(ResolveError, match=r"no answer within 0\.2 s"):
        look_up(Shadow(host="a.test", port=81), OURSELVES)


def test_of_a_first_reply_without_end_the_beginning_counts(getent: Path) -> None:
    getent.write_text("#!/bin/sh\nwhile :; do echo 10.0.0.1 STREAM x; done\n")
    assert look_up(Shadow(host="a.test", port=81), OURSELVES) == [(FOUR, ("10.0.0.1", 81))]


def test_a_first_reply_in_pieces(getent: Path) -> None:
    getent.write_text("#!/bin/sh\nprintf 10.0.; sleep 0.01; echo 0.1 STREAM; sleep 0.01; echo 10.0.0.2 STREAM\n")
    assert [address for _, address in look_up(Shadow(host="a.test", port=81), OURSELVES)] == [
        ("10.0.0.1", 81),
        ("10.0.0.2", 81),
    ]


def test_without_a_resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResolveError, match="getent: No such file"):
        look_up(Shadow(host="a.test", port=81), OURSELVES)


class Watched:
    """Names with a getent of the test's."""

    def __init__(self, shadows: Sequence[Shadow], known: Sequence[Sequence[Address]], refusal: str | None = None):
        self.said: list[str] = []
        self.names = Names(shadows, known, lambda index, found: refusal, self.said.append, identity=OURSELVES, now=0.0)

    def after(self, now: float) -> list[tuple[int, list[Address]]]:
        """Ask, and wait for what comes of it."""
        found = self.names.poll(now)
        assert found == []

        def answered() -> bool:
            found.extend(self.names.poll(now))
            return all(name.process is None for name in self.names._names)

        until(answered, "getent")
        return found


def test_changes(getent: Path) -> None:
    shadows = [
        Shadow(host="10.0.0.9", port=1),
        Shadow(host="a.test", port=80),
        Shadow(host="b", port=1, resolve_every=0),
    ]
    old: list[list[Address]] = [[], [(FOUR, ("10.0.0.1", 80)), (FOUR, ("10.0.0.2", 80))], []]
    watched = Watched(shadows, old)
    assert watched.names.poll(29.9) == [] and len(watched.names._names) == 1
    getent.write_text("#!/bin/sh\necho 10.0.0.2 STREAM; echo 10.0.0.1 STREAM\n")
    assert watched.after(30.0) == [] and watched.said == []  # the same in another order
    getent.write_text("#!/bin/sh\necho 10.0.0.3 STREAM $4\n")
    assert watched.after(60.0) == [(1, [(FOUR, ("10.0.0.3", 80))])]
    assert watched.said == ["a.test is at 10.0.0.3 now"] and watched.names.counts.changed == 1


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("exit 2", "no such name"),
        ("exit 1", "getent ended with status 1"),
        ("echo what is this", "no addresses"),
    ],
)
def test_failures_are_told_once_and_counted(getent: Path, script: str, wanted: str) -> None:
    watched = Watched([Shadow(host="a.test", port=80)], [[(FOUR, ("10.0.0.1", 80))]])
    getent.write_text(f"#!/bin/sh\n{script}\n")
    assert watched.after(30.0) == watched.after(60.0) == []
    assert watched.said == [f"a.test cannot be resolved again ({wanted}); its old addresses are kept"]
    assert watched.names.counts.failed == 2
    getent.write_text("#!/bin/sh\necho 10.0.0.1 STREAM\n")
    assert watched.after(90.0) == [] and watched.said[1:] == ["a.test is resolved again"]


def test_a_resolver_that_hangs(getent: Path) -> None:
    watched = Watched([Shadow(host="a.test", port=80, resolve_every=30)], [[]])
    getent.write_text("#!/bin/sh\nexec sleep 60\n")
    assert watched.names.poll(30.0) == watched.names.poll(59.9) == [] and watched.said == []
    process = watched.names._names[0].process
    assert watched.names.poll(60.0) == [] and "no answer within 30 s" in watched.said[0]
    assert process is not None and process.returncode == -9
    watched.names.poll(60.0)
    again = watched.names._names[0].process
    watched.names.close()
    assert again is not None and again.returncode == -9


def test_a_reply_that_is_refused(getent: Path) -> None:
    watched = Watched([Shadow(host="a.test", port=80)], [[(FOUR, ("10.0.0.1", 80))]], "it is production")
    getent.write_text("#!/bin/sh\necho 10.0.0.7 STREAM\n")
    assert watched.after(30.0) == watched.after(60.0) == []
    assert watched.said == ["a.test has new addresses that are refused (it is production); its old ones are kept"]
    assert watched.names.counts.refused == 2


def test_a_reply_that_is_judged_later(getent: Path) -> None:
    verdicts: list[str | Undecided | None] = [Undecided(), Undecided(), None]
    known = [[(FOUR, ("10.0.0.1", 80))]]
    shadows = [Shadow(host="a.test", port=80)]
    names = Names(shadows, known, lambda *_: verdicts.pop(0), lambda _: None, identity=OURSELVES, now=0.0)
    getent.write_text("#!/bin/sh\necho 10.0.0.7 STREAM\n")
    assert names.poll(30.0) == []

    def judged() -> bool:
        assert names.poll(30.0) == []
        return len(verdicts) == 2

    until(judged, "getent")
    assert names.poll(61.0) == [] and len(verdicts) == 1  # nothing else is asked meanwhile
    assert names.poll(62.0) == [(0, [(FOUR, ("10.0.0.7", 80))])]
    assert names.counts.changed == 1
    names.close()


@pytest.mark.ebpf
def test_it_asks_without_privilege(getent: Path) -> None:
    """The real one's place is taken by a script that tells who it is."""
    getent.write_text("#!/bin/sh\necho 10.0.0.$(id -u | tail -c 3) STREAM; [ -z \"$(id -G | tr -d '0-9 \\n')\" ]\n")
    open_to_all(getent.parent)
    shadow = Shadow(host="a.test", port=80)
    said: list[str] = []
    names = Names([shadow], [[]], lambda index, found: None, said.append, identity=(65534, 65534), now=0.0)
    names.poll(30.0)
    until(lambda: bool(names.poll(30.0)), "getent")
    assert said == ["a.test is at 10.0.0.34 now"]
