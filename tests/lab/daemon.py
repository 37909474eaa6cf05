# SPDX-License-Identifier: Apache-2.0
"""`tapmirror daemon` on a host of the lab, with directories of its own, and the commands of its operators."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from click.testing import Result

from lab.hosts import PATIENCE, Host, LabError, prefix, until
from lab.snapshot import tree
from lab.tap import COMMAND
from runner import CliRunner
from tapmirror.cli.main import main
from tapmirror.control.client import Client, ControlError
from tapmirror.control.messages import Request


class Daemon:
    """A running daemon.  `with Daemon(lab.node) as daemon: daemon.run("start", "--name=web", …)`.

    `start=False`: only its directories, until `start`; `more`: more options of the command; `package`: the folder of
    another version (`lab.versions`), which can be changed between two starts.
    """

    def __init__(
        self, node: Host, *, start: bool = True, more: tuple[str, ...] = (), package: Path | None = None
    ) -> None:
        self._host = node
        self._more = more
        self.package = package
        self._folder = tempfile.TemporaryDirectory(prefix=prefix())
        self.top = Path(self._folder.name)
        self.runtime, self.state, self.config = (self.top / name for name in ("run", "state", "etc"))
        self.cache = self.top / "cache"
        self.taps = self.config / "taps.d"
        self.taps.mkdir(parents=True)
        self.socket = self.runtime / "control.sock"
        self._errors = open(self.top / "said", "wb")  # noqa: SIM115 -- closed by `end`
        self._process: subprocess.Popen[Any] | None = None
        node.at_close(self.end)
        if start:
            self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def words(self) -> list[str]:
        """The command, as it is started."""
        places = {"runtime-dir": self.runtime, "state-dir": self.state, "config-dir": self.config}
        return [
            *self.command("daemon"),
            "--group=root",
            *(f"--{name}={path}" for name, path in places.items()),
            *self._more,
        ]

    def command(self, *words: str) -> list[str]:
        """The command of an operator."""
        return [*([str(COMMAND)] if self.package is None else [sys.executable, "-P", "-m", "tapmirror"]), *words]

    def environment(self) -> dict[str, str]:
        """In which it finds this daemon."""
        return {**os.environ, **self._files(), "TAPMIRROR_SOCKET": str(self.socket), "COLUMNS": "200"}

    def _files(self) -> dict[str, str]:
        """The environment of another version; compiled programs are kept apart then, too."""
        if self.package is None:
            return {}
        return {"PYTHONPATH": str(self.package), "CACHE_DIRECTORY": str(self.cache)}

    def start(self, before: tuple[str, ...] = ()) -> None:
        """Start it; `before`: a command that runs it."""
        said = len(self.said())
        self._process = self._host.popen(
            [*before, *self.words()], env=self._files(), stdout=subprocess.DEVNULL, stderr=self._errors
        )

        def up() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise LabError(f"the daemon ended with status {self._process.returncode}: {self.said()[said:]}")
            return "msg=serving" in self.said()[said:]

        until(up, "the daemon")

    @property
    def pid(self) -> int:
        """Of the daemon itself."""
        assert self._process is not None
        return self._process.pid

    def processes(self) -> dict[int, str]:
        """The daemon and all that came of it, by pid, with their command lines."""
        return tree(self.pid)

    def workers(self) -> list[int]:
        """The pids of all workers."""
        return [pid for pid, words in self.processes().items() if "tapmirror.worker" in words]

    def said(self) -> str:
        """What it wrote up to now."""
        return (self.top / "said").read_text(encoding="utf-8") if self.top.exists() else ""

    def run(self, *words: str, check: int = 0) -> Result:
        """A command of an operator, within this process.  Raises `LabError` if its exit status is another."""
        done = CliRunner().invoke(main, words, env=self.environment(), prog_name="tapmirror")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        if done.exit_code != check:
            raise LabError(f"{' '.join(words)}: status {done.exit_code}: {done.output}")
        return done

    def json(self, *words: str) -> Any:
        """What a command prints with `--json`."""
        return json.loads(self.run(*words, "--json").stdout)

    def ask(self, request: Request) -> dict[str, Any]:
        """What the daemon answers.  Raises `ControlError`."""
        with Client(self.socket) as client:
            return client.ask(request)

    def refusal(self, request: Request) -> ControlError:
        """Why the daemon refuses.  Raises `LabError` if it does not."""
        try:
            done = self.ask(request)
        except ControlError as error:
            return error
        raise LabError(f"{request} was not refused: {done}")

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the daemon alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it as systemd does; its exit status."""
        assert self._process is not None
        process, self._process = self._process, None
        return self._host.stop(process, number, PATIENCE)

    def end(self) -> None:
        """Stop it, if it runs, and remove its directories."""
        if self._process is not None:
            self.stop()
        self._errors.close()
        self._folder.cleanup()
