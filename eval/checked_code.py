"""Whether a function that a model wrote passes a test, decided where the function cannot reach.

Code that is judged in its own process can judge itself: it can return what is equal to everything, replace the test, or
say that it passed. So there are two jails (`qwen_agent.tools.sandbox`). One runs the function, the other the test, with
a stand-in for the function; arguments and results go between them as plain data, and the test compares data.

The test is begun again until all its calls are answered: a call that is not answered yet gets an `Unknown`, which
passes every comparison, so that one round finds most calls of a test. Random numbers are the same each time.

What is not plain data (a generator, an object of a class) is equal to nothing here; the arguments are copies.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_agent.tools.sandbox import Execution, Limits, Sandbox, open_sandbox
from qwen_agent.tools.sandbox.policy import MIB

MAX_DATA = 1_000_000  # characters of arguments or results at a time
MEMORY = 1024 * MIB
_DEFINED = "the end was reached"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason`` says why not, in a line."""

    passed: bool
    reason: str = ""


class _Failed(Exception):
    pass


def judge(solution: str, entry_point: str, test: str, *, seconds: float = 10.0, memory: int = MEMORY) -> Verdict:
    """Whether the function ``entry_point`` that ``solution`` (not trusted) defines passes ``test`` (trusted).

    ``test`` defines ``check(candidate)``, which raises where the candidate is wrong. The solution has ``seconds`` in
    all, its definition included, and ``memory`` bytes. Raises SandboxUnavailable where no code can be run safely.
    """
    limits = Limits(seconds=seconds, memory=memory, output=MAX_DATA, disk=16 * MIB)
    with _jail(limits) as solver, _jail(limits) as tester:
        try:
            _told(tester.run(f"{_TESTER}\n{test}\n_check = check"), "the test cannot be run")
            return _examined(_Solver(solver, solution, entry_point, seconds), tester, entry_point)
        except _Failed as failure:
            return Verdict(False, str(failure))


def _examined(solver: _Solver, tester: Sandbox, entry_point: str) -> Verdict:
    answers = "[]"
    while True:
        told = _told(tester.run(f"_attempt({answers!r}, {entry_point!r})"), "its results cannot be tested")
        problem, calls = ast.literal_eval(told)
        if calls == "[]":
            return Verdict(not problem, problem)
        answers = solver.answers(calls)


class _Solver:
    """The jail in which the function is defined and called."""

    def __init__(self, sandbox: Sandbox, solution: str, entry_point: str, seconds: float) -> None:
        self._sandbox, self._name = sandbox, entry_point
        self._until = time.monotonic() + seconds
        self._told(_SOLVER)
        # The name that such programs have elsewhere too: what follows `if __name__ == "__main__":` is not meant.
        self._told("__name__ = 'builtins'")
        if self._told(f"{solution}\n{_DEFINED!r}") != _DEFINED:
            raise _Failed("it ended before the function was defined")

    def answers(self, calls: str) -> str:
        """The results of calls, as far as the first that fails: both JSON."""
        return self._told(f"_answered({self._name}, {calls!r})")

    def _told(self, code: str) -> str:
        left = self._until - time.monotonic()
        if left <= 0:
            raise _Failed("interrupted: the time limit was reached")
        return _told(self._sandbox.run(code, seconds=round(left + 0.05, 1)))


def _told(execution: Execution, otherwise: str = "") -> str:
    """The text that a cell has as its value, "" if it has none. Raises _Failed where it did not end well."""
    if execution.state != "ok" or execution.error:
        said = f"{execution.state}: {' '.join(execution.notes)}" if execution.state != "ok" else execution.error
        last = said.strip().splitlines()[-1][:300]
        raise _Failed(f"{otherwise}: {last}" if otherwise else last)
    if not execution.value:
        return ""
    try:
        return str(ast.literal_eval(execution.value))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise _Failed("its results are more than can be read, or no text") from None


@contextlib.contextmanager
def _jail(limits: Limits) -> Iterator[Sandbox]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        sandbox = open_sandbox(Path(folder), limits)
        try:
            yield sandbox
        finally:
            sandbox.close()


# ---- what runs inside: only the standard library, imported where it is used


def _packed(value: Any) -> Any:
    """Plain data as JSON can carry it, told apart by type; subclasses as what they derive from."""
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        return {"int": hex(value)}  # as long as it may be
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_packed(each) for each in value]}
    if isinstance(value, (set, frozenset)):
        return {"set": [_packed(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[_packed(key), _packed(each)] for key, each in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"other": type(value).__name__}


def _unpacked(data: Any) -> Any:
    """The inverse; of what was no data, an object equal to nothing."""
    if not isinstance(data, dict):
        return data
    [(kind, held)] = data.items()
    if kind == "int":
        return int(held, 16)
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](map(_unpacked, held))
    if kind == "dict":
        return {_unpacked(key): _unpacked(each) for key, each in held}
    if kind == "bytes":
        return bytes.fromhex(held)
    return complex(*held) if kind == "complex" else object()


def _answered(function: Any, calls: str) -> str:
    import json

    results: list[Any] = []
    for args, named in map(_unpacked, json.loads(calls)):
        try:
            results.append([True, _packed(function(*args, **named))])
        except (Exception, SystemExit) as error:
            results.append([False, f"{type(error).__name__}: {error}"[:200]])
            break
    return json.dumps(results)


class _Raised(Exception):
    """What the function raised, in words."""


class _Unknown:
    """A result that is not known yet: whatever is done with it, it goes on."""

    def _true(self, *_: Any) -> bool:
        return True

    def _itself(self, *_: Any) -> Any:
        return self

    __hash__ = __iter__ = None  # type: ignore[assignment]
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = _true
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _itself
    __mod__ = __rmod__ = __pow__ = __abs__ = __neg__ = __round__ = __getitem__ = _itself


def _attempt(answers: str, entry_point: str) -> str:
    """Run the test with these answers to what was asked: (why it failed, or ""; the calls to be answered)."""
    import json
    import random

    random.seed(0)
    asked: list[Any] = []

    def candidate(*args: Any, **named: Any) -> Any:
        call = _packed((list(args), named))
        if "_Unknown" in json.dumps(call):
            raise ValueError("it depends on a result that is not known yet")
        number = len(asked)
        if number < len(_known) and _known[number][0] == call:
            asked.append(call)
            right, result = _known[number][1]
            if not right:
                raise _Raised(result)
            return _unpacked(result)
        del _known[number:]
        asked.append(call)
        return _Unknown()

    globals()[entry_point] = candidate  # some tests call it by its name
    _known.extend(zip(_pending, json.loads(answers), strict=False))
    problem = ""
    try:
        _check(candidate)
    except BaseException as error:
        said = (str(error).strip().splitlines() or [""])[0]
        problem = said if isinstance(error, _Raised) else f"{type(error).__name__}: {said}".removesuffix(": ")
    _pending[:] = asked[len(_known) :]
    return repr((problem[:300], json.dumps(_pending)))


_known: list[Any] = []
_pending: list[Any] = []
_check: Any = None

_CODEC = "\n".join(("from typing import Any", inspect.getsource(_packed), inspect.getsource(_unpacked)))
_SOLVER = "\n".join((_CODEC, inspect.getsource(_answered)))
_PARTS = inspect.getsource(_Raised), inspect.getsource(_Unknown), inspect.getsource(_attempt)
_TESTER = "\n".join((_CODEC, *_PARTS, "_known = []\n_pending = []"))
