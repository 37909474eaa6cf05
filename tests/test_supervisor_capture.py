# SPDX-License-Identifier: Apache-2.0
"""What workers read from, opened as the spec wants.  What comes through it: `test_source_live`, `test_loader`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest

from lab import Lab
from tapmirror import loader
from tapmirror.spec import Capture, TapSpec, parse_shadow
from tapmirror.supervisor.capture import OpenCapture, open_capture
from tapmirror.supervisor.workers import TapError

SPEC = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("a:1"),))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def opened(lab: Lab, said: list[str], workers: int = 1, **more: Any) -> OpenCapture:
    spec = msgspec.structs.replace(SPEC, **more)
    with lab.node.enter():
        return open_capture(spec, workers, excluded=[], threshold=1 << 32, probe=1, warn=said.append)


def refusing(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def load(request: loader.Request) -> loader.Loaded:
        raise loader.LoaderError(kind, "it cannot be loaded")

    monkeypatch.setattr(loader, "load", load)


def inodes(fds: list[int]) -> list[int]:
    found = [os.fstat(fd).st_ino for fd in fds]
    for fd in fds:
        os.close(fd)
    return found


@pytest.mark.parametrize(("capture", "kind"), [(Capture.EBPF, "refused"), (Capture.AUTO, "contract")])
def test_where_the_program_is_wanted_or_other_files_are_installed_nothing_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, capture: Capture, kind: str
) -> None:
    refusing(monkeypatch, kind)
    spec = msgspec.structs.replace(SPEC, capture=capture)
    said: list[str] = []
    with pytest.raises(TapError, match=r"^it cannot be loaded$"):
        open_capture(spec, 1, excluded=[], threshold=0, probe=1, warn=said.append)
    assert said == []


@pytest.mark.e2e
@pytest.mark.ebpf
def test_else_packet_sockets_do_and_that_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "refused")
    said: list[str] = []
    with closing(opened(lab, said)) as capture:
        assert not capture.is_ebpf and capture.block_bytes > 0
    assert said == ["it cannot be loaded; capturing through AF_PACKET instead"]


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize("kind", [Capture.EBPF, Capture.PACKET])
def test_each_worker_reads_from_its_own_and_a_successor_from_the_same(lab: Lab, kind: Capture) -> None:
    with closing(opened(lab, [], workers=2, capture=kind)) as capture:
        first, second, again = (capture.worker_fds(shard) for shard in (0, 1, 0))
        assert capture.is_ebpf is (kind is Capture.EBPF)
        assert len({*first, *second, *again}) == len(first) * 3, "each has descriptors of its own"
        if kind is Capture.PACKET:
            (one,), (other,), (same,) = map(inodes, (first, second, again))
            assert one == same != other
        else:
            for fd in (*first, *second, *again):
                os.close(fd)


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("kind", "workers", "iface", "told"),
    [
        (Capture.PACKET, 1, "eth0", False),
        (Capture.PACKET, 2, "eth0", True),
        (Capture.PACKET, 1, "eth*", True),
        (Capture.EBPF, 2, "eth*", False),
    ],
)
def test_numbers_of_interfaces_are_told_where_one_socket_sees_them_all(
    lab: Lab, kind: Capture, workers: int, iface: str, told: bool
) -> None:
    with closing(opened(lab, [], workers, capture=kind, iface=iface)) as capture, lab.node.enter():
        wanted = [socket.if_nametoindex("eth0")] if told else None
        assert capture.indexes(["eth0", "gone0"]) == wanted
