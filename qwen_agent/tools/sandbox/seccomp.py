"""The system call filter: classic BPF, put together by hand so that nothing but the kernel is needed.

What is refused fails with EPERM, so that Python raises PermissionError and lives; chmod is ignored. System calls newer
than this table answer ENOSYS, as on an older kernel; a foreign architecture or the x32 table is a break-out attempt
and kills.
"""

from __future__ import annotations

import errno
import struct

from qwen_agent.errors import SandboxUnavailable

# Offsets in struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments (little-endian on both machines).
_NR, _ARCH, _ARGS = 0, 4, 16

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
_LAST_KNOWN = 462  # mseal, Linux 6.10; numbers from 424 on are the same on every machine
_LAST_NATIVE = 0x3FFFFFFF  # above it lies the x32 table

_CLONE_THREAD = 0x00010000
_SET_ID_BITS = 0o6000
_PR_SET_PDEATHSIG = 1
_TIOCSTI = 0x5412
_F_SETLEASE, _F_SETPIPE_SZ = 1024, 1031
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF

REFUSED: dict[str, tuple[int | None, int | None]] = {
    # Starting processes. fork and vfork do not exist on aarch64; clone is decided by its flags, below.
    "fork": (57, None),
    "vfork": (58, None),
    # Talking to anything: a network namespace does not contain AF_VSOCK, nor sockets that lie in the file system.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Looking into or steering other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    # Changing the view of the file system, or the namespaces.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Large or historically fragile parts of the kernel that no calculation needs.
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "vhangup": (153, 58),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # Memory that escapes the address-space limit, and objects that count against the host's user.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    # The machine itself.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, None),
    "ioperm": (173, None),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "sync": (162, 81),
    "syncfs": (306, 267),
    # Limits, priority and placement, which the host decides.
    "setrlimit": (160, 164),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    # Device nodes and FIFOs: whoever reads the work directory afterwards could hang on one.
    "mknod": (133, None),
    "mknodat": (259, 33),
}

# ENOSYS makes the C library fall back to clone and open, whose arguments a filter can see.
ABSENT: dict[str, tuple[int | None, int | None]] = {"clone3": (435, 435), "openat2": (437, 437)}

# These succeed and do nothing: as real root the guest owns the host's /dev/null, a set-user-id file in the work
# directory would be one for the host too, and refusing would break shutil.copy.
IGNORED: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
}

JUDGED: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "socketpair": (53, 199),
    "open": (2, None),
    "openat": (257, 56),
    "creat": (85, None),
}

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def program(machine: str) -> bytes:
    """The filter for ``bwrap --seccomp`` on this ``platform.machine()``, or SandboxUnavailable where there is none."""
    if machine not in _AUDIT_ARCH:
        raise SandboxUnavailable(
            f"the sandbox has no system call filter for {machine!r}, only for x86_64 and aarch64: run the agent on one "
            f"of these, or leave code_interpreter out of the tools"
        )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _instructions(machine))


def _instructions(machine: str) -> list[Instruction]:
    column = _COLUMN[machine]
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
        *_unless_greater(_LAST_NATIVE, _KILL),
        *_unless_greater(_LAST_KNOWN, _ERRNO | errno.ENOSYS),
    ]
    for table, answer in ((ABSENT, errno.ENOSYS), (REFUSED, errno.EPERM), (IGNORED, 0)):
        for numbers in table.values():
            code += _on_call(numbers[column], [(_RETURN, 0, 0, _ERRNO | answer)])
    allow = (_RETURN, 0, 0, _ALLOW)
    for name, verdict in _verdicts().items():
        code += _on_call(JUDGED[name][column], [*verdict, allow])
    return [*code, allow]


def _verdicts() -> dict[str, list[Instruction]]:
    return {
        # Threads only: no fork bomb, no orphan, no setuid helper, and RLIMIT_AS is the total of the sandbox.
        "clone": _refuse_unless_any_bit(0, _CLONE_THREAD),
        # The guest must not outlive its host by clearing its parent-death signal.
        "prctl": _refuse_if_equal(0, _PR_SET_PDEATHSIG),
        # Asking for limits is fine (the new ones, argument 2, are a null pointer); setting them is the host's right.
        "prlimit64": _refuse_unless_zero(2),
        "ioctl": _refuse_if_equal(1, _TIOCSTI),
        # Leases hold up other programs' writes; large pipes use up the host user's allowance.
        "fcntl": _refuse_if_equal(1, _F_SETLEASE, _F_SETPIPE_SZ),
        # Stream pairs are enough for asyncio; a datagram one could be re-addressed to a socket in the work directory.
        "socketpair": [*_refuse_unless_equal(0, _AF_UNIX), *_refuse_unless_equal(1, _SOCK_STREAM, _SOCK_TYPE_MASK)],
        # A file can also be made with these bits.
        "open": _refuse_if_any_bit(2, _SET_ID_BITS),
        "openat": _refuse_if_any_bit(3, _SET_ID_BITS),
        "creat": _refuse_if_any_bit(1, _SET_ID_BITS),
    }


_REFUSE: Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)


def _unless_greater(limit: int, action: int) -> list[Instruction]:
    return [(_JUMP_GREATER, 0, 1, limit), (_RETURN, 0, 0, action)]


def _on_call(number: int | None, verdict: list[Instruction]) -> list[Instruction]:
    """``verdict`` for this system call only. It must end in a return: loading an argument overwrites the number."""
    if number is None:
        return []
    return [(_JUMP_EQUAL, 0, len(verdict), number), *verdict]


def _argument(index: int) -> Instruction:
    """Load the low half of an argument, which is all there is to an int or a mode: the kernel drops the rest."""
    return (_LOAD, 0, 0, _ARGS + 8 * index)


def _refuse_if_equal(index: int, *values: int) -> list[Instruction]:
    tests = [instruction for value in values for instruction in ((_JUMP_EQUAL, 0, 1, value), _REFUSE)]
    return [_argument(index), *tests]


def _refuse_unless_equal(index: int, value: int, mask: int = 0xFFFFFFFF) -> list[Instruction]:
    return [_argument(index), (_AND, 0, 0, mask), (_JUMP_EQUAL, 1, 0, value), _REFUSE]


def _refuse_unless_zero(index: int) -> list[Instruction]:
    """Both halves: a pointer has 64 bits."""
    high = (_LOAD, 0, 0, _ARGS + 8 * index + 4)
    return [high, (_JUMP_EQUAL, 1, 0, 0), _REFUSE, *_refuse_unless_equal(index, 0)]


def _refuse_if_any_bit(index: int, bits: int) -> list[Instruction]:
    return [_argument(index), (_JUMP_SET, 0, 1, bits), _REFUSE]


def _refuse_unless_any_bit(index: int, bits: int) -> list[Instruction]:
    return [_argument(index), (_JUMP_SET, 1, 0, bits), _REFUSE]
