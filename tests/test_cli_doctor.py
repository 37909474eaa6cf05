# SPDX-License-Identifier: Apache-2.0
"""`tapmirror doctor`: a line for each finding, the same as JSON, and an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from runner import CliRunner
from tapmirror import doctor
from tapmirror.cli import main
from tapmirror.doctor import Finding, Level
from tapmirror.spec import parse_shadow


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    found = [Finding("kernel", Level.OK, "Linux 6"), Finding("user", Level.WARN, "nobody", "create one")]

    def examine(_iface: object, _shadow: object) -> Iterator[Finding]:
        return iter(found)

    monkeypatch.setattr(doctor, "examine", examine)
    return found


def test_in_words(findings: list[Finding]) -> None:
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        "ok      kernel        Linux 6",
        "warn    user          nobody",
        "                      -> create one",
        "a tap can start here",
    ]


def test_it_cannot_start(findings: list[Finding]) -> None:
    findings.append(Finding("privilege", Level.FAIL, "not root", "sudo"))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert done.output.endswith("a tap cannot start here\n")


def test_as_json(findings: list[Finding]) -> None:
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert json.loads(done.output) == {
        "can_start": True,
        "findings": [
            {"check": "kernel", "level": "ok", "text": "Linux 6", "remedy": ""},
            {"check": "user", "level": "warn", "text": "nobody", "remedy": "create one"},
        ],
    }


def test_each_interface_and_each_shadow_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def examine(iface: object, shadows: list[object]) -> list[Finding]:
        asked.extend([iface, *shadows])
        return []

    monkeypatch.setattr(doctor, "examine", examine)
    words = ["doctor", "--iface=lo", "--iface=veth*", "--shadow=127.0.0.1:80", "--shadow=[::1]:81"]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert asked == ["lo,veth*", parse_shadow("127.0.0.1:80"), parse_shadow("[::1]:81")]


def test_a_wrong_shadow() -> None:
    done = CliRunner().invoke(main, ["doctor", "--shadow", "x"])
    assert (done.exit_code, done.output) == (2, "tapmirror: error: --shadow: 'x' is not HOST:PORT\n")


@pytest.mark.parametrize("names", [[""], ["eth0,"], ["lo", ""]])
def test_a_wrong_interface(names: list[str]) -> None:
    done = CliRunner().invoke(main, ["doctor", *(f"--iface={name}" for name in names)])
    assert (done.exit_code, done.output) == (2, "tapmirror: error: --iface: '' is not an interface name\n")
