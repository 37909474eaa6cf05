# SPDX-License-Identifier: Apache-2.0
"""The options of a tap are the same wherever they are taken; what they may be is in test_cli_run.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner import CliRunner
from tapmirror.cli.main import command, main
from tapmirror.cli.options import OPTIONS


def test_run_and_start_take_the_same_options() -> None:
    names = [{option.name: option.opts for option in command(each).params} for each in ("run", "start")]
    shared = names[0].keys() & names[1].keys()
    assert len(shared) >= len(OPTIONS)
    assert all(names[0][name] == names[1][name] for name in shared)
    assert {"name", "ttl", "force"} <= names[1].keys() and "duration" in names[0]


@pytest.mark.parametrize(
    ("given", "iface"),
    [(["--iface=eth0"], "eth0"), (["--iface=eth0", "--iface=br0"], "eth0,br0"), (["--iface=eth0,br0"], "eth0,br0")],
)
def test_an_interface_given_again_is_one_more(given: list[str], iface: str, tmp_path: Path) -> None:
    """As with ports, addresses and shadows; the last one alone would leave production's traffic out without a word."""
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "spec": {"rules": [{"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "b"}}}]}]},
    }
    (tmp_path / "route.yaml").write_text(json.dumps(route))
    words = ["explain", "-f", str(tmp_path / "route.yaml"), "--port=80", "--resolve=b=10.0.0.1:80", *given]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert iface in done.output


@pytest.mark.parametrize(
    "given",
    [
        ["--max-p99-ratio", "1.05"],
        ["--max-error-diff", "1%"],
        ["--max-diff-rate", "1%"],
        ["--alpha", "0.1"],
    ],
    ids=lambda given: str(given[0]),
)
def test_what_needs_a_comparison_is_refused_without_one(given: list[str]) -> None:
    tap = ["--iface", "nosuch0", "--port", "80", "--shadow", "127.0.0.1:8080"]
    result = CliRunner().invoke(main, ["run", *tap, *given])
    assert result.exit_code == 2
    assert result.output == f"tapmirror: error: {given[0]}: nothing is compared: give --compare too\n"


@pytest.mark.parametrize("command", ["run", "start"])
@pytest.mark.parametrize("share", ["5", "1"])
@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("off", "nothing is compared: set compare to a level"),
        ("status", "has no effect with level status: it needs headers or body"),
    ],
)
def test_a_noise_probe_needs_a_comparison_whatever_starts_the_tap(
    command: str, level: str, share: str, said: str
) -> None:
    tap = ["--iface", "nosuch0", "--port", "80", "--shadow", "127.0.0.1:8080", "--noise-probe", share]
    result = CliRunner().invoke(main, [command, *tap, "--compare", level])
    assert (result.exit_code, result.output) == (2, f"tapmirror: error: --noise-probe: {said}\n")


def test_a_name_that_looks_like_an_option_is_refused() -> None:
    tap = ["--iface", "nosuch0", "--port", "80", "--shadow", "127.0.0.1:8080"]
    result = CliRunner().invoke(main, ["start", *tap, "--name=--all"])
    line = "tapmirror: error: --name: '--all' begins with -: commands would take it for an option\n"
    assert (result.exit_code, result.output) == (2, line)


def test_a_comparison_of_raw_bytes_is_told_by_the_name_of_the_option() -> None:
    tap = ["--iface", "nosuch0", "--port", "80", "--shadow", "127.0.0.1:8080", "--protocol", "raw"]
    result = CliRunner().invoke(main, ["run", *tap, "--compare", "body"])
    assert result.exit_code == 2
    assert result.output.startswith("tapmirror: error: --compare: needs requests and responses")


def test_a_host_of_raw_bytes_is_refused_by_the_name_of_the_option() -> None:
    tap = ["--iface", "nosuch0", "--port", "80", "--shadow", "127.0.0.1:8080", "--protocol", "raw"]
    result = CliRunner().invoke(main, ["run", *tap, "--host", "shadow.internal"])
    line = "--host: needs requests, which raw bytes do not have: protocol must be http or auto"
    assert (result.exit_code, result.output) == (2, f"tapmirror: error: {line}\n")


def test_a_wrong_noise_probe_is_told_by_the_name_of_the_option() -> None:
    tap = ["--iface", "nosuch0", "--port", "80", "--shadow", "127.0.0.1:8080", "--compare", "body"]
    result = CliRunner().invoke(main, ["run", *tap, "--noise-probe", "200"])
    assert (result.exit_code, result.output) == (
        2,
        "tapmirror: error: --noise-probe: 200.0 is not between 0 and 100\n",
    )


@pytest.mark.parametrize(("command", "shown"), [("status", "[NAME]"), ("stop", "[NAME]"), ("logs", "NAME")])
def test_the_usage_says_whether_a_name_is_needed(command: str, shown: str) -> None:
    (usage, *_) = CliRunner().invoke(main, [command, "--help"]).output.splitlines()
    assert usage.endswith(f" {command} [OPTIONS] {shown}")


def test_a_share_may_say_that_it_is_in_percent() -> None:
    """As in a file, and of `set`."""
    tap = ["--iface", "nosuch0", "--port", "80", "--shadow", "127.0.0.1:8080"]
    result = CliRunner().invoke(main, ["run", *tap, "--percent", "5%"])
    assert (result.exit_code, "--iface: no interface 'nosuch0'" in result.output) == (2, True)
    result = CliRunner().invoke(main, ["run", *tap, "--percent", "x%"])
    assert (result.exit_code, result.output) == (2, "tapmirror: error: --percent: 'x%' is not a number\n")
