# SPDX-License-Identifier: Apache-2.0
"""A host of the lab: a network namespace, held by a process that sleeps.

Nothing is mounted and nothing has a name outside: the holder and everything started here
is killed by the kernel when the thread that started it ends (PR_SET_PDEATHSIG), and a
namespace without processes and descriptors is gone.  So start them from the main thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

MARK: Final = "TAPMIRROR_LAB"
"""In the environment of every process that the lab starts, with our pid: the leak check looks for it."""
os.environ.setdefault(MARK, str(os.getpid()))
NOFILE, NOFILE_MOST = resource.getrlimit(resource.RLIMIT_NOFILE)
READ_ALL: Final = "+dac_read_search"
AS_NOBODY: Final = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--inh-caps={READ_ALL}", f"--ambient-caps={READ_ALL}", "--"),
)
"""Words before a command that is to run without privilege.  It may read: a clone may be in a home that is private."""
PREFIX: Final = "tapmirror-lab-"
CLONE_NEWNET: Final = 0x40000000
PATIENCE: Final = 60.0
"""Seconds after which what has not happened will not happen.  Waited for where it fails alone, and longer than a host
that is busy with other things takes for anything here."""
STOP_TIME: Final = 15.0
"""Seconds between SIGTERM and SIGKILL."""

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab cannot be built here, or something in it went wrong."""


def bound_to_us(command: Sequence[str], nofile: int = NOFILE) -> list[str]:
    """The command, to be killed by the kernel when the thread that starts it ends.

    The shell looks whether we died before it was so bound.  `nofile` is the command's soft limit of
    descriptors: what we began with, as on a user's shell, if not told otherwise.
    """
    script = '[ "$PPID" = "$0" ] || exit 1; ulimit -Sn "$1"; shift; exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", script, str(os.getpid()), str(nofile), *command]


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait for a condition; raises `LabError` when the time is over."""
    end = time.monotonic() + seconds
    pause = 0.002
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def prefix() -> str:
    """Of files and directories of ours in the directory for such: it has our pid.

    What runs that are no more left there (SIGKILL) is removed.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = re.match(rf"{PREFIX}(\d+)-", path.name)
        if owner is not None and not Path(f"/proc/{owner[1]}").exists():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return f"{PREFIX}{os.getpid()}-"


def open_to_all(folder: Path) -> None:
    """Another user, as a worker is, may look into a directory of pytest's: into all above it that are ours."""
    for each in (folder, *folder.parents):
        if each == Path(tempfile.gettempdir()):
            break
        each.chmod(0o755)


class Host:
    """One network namespace.  Made by `Lab`; `close` ends all its processes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.addr4 = ""
        """Its address on the link that matters (the node's: towards the client)."""
        self.addr6 = ""
        self.iface = "eth0"
        self._processes: list[subprocess.Popen[Any]] = []
        self._closers: list[Callable[[], None]] = []
        own = os.readlink("/proc/self/ns/net")
        self._holder = subprocess.Popen(
            bound_to_us(["unshare", "--net", "--", "sleep", "infinity"]), stdin=subprocess.DEVNULL
        )
        self.pid = self._holder.pid
        path = Path(f"/proc/{self.pid}/ns/net")

        def held() -> bool:
            if self._holder.poll() is not None:
                raise LabError("no network namespace: it needs root and a kernel with CONFIG_NET_NS")
            with contextlib.suppress(FileNotFoundError):
                return os.readlink(path) != own
            return False

        try:
            until(held, "network namespace")
            self._net = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self._holder.kill()
            self._holder.wait()
            raise

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """The calling thread is in this host's network: its sockets, files under /proc/sys/net and children are.

        Sockets made here stay in this network after leaving it.
        """
        with open("/proc/thread-self/ns/net", "rb") as before:
            _setns(self._net)
            try:
                yield
            finally:
                _setns(before.fileno())

    def popen(
        self, command: Sequence[str], *, env: dict[str, str] | None = None, nofile: int = NOFILE, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a process here.  It is ended with the host; `stop` ends it before.  `env` is added to ours."""
        options.setdefault("stdin", subprocess.DEVNULL)
        with self.enter():
            process = subprocess.Popen(bound_to_us(command, nofile), env={**os.environ, **(env or {})}, **options)
        self._processes.append(process)
        return process

    def run(
        self, command: Sequence[str], *, check: bool = True, timeout: float = 2 * PATIENCE, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end; its output is captured.  Raises `LabError` if it fails and `check`."""
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        with self.enter():
            done = subprocess.run(
                bound_to_us(command), capture_output=True, text=True, timeout=timeout, check=False, **options
            )
        if check and done.returncode:
            raise LabError(f"{self.name}: {' '.join(command)}: {(done.stderr or done.stdout).strip()}")
        return done

    def json(self, *command: str) -> Any:
        """What a command prints as JSON."""
        return json.loads(self.run(command).stdout or "[]")

    def stop(self, process: subprocess.Popen[Any], number: int = signal.SIGTERM, wait: float = STOP_TIME) -> int:
        """End a process; SIGKILL if it does not go.  Returns its exit status (negative: the signal)."""
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process in self._processes:
            self._processes.remove(process)
        return int(process.returncode)

    def sysctl(self, name: str, value: object) -> None:
        """Set a value of this network, as "ipv4.tcp_tw_reuse"."""
        with self.enter():
            Path("/proc/sys/net", *name.split(".")).write_text(f"{value}\n", encoding="ascii")

    def sysctl_now(self, name: str) -> str:
        """A value of this network."""
        with self.enter():
            return Path("/proc/sys/net", *name.split(".")).read_text(encoding="ascii").strip()

    def read(self, name: str) -> str:
        """A file of this network's /proc/net, as "packet"."""
        return Path(f"/proc/{self.pid}/net/{name}").read_text(encoding="ascii")

    @contextlib.contextmanager
    def blocked(self, port: int) -> Iterator[None]:
        """While it lasts, a firewall here drops what comes in for a TCP port: no reply, no reset."""
        self.run(["nft", "add table inet lab; add chain inet lab in { type filter hook input priority 0; }"])
        self.run(["nft", f"add rule inet lab in tcp dport {port} drop"])
        try:
            yield
        finally:
            self.run(["nft", "delete table inet lab"])

    @contextlib.contextmanager
    def silent(self, only: str = "") -> Iterator[None]:
        """While it lasts, the kernel here sends no resets; `only`: to or from a port, as in "sport 80"."""
        of_port = f"tcp {only} " if only else ""
        self.run(["nft", "add table ip quiet; add chain ip quiet out { type filter hook output priority 0; }"])
        self.run(["nft", f"add rule ip quiet out {of_port}tcp flags rst drop"])
        try:
            yield
        finally:
            self.run(["nft", "delete table ip quiet"])

    def counter(self, file: str, kind: str, name: str) -> int:
        """What this network's kernel counts, as "snmp", "Tcp", "RetransSegs" (in /proc/net)."""
        names, values = (line.split() for line in self.read(file).splitlines() if line.startswith(f"{kind}:"))
        return int(values[names.index(name)])

    def at_close(self, closer: Callable[[], None]) -> None:
        """Call `closer` before the processes are ended, the last one first."""
        self._closers.append(closer)

    def close(self) -> None:
        """End everything that runs here."""
        while self._closers:
            self._closers.pop()()
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        for process in [*self._processes]:
            self.stop(process)
        os.close(self._net)
        self._holder.kill()
        self._holder.wait()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the end of this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_on_signals() -> None:
    """SIGTERM and SIGHUP end the program like an exception, so that everything is closed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _frame: sys.exit(128 + caught))


def _setns(descriptor: int) -> None:
    """setns(2) for the calling thread (os.setns came with Python 3.12)."""
    if _libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise LabError(f"setns: {os.strerror(number)}")
