# SPDX-License-Identifier: Apache-2.0
"""The daemon's files: its settings, and every YAML file in the directory of taps.  All are taken, or none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tapmirror.spec import TapSpec
from tapmirror.spec.document import MAX_BYTES, FileError, load
from tapmirror.spec.kubernetes import import_tap, is_kubernetes
from tapmirror.spec.reading import read_settings, taps_of
from tapmirror.spec.settings import Settings
from tapmirror.supervisor.regular import content
from tapmirror.supervisor.workers import automatic

ENDINGS: Final = (".yaml", ".yml")
MAX_FILES: Final = 1000
TOLD: Final = 20
"""Most problems that are reported to whoever asks for a reload."""


class FolderError(Exception):
    """What is wrong with the files: a line for each thing."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems[0] if len(problems) == 1 else f"{problems[0]} (and {len(problems) - 1} more)")
        self.problems = problems

    def told(self) -> list[str]:
        """The problems for whoever asked, at most a screen.  A single one is not listed: the message has it."""
        if len(self.problems) <= TOLD:
            return self.problems if len(self.problems) > 1 else []
        return [*self.problems[:TOLD], f"and {len(self.problems) - TOLD} more"]


def read(directory: Path, *, kept: bool = False) -> dict[str, tuple[str, TapSpec]]:
    """(name of the file, tap), by the tap's name.  Raises `FolderError` with everything that is wrong.

    `kept`: as of `taps_of`.
    """
    problems: list[str] = []
    found: dict[str, tuple[str, TapSpec]] = {}
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(ENDINGS) and not name.startswith("."))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FolderError([f"{directory}: {error.strerror}"]) from None
    if len(names) > MAX_FILES:
        raise FolderError([f"{directory}: more than {MAX_FILES} files"])
    for name in names:
        try:
            taps = taps_in(directory / name, kept=kept)
        except OSError as error:
            problems.append(f"{directory / name}: {error.strerror}")
        except FileError as error:
            problems += [problem.of(directory / name) for problem in error.found]
        else:
            for spec in taps:
                if spec.name in found:
                    problems.append(f"{directory / name}: name: {found[spec.name][0]} has a tap {spec.name!r} too")
                found[spec.name] = (name, spec)
    if problems:
        raise FolderError(problems)
    return found


def both(file: Path, directory: Path, *, kept: bool = False) -> tuple[Settings, dict[str, tuple[str, TapSpec]]]:
    """The daemon's settings and the taps.  Raises `FolderError` with everything that is wrong with either."""
    problems: list[str] = []
    said, found = Settings(), {}
    try:
        said = settings(file)
    except FolderError as error:
        problems += error.problems
    try:
        found = read(directory, kept=kept)
    except FolderError as error:
        problems += error.problems
    if problems:
        raise FolderError(problems)
    return said, found


def settings(path: Path) -> Settings:
    """The settings in `daemon.yaml`; the defaults if there is no such file.  Raises `FolderError`."""
    try:
        return read_settings(content(path, MAX_BYTES))
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise FolderError([f"{path}: {error.strerror}"]) from None
    except FileError as error:
        raise FolderError([problem.of(path) for problem in error.found]) from None


def taps_in(path: Path, *, kept: bool) -> list[TapSpec]:
    """The taps of a file.  Raises OSError and `FileError`."""
    documents = load(content(path, MAX_BYTES))
    if is_kubernetes(documents):
        return [import_tap(documents, {}, {})[0]]
    return taps_of(documents, kept=kept, auto=automatic())
