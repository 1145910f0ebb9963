"""The other end of the sandbox: a process that runs cells of Python in one namespace, one after the other.

It runs inside the jail, is never imported by the package and uses the standard library only. Nothing here protects
anything: the guest shares this process and can change all of it. What it does is keep an honest guest's mistakes
(a closed stdout, a replaced builtin, a recursion limit of 10) from reaching the next cell.

Started as ``python -I worker.py CONTROL_FD LIMITS_JSON``. On the control socket go frames: one byte of kind, four
bytes of length (big-endian), the payload. Kind J is JSON, kind P a PNG file that belongs to the next J.
"""

import ast
import builtins
import contextlib
import gc
import io
import json
import linecache
import mmap
import os
import re
import signal
import sys
import traceback
import types

MAX_FIGURES = 8
SPARE = 32 << 20  # address space kept back, so that the reply to a MemoryError can be written
SHELL_LINE = re.compile(r"^\s*[!%]", re.MULTILINE)
HARMLESS_MAGIC = re.compile(r"^\s*%(matplotlib|config|load_ext|autoreload)\b.*$", re.MULTILINE)
NO_SHELL = "There is no shell and no IPython here: write Python only, without lines that begin with ! or %."

_live_builtins = vars(builtins)
_true_builtins = dict(_live_builtins)
_recursion_limit = sys.getrecursionlimit()
_busy = False

Namespace = dict[str, object]


class Settings:
    """What outlasts the cells."""

    def __init__(self, limits: dict[str, int]) -> None:
        self.streams = os.dup(1), os.dup(2)  # out of the way of a cell that closes 1 and 2
        self.output = limits["output"]  # characters
        self.spare: mmap.mmap | None = None
        self.reserve()

    def reserve(self) -> bool:
        """Keep SPARE bytes of address space, untouched. If that fails, not even a small cell would run from here on."""
        if self.spare is None and not self.try_to_reserve():
            gc.collect()
            self.try_to_reserve()
        return self.spare is not None

    def try_to_reserve(self) -> bool:
        with contextlib.suppress(OSError):
            flags = (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,) if hasattr(mmap, "MAP_PRIVATE") else ()  # not on Windows
            self.spare = mmap.mmap(-1, SPARE, *flags)
        return self.spare is not None

    def release(self) -> None:
        if self.spare is not None:
            self.spare.close()
        self.spare = None


def main() -> None:
    control = int(sys.argv[1])
    serve(control, control, json.loads(sys.argv[2]), "/workspace")


def serve(requests: int, control: int, limits: dict[str, int], folder: str) -> None:
    """Run what comes in at ``requests`` and reply at ``control``, until the host closes the first. Never returns."""
    settings = Settings(limits)
    main_module = types.ModuleType("__main__")  # not this one, so that a guest's globals are its own
    keep_alive = sys.modules["__main__"]
    sys.modules["__main__"] = main_module
    sys.path.append(folder)  # last, so that no file of the guest's hides a module of the standard library
    sys.argv = [""]
    send(control, {"ready": True})
    number = 0
    while (request := receive(requests)) is not None:
        number += 1
        images, reply = run(request["code"], f"<cell {number}>", vars(main_module), settings)
        for image in images:
            send_frame(control, b"P", image)
        send(control, {"id": request["id"], **reply})
    del keep_alive
    os._exit(0)


def run(source: str, name: str, namespace: Namespace, settings: Settings) -> tuple[list[bytes], dict[str, object]]:
    """One cell: (PNG files, reply). Whatever the guest does, this returns, unless the process ends."""
    global _busy
    open_streams(settings.streams)
    signal.signal(signal.SIGINT, interrupt)
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    images, value, error = [], "", ""
    try:
        _busy = True
        try:
            value = execute(source, name, namespace)
            images = figures()
        finally:
            _busy = False
            restore_interpreter()
    except BaseException as failure:  # a border: what the guest raises becomes text, of whatever class it is
        settings.release()
        error = "" if is_quiet_exit(failure) else describe(failure)
    lost = not settings.reserve()
    flush_streams()
    value, cut = clip(value, settings.output)
    error, more = clip(error, settings.output)
    return images, {"value": value, "error": error, "dropped": cut + more, "lost": lost}


def is_quiet_exit(failure: BaseException) -> bool:
    """sys.exit(), exit() or sys.exit(0): a script's way to say that it is done."""
    return type(failure) is SystemExit and (failure.code is None or (type(failure.code) is int and failure.code == 0))


def interrupt(signum: int, frame: types.FrameType | None) -> None:
    if _busy:  # the deadline may strike between two cells
        raise KeyboardInterrupt


def open_streams(saved: tuple[int, int]) -> None:
    """stdout and stderr anew, for the last cell may have closed or replaced them."""
    os.dup2(saved[0], 1)
    os.dup2(saved[1], 2)
    sys.stdout, sys.stderr, sys.stdin = writer(1), writer(2), io.StringIO()


def writer(descriptor: int) -> io.TextIOWrapper:
    binary = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
    return io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # a border: the stream may be any object of the guest's
            stream.flush()


def restore_interpreter() -> None:
    _live_builtins.update(_true_builtins)
    sys.settrace(None)
    sys.setprofile(None)
    sys.setrecursionlimit(_recursion_limit)


def execute(source: str, name: str, namespace: Namespace) -> str:
    """Run the cell; the repr of its last expression, or "" """
    body = parse(source, name)
    linecache.cache[name] = len(source), None, source.splitlines(True), name
    last = body.body[-1] if body.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(body, name, "exec", dont_inherit=True), namespace)
        return ""
    body.body.pop()
    exec(compile(body, name, "exec", dont_inherit=True), namespace)
    value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
    if value is None:
        return ""
    namespace["_"] = value
    return str(repr(value))


def parse(source: str, name: str) -> ast.Module:
    try:
        return ast.parse(source, name)
    except SyntaxError as mistake:
        plain = HARMLESS_MAGIC.sub("", source)
        if SHELL_LINE.search(plain):
            raise SyntaxError(NO_SHELL) from None
        if plain == source:
            raise mistake from None
    return ast.parse(plain, name)


def figures() -> list[bytes]:
    """The open figures of pyplot as PNG files. Costs nothing when pyplot was never imported."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return []
    images = []
    for number in pyplot.get_fignums()[:MAX_FIGURES]:
        buffer = io.BytesIO()
        pyplot.figure(number).savefig(buffer, format="png", bbox_inches="tight")
        images.append(buffer.getvalue())
    if (count := len(pyplot.get_fignums())) > MAX_FIGURES:
        print(f"only {MAX_FIGURES} of {count} figures were kept", file=sys.stderr)
    pyplot.close("all")
    return images


def describe(failure: BaseException) -> str:
    try:
        trim(failure)
        return "".join(traceback.format_exception(type(failure), failure, failure.__traceback__)).rstrip()
    except BaseException:  # a border: its __str__ may do anything
        return "an exception that cannot be shown"


def trim(failure: BaseException) -> None:
    """Leave only the frames of cells in a traceback and in those it came from."""
    pending: list[BaseException | None] = [failure]
    seen = set()
    while pending:
        error = pending.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        error.__traceback__ = frames_of_cells(error.__traceback__)
        pending += [error.__cause__, error.__context__]


def frames_of_cells(tb: types.TracebackType | None) -> types.TracebackType | None:
    kept = []
    while tb is not None:
        if tb.tb_frame.f_code.co_filename.startswith("<cell "):
            kept.append(tb)
        tb = tb.tb_next
    result = None
    for tb in reversed(kept):
        result = types.TracebackType(result, tb.tb_frame, tb.tb_lasti, tb.tb_lineno)
    return result


def clip(text: str, limit: int) -> tuple[str, int]:
    """``text`` without its middle, and how many characters that was."""
    dropped = len(text) - limit
    if dropped <= 0:
        return text, 0
    half = limit // 2
    return f"{text[:half]}\n[... {dropped} characters left out ...]\n{text[len(text) - half :]}", dropped


def send(control: int, message: dict[str, object]) -> None:
    send_frame(control, b"J", json.dumps(message).encode())


def send_frame(control: int, kind: bytes, payload: bytes) -> None:
    data = memoryview(kind + len(payload).to_bytes(4, "big") + payload)
    while data:
        data = data[os.write(control, data) :]


def receive(control: int) -> dict[str, str] | None:
    """The next request, or None when the host has gone."""
    head = read_exactly(control, 5)
    body = head and read_exactly(control, int.from_bytes(head[1:], "big"))
    return json.loads(body) if body else None


def read_exactly(control: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(control, min(count, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    main()
