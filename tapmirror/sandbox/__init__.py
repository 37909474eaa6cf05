# SPDX-License-Identifier: Apache-2.0
"""What a worker can still ask of the kernel once it reads the network: what its work needs, each with its reason.

Two layers beside user, capabilities and no_new_privs (`privsep`), neither of which needs privilege: `landlock`, by
file and by port, and `seccomp`, by system call.  A call that is refused fails with EPERM and not with the process:
a tap rather counts an error than dies.  User code, a hook, is loaded before, and is bound by them when it is called.
"""

from tapmirror.sandbox.enter import Grants, enter

__all__ = ["Grants", "enter"]
