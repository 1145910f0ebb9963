"""Plain Python for the interpreter: run in the sandbox, with data that goes in and out as JSON."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from qwen_agent.errors import SandboxUnavailable
from qwen_agent.hf_agent_adapter.interpreter import InterpretorError
from qwen_agent.tools.code_interpreter import plain
from qwen_agent.tools.sandbox import Execution, Limits, Sandbox, open_sandbox

MAX_DATA = 1_000_000  # characters of JSON, each way
LIMITS = Limits(seconds=20.0, output=MAX_DATA)

# Only what JSON can carry comes back; functions and modules stay in the sandbox for the lines that follow.
_PROGRAM = """\
{text_keys}
def _report(value, names):
    import json
    kept = {{}}
    for name in names:
        try:
            json.dumps(globals()[name])
        except (KeyError, TypeError, ValueError):
            continue
        if _text_keys(globals()[name]):
            kept[name] = globals()[name]
    written = json.dumps([value, kept])
    if not _text_keys(value):
        raise TypeError("the keys of a dictionary must be text")
    return written
globals().update(__import__("json").loads({values!r}))
{source}
_report(_value, {names!r})
"""


class SandboxedPython:
    """A `PlainPython` whose sandbox is opened when it is first needed, and keeps its variables.

    ``log`` is told what the code prints. Where there is no sandbox, the reason and the remedy are the error.
    """

    def __init__(self, log: Callable[[str], object] = print) -> None:
        self._log = log
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()

    def run(self, source: str, values: Mapping[str, Any], names: Iterable[str]) -> tuple[Any, dict[str, Any]]:
        """See `PlainPython.run`."""
        sent, names = _as_json(values), list(names)
        data = "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in sent.items()) + "}"
        with self._lock:
            self._sandbox = self._sandbox or self._opened()
            execution = self._sandbox.run(_PROGRAM.format(values=data, source=source, names=names, text_keys=_CHECK))
        if printed := plain(execution.stdout):
            self._log(printed)
        value, changed = _reported(execution)
        # Compared as JSON: a tuple that was only read comes back as a list.
        return value, {n: changed[n] for n in names if n in changed and json.dumps(changed[n]) != sent.get(n)}

    def _opened(self) -> Sandbox:
        folder = Path(tempfile.mkdtemp(prefix="qwen-agent-"))
        try:
            sandbox = open_sandbox(folder, LIMITS)
        except SandboxUnavailable as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InterpretorError(f"This Python needs the sandbox, which there is not: {error}") from None
        weakref.finalize(self, _close, sandbox, folder)
        return sandbox


def _close(sandbox: Sandbox, folder: Path) -> None:
    sandbox.close()
    shutil.rmtree(folder, ignore_errors=True)


def _text_keys(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_text_keys, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(_text_keys, value))


_CHECK = inspect.getsource(_text_keys)  # the same on both sides


def _as_json(values: Mapping[str, Any]) -> dict[str, str]:
    written = {}
    for name, value in values.items():
        try:
            written[name] = json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            kind = type(value).__name__
            raise InterpretorError(
                f"`{name}` is of type {kind}: it can be given to tools, but not be computed with."
            ) from None
        if not _text_keys(value):
            raise InterpretorError(f"`{name}` has keys that are not text: it cannot be computed with.")
    if sum(map(len, written.values())) > MAX_DATA:
        raise InterpretorError(f"The variables hold more than {MAX_DATA} characters: too much to compute with.")
    return written


def _reported(execution: Execution) -> tuple[Any, dict[str, Any]]:
    """What came back, believed only as far as it is data."""
    if execution.error or execution.state != "ok":
        last = plain(execution.error or " ".join(execution.notes)).strip().splitlines()[-1:]
        raise InterpretorError(last[0] if last else "the code could not be run")
    try:
        value, changed = json.loads(ast.literal_eval(execution.value))
        return value, dict(changed)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise InterpretorError("the result of the code is too large, or no plain data") from None
