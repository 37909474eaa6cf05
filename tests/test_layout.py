# SPDX-License-Identifier: Apache-2.0
"""The rules of the layout, executed: ranks of imports, purity, one test file for each source file, licences."""

from __future__ import annotations

import ast
import configparser
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

TOP: Final = Path(__file__).parent.parent
SOURCE: Final = TOP / "tapmirror"

RANKS: Final = {
    "": -1,
    "contract": 0,
    "events": 0,
    "histogram": 0,
    "exchange": 1,
    "packet": 1,
    "ledger": 1,
    "spec": 1,
    "safety": 1,
    "precedence": 1,
    "privsep": 1,
    "stdio": 1,
    "spawn": 1,
    "governor": 2,
    "sandbox": 1,
    "late": 1,
    "standing": 1,
    "wants": 1,
    "wall": 0,
    "tcp": 2,
    "early": 3,
    "flow": 3,
    "unaccepted": 3,
    "handover": 2,
    "admission": 3,
    "flows": 4,
    "framing": 3,
    "framing.response_content": 2,
    "framing.head": 2,
    "framing.memory": 0,
    "framing.response_end": 1,
    "framing.response_status": 2,
    "compare": 3,
    "policy": 3,
    "streams": 3,
    "tracer": 3,
    "pipeline": 5,
    "answered": 5,
    "comparing": 6,
    "report": 4,
    "source": 5,
    "replay": 5,
    "bytecode": 1,
    "loader": 5,
    "control": 5,
    "worker": 7,
    "offline": 7,
    "install": 7,
    "doctor": 7,
    "supervisor": 8,
    "cli": 9,
    "__main__": 10,
}
"""A module imports only from lower ranks; the modules of a package may import each other.
A package has one rank, unless its modules are named here too ("replay.lane")."""

PURE: Final = (
    "events",
    "histogram",
    "exchange",
    "packet",
    "ledger",
    "spec",
    "safety",
    "governor",
    "late",
    "standing",
    "wants",
    "tcp",
    "early",
    "flow",
    "unaccepted",
    "handover",
    "admission",
    "flows",
    "framing",
    "compare",
    "policy",
    "report",
    "streams",
    "tracer",
    "pipeline",
    "answered",
    "comparing",
)
PRIVILEGED: Final = ("loader", "supervisor.capture", "supervisor.daemon", "supervisor.serve", "supervisor.tap")
"""And `cli.run`, but where it compares: `test_cli_main` looks at what it has loaded."""
READERS: Final = (
    *(
        "admission",
        "early",
        "flows",
        "framing",
        "streams",
        "tcp",
        "unaccepted",
        "tracer",
        "pipeline",
        "answered",
        "comparing",
        "policy",
    ),
    *("replay", "source.judge", "source.live", "source.ring", "worker.assembly", "worker.loop", "report"),
    *("compare.bodies", "compare.comparison", "compare.pairing"),
)
"""Rooms of what reads the bytes of the network, and of what is said of them."""
NO_TESTS: Final = {
    "events",  # values without behaviour
    "exchange",  # the same
    "sandbox.numbers",  # as well; test_sandbox_seccomp compares them with the system's headers
    "sandbox.rules",  # as well; test_sandbox_enter tries what they refuse
}
IMPURE: Final = {"time", "socket", "os", "logging", "random", "threading", "asyncio", "subprocess", "select"}


def modules() -> list[str]:
    """All modules, without "tapmirror.": "tcp", "framing.http1"; a package by its own name."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def file_of(module: str) -> Path:
    """The file of a module."""
    path = SOURCE.joinpath(*module.split(".")) if module else SOURCE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def room(module: str) -> str | None:
    """The deepest name in `RANKS` that the module is in."""
    parts = module.split(".") if module else []
    names = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
    return next((name for name in names if name in RANKS), "" if not module else None)


@functools.cache
def nodes(module: str) -> tuple[ast.AST, ...]:
    """All that is written in a module."""
    return tuple(ast.walk(ast.parse(file_of(module).read_text(encoding="utf-8"))))


def imports(module: str) -> Iterator[str]:
    """Full names of what it imports, wherever in the file."""
    package = module if file_of(module).name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes(module):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                parts = f"tapmirror.{package}".rstrip(".").split(".")
                start = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [start])])
            for name in node.names:
                yield f"{start}.{name.name}"


def ours(name: str) -> str | None:
    """The module of ours that an imported name is or is in; None: not ours."""
    parts = name.split(".")
    if parts[0] != "tapmirror":
        return None
    while len(parts) > 1 and not file_of(".".join(parts[1:])).exists():
        parts.pop()
    return ".".join(parts[1:])


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    own = room(module)
    assert own is not None, (
        f"give {module} a rank in RANKS of {Path(__file__).name}, and a line in docs/ARCHITECTURE.md"
    )
    for name in imports(module):
        other = ours(name)
        if other is None:
            continue
        target = room(other)
        assert target is not None, f"{other} has no rank"
        if target != own:
            assert RANKS[target] < RANKS[own], (
                f"{module} (rank {RANKS[own]}) imports {name} (rank {RANKS[target]}): "
                "hand the value in from above, or move what both need below"
            )


@pytest.mark.parametrize("module", [module for module in modules() if room(module) in PURE])
def test_the_core_is_pure(module: str) -> None:
    for name in imports(module):
        assert name.partition(".")[0] not in IMPURE, f"{module} is pure and imports {name}: pass the value in"


WALL_CLOCK: Final = {
    "supervisor.log",  # when a line was said
    "supervisor.runner",  # since when a tap runs, for people; when a capture ended, which outlives the daemon
    "supervisor.daemon",  # when a ttl is over that is kept over a reboot; when a capture ended
    "worker.assembly",  # what templates of rewrites tell as the time
    "wall",  # the kernel's time stamps are of it; taken anew in each turn, and with each block
    "doctor",  # whether it is set at all
    "cli.top",  # shown
    "cli.status",  # shown
}


@pytest.mark.parametrize("module", modules())
def test_no_timer_is_of_the_wall_clock(module: str) -> None:
    """It jumps.  Where it is read all the same, the reason is above."""
    wall = {"time", "time_ns", "localtime", "gmtime", "CLOCK_REALTIME", "now", "utcnow"}
    found = [
        node.attr
        for node in nodes(module)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("time", "datetime")
        and node.attr in wall
    ]
    assert not found or module in WALL_CLOCK, f"{module} reads {found}: time.monotonic, or `now` handed in"


@pytest.mark.parametrize("module", PRIVILEGED)
def test_what_is_privileged_loads_nothing_that_reads_the_network(module: str) -> None:
    """Nor through what it imports; and so it starts soon."""
    ways = {module: module}
    wanted = [module]
    for each in wanted:
        for name in imports(each):
            parts = (ours(name) or "").split(".")
            for depth in range(1, len(parts) + 1):  # a module is imported with the packages that it is in
                found = ".".join(parts[:depth])
                if found not in ways:
                    ways[found] = f"{ways[each]} -> {found}"
                    wanted.append(found)
    within = [way for found, way in ways.items() if any(f"{found}.".startswith(f"{reader}.") for reader in READERS)]
    assert not within, within


@pytest.mark.parametrize("module", modules())
def test_only_the_loader_imports_bcc(module: str) -> None:
    if module != "loader":
        assert not any(name.partition(".")[0] == "bcc" for name in imports(module)), f"{module} imports bcc"


@pytest.mark.parametrize("module", [module for module in modules() if file_of(module).name != "__init__.py"])
def test_each_module_has_a_test_file(module: str) -> None:
    if module not in NO_TESTS:
        path = TOP / "tests" / f"test_{module.replace('.', '_')}.py"
        assert path.exists(), f"write tests/{path.name}"


@pytest.mark.parametrize("module", modules())
def test_a_docstring_is_not_half_of_a_sentence(module: str) -> None:
    """One below a name is read alone: where editors show it, and in the file's reference."""
    texts = [
        node.value.value
        for node in nodes(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    halves = [text for text in texts if text.rstrip().endswith((",", ";", ":")) or text.startswith("and ")]
    assert not halves, f"{module}: let each of {halves} stand alone"


def test_the_architecture_has_every_module() -> None:
    """In the column that it belongs in."""
    text = (TOP / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("\n## The modules\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[2:4] for line in table.splitlines() if "`" in line and line.startswith("| ")]
    pure, others = ({name for row in rows for name in re.findall(r"(?:^|;) `(\w+)`", row[at])} for at in (0, 1))
    assert pure == set(PURE)
    assert others == {name for name in RANKS if "." not in name} - {*PURE, "", "__main__"}


def test_every_package_is_shipped() -> None:
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg", encoding="utf-8")
    found = {f"tapmirror.{module}".rstrip(".") for module in modules() if file_of(module).name == "__init__.py"}
    assert set(setup["options"]["packages"].split()) == found | {"tapmirror.bpf", "tapmirror.deploy"}


def own_files() -> list[Path]:
    """All files that carry a licence line."""
    found = [path for folder in ("tapmirror", "tests") for path in (TOP / folder).rglob("*.py")]
    found += [*(TOP / "bpf").iterdir(), *(TOP / "scripts").iterdir(), TOP / ".ci" / "run"]
    found += [path for path in (TOP / "deploy").iterdir() if path.suffix != ".json"]  # JSON has no comments
    found += [TOP / name for name in ("pyproject.toml", "setup.cfg", ".gitignore", ".clang-format")]
    return [path for path in found if path.is_file()]


@pytest.mark.parametrize("path", own_files(), ids=lambda path: str(path.relative_to(TOP)))
def test_every_file_names_its_licence(path: Path) -> None:
    licence = "(GPL-2.0-only OR BSD-2-Clause)" if path.parent.name == "bpf" else "Apache-2.0"
    first = path.read_text(encoding="utf-8").splitlines()[:2]
    assert any(f"SPDX-License-Identifier: {licence}" in line for line in first)
