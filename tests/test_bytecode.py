# SPDX-License-Identifier: Apache-2.0
"""Compiled programs: what is kept and what is believed; and that the kernel takes them (with `test_loader`)."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tapmirror import bytecode
from tapmirror.bytecode import Code, MapShape

CODE = Code(b"12345678" * 2, [MapShape("ring", 27, 0, 0, 4096, 0)], [(0, 0)])
KEY = bytecode.key_of("int tap;", ["-DX=1"], "0.26")
RETURN_0 = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
"""r0 = 0; exit"""


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    directory = tmp_path / "programs"
    assert bytecode.load_stored(directory, KEY) is None
    bytecode.store(directory, KEY, CODE)
    assert bytecode.load_stored(directory, KEY) == CODE
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / KEY).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in directory.iterdir()] == [KEY]


@pytest.mark.parametrize(
    "other",
    [
        ("int tap2;", ["-DX=1"], "0.26"),
        ("int tap;", ["-DX=2"], "0.26"),
        ("int tap;", ["-DX=1", ""], "0.26"),
        ("int tap;-DX=1", [], "0.26"),
        ("int tap;", ["-DX=1"], "0.27"),
    ],
)
def test_another_source_flag_or_compiler_has_another_name(other: tuple[str, list[str], str]) -> None:
    assert bytecode.key_of(*other) != KEY


def test_what_is_kept_in_another_form_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "FORM", bytecode.FORM + 1)
    assert bytecode.key_of("int tap;", ["-DX=1"], "0.26") != KEY


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def writable(file: Path) -> None:
    file.chmod(0o620)


def in_a_writable_directory(file: Path) -> None:
    file.parent.chmod(0o777)


def link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("change", [damage, cut, empty, writable, in_a_writable_directory, link, fifo])
def test_what_is_damaged_or_may_be_anybodys_is_not_believed(change: Callable[[Path], None], tmp_path: Path) -> None:
    bytecode.store(tmp_path, KEY, CODE)
    tmp_path.chmod(0o700)
    assert bytecode.load_stored(tmp_path, KEY) == CODE
    change(tmp_path / KEY)
    assert bytecode.load_stored(tmp_path, KEY) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: giving a file away")
def test_another_users_file_is_not_believed(tmp_path: Path) -> None:
    bytecode.store(tmp_path, KEY, CODE)
    os.chown(tmp_path / KEY, 65_534, 0)
    assert bytecode.load_stored(tmp_path, KEY) is None


def test_the_latest_are_kept(tmp_path: Path) -> None:
    names = [bytecode.key_of("x", [str(n)], "") for n in range(bytecode.FILES + 3)]
    for number, name in enumerate(names):
        bytecode.store(tmp_path, name, CODE)
        os.utime(tmp_path / name, (number, number))
    bytecode.store(tmp_path, KEY, CODE)
    assert {path.name for path in tmp_path.iterdir()} == {KEY, *names[-bytecode.FILES + 1 :]}


def test_what_is_used_is_kept(tmp_path: Path) -> None:
    names = [bytecode.key_of("x", [str(n)], "") for n in range(bytecode.FILES)]
    for number, name in enumerate(names):
        bytecode.store(tmp_path, name, CODE)
        os.utime(tmp_path / name, (number, number))
    assert bytecode.load_stored(tmp_path, names[0]) == CODE
    bytecode.store(tmp_path, KEY, CODE)
    assert {path.name for path in tmp_path.iterdir()} == {KEY, names[0], *names[2:]}


def test_other_files_stay(tmp_path: Path) -> None:
    others = {"notes.txt", KEY[:-1], f"{KEY}.old", f".{KEY}", f".{KEY}.bak", KEY.upper(), "dir"}
    for name in others - {"dir"}:
        (tmp_path / name).write_text("x")
    (tmp_path / "dir").mkdir()
    programs = [bytecode.key_of("x", [str(n)], "") for n in range(bytecode.FILES)]
    old = [programs[0], f".{KEY}.4711"]
    for name in programs:
        bytecode.store(tmp_path, name, CODE)
    (tmp_path / old[1]).write_text("left by one that was killed")
    for name in (*others, *old):
        os.utime(tmp_path / name, (1, 1))
    bytecode.store(tmp_path, KEY, CODE)
    assert {path.name for path in tmp_path.iterdir()} == {KEY, *programs[1:], *others}


def test_nothing_is_kept_where_others_can_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    bytecode.store(tmp_path, KEY, CODE)
    assert [*tmp_path.iterdir()] == []


def test_where_nothing_can_be_kept_nothing_breaks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    bytecode.store(tmp_path / "file" / "below", KEY, CODE)
    assert bytecode.load_stored(tmp_path / "file" / "below", KEY) is None


@pytest.mark.ebpf
def test_the_kernel_takes_a_program_and_its_maps() -> None:
    shapes = [MapShape("ring", bytecode.MAP_TYPE_RINGBUF, 0, 0, 4096, 0), MapShape("rings", 12, 4, 4, 2, 0)]
    program, maps = bytecode.load(Code(RETURN_0, shapes, []), {"rings": "ring"})
    try:
        bytecode.update(maps["rings"], struct.pack("=I", 1), struct.pack("=I", maps["ring"]))
        with pytest.raises(OSError, match="Argument list too long"):
            bytecode.update(maps["rings"], struct.pack("=I", 2), struct.pack("=I", maps["ring"]))
        assert bytecode.take(RETURN_0, maps).maps == shapes
    finally:
        for fd in (program, *maps.values()):
            os.close(fd)


@pytest.mark.parametrize(("times", "loaded"), [(20, True), (bytecode.ATTEMPTS - 1, True), (bytecode.ATTEMPTS, False)])
def test_a_program_that_the_verifier_left_for_a_signal_is_loaded_again(
    monkeypatch: pytest.MonkeyPatch, times: int, loaded: bool
) -> None:
    left = times

    def bpf(command: int, attributes: bytes) -> int:
        nonlocal left
        assert command == bytecode.PROG_LOAD
        left -= 1
        if left >= 0:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return 77

    monkeypatch.setattr(bytecode, "_bpf", bpf)
    with contextlib.nullcontext() if loaded else pytest.raises(OSError, match="temporarily"):
        assert bytecode.load(Code(RETURN_0, [], []), {}) == (77, {})


@pytest.mark.ebpf
def test_what_the_verifier_refuses_leaves_nothing() -> None:
    before = set(os.listdir("/proc/self/fd"))
    shapes = [MapShape("ring", bytecode.MAP_TYPE_RINGBUF, 0, 0, 4096, 0)]
    with pytest.raises(OSError, match=r"Invalid argument|Permission denied"):
        bytecode.load(Code(RETURN_0[:8], shapes, []), {})
    assert set(os.listdir("/proc/self/fd")) == before
