# SPDX-License-Identifier: Apache-2.0
"""Framing: where in a stream a message begins and ends, and what of it can be mirrored.

A framer is made for one flow and fed its bytes in order, its gaps and its end; it answers
with `Part`s to pass on and with `Lost` where bytes are given up.  Every byte fed is at any
time, once, in a `Part.size`, in a `Lost.size` or in `held`.  The bytes on the two sides of a
gap are never joined.

Pure: nothing here knows sockets, the clock, or what becomes of a message.
"""

from tapmirror.framing.detect import detect
from tapmirror.framing.http1 import RequestFramer
from tapmirror.framing.memory import HeadMemory
from tapmirror.framing.raw import RawFramer
from tapmirror.framing.response_status import ResponseFramer

__all__ = ["HeadMemory", "RawFramer", "RequestFramer", "ResponseFramer", "detect"]
