# SPDX-License-Identifier: Apache-2.0
"""A process that was prepared as a worker is, and then tries what it must not be able to do."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tapmirror import privsep
from tapmirror.policy import HookRequest
from tapmirror.spec import TapSpec
from tapmirror.worker.assembly import prepare
from tapmirror.worker.loop import Worker
from tapmirror.worker.setup import Setup

ENDED: Final = 30
"""Seconds after which the process is ended: something that it tried waits."""


def tried(
    spec: TapSpec, capture: str, fds: Sequence[int], attempts: Mapping[str, Callable[[], object]]
) -> dict[str, str]:
    """What became of each attempt in a worker: the name of the errno, or "" where it was not refused.

    The descriptors stay the caller's.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child:
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, (status, said.decode())
        found: dict[str, str] = json.loads(said)
        return found
    try:
        signal.alarm(ENDED)
        os.setsid()
        worker = prepared(spec, capture, list(fds))
        found = {"sandbox": " ".join(worker.sandbox)}
        for name, attempt in attempts.items():
            found[name] = outcome(attempt)
        os.write(write_end, json.dumps(found).encode())
        os._exit(0)
    except BaseException:
        os.write(write_end, traceback.format_exc().encode())
    finally:
        os._exit(1)


def outcome(attempt: Callable[[], object]) -> str:
    """The name of the error that it ends with, or ""."""
    try:
        attempt()
    except OSError as error:
        return errno_name(error.errno)
    except BaseException as error:
        return type(error).__name__
    return ""


def errno_name(number: int | None) -> str:
    """EPERM for 1."""
    return errno.errorcode.get(number or 0, str(number))


def prepared(spec: TapSpec, capture: str, fds: list[int]) -> Worker:
    """This process becomes the worker of a tap."""
    uid, gid = privsep.worker_identity()
    addresses: list[list[tuple[int, list[Any]]]] = [
        [(int(socket.AF_INET), [shadow.host, shadow.port])] for shadow in spec.shadows
    ]
    setup = Setup(spec=spec, addresses=addresses, capture=capture, cpus=os.cpu_count() or 1, uid=uid, gid=gid)
    return prepare(setup, fds)


def unchanged(request: HookRequest) -> HookRequest:
    """A hook."""
    return request
