# SPDX-License-Identifier: Apache-2.0
"""`tapmirror spec` and `tapmirror explain` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

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
    "words", [["spec"], ["spec", "--schema", "--example"], ["explain"], ["explain", "-f", "/no/such"]]
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
    assert "port 9080 at interface eth1" in done.stdout and "Host gets the suffix -shadow" in done.stdout
    (warning,) = done.stderr.splitlines()
    assert warning.endswith(
        "route.yaml:4: spec.http[0].retries: is for the proxy in the path and has no effect on the copies"
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
