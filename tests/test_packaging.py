# SPDX-License-Identifier: Apache-2.0
"""The wheel has all that a machine without the repository needs."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
PARTS = ("tapmirror", "bpf", "deploy", "docs", "setup.cfg", "pyproject.toml", *PAGES, "LICENSE", "LICENSES")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in it."""
    work = tmp_path_factory.mktemp("wheel")
    for name in PARTS:  # setuptools leaves files beside what it builds
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(TOP / name, work / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", work, work], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = work.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_every_module_is_in_it(wheel: set[str]) -> None:
    ours = {str(path.relative_to(TOP)) for path in (TOP / "tapmirror").rglob("*.py")}
    assert ours <= wheel


@pytest.mark.parametrize("folder", ["bpf", "deploy"])
def test_what_is_no_module_is_in_it(wheel: set[str], folder: str) -> None:
    wanted = {f"tapmirror/{folder}/{path.name}" for path in (TOP / folder).iterdir() if path.is_file()}
    assert wanted
    assert wanted <= wheel


def test_links_of_what_people_read_lead_to_what_is_beside_it(wheel: set[str]) -> None:
    """The Debian package takes its documents from the wheel."""
    (top,) = {name.removesuffix("README.md") for name in wheel if name.endswith("/tapmirror/README.md")}
    pages = {name.removeprefix(top) for name in wheel if name.startswith(top)}
    assert pages == {*PAGES, *(f"docs/{path.name}" for path in (TOP / "docs").glob("*.md"))}
    for page in pages:
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", (TOP / page).read_text(encoding="utf-8")):
            assert os.path.normpath(Path(page).parent / link) in pages, (page, link)


def test_nothing_else_is_in_it(wheel: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel} == {
        "tapmirror",
        *(name.split("/")[0] for name in wheel if ".dist-info/" in name or ".data/data/share/doc/tapmirror/" in name),
    }
    assert not [name for name in wheel if name.startswith("tests")]


def test_the_debian_package_wants_no_older_versions_than_the_wheel() -> None:
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg")
    wanted = dict(re.findall(r"(\S+) >= (\S+)", setup["options"]["install_requires"]))
    script = (TOP / "scripts" / "package-deb").read_text()
    (own,) = re.findall(r"^own=\((.*)\)$", script, re.MULTILINE)
    (depends,) = re.findall(r"^Depends: (.*)$", script, re.MULTILINE)
    found = dict(re.findall(r"python3-(\S+) \(>= (\S+)\)", depends))
    assert found == {
        {"PyYAML": "yaml"}.get(name, name): version for name, version in wanted.items() if name not in own.split()
    }
