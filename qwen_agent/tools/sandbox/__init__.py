"""Run untrusted Python: one interpreter in a jail, which keeps its variables from call to call.

Promises
--------
Whatever the code does, as root as well as for an ordinary user:

- only_usr_the_interpreter_and_the_work_directory_can_be_read: no home, no /etc/shadow, no project, no other process
- only_the_work_directory_can_be_written: and /tmp and /dev/shm, which are its own and vanish with it
- nothing_on_the_network_can_be_reached: no socket of any kind can be made
- no_process_can_be_started: threads only
- no_environment_variable_of_the_host_can_be_seen: not through /proc either
- kernel_settings_cannot_be_changed: /proc is read-only and the calls that matter are refused
- time_memory_output_threads_and_disk_are_bounded: what breaks a limit is interrupted or ended, and the call returns
- an_interrupt_keeps_the_variables: and the loss of them is always announced
- nothing_runs_between_two_calls: threads left behind are frozen
- the_guest_does_not_outlive_the_host: not even if the host is killed
- links_in_the_work_directory_lead_nowhere: the host neither reads nor writes through them
- replies_are_data: no reply is unpickled, decoded as a picture or trusted; a bad one ends the guest
- two_sandboxes_share_nothing: unless they are given the same work directory
- where_the_jail_cannot_be_built_nothing_runs: SandboxUnavailable with the remedy, never a fallback

Not promised
------------
Protection from bugs in the kernel or in the processor (side channels); that the kernel's version, the processor, or
the paths of the interpreter stay unknown; that what lies in /usr or is installed for this interpreter stays secret;
a hard disk quota (it is looked at four times a second, and a guest may write on in between); fairness among hostile
tenants. For those, put the whole agent into a virtual machine or gVisor. One session, one sandbox, one work
directory: never share them between people.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from qwen_agent.tools.sandbox.policy import Execution, Limits

__all__ = ["Execution", "Limits", "Sandbox", "open_sandbox"]


class Sandbox(Protocol):
    """The only seam between code that wants Python run and how it is run safely."""

    def run(
        self, code: str, *, seconds: float | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> Execution:
        """Run one cell, by default for ``Limits.seconds``. Never raises for what the code does.

        Once ``cancelled`` (asked a few times a second) says True, the code is interrupted as at its time limit.
        """

    def reset(self) -> None:
        """Forget all variables. Files stay."""

    def close(self) -> None:
        """End the interpreter. Files stay."""


def open_sandbox(workdir: Path, limits: Limits | None = None) -> Sandbox:
    """A sandbox that may write to ``workdir``. Its interpreter starts at the first call, in well under a second.

    Raises SandboxUnavailable, with the remedy, where the jail cannot be built (the first call of a process builds one
    to see), and InputError for a work directory that is missing or that holds what the host itself runs.
    """
    from qwen_agent.tools.sandbox import bubblewrap

    bubblewrap.require()  # before the import of what only Linux has
    from qwen_agent.tools.sandbox.session import Session

    return Session(workdir, limits or Limits())
