# SPDX-License-Identifier: Apache-2.0
"""A mirror port: frames of an interface are copied to another host, as they are or in VXLAN.

As a command it is the process that copies (there is no act_mirred in this kernel).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from typing import Final

from lab.hosts import Host, LabError
from lab.network import Lab

ETH_P_ALL: Final = 0x0003
SO_RCVBUFFORCE: Final = 33
FRAME_BYTES: Final = 65_600
VXLAN_PORT: Final = 4789
VXLAN_HEADER: Final = bytes.fromhex("0800000000002a00")
NEAR: Final = "10.77.9.1"
WATCHER: Final = "10.77.9.2"


class Span:
    """`with Span(lab) as watcher:` a host to which all that passes the node's eth0 is copied, on its eth0.

    `vxlan`: in VXLAN, and so partly in IP fragments.  The lab must be without offloads: its frames have to fit a link.
    """

    def __init__(self, lab: Lab, *, vxlan: bool = False) -> None:
        self._lab = lab
        self._vxlan = vxlan

    def __enter__(self) -> Host:
        lab = self._lab
        self.watcher = lab.host("watcher")
        lab.wire(lab.node, "span0", self.watcher, "eth0")
        lab.node.run(["ip", "addr", "add", f"{NEAR}/24", "dev", "span0"])
        self.watcher.run(["ip", "addr", "add", f"{WATCHER}/24", "dev", "eth0"])
        self._process = lab.node.popen(
            [sys.executable, "-c", "from lab.span import main; main()", *(["--vxlan"] if self._vxlan else [])],
            env={"PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise LabError("the mirror port did not start")
        return self.watcher

    def __exit__(self, *_: object) -> None:
        self._lab.node.stop(self._process)


def main() -> None:
    """Copy until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vxlan", action="store_true")
    vxlan = parser.parse_args().vxlan
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    tap.bind(("eth0", ETH_P_ALL))
    if vxlan:
        out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        out.connect((WATCHER, VXLAN_PORT))
    else:
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        out.bind(("span0", 0))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("ready", flush=True)
    while True:
        frame = tap.recv(FRAME_BYTES)
        while True:
            try:
                out.send(VXLAN_HEADER + frame if vxlan else frame)
            except ConnectionRefusedError:  # nobody listens on VXLAN's port; instead of sending we are told so
                continue
            break
