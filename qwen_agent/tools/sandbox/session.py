"""The host's side of a sandbox: start an interpreter when one is needed, give it code, tell what came of it."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from qwen_agent.errors import InputError, SandboxUnavailable
from qwen_agent.tools.sandbox import bubblewrap
from qwen_agent.tools.sandbox.bubblewrap import Guest
from qwen_agent.tools.sandbox.call import Call
from qwen_agent.tools.sandbox.policy import MIB, Execution, Limits
from qwen_agent.tools.sandbox.wire import CLIP_NOTE_CHARS, Output, Reply, acceptable_image, clip, encodable
from qwen_agent.tools.sandbox.workdir import Snapshot, WorkDir

MAX_IMAGES = 8
RESTARTED = "The interpreter was restarted; variables are lost."


class Session:
    """A Sandbox in bubblewrap. One work directory, one interpreter; calls from several threads wait their turn."""

    def __init__(self, workdir: Path, limits: Limits) -> None:
        bubblewrap.check_workdir(workdir)
        self._limits = limits
        self._folder = WorkDir(workdir)
        self._baseline: Snapshot | None = None
        self._owned = _Owned()
        self._restarting = self._closed = False
        self._lock = threading.Lock()
        weakref.finalize(self, self._owned.close)  # also called at the exit of the host's interpreter

    def run(
        self, code: str, *, seconds: float | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> Execution:
        """Run one cell for at most ``seconds`` (plus the grace), or until it is ``cancelled``.

        Never raises for what the guest does.
        """
        with self._lock:
            if self._closed:
                raise InputError("this sandbox is closed: open another one")
            started = time.monotonic()
            before = self._folder.snapshot()
            self._baseline = self._baseline or before
            guest, restarted = self._awake()
            self._restrain(guest, before)
            watch = functools.partial(self._breach, guest, before)
            call = Call(guest, self._limits, seconds or self._limits.seconds, watch, cancelled)
            after = self._perform(call, code, before)
            return execution(call, restarted, after.changed_since(before), time.monotonic() - started)

    def reset(self) -> None:
        """Forget all variables, and count what now lies in the work directory as given. Files stay."""
        with self._lock:
            self._owned.close()
            self._baseline, self._restarting = None, False

    def close(self) -> None:
        """End the interpreter. Files stay."""
        with self._lock:
            self._closed = True
            self._owned.close()
            self._folder.close()

    def _awake(self) -> tuple[Guest, bool]:
        """An interpreter, and whether it replaces one that was lost."""
        guest = self._owned.guest
        if guest is not None and guest.bwrap.poll() is None:
            return guest, False
        if guest is not None:  # it died between two calls
            self._discard()
        guest = self._owned.guest = _started(self._folder.path, self._limits)
        restarted, self._restarting = self._restarting, False
        return guest, restarted

    def _perform(self, call: Call, code: str, before: Snapshot) -> Snapshot:
        try:
            call.perform(code)
        except BaseException:  # such as Ctrl-C in the host: the guest is in the middle of a cell, so it must go
            self._discard()
            raise
        after = self._folder.snapshot()
        call.gone = call.gone or self._over_quota(before, after)
        if call.gone:
            self._discard()
        return after

    def _discard(self) -> None:
        self._owned.close()
        self._restarting = True

    def _breach(self, guest: Guest, before: Snapshot) -> str:
        """The limit that a running guest has broken, as a clause, or ""."""
        hidden = _look_inside(guest)
        if hidden.threads > self._limits.threads:
            return f"it started more than {self._limits.threads} threads"
        if hidden.scratch_files > self._limits.files:
            return f"it made more than {self._limits.files} files"
        return self._over_quota(before, self._folder.snapshot(), hidden.deleted_bytes)

    def _over_quota(self, before: Snapshot, now: Snapshot, deleted_bytes: int = 0) -> str:
        """What was over before the call must only not grow, so that a guest can clean up after itself."""
        base, limits = self._baseline or before, self._limits
        if now.size + deleted_bytes > max(base.size + limits.disk, before.size):
            return f"it wrote more than {limits.disk // MIB} MiB to disk"
        if now.entries > max(base.entries + limits.files, before.entries):
            return f"it made more than {limits.files} files"
        if now.hidden > before.hidden:
            return "it made folders that are nested too deep or cannot be read"
        return ""

    def _restrain(self, guest: Guest, before: Snapshot) -> None:
        """Set the limits that the kernel holds. Over the quota no file may grow at all: the guest can only clean up."""
        from qwen_agent.tools.sandbox.kernel_limits import restrict  # what follows this class is used on Windows too

        base = self._baseline or before
        file = 0 if before.size > base.size + self._limits.disk else self._limits.file
        restrict(guest, self._limits, file)


@dataclass(slots=True)
class _Owned:
    """What must be closed, apart from the session so that a finalizer can hold it."""

    guest: Guest | None = None

    def close(self) -> None:
        guest, self.guest = self.guest, None
        if guest is not None:
            guest.close()


def _started(workdir: Path, limits: Limits) -> Guest:
    """A guest that has said it is ready, and sleeps. Raises SandboxUnavailable."""
    guest = bubblewrap.start(workdir, limits)
    call = Call(guest, limits, bubblewrap.START_SECONDS, lambda: "", lambda: False)
    call.greet()
    if call.gone:
        guest.close()
        raise SandboxUnavailable(bubblewrap.diagnose(bubblewrap.require(), call.stderr.text()[0] or call.gone))
    with contextlib.suppress(OSError):  # comfort, not safety
        os.setpriority(os.PRIO_PROCESS, guest.pid, 5)
        Path(f"/proc/{guest.pid}/oom_score_adj").write_text("500")  # when memory is short, better the guest than us
    return guest


@dataclass(slots=True)
class _Inside:
    """What a look at the work directory does not show."""

    threads: int = 0
    scratch_files: int = 0  # in /tmp and /dev/shm, whose size is limited but whose number of files is not
    deleted_bytes: int = 0  # of files that are deleted but still open


def _look_inside(guest: Guest) -> _Inside:
    seen, proc = _Inside(), Path(f"/proc/{guest.pid}")
    with contextlib.suppress(OSError):  # it ends while we look; its control socket will tell
        seen.threads = sum(1 for _ in (proc / "task").iterdir())
        for mount in ("root/tmp", "root/dev/shm"):
            status = os.statvfs(proc / mount)
            seen.scratch_files += status.f_files - status.f_ffree
        for link in (proc / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                file = link.stat()
                if stat.S_ISREG(file.st_mode) and file.st_nlink == 0:
                    seen.deleted_bytes += file.st_blocks * 512
    return seen


class Outcome(Protocol):
    """What is known of a call at its end, of whatever kind the session is; see `Call`."""

    limits: Limits
    reply: Reply | None
    stopped: str
    gone: str
    stdout: Output
    stderr: Output


def execution(call: Outcome, restarted: bool, files: tuple[str, ...], elapsed: float) -> Execution:
    """What came of a call, with what the guest says of itself cut to size and its pictures checked."""
    (stdout, out_cut), (stderr, err_cut) = call.stdout.text(), call.stderr.text()
    reply, longest = call.reply or Reply(None), call.limits.output + CLIP_NOTE_CHARS
    images = tuple(image for image in reply.images[:MAX_IMAGES] if acceptable_image(image))
    state: Literal["ok", "interrupted", "died"] = "died" if call.gone else "interrupted" if call.stopped else "ok"
    return Execution(
        stdout=stdout,
        stderr=stderr,
        value=encodable(clip(reply.value, longest)[0]),
        error=encodable(clip(reply.error, longest)[0]),
        images=images,
        files=files,
        state=state,
        restarted=restarted,
        notes=_notes(call, restarted, len(reply.images) - len(images)),
        dropped=reply.dropped + out_cut + err_cut,
        elapsed=elapsed,
    )


def _notes(call: Outcome, restarted: bool, bad_images: int) -> tuple[str, ...]:
    notes = [RESTARTED] if restarted else []
    if call.gone:
        notes.append(f"The interpreter was stopped: {call.gone}. Variables are lost, files are kept.")
    elif call.stopped:
        notes.append(f"The code was interrupted: {call.stopped}. Variables are kept.")
    if bad_images:
        notes.append(f"{bad_images} figures were too large, too many or no PNG files and were dropped.")
    return tuple(notes)
