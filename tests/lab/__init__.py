# SPDX-License-Identifier: Apache-2.0
"""The lab: client, node and shadow as network namespaces, with real servers, real load and a bad link.

Used by the tests, the demo and the benchmark.  Nothing of it is on the host: the namespaces belong
to processes that die with the one that made them, so there is nothing to clean, however it ends.
"""

from lab.hosts import AS_NOBODY, Host, LabError, open_to_all, until
from lab.load import Load, LoadPlan, LoadResult, body, load
from lab.names import NameServer
from lab.network import Lab
from lab.relay import Faults, RelayCount
from lab.servers import Certificates, Nginx, Redis, redis_pipe, resp
from lab.sinks import Behaviour, HashSink, Recorded, RecordingTcp, unmarked
from lab.snapshot import Snapshot, cpu_seconds, gone, resident_kb
from lab.span import Span
from lab.tap import Tap, identity
from lab.wrk import WrkResult, wrk

__all__ = [
    "AS_NOBODY",
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
    "gone",
    "identity",
    "load",
    "open_to_all",
    "redis_pipe",
    "resident_kb",
    "resp",
    "unmarked",
    "until",
    "wrk",
]
