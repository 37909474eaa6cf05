# SPDX-License-Identifier: Apache-2.0
"""The taps that a daemon should run, on disk, where it finds them after a restart.

One file, replaced as a whole (`durable`).  What cannot be read is set aside and reported; the daemon starts all the
same.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import msgspec

from tapmirror.spec import TapSpec
from tapmirror.supervisor.durable import replace
from tapmirror.supervisor.regular import content

VERSION: Final = 1
"""Version of the file's format.  A new field of a spec needs no new version: it has a default, and defaults are left
out."""
NAME: Final = "taps.json"
MAX_BYTES: Final = 16 << 20
"""Bytes of the largest file: a thousand taps with rules."""


class Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tap, and in which condition it continues."""

    spec: TapSpec
    """The tap as it was written."""
    percent: float | None = None
    """The share that was set by command since then, if any."""
    origin: str = ""
    """The file in the directory of taps that it came from; empty: a command."""
    paused: bool = False
    ends_at: float | None = None
    """When its `ttl` is over, of the wall clock in seconds; None: never."""

    def __post_init__(self) -> None:
        """Raises `SpecError` if the share is out of range."""
        if self.percent is not None:
            msgspec.structs.replace(self.spec, percent=self.percent, ramp=None)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is kept."""

    version: int = VERSION
    taps: list[Kept] = []
    stopped: list[str] = []
    """Taps of files that were stopped by command: they stay stopped until a reload."""


class _Version(msgspec.Struct):
    """What every version has."""

    version: int


class _Rough(msgspec.Struct):
    """The file with its taps still raw, so that a tap that is not understood costs no other."""

    taps: list[Any] = []
    stopped: list[str] = []


def load(directory: Path) -> tuple[State, list[str]]:
    """The taps on disk, and a line for each thing that was wrong with them.  Never fails."""
    path = directory / NAME
    try:
        data = content(path, MAX_BYTES, private=True)
    except FileNotFoundError:
        return State(), []
    except OSError as error:  # set aside too: what is written next would be put in its place
        return State(), [f"{path}: {error.strerror}; {_aside(path)}, beginning without taps"]
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"longer than {MAX_BYTES} bytes")
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            raise ValueError(f"its version is {version}, and this tapmirror reads {VERSION}")
        rough = msgspec.json.decode(data, type=_Rough)
    except (ValueError, RecursionError) as error:
        aside = _aside(path)
        return State(), [f"{path}: {_line(error)}; {aside}, beginning without taps"]
    taps, wrong = [], []
    for i, item in enumerate(rough.taps):
        try:
            taps.append(msgspec.convert(item, Kept))
        except (ValueError, RecursionError) as error:
            wrong.append(f"{path}: taps[{i}]: {_line(error)}")
    if wrong:
        wrong.append(f"{path}: {_aside(path)}; the other taps go on")
    return State(taps=taps, stopped=rough.stopped), wrong


def save(directory: Path, state: State) -> None:
    """Write the taps to disk.  Raises OSError; then the earlier file is still there."""
    data = msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n"
    replace(directory / NAME, directory / f"{NAME}.new", data)


def _aside(path: Path) -> str:
    """Rename the file so that nothing overwrites it; returns a line that says so."""
    name = f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}.unread"
    try:
        path.rename(path.with_name(name))
    except OSError as error:
        return f"it could not be set aside ({error.strerror})"
    return f"set aside as {name}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
