# SPDX-License-Identifier: Apache-2.0
"""Landlock by itself, in a process of its own."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from inside import outcome
from tapmirror.sandbox import Grants, enter, landlock, seccomp


def inside(readable: list[str], ports: list[int], attempts: dict[str, Callable[[], object]]) -> dict[str, str]:
    """What becomes of attempts in a process that is restricted so."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            landlock.restrict(readable, ports)
            os.write(write_end, "\n".join(f"{name}={outcome(each)}" for name, each in attempts.items()).encode())
        except landlock.UnsupportedError:
            os.write(write_end, b"unsupported")
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, encoding="ascii") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if said == "unsupported":
        pytest.skip("no Landlock here")
    return dict(line.partition("=")[::2] for line in said.splitlines())


def test_files_and_ports(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    for name in ("open/a", "alone", "closed"):
        (tmp_path / name).write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as allowed, socket.create_server(("127.0.0.1", 0)) as refused:

        def connect(server: socket.socket) -> Callable[[], None]:
            address = server.getsockname()
            return lambda: socket.socket().connect(address)

        found = inside(
            [str(tmp_path / "open"), str(tmp_path / "alone")],
            [allowed.getsockname()[1]],
            {
                "beneath": (tmp_path / "open" / "a").read_text,
                "list": lambda: os.listdir(tmp_path / "open"),
                "a file": (tmp_path / "alone").read_text,
                "another": (tmp_path / "closed").read_text,
                "list another": lambda: os.listdir(tmp_path),
                "write": lambda: (tmp_path / "open" / "a").write_text("y"),
                "create": lambda: (tmp_path / "open" / "b").write_text("y"),
                "remove": (tmp_path / "open" / "a").unlink,
                "connect": connect(allowed),
                "connect elsewhere": connect(refused),
                "bind": lambda: socket.create_server(("127.0.0.1", 0)),
                "signal": lambda: os.kill(os.getppid(), 0),
            },
        )
    taken = {name for name, error in found.items() if not error}
    assert taken == {"beneath", "list", "a file", "connect"}
    assert {error for error in found.values() if error} == {"EACCES", "EPERM"}


@pytest.mark.parametrize(("version", "words"), [(1, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (12, 3)])
def test_a_kernel_is_asked_for_what_its_version_knows(version: int, words: int) -> None:
    """With more it would refuse all."""
    attributes = landlock.attributes_for(version)
    assert len(attributes) == 8 * words
    rights = int.from_bytes(attributes[:8], "little").bit_length()
    assert rights == {1: 13, 3: 15, 4: 15}.get(version, 16)


@pytest.mark.parametrize("imports", [False, True])
def test_only_a_worker_with_user_code_may_read_files(monkeypatch: pytest.MonkeyPatch, imports: bool) -> None:
    found: list[tuple[list[str], frozenset[int]]] = []
    monkeypatch.setattr(landlock, "restrict", lambda readable, ports: found.append((readable, ports)))
    monkeypatch.setattr(seccomp, "restrict", lambda _: None)
    assert enter(Grants(frozenset({80}), imports=imports)) == ["landlock", "seccomp"]
    ((readable, ports),) = found
    assert ports == {80}
    assert bool(readable) == imports and set(readable).isdisjoint({"/", "/etc", "/home", "/root"})
