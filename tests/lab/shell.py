# SPDX-License-Identifier: Apache-2.0
"""`scripts/lab`: a shell, or a command, on the node of a lab with nginx on both sides."""

from __future__ import annotations

import os
import signal
import sys

from lab.hosts import LabError, leave_on_signals
from lab.network import Lab
from lab.servers import Nginx

TEXT = """\
lab: you are on the node.  Production is nginx here, port 80; the shadow is nginx at {shadow}, port 80.
lab: on the client:  nsenter -t {client} -n wrk -d5 http://{node}/
lab: on the shadow:  nsenter -t {shadow_pid} -n ss -tn
lab: for example:    tapmirror run --iface eth0 --port 80 --shadow {shadow}:80
"""


def main() -> int:
    """Build the lab, run the shell in it; its exit status."""
    leave_on_signals()
    with Lab() as lab, Nginx(lab.node) as production, Nginx(lab.shadow) as shadow:
        words = sys.argv[1:]
        if not words:
            print(
                TEXT.format(
                    node=lab.node.addr4, shadow=lab.shadow.addr4, client=lab.client.pid, shadow_pid=lab.shadow.pid
                ),
                end="",
                flush=True,
            )
            words = [os.environ.get("SHELL", "/bin/sh")]
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        child = lab.node.popen(words, env={"PATH": path, "PS1": "node# "}, stdin=None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the shell's
        status = child.wait()
        print(f"lab: requests read: production {production.requests()}, shadow {shadow.requests()}", file=sys.stderr)
        return status if status >= 0 else 128 - status


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except (LabError, FileNotFoundError) as error:
        raise SystemExit(f"lab: error: {error}") from None
