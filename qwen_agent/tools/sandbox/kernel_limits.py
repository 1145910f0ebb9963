"""The limits of a guest that the kernel itself holds.

The host sets them, from outside: the guest's own setrlimit is refused by the system call filter, so that even a soft
limit cannot be raised again.
"""

from __future__ import annotations

import contextlib
import resource

from qwen_agent.tools.sandbox.bubblewrap import Guest
from qwen_agent.tools.sandbox.policy import Limits


def restrict(guest: Guest, limits: Limits, file_size: int) -> None:
    """Hold a guest to its limits; no file may grow beyond ``file_size`` (at most ``limits.file``) bytes."""
    wanted = {
        resource.RLIMIT_AS: (limits.memory, limits.memory),
        resource.RLIMIT_FSIZE: (file_size, limits.file),
        resource.RLIMIT_NOFILE: (limits.open_files, limits.open_files),
        resource.RLIMIT_MEMLOCK: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        # 1 and not 0: only 1 also keeps a crash from being piped to the host's core dump handler.
        resource.RLIMIT_CORE: (1, 1),
    }
    with contextlib.suppress(ProcessLookupError):  # it died between two calls, as its control socket will tell
        for which, (soft, hard) in wanted.items():
            resource.prlimit(guest.pid, which, (soft, _at_most(hard, resource.prlimit(guest.pid, which)[1])))


def _at_most(wanted: int, allowed: int) -> int:
    """The host may have a hard limit of its own, which only root can raise."""
    return wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
