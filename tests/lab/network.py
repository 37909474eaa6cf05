# SPDX-License-Identifier: Apache-2.0
"""The lab's wires:  client eth0 --- eth0 node eth1 --- eth0 shadow,  with a relay in the first if asked for."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Final, Self

from lab.hosts import Host, LabError, undisturbed
from lab.relay import Faults, Relay

NEAR4, NEAR6 = "10.77.1.", "fd77:1::"
FAR4, FAR6 = "10.77.2.", "fd77:2::"
OFFLOADS: Final = ("tx", "tso", "gso", "gro")


class Lab:
    """`with Lab() as lab:` builds it in about 0.2 s: `lab.client`, `lab.node`, `lab.shadow`.

    mtu        of all links.
    vlan       the client's link carries tagged frames; the node's address is on eth0.VLAN then
               (`lab.node.iface` stays eth0).  Raises `LabError` where the kernel has no VLAN devices.
    offloads   as veth has them: packets of up to 64 KiB, no checksums.  False: as on a wire.
    faults     a relay in the client's link loses, delays and duplicates frames (`lab.relay`); there, no offloads.
    """

    def __init__(
        self, *, mtu: int = 1500, vlan: int | None = None, offloads: bool = True, faults: Faults | None = None
    ) -> None:
        self._mtu = mtu
        self._vlan = vlan
        self._offloads = offloads
        self._faults = faults
        self._hosts: list[Host] = []
        self.relay: Relay | None = None

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; the namespaces go with them."""
        with undisturbed():
            while self._hosts:
                self._hosts.pop().close()

    def _build(self) -> None:
        self.client, self.node, self.shadow = (self.host(name) for name in ("client", "node", "shadow"))
        if self._faults is None:
            self.wire(self.client, "eth0", self.node, "eth0")
        else:
            middle = self.host("relay")
            middle.sysctl("ipv6.conf.all.disable_ipv6", 1)
            middle.sysctl("ipv6.conf.default.disable_ipv6", 1)
            self.wire(self.client, "eth0", middle, "eth0", offloads=False)
            self.wire(middle, "eth1", self.node, "eth0", offloads=False)
            self.relay = Relay(middle, "eth0", "eth1", self._faults)
        self.wire(self.node, "eth1", self.shadow, "eth0")
        near = "eth0"
        if self._vlan is not None:
            near = f"eth0.{self._vlan}"
            for host in (self.client, self.node):
                host.run(["ip", "link", "add", "link", "eth0", "name", near, "type", "vlan", "id", str(self._vlan)])
                host.run(["ip", "link", "set", near, "up"])
        self._address(self.client, near, NEAR4, NEAR6, 1)
        self._address(self.node, near, NEAR4, NEAR6, 2)
        self._address(self.node, "eth1", FAR4, FAR6, 1)
        self._address(self.shadow, "eth0", FAR4, FAR6, 2)
        self.node.addr4, self.node.addr6 = f"{NEAR4}2", f"{NEAR6}2"

    def host(self, name: str) -> Host:
        """One more host, without links."""
        host = Host(name)
        self._hosts.append(host)
        for each in ("all", "default"):
            with contextlib.suppress(FileNotFoundError):  # no IPv6 in this kernel
                host.sysctl(f"ipv6.conf.{each}.accept_dad", 0)
        host.sysctl("ipv4.ip_local_port_range", "1024 65535")
        host.sysctl("ipv4.ip_local_reserved_ports", "1024-1100,6379,7000-9999")  # for servers of the tests
        host.sysctl("ipv4.tcp_tw_reuse", 1)
        host.sysctl("core.somaxconn", 65535)
        host.sysctl("ipv4.tcp_max_syn_backlog", 65535)
        host.run(["ip", "link", "set", "lo", "up"])
        return host

    def wire(self, one: Host, iface: str, other: Host, other_iface: str, offloads: bool | None = None) -> None:
        """A veth pair, each end born in its host."""
        peer = ["peer", "name", other_iface, "mtu", str(self._mtu), "netns", str(other.pid)]
        one.run(["ip", "link", "add", iface, "mtu", str(self._mtu), "type", "veth", *peer])
        for host, name in ((one, iface), (other, other_iface)):
            if not (self._offloads if offloads is None else offloads):
                host.run(["ethtool", "-K", name, *(word for each in OFFLOADS for word in (each, "off"))])
            host.run(["ip", "link", "set", name, "up"])

    def _address(self, host: Host, iface: str, four: str, six: str, last: int) -> None:
        host.addr4, host.addr6 = f"{four}{last}", f"{six}{last}"
        host.run(["ip", "addr", "add", f"{host.addr4}/24", "dev", iface])
        host.run(["ip", "addr", "add", f"{host.addr6}/64", "dev", iface, "nodad"])


def has_vlan() -> bool:
    """Whether this kernel has VLAN devices."""
    try:
        with Lab(vlan=7):
            return True
    except LabError:
        return False
