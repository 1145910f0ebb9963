"""What a hostile or careless guest may try. Every row also shows that the next call works."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_agent.tools.sandbox import Execution, Limits, open_sandbox, seccomp
from qwen_agent.tools.sandbox.session import Session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
MIB = 1 << 20
LIMITS = Limits(
    seconds=1.5,
    grace=0.3,
    memory=512 * MIB,
    disk=24 * MIB,
    files=500,
    file=8 * MIB,
    tmp=8 * MIB,
    shm=8 * MIB,
    open_files=128,
    threads=64,
)


CLEAN = """
import os, shutil
for entry in os.scandir('.'):
    shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else os.remove(entry)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One sandbox for all rows: each finds it as the last one left it."""
    os.environ["HOST_SECRET"] = "hunter2-7d1f"
    sandbox = open_sandbox(tmp_path_factory.mktemp("work"), LIMITS)
    yield sandbox
    sandbox.close()
    del os.environ["HOST_SECRET"]


@pytest.fixture
def sandbox(shared):
    yield shared
    execution = shared.run("print(6*7)")
    assert execution.stdout == "42\n" and execution.state == "ok", execution
    shared.run(CLEAN)


@pytest.fixture
def fresh(sandbox):
    """The same, with a new interpreter: what earlier rows did to their own would only spoil the demonstration."""
    sandbox.reset()
    return sandbox


def refused(execution: Execution) -> bool:
    return "PermissionError" in execution.error


def explained(*words: str):
    """The guest was stopped, or its code failed, for one of these reasons."""

    def check(execution: Execution) -> bool:
        return any(word in " ".join((*execution.notes, execution.error)) for word in words)

    return check


def printed(*lines: str):
    def check(execution: Execution) -> bool:
        return execution.stdout.splitlines() == list(lines)

    return check


TRY = """
import os
def attempt(*calls):
    for call in calls:
        try: print('done', call())
        except OSError as error: print(error.strerror)
        except ValueError as error: print('ValueError')
"""

PROCESSES = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "vfork and exec": "import subprocess; subprocess.run(['/bin/true'])",
    "posix_spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "double fork": "import pty; pty.fork()",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start()",
}

RESOURCES = {
    "memory in large pieces": (
        "x = []\nwhile True: x.append(' ' * 10**6)",
        explained("MemoryError", "memory", "time limit"),
    ),
    "memory in small pieces": ("x = []\nwhile True: x.append([])", explained("MemoryError", "memory", "time limit")),
    "memory in one piece": ("bytearray(1 << 40)", explained("MemoryError")),
    "memory in a mapping": ("import mmap; mmap.mmap(-1, 1 << 30)", explained("OSError: [Errno 12]", "MemoryError")),
    "endless loop": ("while True: pass", explained("time limit of 1.5 s")),
    "loop that catches the interrupt": (
        "import time\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass",
        explained("did not react"),
    ),
    "interrupt ignored": (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        explained("did not react"),
    ),
    "interrupt blocked": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        explained("did not react"),
    ),
    "hang in C": ("x = 3 ** (10 ** 7)\nstr_of = x ** 30", explained("time limit", "MemoryError")),
    "regular expression": ("import re; re.match('(a+)+$', 'a' * 50 + 'b')", explained("time limit")),
    "endless print": ("while True: print('x' * 5000)", explained("printed more than 8 MiB")),
    "raw write flood": (
        "import os\nwhile True:\n    try: os.write(2, b'x' * 65536)\n    except BaseException: pass",
        explained("printed more than 8 MiB"),
    ),
    "huge repr": ("'x' * 10**8", lambda e: len(e.value) < 21_000 and e.dropped > 9 * 10**7),
    "huge exception": ("raise ValueError('x' * 64_000_000)", lambda e: len(e.error) < 21_000),
    "many threads": (
        "import threading, time\nthreading.stack_size(32768)\n"
        "for _ in range(20_000): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        explained("more than 64 threads", "can't start new thread"),
    ),
    "one large file": ("open('f', 'wb').write(bytes(9 << 20))", explained("File too large")),
    "many large files": (
        "for n in range(100): open(f'{n}', 'wb').write(bytes(7 << 20))",
        explained("more than 24 MiB"),
    ),
    "deleted but open files": (
        "import os, time\nkept = []\nfor n in range(100):\n    kept.append(open('f', 'wb')); os.remove('f')\n"
        "    kept[-1].write(bytes(7 << 20)); time.sleep(0.05)",
        explained("more than 24 MiB"),
    ),
    "a million files": ("for n in range(10**6): open(f'{n}', 'w').close()", explained("more than 500 files")),
    "a million files in /tmp": (
        "for n in range(10**6): open(f'/tmp/{n}', 'w').close()",
        explained("more than 500 files", "No space left"),
    ),
    "deep folders": (
        "import os, time\nwhile True: os.mkdir('d'); os.chdir('d'); time.sleep(0.001)",
        explained("nested too deep"),
    ),
    "unreadable folder": (
        "import os, time\nos.mkdir('d', 0); time.sleep(0.6)",
        lambda e: e.state in ("ok", "died"),
    ),
    "fill /tmp": (
        "import os\nfor n in range(9): open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))",
        explained("No space left"),
    ),
    "fill /dev/shm": (
        "import os\nfor n in range(9): open(f'/dev/shm/{n}', 'wb').write(bytes(1 << 20))",
        explained("No space left"),
    ),
    "file descriptors": ("kept = []\nwhile True: kept.append(open('/dev/null'))", explained("Too many open files")),
    "recursion": ("def f(): return f()\nf()", explained("RecursionError")),
    "recursion without a limit": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n  def __getattr__(s, n): return getattr(s, n)\nA().x",
        explained("crashed", "MemoryError", "RecursionError", "time limit", "memory"),
    ),
    "parser bomb": ("(" * 100_000, explained("SyntaxError", "MemoryError", "crashed", "RecursionError")),
    "nesting bomb": ("-" * 100_000 + "1", explained("RecursionError", "MemoryError", "crashed")),
}

POISON = {
    "sys.exit": ("import sys; sys.exit('bye')", explained("SystemExit: bye")),
    "quiet exit": ("raise SystemExit", lambda e: e.state == "ok" and not e.error),
    "closed descriptors": ("import os\nos.closerange(0, 3)", lambda e: e.state == "ok"),
    "all descriptors closed": (
        "import os\nos.closerange(0, 200)",
        explained("closed its connection", "crashed", "exit"),
    ),
    "stdout is None": ("import sys\nsys.stdout = sys.stderr = sys.stdin = None", lambda e: e.state == "ok"),
    "stdout closed": ("import sys\nsys.stdout.close(); sys.stderr.close()", lambda e: e.state == "ok"),
    "builtins replaced": (
        "import builtins\nfor n in list(vars(builtins)):\n    if n not in ('vars', 'list'): setattr(builtins, n, None)",
        lambda e: True,
    ),
    "builtins deleted": ("import builtins\nvars(builtins).clear()", lambda e: True),
    "recursion limit of 10": ("import sys\nsys.setrecursionlimit(20)", lambda e: True),
    "trace function": ("import sys\ndef t(*a): raise ValueError('t')\nsys.settrace(t)", lambda e: True),
    "json replaced": ("import json\njson.dumps = json.loads = None", lambda e: True),
    "shadowed module": ("for n in ('json', 'os', 'traceback'): open(n + '.py', 'w').write('1/0')", lambda e: True),
    "reading stdin": ("input()", explained("EOFError")),
    "stopping itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nprint('on')", printed("on")),
    "work directory emptied": ("import shutil, os\nshutil.rmtree('.', ignore_errors=True)", lambda e: e.state == "ok"),
    "repr that raises": ("class A:\n    def __repr__(self): raise SystemExit(1)\nA()", explained("SystemExit")),
    "repr that hangs": ("class A:\n    def __repr__(self):\n        while True: pass\nA()", explained("time limit")),
    "exception that cannot be shown": (
        "class E(Exception):\n    def __str__(self): raise KeyboardInterrupt\nraise E",
        lambda e: "E" in e.error or "cannot be shown" in e.error,
    ),
    "exception group of itself": ("e = ValueError()\ne.__cause__ = e\nraise e", explained("ValueError")),
    "null bytes": ("x = 1\0", explained("null bytes")),
    "lone surrogate": ("'\ud800'", explained("UnicodeEncodeError")),
    "main thread ended": (
        "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).syscall(ctypes.c_long(EXIT))".replace(
            "EXIT", "60" if platform.machine() == "x86_64" else "93"
        ),
        explained("did not react"),
    ),
    "main module": ("import sys\nsys.modules.clear()", lambda e: True),
}


@pytest.mark.parametrize("code", PROCESSES.values(), ids=PROCESSES)
def test_no_process_can_be_started_by(sandbox, code):
    assert refused(sandbox.run(code))


def test_no_process_can_be_started(sandbox):
    execution = sandbox.run("import os; print(os.system('echo hello') != 0, os.listdir('/proc').count('2'))")
    assert execution.stdout == "True 0\n"


@pytest.mark.parametrize(("code", "check"), RESOURCES.values(), ids=RESOURCES)
def test_time_memory_output_threads_and_disk_are_bounded_against(sandbox, code, check):
    execution = sandbox.run(code)
    assert check(execution), execution
    assert execution.elapsed < LIMITS.seconds + LIMITS.grace + 2


def test_time_memory_output_threads_and_disk_are_bounded(fresh):
    names = "AS", "FSIZE", "NOFILE", "CORE"
    code = f"import resource as r; print([r.getrlimit(getattr(r, 'RLIMIT_' + n)) for n in {names!r}])"
    limits = [(512 * MIB, 512 * MIB), (8 * MIB, 8 * MIB), (128, 128), (1, 1)]
    execution = fresh.run(code)
    assert execution.stdout == f"{limits}\n", execution
    raise_all = """
import resource as r
for name in ('AS', 'FSIZE', 'NOFILE', 'CORE', 'MEMLOCK'):
    for value in (0, 1 << 40):
        try: r.setrlimit(getattr(r, 'RLIMIT_' + name), (value, value)); print(name)
        except (ValueError, OSError): pass
        try: r.prlimit(0, getattr(r, 'RLIMIT_' + name), (value, value)); print(name)
        except (ValueError, OSError): pass
"""
    assert fresh.run(raise_all).stdout == ""


@pytest.mark.parametrize(("code", "check"), POISON.values(), ids=POISON)
def test_the_next_call_works_after(sandbox, code, check):
    execution = sandbox.run(code)
    assert check(execution), execution


# What can be reached


def test_nothing_on_the_network_can_be_reached(fresh):
    code = """
import socket, errno, asyncio
made = []
for family in range(48):
    for kind in (1, 2, 3, 5):
        for protocol in (0, 1, 15):
            try: made.append(socket.socket(family, kind, protocol))
            except PermissionError: pass
for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    try: made.append(socket.socketpair(socket.AF_UNIX, kind))
    except PermissionError: pass
pair = socket.socketpair()
for use in (lambda: pair[0].bind('/workspace/s'), lambda: pair[0].connect('/workspace/s'), lambda: pair[0].listen()):
    try: made.append(use())
    except PermissionError: pass
try: made.append(socket.getaddrinfo('example.com', 80))
except OSError: pass
async def main(): return 'loop'
print(made, asyncio.run(main()))
"""
    execution = fresh.run(code)
    assert execution.stdout == "[] loop\n", execution


def test_only_usr_the_interpreter_and_the_work_directory_can_be_read(fresh, tmp_path):
    secret = tmp_path / "project" / ".env"
    secret.parent.mkdir()
    secret.write_text("secret")
    places = [
        secret,
        Path.home(),
        Path.home() / ".ssh",
        "/etc/shadow",
        "/etc/passwd",
        "/root/.bashrc",
        "/home",
        "/var/log",
    ]
    places += [
        "/sys",
        "/boot",
        "/mnt",
        "/run/dbus",
        "/proc/kcore",
        "/proc/kmsg",
        "/dev/kmsg",
        "/dev/mem",
        "/proc/1/root/etc/shadow",
    ]
    places += [Path(__file__), Path(__file__).parents[2] / "pyproject.toml"]
    code = f"""
import os
for place in {[str(p) for p in places]!r}:
    try: print(place, os.listdir(place) if os.path.isdir(place) else open(place, 'rb').read(9))
    except OSError: pass
"""
    allowed = {str(Path.home())}  # shows at most the way to an interpreter that lies below it
    execution = fresh.run(code)
    assert [line for line in execution.stdout.splitlines() if line.split()[0] not in allowed] == []
    if str(Path.home()) in execution.stdout:
        assert ".ssh" not in execution.stdout and ".bash" not in execution.stdout
    roots = fresh.run("import os; print(*sorted(os.listdir('/')))").stdout.split()
    assert set(roots) <= {
        "bin",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "run",
        "sbin",
        "tmp",
        "usr",
        "workspace",
    } | {Path(p).parts[1] for p in (sys.prefix, sys.base_prefix, os.path.realpath(sys.executable))}
    assert fresh.run("print(*sorted(os.listdir('/etc')))").stdout.split() <= [
        "alternatives",
        "fonts",
        "ld.so.cache",
        "localtime",
    ]


def test_no_process_of_the_host_can_be_seen_or_signalled(fresh):
    with subprocess.Popen(["sleep", "30"]) as victim:
        code = f"""
import os, signal
print(sorted(n for n in os.listdir('/proc') if n.isdigit()), os.getppid())
for pid in ({victim.pid}, {os.getpid()}, 2, -1, -{os.getpgid(0)}):
    try: os.kill(pid, signal.SIGKILL); print(pid)
    except OSError: pass
"""
        try:
            assert fresh.run(code).stdout == "['1'] 0\n"
            assert victim.poll() is None
        finally:
            victim.kill()


def test_no_environment_variable_of_the_host_can_be_seen(fresh):
    code = """
import os, glob
print(sorted(os.environ))
for name in glob.glob('/proc/**/environ', recursive=True) + glob.glob('/proc/**/cmdline', recursive=True):
    try: print(open(name, 'rb').read())
    except OSError: pass
"""
    stdout = fresh.run(code).stdout
    assert stdout.startswith(
        "['HOME', 'LANG', 'MALLOC_ARENA_MAX', 'MPLBACKEND', 'MPLCONFIGDIR', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', "
    )
    assert "hunter2" not in stdout and os.environ["PATH"] not in stdout
    bwrap = Path(f"/proc/{fresh._owned.guest.bwrap.pid}/environ")
    assert bwrap.read_bytes() == b""


def test_only_the_work_directory_can_be_written(fresh):
    code = (
        TRY
        + """
import sys, shutil
site = [p for p in sys.path if p.endswith('site-packages')] or ['/usr/lib']
for folder in ('/', '/usr', '/usr/bin', '/etc', '/dev', '/run', '/proc', '/lib', '/workspace/..', *site):
    attempt(lambda: open(folder + '/planted', 'w'), lambda: os.mkdir(folder + '/planted'))
for file in (sys.executable, '/proc/self/exe', '/usr/bin/env', '/run/worker.py', '/dev/null'):
    attempt(lambda: os.remove(file), lambda: os.rename(file, '/workspace/x'), lambda: os.link(file, '/workspace/x'))
for file in (sys.executable, '/proc/self/exe', '/run/worker.py', '/proc/self/mem'):
    attempt(lambda: open(file, 'r+b').write(b'x'))
print('end')
"""
    )
    stdout = fresh.run(code).stdout
    assert stdout.endswith("end\n") and "done" not in stdout, stdout
    assert (
        fresh.run("for f in ('f', '/tmp/f', '/dev/shm/f', '/dev/null'): print(open(f, 'w').write('x'))").stdout
        == "1\n" * 4
    )


def test_kernel_settings_cannot_be_changed(fresh):
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    code = (
        TRY
        + """
for name in ('kernel/core_pattern', 'kernel/panic', 'vm/overcommit_memory', 'fs/protected_symlinks', 'kernel/hostname'):
    attempt(lambda: open('/proc/sys/' + name, 'w'), lambda: os.remove('/proc/sys/' + name))
attempt(lambda: open('/proc/sysrq-trigger', 'w'), lambda: open('/proc/self/oom_score_adj', 'w').write('-1000'))
attempt(lambda: os.nice(-5), lambda: os.sethostname('x') if hasattr(os, 'sethostname') else open('/nowhere'))
print('end')
"""
    )
    stdout = fresh.run(code).stdout
    assert stdout.endswith("end\n") and "done" not in stdout, stdout
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_the_modes_of_the_hosts_devices_cannot_be_changed(fresh):
    """As real root the guest owns them, and they cannot be mounted read-only and be usable."""
    before = [Path(f"/dev/{name}").stat().st_mode for name in ("null", "zero", "full", "random", "urandom")]
    fresh.run("import os\nfor n in ('null', 'zero', 'full', 'random', 'urandom'): os.chmod('/dev/' + n, 0o644)")
    after = [Path(f"/dev/{name}").stat().st_mode for name in ("null", "zero", "full", "random", "urandom")]
    if after != before:
        for name in ("null", "zero", "full", "random", "urandom"):
            Path(f"/dev/{name}").chmod(0o666)
    assert after == before


def test_every_refused_system_call_is_refused(fresh):
    column = 0 if platform.machine() == "x86_64" else 1
    numbers = {name: pair[column] for name, pair in seccomp.REFUSED.items() if pair[column] is not None}
    code = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(a) for a in arguments])
    return errno.errorcode.get(ctypes.get_errno()) if result == -1 else result
print([name for name, number in {numbers!r}.items() if call(number, 0, 0, 0, 0, 0, 0) != 'EPERM'])
print(*(call(number, 0, 0, 0, 0, 0) for number in (435, 437, 463, 467, 600)))
"""
    execution = fresh.run(code)
    assert execution.stdout == "[]\nENOSYS ENOSYS ENOSYS ENOSYS ENOSYS\n", execution


def test_arguments_are_judged_where_a_call_is_both_good_and_bad(fresh):
    code = (
        TRY
        + """
import ctypes, fcntl, termios, threading
libc = ctypes.CDLL(None, use_errno=True)
def prctl(*a):
    if libc.prctl(*a): raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
open('f', 'w').close()
attempt(lambda: os.open('g', os.O_CREAT, 0o4755), lambda: os.open('g', os.O_CREAT, 0o2755))
attempt(lambda: prctl(1, 0), lambda: fcntl.ioctl(0, 0x5412, b'x'))
attempt(lambda: fcntl.fcntl(os.pipe()[0], 1031, 1 << 20), lambda: fcntl.fcntl(os.open('f', os.O_RDONLY), 1024, 0))
attempt(lambda: os.mkfifo('p'), lambda: os.mknod('n', 0o60666, 2048), lambda: os.setxattr('f', 'user.a', b'1'))
attempt(lambda: prctl(15, b'name'))
thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()
"""
    )
    assert fresh.run(code).stdout.splitlines() == ["Operation not permitted"] * 9 + ["done None", "thread"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="foreign system call tables of x86_64")
def test_a_foreign_system_call_table_kills(fresh):
    execution = fresh.run("import ctypes; ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))")
    assert execution.state == "died", execution


# Replies

FORGE = """
import os, sys, json
frame = sys._getframe()
while 'request' not in frame.f_locals: frame = frame.f_back
control, identity = frame.f_locals['control'], frame.f_locals['request']['id']
def send(kind, payload, length=None):
    data = kind + (len(payload) if length is None else length).to_bytes(4, 'big') + payload
    while data: data = data[os.write(control, data):]
def answer(**reply): send(b'J', json.dumps(reply).encode())
"""
FORGERIES = {
    "stale": ("answer(id='0', value='forged'); 'true'", lambda e: e.value == "'true'"),
    "its own": (
        "answer(id=identity, value='forged')\nimport time; time.sleep(0.3)",
        lambda e: e.value == "forged" and e.state == "ok",
    ),
    "twice": ("answer(id=identity, value='a'); answer(id=identity, value='b')", lambda e: e.value == "a"),
    "not JSON": ("send(b'J', b'cos\\nsystem')", explained("malformed")),
    "a pickle": ("import pickle; send(b'J', pickle.dumps(print))", explained("malformed")),
    "unknown kind": ("send(b'X', b'')", explained("malformed")),
    "no object": ("send(b'J', b'[1]')", explained("malformed")),
    "unknown field": ("answer(id=identity, state='ok')", explained("malformed")),
    "wrong types": ("answer(id=identity, value=[1])", explained("malformed")),
    "no id": ("answer(id=None)", explained("malformed")),
    "nested": ("send(b'J', b'[' * 200_000)", explained("malformed")),
    "long number": ("send(b'J', b'{\"id\": ' + b'9' * 100_000 + b'}')", explained("malformed")),
    "huge length": ("send(b'J', b'', 0xffffffff)", explained("malformed")),
    "half a frame": ("send(b'J', b'{', 1000)\nwhile True: pass", explained("time limit")),
    "flood of frames": ("while True: answer(id='')", explained("flooded")),
    "flood of bytes": ("while True: send(b'P', b'x' * 10_000_000)", explained("flooded")),
    "long value": ("answer(id=identity, value='x' * 300_000)", lambda e: len(e.value) < 20_300),
}
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@pytest.mark.parametrize(("code", "check"), FORGERIES.values(), ids=FORGERIES)
def test_replies_are_data_when(sandbox, code, check):
    execution = sandbox.run(FORGE + code)
    assert check(execution), execution


def test_replies_are_data(sandbox):
    """Pictures are measured by their header and never decoded."""
    good = PNG + (1).to_bytes(4, "big") * 2
    bad = [b"", b"GIF89a", PNG, PNG + (100_000).to_bytes(4, "big") * 2, PNG + bytes(8), good + bytes(5 * MIB)]
    code = f"for image in {bad[:5]!r} + [{good!r} + bytes(5 << 20), {good!r}]: send(b'P', image)\nanswer(id=identity)"
    execution = sandbox.run(FORGE + code)
    assert execution.images == (good,) and "6 figures were" in execution.notes[0]
    assert len(sandbox.run(FORGE + f"for _ in range(99): send(b'P', {good!r})\nanswer(id=identity)").images) == 8


def test_a_guest_that_does_not_read_cannot_block_the_host(sandbox):
    sandbox.run(FORGE + "answer(id=identity)\nimport time\ntime.sleep(60)")
    started = time.monotonic()
    execution = sandbox.run("x = '" + "a" * 4_000_000 + "'")
    assert execution.state in ("died", "interrupted") and time.monotonic() - started < 20
    assert isinstance(sandbox, Session)
