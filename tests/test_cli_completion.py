# SPDX-License-Identifier: Apache-2.0
"""Completion: the shell itself takes what is printed, and completes commands by it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).parent / "tapmirror"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_printed_is_of_the_shell(shell: str) -> None:
    done = subprocess.run([COMMAND, "completion", shell], capture_output=True, text=True, timeout=60, check=True)
    assert f"_TAPMIRROR_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, timeout=60, check=True)


def test_bash_completes_commands() -> None:
    script = (
        f"source <({COMMAND} completion bash) && COMP_WORDS=(tapmirror pa) COMP_CWORD=1 "
        f"&& _tapmirror_completion tapmirror && printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    path = f"{COMMAND.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "PATH": path}
    )
    assert done.stdout == "pause\n"


@pytest.mark.parametrize("words", ["start -f", "apply -f", "run -f", "explain -f", "spec --from-nginx", "streams"])
def test_a_file_is_completed_as_one(words: str) -> None:
    environment = {**os.environ, "_TAPMIRROR_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words.split()) + 1)}
    environment["COMP_WORDS"] = f"tapmirror {words} t"
    done = subprocess.run([COMMAND], capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stdout == "file,t\n"


def test_an_unknown_shell_is_refused() -> None:
    done = subprocess.run([COMMAND, "completion", "csh"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "'csh' is not one of 'bash', 'zsh', 'fish'" in done.stderr
