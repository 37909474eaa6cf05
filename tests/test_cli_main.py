# SPDX-License-Identifier: Apache-2.0
"""The `tapmirror` command as such: help, version, and what is no command at all."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import tapmirror
from lab import AS_NOBODY
from tapmirror.cli.main import COMMANDS
from tapmirror.cli.main import command as load

COMMAND = Path(sys.executable).parent / "tapmirror"
OPTIONS = (
    *("--iface", "--port", "--addr", "--shadow", "--percent", "--seed", "--protocol", "--capture", "--pacing"),
    *("--promisc", "--decap"),
    *(
        "--host",
        "--duration",
        "--json",
        "--resolve",
        "--strict",
        "--workers",
        "--compare",
        "--noise-probe",
        "--no-loop-check",
    ),
    *("--report", "--verdict", "--max-error-diff", "--max-p99-ratio", "--max-diff-rate", "--alpha"),
)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(COMMAND), *words], capture_output=True, text=True, timeout=300, check=False)


@functools.cache
def help_of_run() -> str:
    return command("run", "--help").stdout


def examples() -> list[str]:
    lines = [line.strip() for line in help_of_run().partition("Examples:")[2].partition("Options:")[0].splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--help"], r"Usage: tapmirror .*Exit codes: 0 .* 1 .* 2 .*\n  run +Mirror "),
        (["-h"], r"Usage: tapmirror "),
        (["--version"], rf"tapmirror, version {re.escape(tapmirror.__version__)}\n\Z"),
        (["run", "--help"], r"Usage: tapmirror run "),
        (["run", "-h"], r"Usage: tapmirror run "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_asked_for_is_on_standard_output(words: list[str], wanted: str) -> None:
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(wanted, done.stdout, re.DOTALL)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["walk"], "'walk'; see"),
        (["statsu"], "'statsu'. Did you mean 'status'?; see"),
        (["--walk"], "--walk"),
        (["run", "--walk"], "--walk"),
        (["run", "more", "--iface=lo", "--port=80", "--shadow=a:1"], "more"),
        (["run"], "--iface"),
        (["run", "--iface"], "--iface"),
        (["run", "--iface=lo", "--shadow=a:1"], "--port"),
        (["run", "--iface=lo", "--port=80"], "--shadow"),
        (["uninstall", "--foo"], "--foo"),
        (["stop", "web", "api"], "api"),
        (["completion"], "'{bash|zsh|fish}'. Choose from: bash, zsh, fish; see"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_no_command_is_a_usage_error(words: list[str], wanted: str) -> None:
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    (error,) = done.stderr.splitlines()
    assert error.startswith("tapmirror: error: ") and wanted in error
    command_path = " ".join(["tapmirror", *words[:1]]) if words[0] in COMMANDS else "tapmirror"
    assert error.endswith(f"; see {command_path} --help")
    assert "\\" not in error


@pytest.mark.parametrize("words", ["top", "explain -f -", "spec --from-nginx -"])
def test_without_standard_input_it_ends_in_one_line(words: str) -> None:
    shell = ["sh", "-c", f'exec "$0" {words} <&-', str(COMMAND)]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("tapmirror: error: ")


def test_without_a_command_it_tells_which_there_are() -> None:
    done = command()
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search("^  run +Mirror traffic", done.stderr, re.MULTILINE)


def test_help_gives_examples_one_a_line() -> None:
    lines = examples()
    assert len(lines) >= 3
    assert {shlex.split(line)[:2] == ["tapmirror", "run"] for line in lines} == {True}
    assert "\\b" not in help_of_run()


@pytest.mark.parametrize("option", OPTIONS)
def test_help_explains_every_option(option: str) -> None:
    found = re.search(rf"^  {option}\b(.*?)(?=^  -|\Z)", help_of_run(), re.DOTALL | re.MULTILINE)
    assert found is not None
    words = re.sub(r"\[[^]]*\]", "", found[1])  # neither its choices nor its default
    assert re.search(r"[a-z]{2,}", words), f"{option} is not explained"


def test_help_knows_no_other_option() -> None:
    assert set(re.findall(r"^  (--[a-z0-9-]+)", help_of_run(), re.MULTILINE)) == set(OPTIONS)


def test_the_examples_are_right() -> None:
    """They get as far as a user without privilege can: to the one line that says so."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "tap.yaml").write_text("iface: eth0\nport: 80\nshadow: staging.internal:8080\n")
        try_examples(folder)


def try_examples(folder: str) -> None:
    for line in examples():
        words = shlex.split(line)
        assert words[0] == "tapmirror"
        as_nobody = [*(AS_NOBODY if os.geteuid() == 0 else ()), str(COMMAND), *words[1:]]
        done = subprocess.run(as_nobody, capture_output=True, text=True, timeout=300, check=False, cwd=folder)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "tapmirror: error: capturing needs root: run it with sudo\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="it is about root")
@pytest.mark.parametrize("lacking", ["CAP_NET_RAW", "CAP_SETUID", "CAP_SETGID, CAP_SETUID, CAP_NET_RAW"])
@pytest.mark.parametrize("capture", ["auto", "packet"])
def test_root_without_capabilities_is_told_in_one_line(lacking: str, capture: str) -> None:
    """As in a container."""
    dropped = ",".join(f"-{name.removeprefix('CAP_').lower()}" for name in lacking.split(", "))
    tap = ["run", "--iface", "lo", "--port", "1", "--shadow", "127.0.0.2:1", "--capture", capture, "--duration", "1"]
    words = ["setpriv", "--bounding-set", dropped, "--inh-caps", "-all", "--", str(COMMAND), *tap]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    line = f"root has no {lacking} here, without which no tap starts (see tapmirror doctor)"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"tapmirror: error: {line}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_what_its_name_says(name: str) -> None:
    assert load(name).name == name


@pytest.mark.parametrize(
    ("words", "none"),
    [
        (["--version"], ("rich", "asyncio", "tapmirror.supervisor.tap", "tapmirror.spec.gateway")),
        (["list"], ("asyncio", "tapmirror.supervisor.tap", "tapmirror.compare")),
        (["run", "--iface=lo"], ("tapmirror.worker.loop", "tapmirror.framing", "tapmirror.report", "bcc")),
    ],
    ids=lambda value: value[0],
)
def test_a_command_loads_what_it_needs(words: list[str], none: tuple[str, ...]) -> None:
    """`list` takes a third of the time that all commands take together."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(COMMAND), *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "tapmirror.cli.main" in loaded
    assert not loaded & {*none}


@pytest.mark.parametrize("name", ["daemon", "run"])
def test_what_goes_on_has_loaded_what_asks_for_links_and_addresses(name: str) -> None:
    """A daemon's first tap may come days after it began, and a package may be replaced beneath it."""
    code = (
        f"import sys; from tapmirror.cli import {name}; from tapmirror.supervisor import addresses\n"
        "before = {*sys.modules}\n"
        "addresses.local_addresses(), addresses.largest_packet('lo')\n"
        "sys.exit(', '.join(sorted({*sys.modules} - before)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("more", "loaded"), [("--json", False), ("--percent=50", True)])
def test_what_goes_on_has_loaded_what_it_prints_at_its_end_and_nothing_else(more: str, loaded: bool) -> None:
    """rich takes a fifth of the time that all of a start's modules take; YAML, which only a file needs, a tenth."""
    code = (
        "import sys; from tapmirror.cli import run; from tapmirror.cli.main import main\n"
        "seen = {'rich', 'tapmirror.cli.account', 'yaml'}\n"
        "run.start = lambda *_: sys.exit(' '.join(sorted(seen & {*sys.modules})))\n"
        f"main(['run', '--iface=lo', '--port=80', '--shadow=192.0.2.1:80', {more!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stderr.strip() == ("rich tapmirror.cli.account" if loaded else "")


def test_what_goes_on_has_loaded_what_it_prints_of_a_comparison() -> None:
    """A package may be replaced beneath it."""
    code = (
        "import sys; from tapmirror.cli import run; from tapmirror.cli.main import main\n"
        "wanted = {'tapmirror.compare.brief', 'tapmirror.report.words'}\n"
        "run.start = lambda *_: sys.exit(not wanted <= {*sys.modules})\n"
        "main(['run', '--iface=lo', '--port=80', '--shadow=192.0.2.1:80', '--compare=status'])"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode == 0
