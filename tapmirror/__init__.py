# SPDX-License-Identifier: Apache-2.0
"""tapmirror: mirror live TCP traffic to a shadow service, with no proxy in the path."""

__version__ = "0.1.0"
