# SPDX-License-Identifier: Apache-2.0
"""Policy: which requests go to which shadow, and what they look like there.

Pure: commands and `now` in, commands out.
"""

from tapmirror.policy.hook import HookRequest
from tapmirror.policy.policy import Policy, constant_host, is_needed

__all__ = ["HookRequest", "Policy", "constant_host", "is_needed"]
