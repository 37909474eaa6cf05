# SPDX-License-Identifier: Apache-2.0
"""Completion: the shell itself takes what is printed, and completes commands by it."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lab import PATIENCE
from tapmirror.cli.completion import MENDED
from tapmirror.control.messages import write_reply

COMMAND = Path(sys.executable).parent / "tapmirror"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_printed_is_of_the_shell(shell: str) -> None:
    done = subprocess.run([COMMAND, "completion", shell], capture_output=True, text=True, timeout=300, check=True)
    assert f"_TAPMIRROR_COMPLETE={shell}_complete" in done.stdout
    assert [old for old, _ in MENDED if old in done.stdout] == []
    assert any(new in done.stdout for _, new in MENDED) == (shell != "bash"), "click prints something else now"
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, timeout=300, check=True)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A user's, with nothing of ours but what is printed; a daemon with two taps; and a file in the home directory."""
    (tmp_path / "taps.yaml").write_text("")
    with closing(Taps(tmp_path / "sock", ["web-one", "mail"])):
        yield {
            "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "ZDOTDIR": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path / ".config"),
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            "TAPMIRROR_SOCKET": str(tmp_path / "sock"),
        }


class Taps:
    """In the place of a daemon: tells every client of these taps."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._reply = {"taps": [{"name": name, "iface": "eth0", "shadows": ["a:1", "b:2"]} for name in names]}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, client.makefile() as lines:
                    for line in lines:
                        client.sendall(write_reply(json.loads(line)["id"], self._reply))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


CASES = [
    ("tapmirror pa", "tapmirror pause"),
    ("tapmirror status w", "tapmirror status web-one"),
    ("tapmirror stop m", "tapmirror stop mail"),
    ("tapmirror start --protocol ht", "tapmirror start --protocol http"),
    ("tapmirror apply -f ta", "tapmirror apply -f taps.yaml"),
    ("tapmirror report ta", "tapmirror report taps.yaml"),
]


@pytest.mark.parametrize(("typed", "completed"), [case for case in CASES if "yaml" not in case[1]])
def test_bash_completes(environment: dict[str, str], typed: str, completed: str) -> None:
    words = typed.split()
    script = (
        f"source <({COMMAND} completion bash) && COMP_WORDS=({typed}) COMP_CWORD={len(words) - 1} "
        f"&& _tapmirror_completion tapmirror && printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=300, check=True, env=environment
    )
    assert done.stdout == f"{completed.split()[-1]}\n"


def needs(shell: str) -> None:
    """Skip where it is not installed."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} (scripts/setup --browser)")


def printed(shell: str) -> str:
    """What the command prints for it."""
    done = subprocess.run([COMMAND, "completion", shell], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def fish(environment: dict[str, str], *typed: str) -> list[str]:
    """What fish offers for each, with its description."""
    place = Path(environment["XDG_CONFIG_HOME"], "fish", "completions")
    place.mkdir(parents=True)
    (place / "tapmirror.fish").write_text(printed("fish"))
    script = ["cd", *(f"complete -C '{each}'" for each in typed)]
    done = subprocess.run(
        ["fish", "-c", "; ".join(script)], capture_output=True, text=True, timeout=300, check=True, env=environment
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_fish_completes(environment: dict[str, str]) -> None:
    needs("fish")
    found = fish(environment, *(typed for typed, _ in CASES))
    assert [line.partition("\t")[0] for line in found] == [completed.split()[-1] for _, completed in CASES]


def test_fish_shows_descriptions_whole(environment: dict[str, str]) -> None:
    needs("fish")
    assert fish(environment, "tapmirror status w") == ["web-one\teth0 -> a:1, b:2"]


@pytest.mark.parametrize("way", ["sourced", "in fpath"])
def test_zsh_completes(environment: dict[str, str], way: str) -> None:
    """An interactive one, on a terminal: the words are typed, and Tab."""
    needs("zsh")
    home = Path(environment["HOME"])
    (home / "zfunc").mkdir()
    (home / "zfunc" / "_tapmirror").write_text(printed("zsh"))
    begin = "autoload -Uz compinit; compinit -u -D\n"
    ways = {"sourced": f"{begin}source <(tapmirror completion zsh)\n", "in fpath": f"fpath=(~/zfunc $fpath)\n{begin}"}
    (home / ".zshrc").write_text(f"unsetopt BEEP; cd\n{ways[way]}")
    ours, theirs = pty.openpty()
    command = ["setsid", "--ctty", "--wait", "zsh", "-d", "-i"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as shell:
        os.close(theirs)
        try:
            for typed, completed in CASES:
                shows(ours, "\x1b[?2004h")  # it reads a line
                os.write(ours, f"{typed}\t".encode())
                shows(ours, f"{completed} ")
                os.write(ours, b"\x15\n")  # Ctrl-U: nothing is done
        finally:
            os.close(ours)  # which hangs up
            shell.kill()


def shows(terminal: int, text: str) -> None:
    """Wait until it does."""
    seen, end = "", time.monotonic() + PATIENCE
    while text not in seen:
        assert time.monotonic() < end, f"{text!r} is not in {seen!r}"
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 1 << 16).decode()


@pytest.mark.parametrize("words", ["start -f", "apply -f", "run -f", "explain -f", "spec --from-nginx", "streams"])
def test_a_file_is_completed_as_one(words: str) -> None:
    environment = {**os.environ, "_TAPMIRROR_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words.split()) + 1)}
    environment["COMP_WORDS"] = f"tapmirror {words} t"
    done = subprocess.run([COMMAND], capture_output=True, text=True, timeout=300, check=True, env=environment)
    assert done.stdout == "file,t\n"


def test_an_unknown_shell_is_refused() -> None:
    done = subprocess.run([COMMAND, "completion", "csh"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and "'csh' is not one of 'bash', 'zsh', 'fish'" in done.stderr
