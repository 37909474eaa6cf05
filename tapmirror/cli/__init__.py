# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, one call, print.  No logic of the tap lives here."""

from tapmirror.cli.main import main

__all__ = ["main"]
