# SPDX-License-Identifier: Apache-2.0
"""The commands of operators: what they ask the daemon for, and what they print of its reply."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from runner import CliRunner
from tapmirror.cli import asking, taps
from tapmirror.cli.main import COMMANDS, main
from tapmirror.control.client import ControlError
from tapmirror.control.messages import Apply, List, Pause, Reload, Request, Resume, Set, Start, Stop

LISTED = {
    "name": "web", "state": "waiting", "state_reason": "for eth0", "percent": 12.5, "iface": "eth0", "ports": [80, 81],
    "shadows": ["a.test:80", "[::1]:81"], "origin": "",
}  # fmt: skip


class Asked:
    """In the place of the daemon: keeps what it is asked for, and answers as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[Request] = []
        self.reply: Any = {}
        monkeypatch.setattr(taps, "ask", self._ask)

    def _ask(self, socket: Path, request: Request) -> Any:
        assert socket == Path("/run/tapmirror/control.sock")
        self.requests.append(request)
        if isinstance(self.reply, ControlError):
            asking.refused(self.reply)
        return self.reply

    def run(self, *words: str, input_: str | None = None) -> Result:
        """A command."""
        return CliRunner().invoke(main, words, input=input_, env={"COLUMNS": "160"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.delenv("TAPMIRROR_SOCKET", raising=False)
    return Asked(monkeypatch)


@pytest.mark.parametrize(
    ("words", "request_", "reply", "output"),
    [
        (["stop", "web"], Stop(name="web"), {"stopped": [{"name": "web", "ledger": None}]}, "stopped: web\n"),
        (["stop", "--all"], Stop(all=True), {"stopped": []}, ""),
        (["pause", "web"], Pause(name="web"), {"name": "web"}, "paused: web\n"),
        (["resume", "web"], Resume(name="web"), {"name": "web"}, "resumed: web\n"),
        (["set", "web", "percent=2.5"], Set(name="web", percent=2.5), {"name": "web", "percent": 2.5}, "web: 2.5 %\n"),
        (
            ["set", "web", "percent=1e-5"],
            Set(name="web", percent=1e-5),
            {"name": "web", "percent": 1e-5},
            "web: 0.00001 %\n",
        ),
        (
            ["set", "web", "percent=0"],
            Set(name="web", percent=0.0),
            {"name": "web", "percent": 0.0, "notes": {"web": ["nothing is mirrored: percent is 0"]}},
            "web: 0 %\ntapmirror: web: nothing is mirrored: percent is 0\n",
        ),
        (["reload"], Reload(), {"plan": [], "failed": {}}, "no taps\n"),
        (["list"], List(), {"taps": []}, "no taps\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_asked_for(asked: Asked, words: Sequence[str], request_: Request, reply: Any, output: str) -> None:
    asked.reply = reply
    done = asked.run(*words)
    assert (done.exit_code, done.output) == (0, output)
    assert asked.requests == [request_]
    assert json.loads(asked.run(*words, "--json").output) == reply


def test_start_takes_the_options_of_a_tap(asked: Asked) -> None:
    asked.reply = {"started": ["web"]}
    done = asked.run(
        "start", "--name=web", "--ttl=60", "--iface=eth0", "--port=80", "--shadow=a.test:81", "--percent=5", "--force"
    )  # fmt: skip
    assert (done.exit_code, done.output) == (0, "started: web\n")
    (request,) = asked.requests
    assert isinstance(request, Start) and request.force
    (spec,) = request.taps
    assert (spec.name, spec.ttl, spec.iface, spec.ports, spec.percent) == ("web", 60.0, "eth0", (80,), 5.0)


ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}], mirror: {host: v2, port: {number: 80}}}]}
"""


def test_apply_takes_what_a_file_of_kubernetes_does_not_say(asked: Asked) -> None:
    asked.reply = {"plan": [], "failed": {}}
    words = ["apply", "-f", "-", "--resolve", "v2=a.test:81"]
    assert "iface is missing: --iface, or a document" in asked.run(*words, input_=ROUTE).stderr
    assert asked.run(*words, "--iface=eth0", "--port=80", input_=ROUTE).exit_code == 0
    (request,) = asked.requests
    assert isinstance(request, Apply)
    assert [(spec.iface, spec.ports) for spec in request.taps] == [("eth0", (80,))]


def test_start_tells_what_the_tap_warned_of(asked: Asked) -> None:
    asked.reply = {"started": ["a"], "notes": {"a": ["the shadow x port 1 cannot be reached yet", "and more"]}}
    done = asked.run("start", "-f", "-", input_=FILE.format("a"))
    assert (done.exit_code, done.stdout) == (0, "started: a\n")
    assert done.stderr == "tapmirror: a: the shadow x port 1 cannot be reached yet\ntapmirror: a: and more\n"


@pytest.mark.parametrize(
    ("words", "dry_run", "force"), [([], False, False), (["--force"], False, True), (["--dry-run"], True, False)]
)
def test_apply_asks_for_what_it_is_told(asked: Asked, words: list[str], dry_run: bool, force: bool) -> None:
    asked.reply = {"plan": [], "failed": {}}
    assert asked.run("apply", "-f", "-", *words, input_=FILE.format("web")).exit_code == 0
    (request,) = asked.requests
    assert isinstance(request, Apply) and (request.dry_run, request.force) == (dry_run, force)


FILE = "name: {}\niface: eth0\nport: 80\nshadow: a.test:80\n"


def test_start_takes_a_file_and_may_give_a_name_to_its_only_tap(asked: Asked) -> None:
    asked.reply = {"started": ["other"]}
    assert asked.run("start", "-f", "-", "--name=other", input_=FILE.format("web")).exit_code == 0
    assert isinstance(asked.requests[0], Start) and asked.requests[0].taps[0].name == "other"
    done = asked.run("start", "-f", "-", "--name=other", input_=f"{FILE.format('a')}---\n{FILE.format('b')}")
    assert (done.exit_code, done.output) == (2, "tapmirror: error: --name: the file has 2 taps\n")
    done = asked.run("start", "-f", "-", "--ttl=-1", input_=FILE.format("a"))
    line = "tapmirror: error: --ttl: '-1' is not a time above 0 like 90, 90s, 15m or 1h30m\n"
    assert (done.exit_code, done.output) == (2, line)
    assert asked.run("start", "-f", "-", "--ttl=1h30m", input_=FILE.format("a")).exit_code == 0
    last = asked.requests[-1]
    assert isinstance(last, Start) and last.taps[0].ttl == 5400


def test_apply_prints_the_plan_and_what_failed(asked: Asked) -> None:
    asked.reply = {
        "plan": [
            {"name": "a", "action": "remove", "fields": []},
            {"name": "b", "action": "restart", "fields": ["ports", "seed"]},
            {"name": "c", "action": "change", "fields": ["percent"]},
            {"name": "d", "action": "add", "fields": []},
            {"name": "e", "action": "keep", "fields": []},
        ],
        "failed": {"d": "no interface"},
        "waits": {"f": "no interface tun0"},
        "notes": {"b": ["nothing is mirrored: percent is 0"]},
    }
    done = asked.run("apply", "-f", "-", "--dry-run", input_=FILE.format("web"))
    assert done.exit_code == 1
    assert done.stdout.splitlines()[:5] == [
        "- remove  a",
        "! restart b  (ports, seed)",
        "~ change  c  (percent)",
        "+ add     d",
        "  keep    e",
    ]
    assert done.stderr == (
        "tapmirror: f waits: no interface tun0\n"
        "tapmirror: b: nothing is mirrored: percent is 0\n"
        "tapmirror: error: d: no interface\n"
    )
    (request,) = asked.requests
    assert isinstance(request, Apply) and request.dry_run and [spec.name for spec in request.taps] == ["web"]


@pytest.mark.parametrize("columns", ["30", "200"])
def test_list_is_a_line_for_each_tap_and_nothing_is_cut(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    asked = Asked(monkeypatch)
    name = "checkout-service-payments-v2-canary"
    unwell = {**LISTED, "name": "b", "state": "running", "state_reason": "", "trouble": "shadow b: it is slow"}
    asked.reply = {"taps": [LISTED, {**LISTED, "name": name, "state_reason": "", "origin": "x.yaml"}, unwell]}
    monkeypatch.setenv("COLUMNS", columns)
    done = CliRunner().invoke(main, ["list"])
    gap = " " * (len(name) - 2)
    assert done.output.splitlines() == [
        f"NAME{gap}STATE    SHARE   INTERFACE  PORTS  SHADOWS              FROM     WHY",
        f"web {gap}waiting  12.5 %  eth0       80,81  a.test:80, [::1]:81  command  for eth0",
        f"{name}  waiting  12.5 %  eth0       80,81  a.test:80, [::1]:81  x.yaml",
        f"b   {gap}running  12.5 %  eth0       80,81  a.test:80, [::1]:81  command  shadow b: it is slow",
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["stop"], "give the NAME of a tap, or --all"),
        (["stop", "web", "--all"], "give the NAME of a tap, or --all"),
        (["set", "web", "percent"], "'percent': only percent=P can be set"),
        (["set", "web", "name=x"], "'name=x': only percent=P can be set"),
        (["set", "web", "percent=much"], "percent: 'much' is not a number"),
        (["set", "web", "percent=nan"], "percent: 'nan' is not a number"),
        (["set", "web", "percent=1_0"], "percent: '1_0' is not a number"),
        (["set", "web", "percent=\u0663"], "percent: '\u0663' is not a number"),
        (["set", "web", "percent=1e400"], "percent: '1e400' is not between 0 and 100"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_not_asked_for(asked: Asked, words: Sequence[str], line: str) -> None:
    done = asked.run(*words)
    assert (done.exit_code, done.output) == (2, f"tapmirror: error: {line}\n")
    assert asked.requests == []


CODES = [("refused", 2), ("not_found", 2), ("denied", 2), ("failed", 1), ("lost", 1), ("no_daemon", 2)]


@pytest.mark.parametrize(("code", "status_"), CODES)
def test_why_it_was_not_done_is_a_line_and_a_status(asked: Asked, code: str, status_: int) -> None:
    asked.reply = ControlError(code, "it was not done")
    done = asked.run("pause", "web")
    assert (done.exit_code, done.output) == (status_, "tapmirror: error: it was not done\n")


def test_every_command_teaches_with_examples() -> None:
    commands = [
        name for name, module in COMMANDS.items() if module.partition(":")[0] in ("taps", "status", "top", "daemon")
    ]
    run: Callable[..., Result] = CliRunner().invoke
    for command in commands:
        shown = run(main, [command, "--help"]).output
        assert f"  tapmirror {command}" in shown.partition("Example")[2], command
        assert "\b" not in shown
