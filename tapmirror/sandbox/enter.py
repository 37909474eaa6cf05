# SPDX-License-Identifier: Apache-2.0
"""Both layers, for good."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tapmirror.sandbox import landlock, seccomp
from tapmirror.sandbox.rules import WITH_IMPORTS, WORKER, only_read

LIBRARIES: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
"""Where a module's shared libraries are."""


@dataclass(frozen=True)
class Grants:
    """What a worker needs beyond the descriptors it has."""

    ports: frozenset[int]
    """TCP ports that it may connect to: the shadows'."""
    only_read: Collection[int] = ()
    """Descriptors that it may read and close: with an AF_PACKET socket it could else send any packet."""
    imports: bool = False
    """User code runs in it, which may import when it is called: files of Python and libraries are readable."""


def enter(grants: Grants) -> list[str]:
    """Refuse everything else from now on; names of the layers that this kernel has, of `landlock` and `seccomp`.

    Wants no_new_privs and a process without threads.
    """
    layers = []
    readable = readable_for_imports() if grants.imports else []
    with suppress(landlock.UnsupportedError):
        landlock.restrict(readable, grants.ports)
        layers.append("landlock")
    rules = {**WORKER, **(WITH_IMPORTS if grants.imports else {})}
    with suppress(seccomp.UnsupportedError):
        seccomp.restrict(only_read(rules, grants.only_read))
        layers.append("seccomp")
    return layers


def readable_for_imports() -> list[str]:
    """Where Python finds modules, and these their libraries."""
    places = [*sys.path, sys.prefix, sys.base_prefix, *LIBRARIES]
    return sorted({place for place in places if place and os.path.exists(place)})
