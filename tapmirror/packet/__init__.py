# SPDX-License-Identifier: Apache-2.0
"""Frames to TCP headers, layer by layer.

`link` and `tunnel` say what a frame or a packet carries, `header` reads IP and TCP, `fragments` puts datagrams
together, `decoder` knows the order of all this, and `key` names the flow.

Pure.  Any bytes are allowed; what is no TCP segment is `None`.
"""

from tapmirror.packet.decoder import Decoder, decode
from tapmirror.packet.header import Header
from tapmirror.packet.key import (
    BUCKETS,
    MAPPED,
    flow_hash,
    flow_key,
    mapped,
    shard_of,
    show_client,
    show_key,
    show_server,
)

__all__ = [
    "BUCKETS",
    "MAPPED",
    "Decoder",
    "Header",
    "decode",
    "flow_hash",
    "flow_key",
    "mapped",
    "shard_of",
    "show_client",
    "show_key",
    "show_server",
]
