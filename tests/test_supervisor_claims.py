# SPDX-License-Identifier: Apache-2.0
"""Claims: one tap for the same traffic and the same shadow on a host, whoever runs it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from tapmirror.spec import TapSpec, parse_shadow
from tapmirror.supervisor.claims import ClaimedError, Claims, claimed

IFACE = os.environ.setdefault("TAPMIRROR_CLAIMS", f"claims{os.getpid()}")
"""Of this process and its children alone: a claim is the whole host's, and there may be another run of these tests."""
PROGRAM = """
import socket, sys
held = []
for name in sys.argv[1:]:
    held.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    held[-1].bind("\\0" + name)
print("held", flush=True)
sys.stdin.read()
"""


def spec(**more: Any) -> TapSpec:
    base: dict[str, Any] = {"iface": IFACE, "ports": (80, 81), "shadows": (parse_shadow("S.test:80"),)}
    return TapSpec(**{**base, **more})


def test_the_second_is_refused_and_told_who_has_it() -> None:
    first = Claims(spec())
    line = rf"^{IFACE} port 81 is mirrored to s\.test:80 already, by the process {os.getpid()}: the shadow would"
    with pytest.raises(ClaimedError, match=line):
        Claims(spec(ports=(82, 81), shadows=(parse_shadow("t.test:80"), parse_shadow("s.test:80"))))
    for other in ({"iface": f"{IFACE}x"}, {"ports": (82,)}, {"shadows": (parse_shadow("s.test:81"),)}):
        Claims(spec(**other)).close()  # and what was refused holds nothing
    first.close()
    Claims(spec()).close()


def test_shadows_of_one_tap_may_be_at_one_address() -> None:
    """As hosts behind one load balancer are, each with rules and a Host of its own."""
    shadows = tuple(parse_shadow("s.test:80", name=name) for name in ("one", "two"))
    first = Claims(spec(shadows=shadows))
    with pytest.raises(ClaimedError):
        Claims(spec())
    first.close()
    Claims(spec()).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("uid", [0, 4001])
def test_a_name_is_believed_if_roots_process_holds_it(uid: int) -> None:
    names = [name for name, _ in claimed(spec())]
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", sys.executable, "-c", PROGRAM]
    with subprocess.Popen([*words, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        if uid == 0:
            with pytest.raises(ClaimedError, match=f"by the process {other.pid}:"):
                Claims(spec())
        else:
            Claims(spec()).close()
        other.kill()
        other.wait()
        Claims(spec()).close()  # gone with its process, however it ended


def test_each_address_is_one_of_its_own_and_long_names_are_cut() -> None:
    found = [name for name, _ in claimed(spec(addrs=("10.0.0.1", "10.0.0.2")))]
    assert found[0] == f"tapmirror:{IFACE}:10.0.0.1:80:s.test:80" and len(set(found)) == 4
    one = Claims(spec(addrs=("10.0.0.1",)))
    Claims(spec(addrs=("10.0.0.2",))).close()
    one.close()
    long = spec(shadows=(parse_shadow("x" * 63 + "." + "y" * 63 + ".test:80"),))
    one = Claims(long)
    with pytest.raises(ClaimedError):
        Claims(long)
    one.close()


def test_names_that_are_no_text_do_no_harm() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as odd:
        odd.bind(b"\0\xff\xfe\n\x80" + IFACE.encode())
        one = Claims(spec())
        with pytest.raises(ClaimedError):
            Claims(spec())
        one.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up capabilities")
def test_a_daemon_that_may_look_into_no_other_process_believes_it_all_the_same() -> None:
    code = (
        "from test_supervisor_claims import *\n"
        "try: Claims(spec())\n"
        "except ClaimedError as error: print(error)"
    )  # fmt: skip
    words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", sys.executable, "-c", code]
    one = Claims(spec())
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=os.path.dirname(__file__), timeout=300)
    one.close()
    assert "already, by another process of root's: the shadow" in done.stdout
