# SPDX-License-Identifier: Apache-2.0
"""The privileged side of a tap: checks, loader, interface, worker; no byte of the network.

`Tap.start` is transactional: whatever fails, what was begun before is undone.  The packet
socket is held here and nowhere else: when this process dies, however it dies, the kernel
detaches the program.  The worker sees the end of its control socket and goes by itself.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tapmirror import loader, privsep
from tapmirror.comparing import answer_bytes
from tapmirror.events import LOOP_DSCP
from tapmirror.safety import plain, refusal
from tapmirror.source.live import RETIRED, be_promiscuous, block_bytes, open_live
from tapmirror.spec import Capture, Pacing, Shadow, TapSpec
from tapmirror.supervisor.addresses import Address, largest_packet, local_addresses, packed, port, resolve
from tapmirror.supervisor.workers import REPLY_TIME, TapError, WorkerProcess
from tapmirror.worker import Setup

EXCLUDED: Final = 16
"""End points that the capture program can leave out; what is sent to others it knows by the loop mark alone."""
PROBE_TIME: Final = 0.5
"""Seconds for the probe's connection to the shadow."""


class Tap:
    """One running tap.

    `warn` receives one-line warnings.  Call `start`, then `snapshot` as often as wanted, then `stop`.
    """

    def __init__(self, spec: TapSpec, warn: Callable[[str], None]) -> None:
        self.spec = spec
        self.capture = ""
        """`ebpf` or `packet`, once started."""
        self._warn = warn
        self._packet: socket.socket | None = None
        self._loaded: loader.Loaded | None = None
        self._worker: WorkerProcess | None = None

    def start(self) -> None:
        """Attach and begin to mirror.  Raises `TapError`; nothing is left attached then."""
        if os.geteuid() != 0:
            raise TapError("capturing needs root: run it with sudo")
        self._check_interface()
        for i, shadow in enumerate(self.spec.shadows):
            if shadow.tls is not None and not shadow.tls.verify:
                self._warn(
                    f"{self._field(i)}: TLS WITHOUT VERIFICATION: whoever answers at {shadow.end_point} gets the copies"
                )
        try:
            shadows = [self._resolve(i, shadow) for i, shadow in enumerate(self.spec.shadows)]
            setup, fds = self._capture(shadows)
            try:
                self._worker = WorkerProcess.started(setup, fds)
            finally:
                for fd in fds:
                    os.close(fd)
            if self._packet is not None:
                loader.attach(self._packet, self.spec.iface)
                if self.spec.promisc:
                    be_promiscuous(self._packet, self.spec.iface)
            for i, found in enumerate(shadows):
                self._probe(i, found[0])
        except (OSError, privsep.PrivilegeError) as error:
            self.close()
            raise TapError(f"the tap cannot be started: {error}") from None
        except BaseException:
            self.close()
            raise

    def snapshot(self) -> dict[str, Any]:
        """The worker's ledger.  Raises `TapError` if the worker is gone."""
        return self._with_facts(self._running().ask({"op": "snapshot"}, "snapshot", REPLY_TIME))

    def comparison(self) -> dict[str, Any]:
        """The state of the comparison.  Raises as `snapshot` does."""
        return self._running().ask({"op": "compare"}, "compare", REPLY_TIME)

    def stop(self) -> dict[str, Any]:
        """Detach, let the worker drain, return the final ledger.  Raises `TapError` if the worker is gone."""
        try:
            self._detach()
            wait = self.spec.limits.drain_time * 2 + REPLY_TIME
            return self._with_facts(self._running().ask({"op": "drain"}, "final", wait))
        finally:
            self.close()

    def fileno(self) -> int:
        """Becomes readable when the worker dies."""
        return self._running().fileno()

    def _running(self) -> WorkerProcess:
        assert self._worker is not None
        return self._worker

    # --- checks

    def _check_interface(self) -> None:
        try:
            socket.if_nametoindex(self.spec.iface)
        except OSError:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise TapError(f"iface: no interface {self.spec.iface!r} here (there are: {names})") from None

    def _resolve(self, index: int, shadow: Shadow) -> list[Address]:
        """A shadow's socket addresses, none of which is production."""
        local, broadcasts = local_addresses()
        for i, addr in enumerate(self.spec.addrs):
            if plain(addr) not in {plain(a) for a in local} and not (self.spec.promisc or self.spec.decap):
                raise TapError(f"addrs[{i}]: {addr} is not an address of this host")
        try:
            found = resolve(shadow)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a valid name"
            raise TapError(f"{self._field(index)}: cannot resolve {shadow.host!r}: {reason}") from None
        for _, address in found:
            reason = refusal(self.spec.ports, self.spec.addrs, str(address[0]), shadow.port, local)
            if reason is None and str(address[0]) in broadcasts:
                reason = f"{address[0]} is not the address of one host"
            if reason is not None:
                raise TapError(f"{self._field(index)}: {reason}")
        return found

    def _field(self, index: int) -> str:
        """How a shadow is called in a message."""
        return "shadow" if len(self.spec.shadows) == 1 else f"shadows[{index}]"

    # --- parts

    def _capture(self, shadows: list[list[Address]]) -> tuple[Setup, list[int]]:
        """Open the capture; return the worker's set-up and its descriptors."""
        spec = self.spec
        excluded = [(packed(str(address[0])), port(address)) for found in shadows for _, address in found][:EXCLUDED]
        addrs = [packed(addr) for addr in spec.addrs]
        uid, gid = privsep.worker_identity()
        setup = Setup(
            spec=spec,
            addresses=[[(family, list(address)) for family, address in found] for found in shadows],
            capture="ring",
            excluded=excluded,
            addrs=addrs,
            loopback=loader.is_loopback(spec.iface),
            uid=uid,
            gid=gid,
        )
        if spec.capture is not Capture.PACKET and not spec.decap:
            request = loader.Request(
                ports=list(spec.ports),
                addrs=addrs,
                excluded=excluded,
                threshold=spec.threshold(),
                seed=spec.seed,
                dscp=LOOP_DSCP,
                iface=spec.iface,
                egress_all=spec.pacing is Pacing.WAIT,
                promisc=spec.promisc,
                answer_bytes=answer_bytes(spec),
                ring_bytes=spec.limits.ring_bytes,
            )
            try:
                self._loaded = loader.load(request)
            except loader.LoaderError as error:
                if spec.capture is Capture.EBPF:
                    raise TapError(str(error)) from None
                self._warn(f"{error}; capturing through AF_PACKET instead")
            else:
                self.capture = "ebpf"
                self._packet = self._loaded.packet
                return setup, self._loaded.worker_fds()
        self.capture = "packet"
        block = block_bytes(largest_packet(spec.iface))
        (live,) = open_live(
            spec.iface,
            spec.limits.ring_bytes,
            loopback=setup.loopback,
            ports=None if spec.decap else spec.ports,
            block_bytes=block,
            promiscuous=spec.promisc,
        )
        self._packet = None
        return msgspec.structs.replace(setup, capture="packet", block_bytes=block), [live.detach()]

    def _probe(self, index: int, shadow: Address) -> None:
        """Connect to the shadow once: if that connection arrives at the tap, the shadow is production.

        Finds what addresses do not tell, such as address translation.  Sends no byte.
        """
        family, address = shadow
        failure: OSError | None = None
        before = self.snapshot()["events"].get("kernel_loop_syn", 0)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_TIME)
            if family == socket.AF_INET:
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, LOOP_DSCP << 2)
            else:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, LOOP_DSCP << 2)
            try:
                probe.connect(address)
            except OSError as error:
                failure = error
        if self.capture == "packet":
            time.sleep(RETIRED)
        if self.snapshot()["events"].get("kernel_loop_syn", 0) > before:
            raise TapError(
                f"{self._field(index)}: connections to it arrive at the tap as production's: "
                "it leads back to production"
            )
        if failure is not None:
            where = f"{self.spec.shadows[index].host} port {self.spec.shadows[index].port}"
            self._warn(f"the shadow {where} cannot be reached yet ({failure}); mirroring begins when it can")

    def _with_facts(self, ledger: dict[str, Any]) -> dict[str, Any]:
        return {"tap": self.spec.name, "capture": self.capture, **ledger}

    # --- the end

    def _detach(self) -> None:
        if self._packet is not None:
            self._packet.close()
            self._packet = None

    def close(self) -> None:
        """Detach and end the worker, whatever state the tap is in."""
        self._detach()
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
        if self._worker is not None:
            self._worker.close(self.spec.limits.drain_time + REPLY_TIME)
            self._worker = None
