# SPDX-License-Identifier: Apache-2.0
"""The control socket: what an operator's command and the daemon say to each other.

`messages` is the protocol and does no I/O; `server` is the daemon's end, `client` the command's.
"""
