# SPDX-License-Identifier: Apache-2.0
"""The documents against the code: links lead somewhere, files and options are as shown, tables are complete."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Final

import click
import pytest
import yaml

from tapmirror.cli.main import main
from tapmirror.events import DropReason, FilterReason
from tapmirror.spec.reading import read_taps
from test_supervisor_metrics import Taps, snapshot

TOP: Final = Path(__file__).parent.parent
FILES: Final = sorted([*TOP.glob("*.md"), *TOP.glob("docs/*.md")])
MINIMAL: Final = {"iface": "eth0", "port": 80, "shadow": "staging.internal:8080", "protocol": "http"}

each_file = pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])


def anchors(file: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(file: str, title: str) -> str:
    text = (TOP / file).read_text(encoding="utf-8")
    (found,) = re.findall(rf"^(#+) {re.escape(title)}\n(.*?)(?=^##? |\Z)", text, re.M | re.S)
    return str(found[1])


def blocks(file: Path) -> list[str]:
    """What is indented as code."""
    found = re.findall(r"(?<=\n\n)((?:    .*\n|\n(?=    ))+)", file.read_text(encoding="utf-8"))
    return [textwrap.dedent(each) for each in found]


@each_file
def test_links_lead_somewhere(file: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", file.read_text(encoding="utf-8"))
    for path, anchor in links:
        target = file.parent / path if path else file
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), (path, anchor)


@each_file
def test_what_is_said_of_a_file_is_yaml(file: Path) -> None:
    for text in re.findall(r"`([a-z_]+: [^`\n]+)`", file.read_text(encoding="utf-8")):
        yaml.safe_load(text)


def test_the_files_of_the_readme_are_taps() -> None:
    shown = [each for each in blocks(TOP / "README.md") if re.match(r"(iface|protocol|redact|budget): *", each)]
    assert len(shown) == 5
    for text in shown:
        found = yaml.safe_load(text)
        wanting = {name: value for name, value in MINIMAL.items() if f"{name}s" not in found}
        read_taps(json.dumps(wanting | found).encode())


def options(command: str) -> set[str]:
    found = main.get_command(click.Context(main), command)
    assert found is not None, command
    return {name for param in found.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}


@each_file
def test_the_commands_have_the_options_that_are_shown(file: Path) -> None:
    text = "\n".join([*blocks(file), *re.findall(r"`([^`\n]+)`", file.read_text(encoding="utf-8"))])
    text = re.sub(r"'[^'\n]*'", "", text)
    for name, line in re.findall(r"^(?:.*[ |/])?tapmirror ([a-z]+)((?: [^|;#\n]*)?)", text, re.M):
        shown = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*(?![\w…-])", line)
        assert set(shown) <= options(name), (name, line)


def test_the_readme_has_every_option_of_run() -> None:
    text = (TOP / "README.md").read_text(encoding="utf-8")
    assert {name for name in options("run") if name.startswith("--") and name not in text} == {"--file"}


def test_every_reason_is_explained() -> None:
    _, dropped, filtered = re.split(
        r"^`(?:dropped|filtered)` ", section("docs/REFERENCE.md", "What a drop means"), flags=re.M
    )
    for text, kinds in ((dropped, DropReason), (filtered.partition("\n### ")[0], FilterReason)):
        cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
        assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == {kind.value for kind in kinds}
    (shown,) = re.findall(r"### What a drop means\n(.*?)\n### ", (TOP / "README.md").read_text(encoding="utf-8"), re.S)
    assert set(re.findall(r"^\| `(\w+)`", shown, re.M)) <= {kind.value for kind in DropReason}


def test_every_metric_is_explained() -> None:
    told = section("docs/REFERENCE.md", "Metrics")
    names = re.findall(r"^# TYPE tapmirror_(\w+)", Taps(snapshot()).text(), re.M)
    assert len(names) > 20
    for name in names:
        plain = re.sub(r"^(seen|settled|in_flight|unaccounted)_(segments|bytes|requests)$", r"\1_", name)
        assert f"`{plain}" in told, name
