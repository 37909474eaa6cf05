# SPDX-License-Identifier: Apache-2.0
"""The privileged side: what starts, watches and ends taps; no byte of the network."""

from tapmirror.supervisor.tap import Tap
from tapmirror.supervisor.workers import TapError

__all__ = ["Tap", "TapError"]
