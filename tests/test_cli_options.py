# SPDX-License-Identifier: Apache-2.0
"""The options of a tap are the same wherever they are taken; what they may be is in test_cli_run.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tapmirror.cli.main import main
from tapmirror.cli.options import OPTIONS


def test_run_and_start_take_the_same_options() -> None:
    names = [{option.name: option.opts for option in main.commands[each].params} for each in ("run", "start")]
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
