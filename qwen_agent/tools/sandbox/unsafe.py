"""NOT A SANDBOX: Python in a plain child process, with all the rights of the user who runs the agent.

WHAT RUNS HERE CAN READ YOUR FILES AND KEYS, DELETE THEM, START PROGRAMS AND SEND ANYTHING ANYWHERE. A web page or a
document that the model reads may talk it into doing so. Only the user chooses this, in code, for a machine or container
that has nothing to lose; no model, request, environment variable or missing program ever does.

Promises
- Code that runs too long is interrupted and then killed, with what it started.
- Output is bounded; so are memory and the size of a file where the system has such limits (not on Windows, memory not
  on macOS).
- The host's environment variables are not handed over, apart from those that programs need to start.

Not promised: isolation of any kind, a disk quota, that nothing runs between two calls or outlives the agent.

It is the worker of the sandbox, spoken to in the same frames, so that code behaves alike in both. What differs is the
channels, which must exist on Windows too: requests come by stdin, replies go by the original stdout, and what the code
prints goes to two files that the host reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from qwen_agent.errors import InputError, SandboxUnavailable
from qwen_agent.tools.sandbox.policy import MIB, Execution, Limits
from qwen_agent.tools.sandbox.session import execution
from qwen_agent.tools.sandbox.wire import Gone, Output, Replies, Reply, request

START_SECONDS = 30.0
FLOOD_BYTES = 8 * MIB
POLL_SECONDS = 0.02
MAX_FILES = 20_000  # that are looked at to see what a call made

_FLOOD = f"it printed more than {FLOOD_BYTES // MIB} MiB"
_ROOT = Path(__file__).parents[3]
_START = (
    "import sys; sys.path.insert(0, {root!r}); from qwen_agent.tools.sandbox.unsafe import inside; inside({root!r})"
)
_QUIET = ("-W", "ignore:FigureCanvasAgg is non-interactive:UserWarning")
_KEPT_VARIABLES = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "TEMP", "TMP", "USERPROFILE", "APPDATA"),
    *("LOCALAPPDATA", "PROGRAMDATA", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE"),
)
if sys.platform == "win32":
    _OWN_GROUP = subprocess.CREATE_NEW_PROCESS_GROUP
else:
    _OWN_GROUP = 0


class UnsafeSession:
    """Runs code like a `Sandbox`, with its methods, and protects nothing; see the module."""

    def __init__(self, workdir: Path, limits: Limits) -> None:
        if not workdir.is_dir():
            raise InputError(f"the work directory '{workdir}' is not an existing directory: create it first")
        self._workdir, self._limits = workdir.resolve(), limits
        self._owned = _Owned()
        self._restarting = self._closed = False
        self._lock = threading.Lock()
        weakref.finalize(self, self._owned.close)

    def run(
        self, code: str, *, seconds: float | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> Execution:
        """Run one cell for at most ``seconds`` (plus the grace), or until it is ``cancelled``."""
        with self._lock:
            if self._closed:
                raise InputError("this session is closed: open another one")
            started = time.monotonic()
            child, restarted = self._awake()
            before = _stamps(self._workdir)
            call = _Call(child, self._limits, seconds or self._limits.seconds, cancelled)
            try:
                call.perform(code)
            except BaseException:  # such as Ctrl-C in the host: the child is in the middle of a cell, so it must go
                self._discard()
                raise
            if call.gone:
                self._discard()
            after = _stamps(self._workdir)
            made = tuple(sorted(name for name, stamp in after.items() if before.get(name) != stamp))
            return execution(call, restarted, made, time.monotonic() - started)

    def reset(self) -> None:
        """Forget all variables. Files stay."""
        with self._lock:
            self._owned.close()
            self._restarting = False

    def close(self) -> None:
        """End the interpreter. Files stay."""
        with self._lock:
            self._closed = True
            self._owned.close()

    def _awake(self) -> tuple[_Child, bool]:
        child = self._owned.child
        if child is not None and child.process.poll() is None:
            return child, False
        if child is not None:
            self._discard()
        child = self._owned.child = _start(self._workdir, self._limits)
        restarted, self._restarting = self._restarting, False
        return child, restarted

    def _discard(self) -> None:
        self._owned.close()
        self._restarting = True


@dataclass(slots=True)
class _Owned:
    """What must be closed, apart from the session so that a finalizer can hold it."""

    child: _Child | None = None

    def close(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            child.close()


@dataclass(slots=True)
class _Child:
    """A started interpreter. What it replies arrives in ``inbox``, b"" at the end."""

    process: subprocess.Popen[bytes]
    folder: Path  # for what is printed
    inbox: queue.Queue[bytes] = field(default_factory=queue.Queue)

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                self.process.send_signal(signal.CTRL_BREAK_EVENT)
            else:
                os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)  # the programs it started are of its group
        self.process.wait()

    def close(self) -> None:
        self.kill()
        with contextlib.suppress(OSError):  # what was not yet sent
            _stdin(self.process).close()
        shutil.rmtree(self.folder, ignore_errors=True)


class _Call:
    """One request on its way: the `Outcome` of it, when `perform` or `greet` has returned."""

    def __init__(self, child: _Child, limits: Limits, seconds: float, cancelled: Callable[[], bool]) -> None:
        self.limits = limits
        self.reply: Reply | None = None
        self.stopped = self.gone = ""
        self.stdout, self.stderr = Output(limits.output), Output(limits.output)
        self._child, self._seconds, self._cancelled = child, seconds, cancelled
        self._id: str | None = None
        self._incoming = Replies(limits)
        self._interrupt_at, self._kill_at = time.monotonic() + seconds, float("inf")

    def greet(self) -> None:
        """Wait until a new child says that it is ready."""
        self._converse()

    def perform(self, code: str) -> None:
        self._id = secrets.token_hex(8)
        for name in ("stdout", "stderr"):  # the child appends
            with contextlib.suppress(OSError):
                os.truncate(self._child.folder / name, 0)
        # In a thread, for a child that does not read would block this one.
        threading.Thread(target=_send, args=(self._child.process, request(self._id, code)), daemon=True).start()
        self._converse()

    def _converse(self) -> None:
        try:
            self._listen()
        except Gone as end:
            self.gone = str(end)
            self._child.kill()
        if not self.gone and self._printed() > FLOOD_BYTES:  # it may end before that is seen, at the limit of files
            self.stopped = self.stopped or _FLOOD
        for output, name in ((self.stdout, "stdout"), (self.stderr, "stderr")):
            with contextlib.suppress(OSError), (self._child.folder / name).open("rb") as file:
                while (data := file.read(1 << 20)) and output.total < 2 * FLOOD_BYTES:
                    output.add(data)

    def _listen(self) -> None:
        while self.reply is None:
            data = None
            with contextlib.suppress(queue.Empty):
                data = self._child.inbox.get(timeout=POLL_SECONDS)
            if data == b"":
                raise Gone(self._obituary())
            for reply in self._incoming.feed(data or b""):
                if reply.id == self._id:
                    self.reply = reply
            if self.reply is None:
                self._enforce()
        if self.reply.lost:
            raise Gone(f"it used up its {self.limits.memory // MIB} MiB of memory")

    def _enforce(self) -> None:
        now = time.monotonic()
        if now >= self._kill_at:
            raise Gone(f"{self.stopped}, and it did not react to the interrupt")
        if self._child.process.poll() is not None and self._child.inbox.empty():
            raise Gone(self._obituary())  # a program that it started keeps its end of the channel open
        if now >= self._interrupt_at:
            self._interrupt(f"the time limit of {self._seconds:g} s was reached")
        elif self._cancelled():
            self._interrupt("the run was cancelled")
        elif self._printed() > FLOOD_BYTES:
            self._interrupt(_FLOOD)

    def _interrupt(self, reason: str) -> None:
        if not self.stopped:
            self.stopped = reason
            self._interrupt_at, self._kill_at = float("inf"), time.monotonic() + self.limits.grace
            self._child.interrupt()

    def _printed(self) -> int:
        total = 0
        for name in ("stdout", "stderr"):
            with contextlib.suppress(OSError):
                total += (self._child.folder / name).stat().st_size
        return total

    def _obituary(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._child.process.wait(timeout=1)
            name = signal.Signals(-status).name if status < 0 else ""
            return f"it crashed ({name})" if name else f"it ended itself with exit status {status}"
        return "it closed its connection to the host"


def _start(workdir: Path, limits: Limits) -> _Child:
    """A child that has said it is ready. Raises SandboxUnavailable."""
    folder = Path(tempfile.mkdtemp(prefix="qwen-agent-output-"))
    settings = json.dumps({"limits": asdict(limits), "folder": str(workdir), "output": str(folder)})
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", *_QUIET, "-c", _START.format(root=str(_ROOT)), settings],
        cwd=workdir,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # both for an interrupt that reaches what it started, and not the host
        creationflags=_OWN_GROUP,
    )
    child = _Child(process, folder)
    threading.Thread(target=_receive, args=(process, child.inbox), daemon=True).start()
    call = _Call(child, limits, START_SECONDS, lambda: False)
    call.greet()
    if call.gone:
        child.close()
        raise SandboxUnavailable(f"the Python interpreter {sys.executable} does not start: {call.gone}")
    return child


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.upper() in _KEPT_VARIABLES}
    return {**kept, "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"}


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def _send(process: subprocess.Popen[bytes], frame: bytes) -> None:
    data = memoryview(frame)
    with contextlib.suppress(OSError, ValueError):  # it died; its silence will tell
        while data:
            data = data[_stdin(process).write(data) :]


def _receive(process: subprocess.Popen[bytes], inbox: queue.Queue[bytes]) -> None:
    assert process.stdout is not None
    with process.stdout:
        while data := process.stdout.read(1 << 18):
            inbox.put(data)
    inbox.put(b"")


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file below was changed, and its size; links are not followed."""
    found: dict[str, tuple[int, int]] = {}
    for parent, _, files in os.walk(folder):
        for name in files:
            path = Path(parent, name)
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    status = path.stat()
                    found[path.relative_to(folder).as_posix()] = status.st_mtime_ns, status.st_size
        if len(found) > MAX_FILES:
            break
    return found


# ---- in the child ----------------------------------------------------------------------------------------------------


def inside(root: str) -> None:
    """The child's whole life: take the channels away from the code that will run, then serve."""
    from qwen_agent.tools.sandbox import worker

    settings = json.loads(sys.argv[1])
    sys.path.remove(root)
    requests, replies = os.dup(0), os.dup(1)
    if sys.platform == "win32":
        import msvcrt

        for end in (requests, replies):
            msvcrt.setmode(end, os.O_BINARY)
        signal.signal(signal.SIGBREAK, worker.interrupt)
    _redirect(0, os.devnull, os.O_RDONLY)
    for number, name in ((1, "stdout"), (2, "stderr")):
        _redirect(number, str(Path(settings["output"], name)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _limit_this_process(settings["limits"])
    worker.serve(requests, replies, settings["limits"], settings["folder"])


def _redirect(number: int, path: str, flags: int) -> None:
    opened = os.open(path, flags, 0o600)
    os.dup2(opened, number)
    os.close(opened)


def _limit_this_process(limits: dict[str, int]) -> None:
    """What the system can hold of the limits: all of them on Linux, few on macOS, none on Windows."""
    if sys.platform == "win32":
        return
    import resource

    wanted = {"RLIMIT_AS": limits["memory"], "RLIMIT_FSIZE": limits["file"], "RLIMIT_NOFILE": limits["open_files"]}
    for name, value in {**wanted, "RLIMIT_CORE": 0}.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS refuses some
            resource.setrlimit(which, (most, most))
