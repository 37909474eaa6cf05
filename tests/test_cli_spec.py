# SPDX-License-Identifier: Apache-2.0
"""`tapmirror spec` and `tapmirror explain` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner import CliRunner
from tapmirror.cli import main


def test_schema_and_example() -> None:
    runner = CliRunner()
    schema = runner.invoke(main, ["spec", "--schema"])
    assert schema.exit_code == 0 and "$defs" in json.loads(schema.stdout)
    example = runner.invoke(main, ["spec", "--example"])
    assert example.exit_code == 0 and example.stdout.startswith("# A tap")
    assert runner.invoke(main, ["explain", "-f", "-"], input=example.stdout).stdout.startswith(
        "Tap tap: TCP to port 80"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["spec"],
        ["spec", "--schema", "--example"],
        ["spec", "--schema", "--strict"],
        ["spec", "--from-gor", "gor", "--from-nginx", "x"],
        ["spec", "--from-nginx", "/no/such"],
        ["explain"],
        ["explain", "-f", "/no/such"],
    ],
)
def test_wrong_calls(words: list[str]) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr


def test_explain_tells_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "tap.yaml").write_text("iface: eth0\nport: 0\nshadow: a\n")
    done = CliRunner().invoke(main, ["explain", "-f", str(tmp_path / "tap.yaml")])
    assert done.exit_code == 2
    assert [line.partition("tap.yaml")[2].split(": ")[:2] for line in done.stderr.splitlines()] == [
        [":2", "port"],
        [":3", "shadow"],
    ]


ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
spec: {hosts: [reviews], http: [{mirror: {host: reviews, subset: v2}, retries: {attempts: 3}}]}
"""


def test_rules_of_istio(tmp_path: Path) -> None:
    (tmp_path / "route.yaml").write_text(ROUTE)
    words = ["explain", "-f", str(tmp_path / "route.yaml"), "--iface", "eth1", "--port", "9080"]
    address = ["--resolve", "reviews:v2=10.0.0.12:9080"]
    runner = CliRunner()
    done = runner.invoke(main, [*words, *address])
    assert done.exit_code == 0, done.stderr
    assert "port 9080 on interface eth1" in done.stdout and "Host gets the suffix -shadow" in done.stdout
    (warning,) = done.stderr.splitlines()
    assert warning.endswith(
        "route.yaml:4: spec.http[0].retries: is done by the proxy in the path, and not to the copies made here"
    )
    for more, wanted in (
        ([*address, "--strict"], "spec.http[0].retries"),
        ([], "--resolve reviews:v2=HOST:PORT"),
        (["--resolve", "x"], "--resolve: 'x' is not NAME=HOST:PORT"),
    ):
        done = runner.invoke(main, [*words, *more])
        assert (done.exit_code, done.stdout) == (2, "") and wanted in done.stderr


def test_options_beside_a_file_that_says_it_all(tmp_path: Path) -> None:
    (tmp_path / "tap.yaml").write_text("iface: eth0\nport: 80\nshadow: a:80\n")
    for words in (["explain", "--iface=lo"], ["run", "--iface=lo"], ["run", "--percent=5"], ["run", "--resolve=a=b:1"]):
        done = CliRunner().invoke(main, [*words, "-f", str(tmp_path / "tap.yaml")])
        assert (done.exit_code, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
    done = CliRunner().invoke(main, ["run", "--iface=lo", "--port=80", "--shadow=a:1", "--strict"])
    assert done.exit_code == 2 and "--strict" in done.stderr


def test_from_gor() -> None:
    runner = CliRunner()
    command = "gor --input-raw :8080 --output-http 'http://staging|10%' --middleware x"
    done = runner.invoke(main, ["spec", "--from-gor", command, "--iface", "eth1"])
    assert done.exit_code == 0
    assert done.stderr == "tapmirror: --from-gor: --middleware: is a program of its own: a `hook` is the nearest\n"
    assert "# - --middleware: is a program" in done.stdout
    told = runner.invoke(main, ["explain", "-f", "-"], input=done.stdout).stdout
    assert "TCP to port 8080 on interface eth1" in told and "gets 10 % of the requests" in told
    strict = runner.invoke(main, ["spec", "--from-gor", command, "--iface", "eth1", "--strict"])
    assert (strict.exit_code, strict.stdout) == (2, "")
    assert strict.stderr.startswith("tapmirror: error: --from-gor: --middleware: ")
    wrong = runner.invoke(main, ["spec", "--from-gor", "gor --input-raw 80"])
    assert (wrong.exit_code, wrong.stdout) == (2, "") and len(wrong.stderr.splitlines()) == 2


NGINX = b"""
split_clients $remote_addr $some { 25% 1; * ""; }
server {
    location / { mirror /copy; proxy_pass http://app; }
    location = /copy { internal; if ($some = "") { return 204; } proxy_pass http://new:81$request_uri; limit_rate 1k; }
}
"""


def test_from_nginx(tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_bytes(NGINX)
    runner = CliRunner()
    done = runner.invoke(main, ["spec", "--from-nginx", str(tmp_path / "nginx.conf"), "--iface", "eth1"])
    assert done.exit_code == 0
    assert done.stderr == f"tapmirror: {tmp_path}/nginx.conf:5: limit_rate: has no equivalent\n"
    assert "gets 25 % of the clients" in runner.invoke(main, ["explain", "-f", "-"], input=done.stdout).stdout
    assert runner.invoke(main, ["spec", "--from-nginx", "-", "--iface", "eth1"], input=NGINX).stdout == done.stdout
    wrong = runner.invoke(main, ["spec", "--from-nginx", "-"], input=b"server {\n\0\xff")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr == "tapmirror: error: standard input:2: not UTF-8\n"
