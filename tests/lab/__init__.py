# SPDX-License-Identifier: Apache-2.0
"""The lab: client, node and shadow as network namespaces, with real servers, real load and a bad link.

Used by the tests, the demo and the benchmark.  Nothing of it is on the host: the namespaces belong
to processes that die with the one that made them, so there is nothing to clean, however it ends.
The modules that `lab.load` does without are imported when a name of theirs is asked for: each load is a process.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from lab.hosts import AS_NOBODY, PATIENCE, Host, LabError, open_to_all, until
from lab.load import Load, LoadPlan, LoadResult, body, load
from lab.wrk import WrkResult, wrk

if TYPE_CHECKING:
    from lab.names import NameServer
    from lab.network import Lab
    from lab.relay import Faults, RelayCount
    from lab.servers import Certificates, Nginx, Redis, redis_pipe, resp
    from lab.sinks import Behaviour, HashSink, Recorded, RecordingTcp, unmarked
    from lab.snapshot import Snapshot, cpu_seconds, resident_kb, unchanged
    from lab.span import Span
    from lab.tap import Tap, identity

_MODULES: Final = {
    "names": ("NameServer",),
    "network": ("Lab",),
    "relay": ("Faults", "RelayCount"),
    "servers": ("Certificates", "Nginx", "Redis", "redis_pipe", "resp"),
    "sinks": ("Behaviour", "HashSink", "Recorded", "RecordingTcp", "unmarked"),
    "snapshot": ("Snapshot", "cpu_seconds", "resident_kb", "unchanged"),
    "span": ("Span",),
    "tap": ("Tap", "identity"),
}
"""Where each of these is."""

__all__ = [
    "AS_NOBODY",
    "PATIENCE",
    "Behaviour",
    "Certificates",
    "Faults",
    "HashSink",
    "Host",
    "Lab",
    "LabError",
    "Load",
    "LoadPlan",
    "LoadResult",
    "NameServer",
    "Nginx",
    "Recorded",
    "RecordingTcp",
    "Redis",
    "RelayCount",
    "Snapshot",
    "Span",
    "Tap",
    "WrkResult",
    "body",
    "cpu_seconds",
    "identity",
    "load",
    "open_to_all",
    "redis_pipe",
    "resident_kb",
    "resp",
    "unchanged",
    "unmarked",
    "until",
    "wrk",
]


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lab.{module}"), name)
