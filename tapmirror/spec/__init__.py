# SPDX-License-Identifier: Apache-2.0
"""The tap's specification: one typed structure, whatever door it came in by.

Pure: names are not resolved and no interface is looked at here.
"""

from tapmirror.spec.tap import Capture, Limits, Pacing, Protocol, Shadow, SpecError, TapSpec, parse_shadow

__all__ = ["Capture", "Limits", "Pacing", "Protocol", "Shadow", "SpecError", "TapSpec", "parse_shadow"]
