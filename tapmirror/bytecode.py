# SPDX-License-Identifier: Apache-2.0
"""A compiled capture program as plain data: loading it into the kernel, and keeping it for the next start.

Compiling takes half a second of CPU and all of LLVM; loading a program that was compiled before takes neither.  `Code`
has the program's instructions and its maps.  `load` makes the maps, puts their descriptors in place and loads the
program with bpf(2).  A kept file is read only if nobody but us can have written it, and the verifier checks its program
like any other.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}
MAP_CREATE: Final = 0
MAP_UPDATE_ELEM: Final = 2
PROG_LOAD: Final = 5
OBJ_GET_INFO_BY_FD: Final = 15
MAP_TYPE_ARRAY: Final = 2
MAP_TYPE_ARRAY_OF_MAPS: Final = 12
MAP_TYPE_RINGBUF: Final = 27
PROG_TYPE_SOCKET_FILTER: Final = 1
ATTEMPTS: Final = 50
"""At loading a program.  The verifier gives up with EAGAIN when it sees a signal: one comes to each process that is
stopped or frozen (a container that is paused, a host that is suspended) and goes on.  libbpf makes five, which is too
few where the host stops processes again and again: on a busy one the verifier needs a tenth of a second."""
LICENSE: Final = b"Dual BSD/GPL\0"
"""Licence of the programs in bpf/ for the kernel: bpf_ktime_get_ns is only for GPL-compatible ones."""

_ATTR_BYTES: Final = 80
"""Bytes of `union bpf_attr` that are used, rounded up."""
_MAP_ATTR: Final = struct.Struct("=6I")
_INFO: Final = struct.Struct("=6I")
"""`struct bpf_map_info`: type, id, key size, value size, entries, flags."""
_INSTRUCTION: Final = struct.Struct("=BBhi")
_LOAD_IMMEDIATE: Final = 0x18
"""BPF_LD | BPF_DW | BPF_IMM, of two instructions; with BPF_PSEUDO_MAP_FD as its source a map's descriptor."""
_PSEUDO_MAP_FD: Final = 1
_DIGEST_BYTES: Final = 32
FORM: Final = 1
"""Version of the kept files; it changes whenever the meaning of `Code` does."""
FILE_BYTES: Final = 1 << 20
"""Most bytes of a kept file; one has some 20 KiB."""
FILES: Final = 8
"""Most programs that are kept, those used last: one for each size of ring, number of workers, kernel and version."""
_NAME: Final = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.[0-9]+")
"""Name of a file with a kept program, or with one that was being written.  Other files in the directory stay."""


class MapShape(msgspec.Struct, frozen=True):
    """The attributes with which a map is made."""

    name: str
    kind: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int


class Code(msgspec.Struct, frozen=True):
    """A program that can be loaded."""

    instructions: bytes
    maps: list[MapShape]
    """Maps of the program; those that others are made of come first."""
    places: list[tuple[int, int]]
    """Which instruction refers to which of the maps."""


def take(instructions: bytes, maps: Mapping[str, int]) -> Code:
    """The code of a program that refers to the maps with these descriptors.  Raises OSError."""
    shapes = [_shape(name, fd) for name, fd in maps.items()]
    shapes.sort(key=lambda shape: shape.kind == MAP_TYPE_ARRAY_OF_MAPS)
    index = {maps[shape.name]: number for number, shape in enumerate(shapes)}
    places = []
    for number in range(len(instructions) // _INSTRUCTION.size):
        code, registers, _, value = _INSTRUCTION.unpack_from(instructions, number * _INSTRUCTION.size)
        if code == _LOAD_IMMEDIATE and registers >> 4 == _PSEUDO_MAP_FD:
            places.append((number, index[value]))
    return Code(instructions, shapes, places)


def load(code: Code, inner: Mapping[str, str]) -> tuple[int, dict[str, int]]:
    """Load a program; returns its descriptor, and those of its maps by name.  Raises OSError.

    `inner`: for each map of maps, by name, a map like those in it.
    """
    fds: dict[str, int] = {}
    try:
        for shape in code.maps:
            pattern = fds[inner[shape.name]] if shape.kind == MAP_TYPE_ARRAY_OF_MAPS else 0
            fds[shape.name] = make_map(shape, pattern)
        instructions = bytearray(code.instructions)
        for number, index in code.places:
            struct.pack_into("=i", instructions, number * _INSTRUCTION.size + 4, fds[code.maps[index].name])
        return _load(bytes(instructions)), fds
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise


def make_map(shape: MapShape, inner: int = 0) -> int:
    """Make a map; returns its descriptor.  Raises OSError."""
    return _bpf(
        MAP_CREATE,
        _MAP_ATTR.pack(shape.kind, shape.key_bytes, shape.value_bytes, shape.entries, shape.flags, inner),
    )


def update(fd: int, key: bytes, value: bytes) -> None:
    """Put an entry into a map.  Raises OSError."""
    keys, values = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    _bpf(MAP_UPDATE_ELEM, struct.pack("=I4xQQQ", fd, ctypes.addressof(keys), ctypes.addressof(values), 0))


# --- kept


def key_of(source: str, flags: list[str], compiler: str) -> str:
    """The name under which the compiled form of this source is kept, for this compiler and kernel."""
    parts = [str(FORM), compiler, platform.machine(), platform.release(), source, *flags]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def load_stored(directory: Path, key: str) -> Code | None:
    """The program that was kept under a name, and mark it as used; None: there is none, or it must not be trusted."""
    try:
        fd = os.open(directory / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        if not (_ours(os.fstat(fd)) and _ours(os.stat(directory))):
            return None
        content = file.read(FILE_BYTES + 1)
        with suppress(OSError):  # it may be read only
            os.utime(fd)
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    try:
        return msgspec.msgpack.decode(content, type=Code)
    except msgspec.MsgspecError:
        return None


def store(directory: Path, key: str, code: Code) -> None:
    """Keep a program, if possible, in a directory that is ours alone, with the others that were used last."""
    content = msgspec.msgpack.encode(code)
    path = directory / f".{key}.{os.getpid()}"
    with suppress(OSError):
        directory.mkdir(mode=0o700, exist_ok=True)
        if not _ours(os.stat(directory)):
            return
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            path.rename(directory / key)
        finally:
            path.unlink(missing_ok=True)
        programs = [file for file in directory.iterdir() if _NAME.fullmatch(file.name)]
        programs.sort(key=lambda file: file.lstat().st_mtime, reverse=True)
        for old in programs[FILES:]:
            old.unlink(missing_ok=True)


def _ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


# --- bpf(2)


def _shape(name: str, fd: int) -> MapShape:
    info = ctypes.create_string_buffer(_INFO.size)
    _bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, _INFO.size, ctypes.addressof(info)))
    kind, _, key_bytes, value_bytes, entries, flags = _INFO.unpack(info.raw)
    return MapShape(name, kind, key_bytes, value_bytes, entries, flags)


def _load(instructions: bytes) -> int:
    text = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(LICENSE)
    count = len(instructions) // _INSTRUCTION.size
    attributes = struct.pack(
        "=IIQQ", PROG_TYPE_SOCKET_FILTER, count, ctypes.addressof(text), ctypes.addressof(license_text)
    )
    for _ in range(ATTEMPTS - 1):
        try:
            return _bpf(PROG_LOAD, attributes)
        except BlockingIOError:
            pass
    return _bpf(PROG_LOAD, attributes)


def _bpf(command: int, attributes: bytes) -> int:
    """Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, _ATTR_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    done = int(libc.syscall(SYS_BPF.get(platform.machine(), -1), command, buffer, _ATTR_BYTES))
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return done
