# SPDX-License-Identifier: Apache-2.0
"""Landlock: which files can be read and which ports connected to (landlock(7); Linux 5.13, ports 6.7, scopes 6.12).

What a kernel does not have yet is left out.  It binds processes that are made later, and not descriptors that are
open already.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Collection, Iterable
from typing import Final

CREATE_RULESET: Final = 444  # the numbers are those of all architectures
ADD_RULE: Final = 445
RESTRICT_SELF: Final = 446
CREATE_RULESET_VERSION: Final = 1
RULE_PATH_BENEATH: Final = 1
RULE_NET_PORT: Final = 2

READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights over files that a version knows, by the version that brought some."""
NET_VERSION: Final = 4
CONNECT_TCP: Final = 1 << 1
NET_RIGHTS: Final = 1 << 0 | CONNECT_TCP
SCOPE_VERSION: Final = 6
SCOPES: Final = 1 << 0 | 1 << 1
"""Abstract Unix sockets and signals stay within this process."""
UNSUPPORTED: Final = (errno.ENOSYS, errno.EOPNOTSUPP)


class UnsupportedError(Exception):
    """The kernel has no Landlock, or it is switched off."""


def restrict(readable: Iterable[str], ports: Collection[int]) -> None:
    """Let only these places (with all beneath) be read, none be written, and TCP go to these ports only.

    For good, for this thread and what it begets.  Wants no_new_privs.  Raises `UnsupportedError`, OSError.
    """
    version = _call(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)
    attributes = attributes_for(version)
    rules = _call(CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in readable:
            _let_read(rules, path)
        if version >= NET_VERSION:
            for port in ports:
                _call(ADD_RULE, rules, RULE_NET_PORT, struct.pack("=QQ", CONNECT_TCP, port), 0)
        _call(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def attributes_for(version: int) -> bytes:
    """`struct landlock_ruleset_attr`, in which a version's kernel finds nothing that it does not know."""
    files = FILE_RIGHTS[max(known for known in FILE_RIGHTS if known <= version)]
    words = [files]
    if version >= NET_VERSION:
        words.append(NET_RIGHTS)
    if version >= SCOPE_VERSION:
        words.append(SCOPES)
    return struct.pack(f"={len(words)}Q", *words)


def _let_read(rules: int, path: str) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = READ_FILE | READ_DIR if stat.S_ISDIR(os.fstat(place).st_mode) else READ_FILE
        _call(ADD_RULE, rules, RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: bytes | int | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        error = ctypes.get_errno()
        if error in UNSUPPORTED:
            raise UnsupportedError
        raise OSError(error, os.strerror(error))
    return result
