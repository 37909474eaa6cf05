# SPDX-License-Identifier: Apache-2.0
"""Confines a worker before it reads the network: it may ask the kernel only for what it needs, each with a reason.

There are two layers in addition to user, capabilities and no_new_privs (`privsep`): `landlock`, by file and by port,
and `seccomp`, by system call.  Neither needs privilege.  A refused call fails with EPERM and does not kill the process,
because a tap should count an error rather than die.  A hook is imported before, and is confined when it is called.
"""

from tapmirror.sandbox.enter import Grants, enter

__all__ = ["Grants", "enter"]
