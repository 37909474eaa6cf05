# SPDX-License-Identifier: Apache-2.0
"""The contract of supervisor, loader and worker: of another version or another header it is another one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tapmirror
from tapmirror import contract

PACKAGE = Path(tapmirror.__file__).parent


def test_ours_is_taken_and_no_other() -> None:
    assert contract.CONTRACT.startswith(f"{tapmirror.__version__}-")
    assert contract.broken(contract.CONTRACT) is None
    said = f"tapmirror {contract.CONTRACT} is installed now, and 9.9-0 is running: restart it"
    assert contract.broken("9.9-0") == said
    assert "and an older one is running" in str(contract.broken(""))


def of(folder: Path) -> str:
    """The contract of the package in a folder."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); from tapmirror.contract import CONTRACT; print(CONTRACT)"
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("inside", [True, False])
def test_it_follows_the_version_and_the_header(tmp_path: Path, inside: bool) -> None:
    """As a wheel has it, with the header within the package, and as a clone has it, beside."""
    package, bpf = tmp_path / "tapmirror", tmp_path / ("tapmirror/bpf" if inside else "bpf")
    package.mkdir()
    for name in ("__init__.py", "contract.py"):
        shutil.copy(PACKAGE / name, package)
    bpf.mkdir()
    (bpf / "tap.h").write_text(contract.bpf_text("tap.h"))
    assert of(tmp_path) == contract.CONTRACT
    (bpf / "tap.h").write_text(contract.bpf_text("tap.h").replace("__u32 seq;", "__u64 seq;"))
    other = of(tmp_path)
    assert other != contract.CONTRACT and other.startswith(tapmirror.__version__)
    (package / "__init__.py").write_text('__version__ = "9.9"\n')
    assert of(tmp_path) == f"9.9-{other.partition('-')[2]}"
