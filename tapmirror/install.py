# SPDX-License-Identifier: Apache-2.0
"""What `tapmirror install` puts in place for systemd, and what `uninstall` takes away: a plan, then its steps.

For machines without the Debian package.  A plan only looks; what it found is in its steps, so a dry run shows what
would be done.  Nothing of the user's is ever removed: taps, state, a changed example.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import msgspec

UNIT: Final = "etc/systemd/system/tapmirror.service"
FILES: Final = {
    UNIT: "tapmirror.service",
    "etc/sysusers.d/tapmirror.conf": "sysusers.conf",
    "etc/tmpfiles.d/tapmirror.conf": "tmpfiles.conf",
}
"""Where below the root to what of the package; ours, and replaced when they differ."""
EXAMPLE: Final = "etc/tapmirror/taps.d/example.yaml.disabled"
CACHE: Final = "var/cache/tapmirror"
"""Directory of compiled programs."""
ENABLED: Final = "etc/systemd/system/multi-user.target.wants/tapmirror.service"
"""The link by which it is started at boot; where systemd runs, `systemctl disable` takes it away."""
LEFT: Final = ("etc/tapmirror", "etc/default/tapmirror", "var/lib/tapmirror")
"""Directories that may hold what is the user's, and so are left."""
PACKAGED: Final = ("lib/systemd/system/tapmirror.service", "usr/lib/systemd/system/tapmirror.service")
"""Where a distribution's package has the unit."""
COMMAND: Final = "/usr/bin/tapmirror"
"""The command in the unit as it is shipped."""
HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""Directories that the unit's ProtectHome= and PrivateTmp= hide from the service."""
MAX_LINKS: Final = 40
"""Symbolic links in one path that are followed, as by Linux."""
SPECIAL: Final = frozenset("\"'\\%$")
"""Characters that mean something in ExecStart= (systemd.service(5)), as white space does."""
SYSTEMD: Final = Path("/run/systemd/system")
"""Is there where systemd runs (sd_booted(3))."""
AFTER_INSTALL: Final = (
    ("systemd-sysusers", "tapmirror.conf"),
    ("systemd-tmpfiles", "--create", "tapmirror.conf"),
    ("systemctl", "daemon-reload"),
)


class InstallError(Exception):
    """It cannot be done; the message is one line for the user."""


class Step(msgspec.Struct, frozen=True):
    """One thing to do, or one that is left as it is."""

    verb: str
    """`write`, `keep`, `remove`, `leave` or `run`."""
    what: str
    """The path or the command that the step is about."""
    content: bytes = b""
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verb:6} {self.what}"


def deployed(name: str) -> bytes:
    """A file of `deploy/`, wherever the package is."""
    files: Traversable
    try:
        files = resources.files("tapmirror.deploy")
    except ModuleNotFoundError:
        files = Path(__file__).parent.parent / "deploy"
    return files.joinpath(name).read_bytes()


def install_plan(root: Path, command: Path) -> list[Step]:
    """The steps that put the service below `root`, with `command` as what it runs.  Raises `InstallError`."""
    packaged = _packaged(root)
    if packaged:
        raise _has(packaged)
    if not command.is_absolute() or any(not c.isprintable() or c.isspace() or c in SPECIAL for c in str(command)):
        raise InstallError(
            f"{str(command)!r}: a unit wants the whole path of a command, without spaces, quotes, % or $"
        )
    real = _followed(root, command)
    hidden = [Path(each) for each in HIDDEN]
    hidden += [_followed(root, each) for each in hidden]
    if any(path.is_relative_to(each) for path in (command, real) for each in hidden):
        link = "" if real == command else f" leads to {real}"
        raise InstallError(
            f"{command}{link}: the service cannot look there (ProtectHome=); install it below /opt or /usr/local"
        )
    if root == Path("/") and not os.access(command, os.X_OK):
        raise InstallError(f"{command}: cannot be executed; give the command with --command")
    steps = []
    for target, name in FILES.items():
        content = deployed(name)
        if target == UNIT:
            content = content.replace(COMMAND.encode(), os.fsencode(command))
        steps.append(_written(root / target, content))
    example = root / EXAMPLE
    steps.append(Step("leave", str(example)) if example.exists() else _written(example, deployed(Path(EXAMPLE).name)))
    if _is_live(root) and any(step.verb == "write" for step in steps):
        steps += [_run(words) for words in AFTER_INSTALL]
    return steps


def _followed(root: Path, path: Path) -> Path:
    """Where the links in an absolute path lead, for whom `root` is the root directory."""
    found, left, links = Path("/"), [*reversed(path.parts[1:])], 0
    while left:
        part = left.pop()
        here = root / found.relative_to("/") / part
        if part == "..":
            found = found.parent
        elif here.is_symlink() and links < MAX_LINKS:
            target = here.readlink()
            found = Path("/") if target.is_absolute() else found
            left += reversed(target.parts[target.is_absolute() :])
            links += 1
        else:
            found /= part
    return found


def uninstall_plan(root: Path) -> list[Step]:
    """The steps that take the service away from `root`.  Raises `InstallError`.

    Where a package has been installed beside it, the unit that hides the package's goes, and what both use stays.
    """
    packaged = _packaged(root)
    if packaged and not all((root / target).exists() for target in FILES):
        # A unit alone would be one that the administrator made of the package's (`systemctl edit --full`).
        raise _has(packaged)
    there = [root / target for target in FILES if (root / target).exists()]
    live = _is_live(root) and bool(there)
    steps = [_run(("systemctl", "disable", "--now", "tapmirror.service"))] if live else []
    steps += [Step("remove", str(path)) for path in there]
    link = root / ENABLED
    if not live and link.is_symlink():
        steps.append(Step("remove", str(link)))
    if not packaged:
        steps += _unused(root)
    if live:
        steps.append(_run(("systemctl", "daemon-reload")))
    return steps + [Step("leave", str(root / name)) for name in LEFT if (root / name).exists()]


def _unused(root: Path) -> list[Step]:
    """Removes the example, if it is as it was, and the compiled programs."""
    steps = []
    example = root / EXAMPLE
    with suppress(FileNotFoundError):
        if example.read_bytes() == deployed(example.name):
            steps.append(Step("remove", str(example)))
    cache = root / CACHE
    if cache.is_dir():
        steps += [Step("remove", str(path)) for path in (*sorted(cache.iterdir()), cache)]
    return steps


def carry_out(steps: Iterable[Step]) -> Iterator[Step]:
    """Do each step and give it back when it is done.  Raises `InstallError`."""
    for step in steps:
        try:
            if step.verb == "write":
                _write(Path(step.what), step.content)
            elif step.verb == "remove":
                path = Path(step.what)
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)
            elif step.verb == "run":
                subprocess.run(step.words, check=True)
        except OSError as error:
            raise InstallError(f"{step.what}: {error.strerror}") from None
        except subprocess.CalledProcessError as error:
            raise InstallError(f"{step.what}: status {error.returncode}") from None
        yield step


def _packaged(root: Path) -> Path | None:
    """The unit of a distribution's package, if there is one."""
    return next((root / name for name in PACKAGED if (root / name).exists()), None)


def _has(unit: Path) -> InstallError:
    return InstallError(f"{unit} is there: a package of this system has the service; use its tools")


def _written(path: Path, content: bytes) -> Step:
    try:
        same = path.read_bytes() == content
    except OSError:
        same = False
    return Step("keep", str(path)) if same else Step("write", str(path), content)


def _write(path: Path, content: bytes) -> None:
    """Put a file in place at once: readers see the old one or the new one."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    beside.chmod(0o644)
    beside.replace(path)


def _is_live(root: Path) -> bool:
    return root == Path("/") and SYSTEMD.exists()


def _run(words: tuple[str, ...]) -> Step:
    return Step("run", " ".join(words), words=words)
