# SPDX-License-Identifier: Apache-2.0
"""`tapmirror run` on a host of the lab, as a user would run it."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

from lab.hosts import PATIENCE, Host, LabError, until
from lab.snapshot import cpu_seconds, tree

COMMAND: Final = Path(sys.executable).parent / "tapmirror"


class Tap:
    """A running tap.  `with Tap(lab.node, port=80, shadow="10.77.2.2:80") as tap: …; ledger = tap.stop()`.

    Or `Tap(lab.node, spec="iface: eth0 ...")`, with the text of a file; `file_text`: of one that does not say where to
    tap.  Further options are those of the
    command, as in `percent=10, protocol="raw"`; a tuple repeats the option, and True stands for one without a
    value.  `terminal`: what it shows goes to ours, and not to `said`.  `wrapper`: words
    before the command, which execute it in their place.
    Raises `LabError` if it does not come up, with what it said.
    """

    def __init__(
        self,
        node: Host,
        /,
        *,
        shadow: str = "",
        spec: str | None = None,
        file_text: str | None = None,
        port: int | tuple[int, ...] = 80,
        iface: str | None = None,
        terminal: bool = False,
        wrapper: Sequence[str] = (),
        **more: object,
    ) -> None:
        self._host = node
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `end`
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._last_words = ""
        self._file = tempfile.NamedTemporaryFile(suffix=".yaml")  # noqa: SIM115
        options = {"iface": iface or node.iface, "port": port, "shadow": shadow, **more}
        if spec is not None:
            self._file.write(spec.encode())
            self._file.flush()
            options = {"file": self._file.name, **more}
        elif file_text is not None:
            self._file.write(file_text.encode())
            self._file.flush()
            options = {"file": self._file.name, "iface": iface or node.iface, "port": port, **more}
        words = [
            f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
            for name, values in options.items()
            for value in (values if isinstance(values, tuple) else (values,))
        ]
        self._process = node.popen(
            [*wrapper, str(COMMAND), "run", "--json", *words],
            stdout=self._output,
            stderr=None if terminal else self._errors,
            start_new_session=True,
        )
        self._terminal = terminal
        node.at_close(self.end)
        try:
            until(self._is_up, "the tap")
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Of the supervisor: the process that was started."""
        return self._process.pid

    def processes(self) -> dict[int, str]:
        """The supervisor and its children, by pid, with their command lines."""
        return tree(self.pid)

    def workers(self) -> list[int]:
        """The pids of its workers."""
        return [pid for pid, words in self.processes().items() if "tapmirror.worker" in words]

    def cpu(self) -> float:
        """Seconds of CPU, user and system, of these since their start."""
        return cpu_seconds(self.processes())

    def running(self) -> bool:
        """Whether the supervisor is there."""
        return self._process.poll() is None

    def said(self) -> str:
        """What it wrote on standard error up to now."""
        return self._last_words if self._errors.closed else _read(self._errors)

    def _sockets(self) -> list[str]:
        """Packet sockets of its host's network that are bound to an interface."""
        rows = [line.split() for line in self._host.read("packet").splitlines()[1:]]
        return [row[8] for row in rows if row[4] != "0"]

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise LabError(f"the tap ended with status {self._process.returncode}: {self.said().strip()}")
        return bool(self._sockets()) if self._terminal else " -> " in self.said()

    def stop(self, number: int = signal.SIGINT, wait: float = PATIENCE) -> dict[str, Any]:
        """Stop it as Ctrl-C does; its final ledger.  Raises `LabError` if its exit status is not 0."""
        code = self._host.stop(self._process, number, wait)
        if code:
            raise LabError(f"the tap ended with status {code}: {self.said().strip()}")
        ledger: dict[str, Any] = json.loads(_read(self._output))
        return ledger

    def end(self) -> None:
        """Stop it, if it runs, and ask for nothing."""
        self._host.stop(self._process, signal.SIGTERM, PATIENCE)
        if not self._errors.closed:
            self._last_words = self.said()
            self._errors.close()
            self._output.close()
            self._file.close()

    def kill(self) -> None:
        """SIGKILL to the supervisor; its children are left to themselves."""
        self._process.kill()
        self._process.wait()


def _read(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 1 << 24, 0).decode("utf-8", "replace")


def identity(ledger: dict[str, Any]) -> None:
    """Assert that everything seen is accounted for, in each unit, and nothing is unaccounted."""
    for unit in ("segments", "bytes", "requests"):
        account = ledger[unit]
        settled = sum(
            (account["mirrored"], account["sampled_out"], *account["filtered"].values(), *account["dropped"].values())
        )
        assert account["seen"] == settled + account["in_flight"], (unit, account)
        assert account["unaccounted"] == 0, (unit, account)
