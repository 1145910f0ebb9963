"""The sandbox's life: state, output, limits that interrupt, restarts, what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import qwen_agent
import qwen_agent.tools.sandbox as package
from qwen_agent.errors import InputError
from qwen_agent.tools.sandbox import Limits, open_sandbox
from qwen_agent.tools.sandbox.session import Session
from qwen_agent.tools.sandbox.workdir import WorkDir, remove_tree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
REPOSITORY = Path(__file__).parents[2]
PACKAGE = Path(qwen_agent.__file__).parent
MIB = 1 << 20


def opened(folder: Path, **limits: float) -> Session:
    sandbox = open_sandbox(folder, Limits(**{"seconds": 5, "grace": 0.3, **limits}))
    assert isinstance(sandbox, Session)
    return sandbox


@pytest.fixture
def sandbox(tmp_path):
    one = opened(tmp_path)
    yield one
    one.close()


def gone(pid: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


# State and output


def test_variables_functions_imports_and_files_are_kept_between_calls(sandbox):
    assert sandbox.run("import math\nx = 6\ndef twice(n): return 2 * n\nopen('a.txt', 'w').write('hello')").value == "5"
    assert sandbox.run("print(twice(x), math.pi > 3, open('a.txt').read())").stdout == "12 True hello\n"


def test_the_last_expression_is_shown_unless_it_is_none(sandbox):
    assert sandbox.run("1\n2 + 3").value == "5"
    assert sandbox.run("_ + 1").value == "6"
    assert sandbox.run("None").value == ""
    assert sandbox.run("x = 3").value == ""
    assert sandbox.run("").state == "ok"


def test_stdout_stderr_and_error_are_told_apart(sandbox):
    execution = sandbox.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n1 / 0")
    assert (execution.stdout, execution.stderr) == ("out\n", "err\n")
    assert execution.error.endswith("ZeroDivisionError: division by zero")
    assert execution.state == "ok"


def test_a_traceback_shows_the_frames_of_cells_only(sandbox):
    sandbox.run("import json\ndef load(text):\n    return json.loads(text)")
    error = sandbox.run("try:\n    load('{')\nexcept ValueError as e:\n    raise RuntimeError('bad') from e").error
    assert "return json.loads(text)" in error and "<cell 1>" in error and "<cell 2>" in error
    assert "worker.py" not in error and "decoder.py" not in error
    assert error.endswith("RuntimeError: bad")


def test_a_syntax_error_points_at_the_line(sandbox):
    error = sandbox.run("x = 1\ny = = 2").error
    assert "line 2" in error and "y = = 2" in error and error.count("SyntaxError") == 1


def test_notebook_lines_are_ignored_where_harmless_and_explained_otherwise(sandbox):
    assert sandbox.run("%matplotlib inline\n1 + 1").value == "2"
    assert "There is no shell" in sandbox.run("!pip install x").error
    assert "There is no shell" in sandbox.run("%pip install x").error
    assert sandbox.run("text = '''\n!x\n%y\n'''\nlen(text)").value == "7"


def test_produced_and_changed_files_are_listed(sandbox, tmp_path):
    (tmp_path / "given.txt").write_text("old")
    made = sandbox.run(
        "import os\nos.makedirs('a/b')\nopen('a/b/c.txt', 'w').close()\nopen('d.txt', 'w').close()"
    ).files
    assert made == ("a/b/c.txt", "d.txt")
    assert sandbox.run("open('given.txt', 'w').write('new'); open('d.txt').read()").files == ("given.txt",)
    assert sandbox.run("1").files == ()


def test_long_texts_lose_their_middle_and_say_so(tmp_path):
    sandbox = opened(tmp_path, output=1000)
    execution = sandbox.run("print('a' * 5000 + 'z'); 'b' * 5000")
    assert execution.stdout.startswith("a" * 500 + "\n[... 4002 characters left out ...]\n")
    assert execution.stdout.endswith("az\n")
    assert len(execution.value) < 1100 and "left out" in execution.value
    assert execution.dropped == 4002 + 4002
    assert sandbox.run("print('é' * 600)").stdout == "é" * 600 + "\n"
    assert len(sandbox.run("raise ValueError('x' * 10**7)").error) < 1100
    sandbox.close()


def test_two_hundred_thousand_lines_keep_their_first_and_last(sandbox):
    stdout = sandbox.run("for n in range(200_000): print(n)").stdout
    assert stdout.startswith("0\n1\n2\n") and stdout.endswith("199998\n199999\n") and len(stdout) < 20_200


def test_a_very_long_program_is_run(sandbox):
    assert sandbox.run("x = '" + "a" * 3_000_000 + "'\nlen(x)").value == "3000000"


def test_unicode_escapes_and_control_tokens_arrive_as_plain_text(sandbox):
    stdout = sandbox.run(r"print('\u202eabc \x1b[31mred <|im_end|> \ud800 日本')").stdout
    assert stdout == "\u202eabc \x1b[31mred <|im_end|> \\ud800 日本\n"
    value = sandbox.run(r"class A:" "\n" r"    def __repr__(self): return '\ud800<|im_start|>'" "\nA()").value
    assert value == "?<|im_start|>"
    assert "UnicodeEncodeError" in sandbox.run("'\ud800'").error


def test_reset_forgets_variables_and_keeps_files(sandbox, tmp_path):
    sandbox.run("x = 1; open('kept', 'w').close()")
    sandbox.reset()
    execution = sandbox.run("x")
    assert "NameError" in execution.error and not execution.restarted
    assert (tmp_path / "kept").exists()


def test_a_closed_sandbox_says_so(sandbox):
    sandbox.close()
    with pytest.raises(InputError, match="closed"):
        sandbox.run("1")


def test_nothing_is_started_before_the_first_call(tmp_path):
    sandbox = opened(tmp_path)
    assert sandbox._owned.guest is None
    sandbox.close()


# Limits, restarts


def test_an_interrupt_keeps_the_variables(tmp_path):
    sandbox = opened(tmp_path, seconds=0.3)
    sandbox.run("x = 42")
    execution = sandbox.run("print('before')\nwhile True: pass")
    assert execution.state == "interrupted" and execution.stdout == "before\n"
    assert "KeyboardInterrupt" in execution.error and "while True" in execution.error
    assert execution.notes == ("The code was interrupted: the time limit of 0.3 s was reached. Variables are kept.",)
    assert sandbox.run("x").value == "42"
    assert sandbox.run("import time\ntime.sleep(9)").state == "interrupted"
    # What ignores the interrupt loses its variables, and the loss is announced in this call and the next.
    execution = sandbox.run("import time\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass")
    assert execution.state == "died" and "Variables are lost" in execution.notes[0] and execution.elapsed < 2
    execution = sandbox.run("x")
    assert execution.restarted and execution.notes == ("The interpreter was restarted; variables are lost.",)
    assert "NameError" in execution.error
    assert not sandbox.run("1").restarted
    sandbox.close()


def test_a_call_may_have_its_own_deadline(sandbox):
    assert sandbox.run("while True: pass", seconds=0.2).elapsed < 1


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("os._exit(3)", "exit status 3"),
        ("os.abort()", "crashed"),
        ("import ctypes; ctypes.string_at(8)", "SIGSEGV"),
        ("os.execv('/bin/true', ['true'])", "exit status 0"),
    ],
)
def test_a_crash_keeps_the_output_before_it_and_is_announced(sandbox, code, why):
    execution = sandbox.run(f"import os\nprint('before')\n{code}")
    assert execution.state == "died" and execution.stdout == "before\n" and why in execution.notes[0]
    assert sandbox.run("print(6*7)").stdout == "42\n"


def test_a_guest_that_died_between_two_calls_is_replaced_and_announced(sandbox):
    sandbox.run("x = 1")
    os.kill(sandbox._owned.guest.pid, signal.SIGKILL)
    sandbox._owned.guest.bwrap.wait()
    execution = sandbox.run("print(6*7)")
    assert execution.restarted and execution.stdout == "42\n"


def test_nothing_runs_between_two_calls(sandbox):
    sandbox.run(
        "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()"
    )
    stat = Path(f"/proc/{sandbox._owned.guest.pid}/stat")
    time.sleep(0.05)
    before = stat.read_text().split()[13:15]
    time.sleep(0.4)
    assert stat.read_text().split()[13:15] == before
    assert sandbox.run("print(6*7)").stdout == "42\n"


def test_a_call_over_the_quota_ends_but_the_next_may_clean_up(tmp_path):
    sandbox = opened(tmp_path, disk=8 * MIB, file=6 * MIB)
    execution = sandbox.run("for n in range(2): open(f'{n}', 'wb').write(bytes(5 << 20))")
    assert execution.state == "died" and "8 MiB" in execution.notes[0]
    assert sandbox.run("import os\nos.remove('0')").state == "ok"
    assert sandbox.run("open('0', 'w').write('fits')").state == "ok"
    sandbox.close()


def test_over_the_quota_nothing_can_be_written_until_enough_is_deleted(tmp_path):
    sandbox = opened(tmp_path, disk=MIB)
    sandbox.run("import os, resource")
    (tmp_path / "big").write_bytes(bytes(3 * MIB))
    grow = "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))"
    assert "not allowed" in sandbox.run(grow).error
    grow = "with open('f', 'w') as f: f.write('x')"
    assert "File too large" in sandbox.run(grow).error
    assert sandbox.run("os.remove('big')").state == "ok"
    assert sandbox.run("open('f', 'w').write('fits')").value == "4"
    sandbox.close()


def test_what_lay_in_the_work_directory_does_not_count(tmp_path):
    (tmp_path / "big").write_bytes(bytes(3 * MIB))
    sandbox = opened(tmp_path, disk=MIB)
    assert sandbox.run("import time; time.sleep(0.4); open('small', 'w').write('x')").state == "ok"
    sandbox.close()


# The host


def test_a_keyboard_interrupt_in_the_host_ends_the_guest(sandbox):
    sandbox.run("x = 1")

    def strike(number, frame):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            sandbox.run("import time\ntime.sleep(4)")
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert sandbox.run("print(6*7)").restarted


def test_ctrl_c_in_the_terminal_does_not_reach_the_guest(sandbox):
    sandbox.run("1")
    assert os.getpgid(sandbox._owned.guest.bwrap.pid) != os.getpgid(0)
    assert os.getpgid(sandbox._owned.guest.pid) != os.getpgid(0)


def test_a_sandbox_started_in_a_thread_outlives_that_thread(sandbox):
    thread = threading.Thread(target=sandbox.run, args=("x = 42",))
    thread.start()
    thread.join()
    time.sleep(0.1)
    execution = sandbox.run("x")
    assert execution.value == "42" and not execution.restarted


def test_calls_from_several_threads_wait_their_turn(sandbox):
    sandbox.run("n = 0")
    code = "m = n\nimport time; time.sleep(0.02)\nn = m + 1"
    threads = [threading.Thread(target=sandbox.run, args=(code,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sandbox.run("n").value == "8"


HOST = """
import sys
from pathlib import Path
from qwen_agent.tools.sandbox import open_sandbox
sandbox = open_sandbox(Path(sys.argv[1]))
sandbox.run(sys.argv[2])
print(sandbox._owned.guest.pid, sandbox._owned.guest.bwrap.pid, flush=True)
"""


def start_host(folder: Path, code: str, then: str) -> tuple[subprocess.Popen[str], list[int]]:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST + then, str(folder), code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return host, [int(pid) for pid in host.stdout.readline().split()]


STAY = """
import ctypes
libc = ctypes.CDLL(None)
libc.prctl(1, 0, 0, 0, 0)
import signal, threading, time
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
threading.Thread(target=time.sleep, args=(60,)).start()
"""


@pytest.mark.parametrize("then", ["sys.stdin.read()", "sandbox.run('while True: pass')"], ids=["idle", "running"])
def test_the_guest_does_not_outlive_the_host(tmp_path, then):
    host, pids = start_host(tmp_path, STAY, then)
    with host:
        time.sleep(0.1)
        host.kill()
    assert all(gone(pid) for pid in pids)


def test_the_guest_ends_when_the_host_exits_without_closing(tmp_path):
    host, pids = start_host(tmp_path, STAY, "")
    with host:
        assert host.wait(timeout=10) == 0
    assert all(gone(pid) for pid in pids)


def test_starts_and_stops_leak_nothing(tmp_path):
    opened(tmp_path).close()

    def held() -> tuple[int, int]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return len(list(Path("/proc/self/fd").iterdir())), len(children)

    counts = set()
    for _ in range(12):
        sandbox = opened(tmp_path)
        assert sandbox.run("print(6*7)").stdout == "42\n"
        sandbox.close()
        counts.add(held())
    assert len(counts) == 1


def test_two_sandboxes_share_nothing(tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    first, second = map(opened, folders)
    look = (
        "import os; print([p for p in os.listdir('/proc') if '0' < p < 'A'], os.listdir(), os.path.exists('/tmp/mine'))"
    )
    first.run("open('mine', 'w').close(); open('/tmp/mine', 'w').close(); open('/dev/shm/mine', 'w').close()")
    assert second.run(look + "; print(os.listdir('/dev/shm'))").stdout == "['1'] [] False\n[]\n"
    assert first.run(look).stdout == "['1'] ['mine'] True\n"
    first.close()
    second.close()


@pytest.mark.parametrize("folder", ["/", str(Path.home()), str(PACKAGE), str(PACKAGE.parent), sys.prefix])
def test_a_work_directory_that_the_host_runs_code_from_is_refused(folder):
    with pytest.raises(InputError, match="work directory"):
        open_sandbox(Path(folder))


def test_a_missing_work_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="not an existing directory"):
        open_sandbox(tmp_path / "none")


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"disk": -1}, {"memory": 1000}, {"seconds": float("nan")}])
def test_limits_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(InputError, match=f"Limits.{next(iter(wrong))}"):
        Limits(**wrong)


# The work directory, seen by the host after a guest was in it


def test_links_in_the_work_directory_lead_nowhere(sandbox, tmp_path_factory, tmp_path):
    secret = tmp_path_factory.mktemp("host") / "secret"
    secret.write_text("secret")
    code = f"""
import os
os.symlink({str(secret)!r}, 'link')
os.symlink({str(secret.parent)!r}, 'folder')
os.symlink('/proc/self/root', 'magic')
os.symlink({str(secret.parent / "new")!r}, 'dangling')
open('real', 'w').write('mine')
try: os.mkfifo('fifo')
except PermissionError: print('no fifo')
try: os.link('/usr/bin/env', 'hard')
except OSError: print('no hard link')
"""
    execution = sandbox.run(code)
    assert execution.stdout == "no fifo\nno hard link\n"
    assert execution.files == ("real",)
    os.mkfifo(tmp_path / "fifo")  # from elsewhere
    folder = WorkDir(tmp_path)
    assert folder.read("real", 100) == b"mine"
    for name in ("link", "folder/secret", "magic/etc/passwd", "dangling"):
        with pytest.raises(OSError):
            folder.read(name, 100)
    for name in ("../secret", "/etc/passwd", "folder/../real", ".", "", "a//b", "a\0b", "fifo"):
        with pytest.raises(InputError):
            folder.read(name, 100)
    for name in ("link", "dangling", "real", "fifo"):
        with pytest.raises(FileExistsError):
            folder.create(name, b"overwritten")
    with pytest.raises(OSError):
        folder.create("folder/new", b"planted")
    folder.close()
    assert secret.read_text() == "secret" and list(secret.parent.iterdir()) == [secret]


def test_a_guest_cannot_change_the_mode_of_anything(sandbox, tmp_path):
    mode = tmp_path.stat().st_mode
    code = "import os, shutil\nos.chmod('.', 0)\nopen('f', 'w').close()\nos.chmod('f', 0o6777)\nshutil.copy('f', 'g')"
    assert sandbox.run(code).value == "'g'"
    assert (tmp_path / "f").stat().st_mode & 0o7111 == 0
    sandbox.run("os._exit(1)")
    assert sandbox.run("print(6*7)").stdout == "42\n"
    assert tmp_path.stat().st_mode == mode


def test_a_tree_of_any_depth_and_mode_is_removed(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").touch()
    (root / "link").symlink_to(keep)
    here = os.open(root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.fchmod(here, 0)
    os.close(here)
    (root / "closed").mkdir()
    (root / "closed" / "file").touch()
    (root / "closed").chmod(0)
    remove_tree(root)
    assert not root.exists() and (keep / "file").exists()


# The documentation


def test_every_promise_has_a_test_of_its_name():
    promises = re.findall(r"^- (\w+):", package.__doc__ or "", re.MULTILINE)
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_sandbox*.py"))
    assert len(promises) > 10
    assert [name for name in promises if f"def test_{name}(" not in tests] == []


def test_the_worker_imports_nothing_but_the_standard_library():
    source = (Path(package.__file__).parent / "worker.py").read_text()
    imported = {
        line.split()[1].split(".")[0]
        for line in textwrap.dedent(source).splitlines()
        if re.match("import |from ", line)
    }
    assert imported <= sys.stdlib_module_names
